"""What all data sets on disk share: where they lie, what is checked, and how lists are made.

A data set of the family names its paths and says how a split is read; everything else is here.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from dassl.data.datasets import DatasetBase, Datum

from datasets.fewshot import (
    SPLITS,
    Entry,
    Split,
    cached_few_shot,
    few_shot_split,
    files,
    keep_split,
    read_split,
    subsample_classes,
)
from datasets.sizes import SIZES
from wording import counted

SHOWN = 10  # problems a message lists; the others are counted


def data_root(cfg) -> Path:
    """DATASET.ROOT as an absolute path.

    Raises:
        ValueError: it is no folder.
    """
    root = Path(cfg.DATASET.ROOT).expanduser().absolute()
    if not cfg.DATASET.ROOT or not root.is_dir():
        raise ValueError(
            f"DATASET.ROOT is {cfg.DATASET.ROOT!r}, which is no folder. Make one for the data sets "
            "and pass it: mkdir -p data, then --root data."
        )
    return root


def load_mat(path: Path) -> dict:
    """The variables of a MATLAB file, without dimensions of length 1."""
    from scipy.io import loadmat  # slow to import, and needed only where a split file is missing

    return loadmat(path, squeeze_me=True)


class CheckedDataset(DatasetBase):
    """Lists of images made from a split: checked, drawn, cut to a scope of classes.

    Args:
        images: folder that the split's paths are relative to.
        split: without train it is for evaluation only: train_x is then the test set.
        problems: what is wrong with it. DATASET.STRICT True refuses them; False tells them, leaves
            out images that are not there, and numbers the classes that have training images anew.
        remedy: the next step that a refusal names.
        cache: folder that keeps few-shot draws in split_fewshot/; None keeps none.
    Raises:
        ValueError: there are problems, or no image.
    """

    evaluation_only = False  # no training images: the ImageNet variants
    val_is_test = False  # ImageNet

    def __init__(
        self,
        cfg,
        images: Path,
        split: Split,
        problems: list[str],
        remedy: str,
        cache: Path | None = None,
    ):
        name = type(self).__name__
        if problems and cfg.DATASET.STRICT:
            raise ValueError(
                f"{name} is not as it should be. {told(problems)} Next: {remedy}; or set "
                "DATASET.STRICT False to go on with what is there."
            )
        if problems:
            print(
                f"Warning: {name} is not as it should be (DATASET.STRICT False). {told(problems)}"
            )
            split = close_gaps(without_missing(images, split))
        if not split.test or not (split.train or self.evaluation_only):
            raise ValueError(
                f"{name}: {images} gives no image to train or test on. Next: {remedy}."
            )
        if self.evaluation_only:
            train, val = split.test, []
        else:
            shots, seed = cfg.DATASET.NUM_SHOTS, cfg.SEED
            to_draw = split._replace(val=[]) if self.val_is_test else split
            if cache:
                train, val = cached_few_shot(cache, to_draw, shots, seed)
            else:
                train, val = few_shot_split(to_draw.train, to_draw.val, shots, seed)
            val = split.test if self.val_is_test else val
        train, val, test = subsample_classes(
            cfg.DATASET.SUBSAMPLE_CLASSES,
            *(datums(images, part) for part in (train, val, split.test)),
        )
        scope, left = cfg.DATASET.SUBSAMPLE_CLASSES, len({item.label for item in train})
        if left < 2 or not test:
            whole = len({entry.label for entry in split.train or split.test})
            raise ValueError(
                f"{name}: DATASET.SUBSAMPLE_CLASSES {scope} leaves {counted(left, 'class')} of "
                f"{whole} and {counted(len(test), 'test image')} in {images}. It takes 2 classes "
                "to tell apart, so 4 for base and new, and images to test on."
            )
        super().__init__(train_x=train, val=val or None, test=test)
        if self.num_classes != len(self.classnames):  # Dassl counts them in two ways
            raise ValueError(
                f"{name}: the largest label is {self.num_classes - 1}, but {len(self.classnames)} "
                f"classes have training images. Next: {remedy}."
            )


class FamilyDataset(CheckedDataset):
    """A data set of CoOp's list, in the folder and with the files that its code expects."""

    dataset_dir = ""  # folder under DATASET.ROOT
    image_dir = ""  # folder in it that paths are relative to
    split_file = ""  # the published split; "": the official lists are the split
    needed: tuple[str, ...] = ()  # files that a split is made from where split_file is missing
    listed = False  # the split is a listing of the image folder, so that no file can be missing

    def __init__(self, cfg):
        root = data_root(cfg)
        folder = root / self.dataset_dir
        keep = "whole" if cfg.DATASET.STRICT else "always"
        split, problems = self.inspect(folder, cfg.SEED, keep)
        images = folder / self.image_dir
        super().__init__(cfg, images, split, problems, prepare_command(folder), cache=folder)

    @classmethod
    def make_split(cls, folder: Path, rng: random.Random) -> Split:
        """The split as CoOp's code makes it from the images and the official lists."""
        raise NotImplementedError

    @classmethod
    def inspect(cls, folder: Path, seed: int = 1, keep: str = "never") -> tuple[Split, list[str]]:
        """Read the split and list everything in which the folder differs from a complete one.

        Args:
            seed: of the split that is made where the published one is missing.
            keep: write that split to split_fallback_<name>.json, for every later run to use:
                never, always, or whole (only of a folder in which nothing else is wrong).
        Raises:
            ValueError: there is no split, and nothing to make one from.
        """
        if not (folder / cls.image_dir).is_dir():
            raise ValueError(
                f"{cls.__name__}: there is no folder {folder / cls.image_dir}. "
                f"Next: {prepare_command(folder)}."
            )
        split, fallback = cls._read(folder, seed)
        problems = size_problems(cls.__name__, folder, split)
        if problems and fallback and fallback.exists():
            problems.append(f"{fallback} was made of what was here then; delete it to renew it")
        problems += cls.more_problems(folder, split)
        if not cls.listed:
            problems += missing_files(folder / cls.image_dir, split)
        if fallback and (keep == "always" or (keep == "whole" and not problems)):
            split = keep_split(fallback, split)
        if fallback:
            print(
                f"Warning: {folder / cls.split_file} is missing. The split is one made here "
                f"({fallback.name}), so that results compare with no published number. "
                f"Next: {prepare_command(folder)}."
            )
        return split, problems

    @classmethod
    def more_problems(cls, folder: Path, split: Split) -> list[str]:
        """What a data set checks beyond counts and files."""
        return []

    @classmethod
    def _read(cls, folder: Path, seed: int) -> tuple[Split, Path | None]:
        """The split, and where it is one made here, the place of its file."""
        if cls.split_file and (folder / cls.split_file).is_file():
            return read_split(folder / cls.split_file), None
        fallback = folder / f"split_fallback_{cls.__name__}.json"
        if cls.split_file and fallback.is_file():
            return read_split(fallback), fallback
        absent = [name for name in cls.needed if not (folder / name).is_file()]
        if absent:
            without = f"neither {cls.split_file} nor " if cls.split_file else "no "
            raise ValueError(
                f"{cls.__name__}: {folder} has {without}{', '.join(absent)}. "
                f"Next: {prepare_command(folder)}."
            )
        try:
            split = cls.make_split(folder, random.Random(seed if seed >= 0 else None))
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"{cls.__name__}: {', '.join(cls.needed)} in {folder} do not fit each other "
                f"({type(error).__name__}: {error}). Delete them. Next: {prepare_command(folder)}."
            ) from error
        return split, fallback if cls.split_file else None


def prepare_command(folder: Path) -> str:
    return f"python -m datasets.prepare {folder.name} --root {folder.parent}"


def told(problems: list[str]) -> str:
    """Problems as sentences, the first few of them."""
    more = f" And {len(problems) - SHOWN} more." if len(problems) > SHOWN else ""
    return " ".join(f"{problem}." for problem in problems[:SHOWN]) + more


def datums(images: Path, entries: Iterable[Entry]) -> list[Datum]:
    return [
        Datum(os.path.join(images, entry.path), entry.label, classname=entry.classname)
        for entry in entries
    ]


# Checks. Each returns sentences without a full stop: where, what was found, what was expected.


def size_problems(name: str, folder: Path, split: Split) -> list[str]:
    """Differences from the counts of SIZES, and labels that are no 0, 1, ..., C - 1."""
    sizes, problems = SIZES[name], []
    numbers = {part: len(getattr(split, part)) for part in SPLITS}
    for part in SPLITS:
        expected = getattr(sizes, part)
        if expected is not None and numbers[part] != expected:
            found = counted(numbers[part], f"{part} image", ",")
            problems.append(f"{folder}: {found} found, {expected:,} expected")
    labels = {entry.label for entry in split.train or split.test}
    if len(labels) != sizes.classes:
        problems.append(
            f"{folder}: {counted(len(labels), 'class')} found, {sizes.classes} expected"
        )
    problems += label_problems(split)
    half = set(sorted(labels)[: (len(labels) + 1) // 2])
    base = sum(entry.label in half for entry in split.test)
    if not problems and sizes.test_base not in (None, base):
        problems.append(
            f"{folder}: {base:,} test images of base classes found, {sizes.test_base:,} expected: "
            "the labels are in another order than the family's"
        )
    return problems


def label_problems(split: Split, classes: Sequence[str] = ()) -> list[str]:
    """Classes (known ones, or those in the lists) without training images or with two names."""
    problems, names = [], {label: {name} for label, name in enumerate(classes)}
    for part in split:
        for entry in part:
            names.setdefault(entry.label, set()).add(entry.classname)
    trained = {entry.label for entry in split.train or split.test}
    empty = [label for label in range(max(names, default=-1) + 1) if label not in trained]
    problems += [
        f"class {label} ({', '.join(sorted(names.get(label, {'no name'})))}): "
        "0 training images found, 1 or more expected"
        for label in empty
    ]
    problems += [
        f"class {label}: names {', '.join(map(repr, sorted(found)))} found, one name expected"
        for label, found in sorted(names.items())
        if len(found) > 1
    ]
    return problems


def missing_files(images: Path, split: Split) -> list[str]:
    """Folders that lack images which the split lists, with both counts."""
    expected, found = Counter(), Counter()
    here = _files_by_folder(images, split)
    for path in {entry.path for part in split for entry in part}:
        folder, _, name = path.rpartition("/")
        expected[folder] += 1
        found[folder] += name in here[folder]
    return [
        f"{images / folder}: {counted(found[folder], 'image')} of the split found, "
        f"{count:,} expected"
        for folder, count in sorted(expected.items())
        if found[folder] < count
    ]


def without_missing(images: Path, split: Split) -> Split:
    """The split without images that are not there."""
    here = _files_by_folder(images, split)

    def is_there(path: str) -> bool:
        folder, _, name = path.rpartition("/")
        return name in here[folder]

    return Split(*([entry for entry in part if is_there(entry.path)] for part in split))


def _files_by_folder(images: Path, split: Split) -> dict[str, set[str]]:
    folders = {entry.path.rpartition("/")[0] for part in split for entry in part}
    return {folder: set(files(images / folder)) for folder in folders}


def close_gaps(split: Split) -> Split:
    """Leave out classes without training images, and number the others 0, 1, ... in order."""
    kept = sorted({entry.label for entry in split.train or split.test})
    number = {label: i for i, label in enumerate(kept)}
    return Split(
        *(
            [entry._replace(label=number[entry.label]) for entry in part if entry.label in number]
            for part in split
        )
    )
