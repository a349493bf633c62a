"""ImageNet (ILSVRC 2012): 1000 classes; the validation images are the test set."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from datasets.base import ListedDataset, prepare_command
from datasets.listing import files, subfolders
from datasets.split import ClassFolder, Listing, Split

# The names of CLIP's list that stand for two classes each; lists made from WordNet have others.
TWICE = {"missile", "sunglasses"}
NUM_CLASSES = 1000
VAL_PER_CLASS = 50


@DATASET_REGISTRY.register()
class ImageNet(ListedDataset):
    """A label is the place of the class's folder (WordNet id) in the sorted training folders."""

    dataset_dir = "imagenet"
    image_dir = "images"
    parents = ("train", "val")
    val_is_test = True

    @classmethod
    def of_files(cls, folder, names):
        classnames = read_classnames(folder)
        images = folder / cls.image_dir
        if not subfolders(images / "val") and files(images / "val"):
            raise ValueError(
                f"ImageNet: the images in {images / 'val'} are not sorted into class folders. "
                f"Next: {prepare_command(folder)}."
            )
        folders = {part: [] for part in cls.parents}
        for path in names:
            part, _, wnid = path.partition("/")
            folders[part].append(wnid)
        label = {wnid: i for i, wnid in enumerate(folders["train"])}
        train, test = (
            Listing(
                ClassFolder(path := f"{part}/{wnid}", label[wnid], classnames[wnid], names[path])
                for wnid in folders[part]
                if wnid in classnames and wnid in label
            )
            for part in cls.parents
        )
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
        problems += [
            f"{folder / cls.image_dir / one.path}: {len(one)} images found, "
            f"{VAL_PER_CLASS} expected"
            for one in split.test.folders
            if len(one) != VAL_PER_CLASS
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
