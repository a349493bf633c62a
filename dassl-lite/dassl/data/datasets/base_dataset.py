"""Datum (one labelled image) and DatasetBase (the splits of a data set)."""

from __future__ import annotations

import os
import random
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Sequence

from dassl.utils import check_isfile, mkdir_if_missing


class Datum:
    """One image: path, class number, domain number, class name.

    The four private names are part of pickled few-shot caches and stay as they are.
    """

    def __init__(
        self, impath: str = "", label: int = 0, domain: int = 0, classname: str = ""
    ) -> None:
        if not isinstance(impath, str):
            raise ValueError(f"Datum.impath is a {type(impath).__name__}; it needs a str.")
        check_isfile(impath)
        self._impath = impath
        self._label = label
        self._domain = domain
        self._classname = classname

    def __repr__(self) -> str:
        return (
            f"Datum(impath={self._impath!r}, label={self._label}, domain={self._domain}, "
            f"classname={self._classname!r})"
        )

    @property
    def impath(self) -> str:
        return self._impath

    @property
    def label(self) -> int:
        return self._label

    @property
    def domain(self) -> int:
        return self._domain

    @property
    def classname(self) -> str:
        return self._classname


class DatasetBase:
    """The splits of a data set. Classes are those of train_x, numbered 0, 1, ... without a gap.

    Args:
        train_x: labelled training images.
        train_u: unlabelled training images.
        val, test: images to measure on; their classes must be among train_x's.
    Raises:
        ValueError: train_x is empty, a class has no image in it, or a class has two names.
    """

    dataset_dir = ""  # folder under DATASET.ROOT
    domains: Sequence[str] = []

    def __init__(
        self,
        train_x: list[Datum] | None = None,
        train_u: list[Datum] | None = None,
        val: list[Datum] | None = None,
        test: list[Datum] | None = None,
    ) -> None:
        self._train_x, self._train_u, self._val, self._test = train_x, train_u, val, test
        self._check_classes()
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)

    @property
    def train_x(self) -> list[Datum]:
        return self._train_x

    @property
    def train_u(self) -> list[Datum] | None:
        return self._train_u

    @property
    def val(self) -> list[Datum] | None:
        return self._val

    @property
    def test(self) -> list[Datum] | None:
        return self._test

    @property
    def lab2cname(self) -> dict[int, str]:
        return self._lab2cname

    @property
    def classnames(self) -> list[str]:
        return self._classnames

    @property
    def num_classes(self) -> int:
        return self._num_classes

    @staticmethod
    def get_num_classes(data_source: Iterable[Datum]) -> int:
        """Largest class number plus one."""
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source: Iterable[Datum]) -> tuple[dict[int, str], list[str]]:
        """Names by class number, and the names in order of the numbers.

        Raises:
            ValueError: a class has two names.
        """
        names: dict[int, str] = {}
        for item in data_source:
            if names.setdefault(item.label, item.classname) != item.classname:
                raise ValueError(
                    f"Class {item.label} is called {names[item.label]!r} and {item.classname!r} "
                    f"({item.impath}); give each class one name."
                )
        mapping = dict(sorted(names.items()))
        return mapping, list(mapping.values())

    def check_input_domains(
        self, source_domains: Sequence[str], target_domains: Sequence[str]
    ) -> None:
        """Refuse empty or unknown source and target domains with a ValueError."""
        for key, domains in (("SOURCE", source_domains), ("TARGET", target_domains)):
            if len(domains) == 0:
                raise ValueError(
                    f"DATASET.{key}_DOMAINS is empty; choose from {', '.join(self.domains)}."
                )
            self.is_input_domain_valid(domains)

    def is_input_domain_valid(self, input_domains: Iterable[str]) -> None:
        """Refuse a domain this data set does not have with a ValueError."""
        for domain in input_domains:
            if domain not in self.domains:
                raise ValueError(
                    f"{type(self).__name__} has no domain {domain!r}; "
                    f"choose from {', '.join(self.domains)}."
                )

    def download_data(self, url: str, dst: str, from_gdrive: bool = True) -> None:
        """Fetch a Google Drive archive to ``dst`` and unpack it beside.

        Raises:
            ValueError: a link that is not on Google Drive, or an archive that is neither .zip, .tar
                nor .tar.gz.
        """
        if not from_gdrive:
            raise ValueError(f"Fetch {url} by hand and put it to {dst}; only Google Drive works.")
        import gdown  # needed here alone

        folder = os.path.dirname(dst)
        mkdir_if_missing(folder)
        gdown.download(url, dst, quiet=False)
        print("Extracting file ...")
        if dst.endswith(".zip"):
            with zipfile.ZipFile(dst) as archive:
                archive.extractall(folder)
        elif dst.endswith((".tar", ".tar.gz")):
            with tarfile.open(dst) as archive:
                archive.extractall(folder, filter="data")  # nothing outside the folder
        else:
            raise ValueError(f"{dst} is neither .zip, .tar nor .tar.gz; unpack it by hand.")
        print(f"File extracted to {folder}")

    def generate_fewshot_dataset(
        self, *data_sources: list[Datum], num_shots: int = -1, repeat: bool = False
    ) -> list[Datum] | list[list[Datum]] | tuple[list[Datum], ...]:
        """Draw images of each class with python's ``random``, one data source after the other.

        Args:
            num_shots: images per class; below 1 keeps every data source as it is.
            repeat: fill a class that has fewer by drawing with replacement; else keep what it has.
        Returns:
            One list for one data source, else one per data source.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources
        print(f"Creating a {num_shots}-shot dataset")
        drawn = []
        for data_source in data_sources:
            chosen: list[Datum] = []
            for items in self.split_dataset_by_label(data_source).values():
                if len(items) >= num_shots:
                    chosen += random.sample(items, num_shots)
                elif repeat:
                    chosen += random.choices(items, k=num_shots)
                else:
                    chosen += items
            drawn.append(chosen)
        return drawn[0] if len(drawn) == 1 else drawn

    def split_dataset_by_label(self, data_source: Iterable[Datum]) -> dict[int, list[Datum]]:
        """Images by class number, classes in order of first appearance."""
        groups = defaultdict(list)
        for item in data_source:
            groups[item.label].append(item)
        return groups

    def split_dataset_by_domain(self, data_source: Iterable[Datum]) -> dict[int, list[Datum]]:
        """Images by domain number, domains in order of first appearance."""
        groups = defaultdict(list)
        for item in data_source:
            groups[item.domain].append(item)
        return groups

    def _check_classes(self) -> None:
        """A class without training images would shift every class after it against its logit."""
        where = type(self).__name__
        if not self._train_x:
            raise ValueError(f"{where}: train_x is empty; check DATASET.ROOT and the split file.")
        present = {item.label for item in self._train_x}
        if min(present) < 0:
            raise ValueError(f"{where}: class {min(present)} in train_x; classes start at 0.")
        elsewhere = {
            item.label: (item.classname, split)
            for split, items in (("test", self._test), ("val", self._val))
            for item in items or []
        }
        missing = sorted((set(range(max(present))) | set(elsewhere)) - present)
        if missing:
            named = []
            for label in missing:
                name, split = elsewhere.get(label, (None, None))
                named.append(f"{label} ({name!r}, has images in {split})" if name else f"{label}")
            raise ValueError(
                f"{where}: no training image of class {', '.join(named)}. "
                "Check the split file and the image folder, or number the classes 0, 1, ... anew."
            )
