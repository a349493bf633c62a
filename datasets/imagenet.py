"""ImageNet (ILSVRC 2012): 1000 classes; the validation images are the test set."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from datasets.base import FamilyDataset, prepare_command
from datasets.fewshot import Entry, Split, files, subfolders

# The names of CLIP's list that stand for two classes each; lists made from WordNet have others.
TWICE = {"missile", "sunglasses"}
NUM_CLASSES = 1000
VAL_PER_CLASS = 50


@DATASET_REGISTRY.register()
class ImageNet(FamilyDataset):
    """A label is the place of the class's folder (WordNet id) in the sorted training folders."""

    dataset_dir = "imagenet"
    image_dir = "images"
    needed = ("classnames.txt",)
    listed = True
    val_is_test = True

    @classmethod
    def make_split(cls, folder, rng):
        names = read_classnames(folder)
        images = folder / cls.image_dir
        if not subfolders(images / "val") and files(images / "val"):
            raise ValueError(
                f"ImageNet: the images in {images / 'val'} are not sorted into class folders. "
                f"Next: {prepare_command(folder)}."
            )
        label = {wnid: i for i, wnid in enumerate(subfolders(images / "train"))}
        train, test = (_listing(images, part, names, label) for part in ("train", "val"))
        return Split(train, [], test)

    @classmethod
    def more_problems(cls, folder, split):
        names, problems = read_classnames(folder), name_problems(folder)
        for part in ("train", "val"):
            place = folder / cls.image_dir / part
            found = subfolders(place)
            absent, foreign = sorted(set(names) - set(found)), sorted(set(found) - set(names))
            if absent:
                problems.append(
                    f"{place}: {len(found) - len(foreign)} class folders found, {len(names)} "
                    f"expected; the first absent one is {absent[0]}"
                )
            if foreign:
                problems.append(f"{place}: {foreign[0]} found, which classnames.txt does not have")
        count = Counter(entry.path.split("/")[1] for entry in split.test)
        problems += [
            f"{folder / cls.image_dir / 'val' / wnid}: {count[wnid]} images found, "
            f"{VAL_PER_CLASS} expected"
            for wnid in sorted(count)
            if count[wnid] != VAL_PER_CLASS
        ]
        return problems


def read_classnames(folder: Path) -> dict[str, str]:
    """Names by WordNet id, from lines of "n01440764 tench" in classnames.txt."""
    lines = (folder / "classnames.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.strip().partition(" ") for line in lines if line.strip())
    return {wnid: name.strip() for wnid, _, name in pairs}


def name_problems(folder: Path) -> list[str]:
    """Is classnames.txt CLIP's list? It has 1000 lines, and two names that occur twice."""
    names = read_classnames(folder)
    twice = {name for name, count in Counter(names.values()).items() if count > 1}
    if len(names) == NUM_CLASSES and twice == TWICE:
        return []
    return [
        f"{folder / 'classnames.txt'}: {len(names)} names found, among them "
        f"{', '.join(sorted(twice)) or 'none'} more than once; {NUM_CLASSES} expected, with "
        f"{' and '.join(sorted(TWICE))} twice: other lists give other results"
    ]


def _listing(images: Path, part: str, names: dict[str, str], label: dict[str, int]) -> list[Entry]:
    return [
        Entry(f"{part}/{wnid}/{image}", label[wnid], names[wnid])
        for wnid in subfolders(images / part)
        if wnid in names and wnid in label
        for image in files(images / part / wnid)
    ]
