"""What all data sets on disk share: where they lie, what is checked, and how lists are made.

A data set of the family names its paths and says how a split is read; everything else is here.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dassl.data.datasets import DatasetBase, Datum

from datasets.fewshot import (
    SPLIT_SEED,
    cached_few_shot,
    few_shot_split,
    keep_split,
    read_split,
    subsample_classes,
)
from datasets.listing import class_files, files
from datasets.sizes import PUBLISHED, SIZES
from datasets.split import SPLITS, Entry, Split, class_sizes, uncollected
from wording import counted

SHOWN = 10  # problems a message lists; the others are counted

# What `split_source` of a data set says
PUBLISHED_SPLIT = "published"  # read or made here, with the digest of the published file
OFFICIAL = "official lists"  # the authors' own lists or folders; there is no split file
UNCHECKED = "split file"  # of a data set whose published digest is not known
OTHER_FILE = "split file, not the published one"
FALLBACK = "fallback, not the published one"
OWN = "own data"
TOY = "toy world"


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
        source, digest: of the split; see the attributes.
    Attributes:
        split_digest: Split.digest(), 16 hexadecimal digits, before any draw and scope. Runs of
            different splits are not to be averaged.
        split_source: where the split is from, one of the words above: "published", ...
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
        source: str = OWN,
        digest: str = "",
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
        self.split_digest = split.digest() if problems or not digest else digest
        changed = digest and self.split_digest != digest
        self.split_source = f"{source}, incomplete" if changed else source
        if not split.test or not (split.train or self.evaluation_only):
            raise ValueError(
                f"{name}: {images} gives no image to train or test on. Next: {remedy}."
            )
        shots, seed = cfg.DATASET.NUM_SHOTS, cfg.SEED
        if self.evaluation_only:
            train, val = split.test, []
        elif cache:
            train, val = cached_few_shot(cache, split, shots, seed, self.split_digest)
        else:
            train, val = few_shot_split(split.train, split.val, shots, seed)
        scope = cfg.DATASET.SUBSAMPLE_CLASSES
        parts = subsample_classes(scope, train, val, split.test)
        train, val, test = (datums(images, part) for part in parts)
        val = test if self.val_is_test else val
        left = len({item.label for item in train})
        if left < 2 or not test:
            whole = len(class_sizes(split.train or split.test))
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


class Found(NamedTuple):
    """What a data set's folder holds."""

    split: Split
    problems: list[str]  # everything in which it differs from a complete one
    source: str  # as in CheckedDataset.split_source
    digest: str
    note: str  # a sentence on the split, and what to do if it is not the published one


class FamilyDataset(CheckedDataset):
    """A data set of CoOp's list, in the folder and with the files that its code expects."""

    dataset_dir = ""  # folder under DATASET.ROOT
    image_dir = ""  # folder in it that paths are relative to
    split_file = ""  # the published split; "": the official lists are the split
    needed: tuple[str, ...] = ()  # files that a split is made of where split_file is missing
    listed = False  # the split is what the image folder holds, so that no file can be missing
    reproducible = False  # a split made here of the official lists is the published one

    @uncollected()
    def __init__(self, cfg):
        folder = data_root(cfg) / self.dataset_dir
        found = self.inspect(folder, "whole" if cfg.DATASET.STRICT else "always")
        if found.note:
            warning = "Warning: " if found.source in (FALLBACK, OTHER_FILE) else ""
            print(warning + found.note)
        super().__init__(
            cfg, folder / self.image_dir, found.split, found.problems, prepare_command(folder),
            cache=folder, source=found.source, digest=found.digest,
        )  # fmt: skip

    @classmethod
    def make_split(cls, folder: Path, rng: random.Random) -> Split:
        """The split as CoOp's code makes it from the images and the official lists."""
        raise NotImplementedError

    @classmethod
    def inspect(cls, folder: Path, keep: str = "never") -> Found:
        """Read the split and compare the folder with a complete one.

        Args:
            keep: what is made here (a split in split_fallback_<name>.json, a listing in
                listing_<name>.json), for every later run to use: never, always, or a split only
                where nothing else is wrong (whole).
        Raises:
            ValueError: there is no split, and nothing to make one from.
        """
        if not (folder / cls.image_dir).is_dir():
            raise ValueError(
                f"{cls.__name__}: there is no folder {folder / cls.image_dir}. "
                f"Next: {prepare_command(folder)}."
            )
        split, fallback = cls._read(folder, keep)
        made_before = fallback is not None and fallback.exists()
        problems = size_problems(cls.__name__, folder, split)
        if problems and made_before:
            problems.append(f"{fallback} was made of what was here then; delete it to renew it")
        problems += cls.more_problems(folder, split)
        if not cls.listed:
            problems += missing_files(folder / cls.image_dir, split)
        if fallback and (keep == "always" or (keep == "whole" and not problems)):
            split = keep_split(fallback, split)
        return Found(split, problems, *cls._whence(folder, split, fallback, made_before))

    @classmethod
    def _whence(
        cls, folder: Path, split: Split, fallback: Path | None, made_before: bool
    ) -> tuple[str, str, str]:
        """source, digest and note of Found."""
        digest = found = split.digest()
        if not cls.split_file:
            return OFFICIAL, digest, ""
        path, known = fallback or folder / cls.split_file, PUBLISHED.get(cls.__name__)
        if known and known.parts != SPLITS:
            found = known.of(split)
        if known and found == known.digest:
            made = f", made here with seed {SPLIT_SEED}" if fallback else ""
            return PUBLISHED_SPLIT, digest, f"{path.name}: {known.what}, digest {found}{made}."
        if not known and not fallback:
            note = f"{path.name}: digest {digest}; that of the published split is not known."
            return UNCHECKED, digest, note
        lack = (
            f"is not the published one (digest {found}{f', not {known.digest}' if known else ''})"
        )
        again = prepare_command(folder)
        if not fallback:
            what, step = f"The split in {path}", f"delete it, then {again}"
        elif not cls.reproducible:
            what = f"{folder / cls.split_file} is missing. The split made here ({path.name})"
            step = again
        elif made_before:
            what = f"The split in {path}, made with another seed or of other lists,"
            step = "delete it; the next run makes the published one"
        else:
            lists = ", ".join(cls.needed)
            what, step = (
                f"The split made of {lists} in {folder}",
                f"delete these lists, then {again}",
            )
        note = f"{what} {lack}, so that results compare with no published number. Next: {step}."
        return FALLBACK if fallback else OTHER_FILE, digest, note

    @classmethod
    def more_problems(cls, folder: Path, split: Split) -> list[str]:
        """What a data set checks beyond counts and files."""
        return []

    @classmethod
    def _read(cls, folder: Path, keep: str) -> tuple[Split, Path | None]:
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
            split = cls._made(folder, keep)
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"{cls.__name__}: {', '.join(cls.needed)} in {folder} do not fit each other "
                f"({type(error).__name__}: {error}). Delete them. Next: {prepare_command(folder)}."
            ) from error
        return split, fallback if cls.split_file else None

    @classmethod
    def _made(cls, folder: Path, keep: str) -> Split:
        return cls.make_split(folder, random.Random(SPLIT_SEED))


class ListedDataset(FamilyDataset):
    """The images of the class folders are the split."""

    listed = True
    needed = ("classnames.txt",)
    parents: tuple[str, ...] = ("",)  # folders of class folders in the image folder

    @classmethod
    def of_files(cls, folder: Path, names: Mapping[str, str]) -> Split:
        """The split of a listing; names as of class_files()."""
        raise NotImplementedError

    @classmethod
    def make_split(cls, folder, rng):
        return cls.of_files(folder, class_files(folder / cls.image_dir, cls.parents))

    @classmethod
    def _made(cls, folder, keep):
        kept = None if keep == "never" else folder / f"listing_{cls.__name__}.json"
        return cls.of_files(folder, class_files(folder / cls.image_dir, cls.parents, kept))


def prepare_command(folder: Path) -> str:
    return f"python -m datasets.prepare {folder.name} --root {folder.parent}"


def told(problems: list[str]) -> str:
    """Problems as sentences, the first few of them."""
    more = f" And {len(problems) - SHOWN} more." if len(problems) > SHOWN else ""
    return " ".join(f"{problem}." for problem in problems[:SHOWN]) + more


class SeenDatum(Datum):
    """A Datum of an image that was seen when its folder was listed.

    Dassl's own looks at every file once more, which takes as long as all the rest.
    """

    def __init__(self, impath: str, label: int, classname: str):
        self._impath, self._label, self._domain, self._classname = impath, label, 0, classname


def datums(images: Path, entries: Iterable[Entry]) -> list[Datum]:
    root = str(images)
    return [
        SeenDatum(os.path.join(root, path), label, classname) for path, label, classname in entries
    ]


# Checks. Each returns sentences without a full stop: where, what was found, what was expected.


def size_problems(name: str, folder: Path, split: Split) -> list[str]:
    """Differences from the counts of SIZES, and labels that are no 0, 1, ..., C - 1."""
    sizes, problems = SIZES[name], []
    for part in SPLITS:
        expected, count = getattr(sizes, part), len(getattr(split, part))
        if expected is not None and count != expected:
            found = counted(count, f"{part} image", ",")
            problems.append(f"{folder}: {found} found, {expected:,} expected")
    labels = {label for label, _ in class_sizes(split.train or split.test)}
    if len(labels) != sizes.classes:
        problems.append(
            f"{folder}: {counted(len(labels), 'class')} found, {sizes.classes} expected"
        )
    problems += label_problems(split)
    half = set(sorted(labels)[: (len(labels) + 1) // 2])
    base = sum(n for (label, _), n in class_sizes(split.test).items() if label in half)
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
        for label, name in class_sizes(part):
            names.setdefault(label, set()).add(name)
    trained = {label for label, _ in class_sizes(split.train or split.test)}
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
    return [
        f"{images / folder}: {counted(len(here), 'image', ',')} of the split found, "
        f"{len(names):,} expected"
        for folder, (names, here) in sorted(_by_folder(images, split).items())
        if len(here) < len(names)
    ]


def without_missing(images: Path, split: Split) -> Split:
    """The split without images that are not there."""
    here = {folder: found for folder, (_, found) in _by_folder(images, split).items()}

    def is_there(path: str) -> bool:
        folder, _, name = path.rpartition("/")
        return name in here[folder]

    return Split(*([entry for entry in part if is_there(entry.path)] for part in split))


def _by_folder(images: Path, split: Split) -> dict[str, tuple[set[str], set[str]]]:
    """Names that the split lists in each folder, and those of them that are there."""
    listed: dict[str, set[str]] = {}
    for part in split:
        for path, _, _ in part:
            folder, _, name = path.rpartition("/")
            listed.setdefault(folder, set()).add(name)
    return {folder: (names, names.intersection(files(images / folder)))
            for folder, names in listed.items()}  # fmt: skip


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
