"""Own images, chosen by config alone: ImageFolder and CSV. docs/OWN_DATA.md walks through both."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY, Datum

from datasets.base import CheckedDataset, data_root
from datasets.decoding import check_images, memory_file
from datasets.own_files import Listing, listed, read_csv, read_folder
from datasets.split import Split
from wording import counted


class OwnDataset(CheckedDataset):
    """Images of the user, one class each."""

    own_data = True  # trainers then report on the data before they train

    def __init__(self, cfg, listing: Listing):
        for note in listing.notes:
            print(f"Note: {note}.")
        split, problems, remedy = listing.split, listing.problems, listing.remedy
        if not (problems and cfg.DATASET.STRICT):  # else it is refused before that takes time
            checked = check_images(listing.paths(), memory_file(cfg, listing.place))
            for note in checked.notes():
                print(f"Note: {note}.")
            if checked.broken:
                if not problems:
                    remedy = (
                        f"python -m datasets.prepare {listing.place} --verify --decode lists them"
                    )
                problems = [*problems, checked.problem()]
                split = Split(
                    *(
                        [e for e in part if os.path.join(listing.images, e.path) not in checked]
                        for part in split
                    )
                )
        super().__init__(cfg, listing.images, split, problems, remedy)
        for note in few_images(self.class_counts(), cfg.DATASET.NUM_SHOTS):
            print(f"Warning: {note}.")

    def class_counts(self) -> list[tuple[str, int, int, int]]:
        """Class name and its images in train, val and test, as this run uses them."""
        return class_counts(self.classnames, self.train_x, self.val, self.test)


def class_counts(
    classnames: Iterable[str], *splits: list[Datum] | None
) -> list[tuple[str, int, int, int]]:
    """Class name and its number of images in each split."""
    counts = [Counter(item.label for item in split or []) for split in splits]
    return [(name, *(count[i] for count in counts)) for i, name in enumerate(classnames)]


def few_images(counts: Sequence[tuple[str, int, int, int]], shots: int) -> list[str]:
    """Classes that give fewer training images than DATASET.NUM_SHOTS, or none to test on."""
    notes = []
    for names, what in (
        ([name for name, train, *_ in counts if train < shots],
         f"fewer than DATASET.NUM_SHOTS {shots} training images"),
        ([name for name, _, _, test in counts if not test],
         "no test images, so that accuracy says nothing of them"),
    ):  # fmt: skip
        if names:
            have = "has" if len(names) == 1 else "have"
            notes.append(f"{counted(len(names), 'class')} {have} {what}: {listed(names)}")
    return notes


@DATASET_REGISTRY.register()
class ImageFolder(OwnDataset):
    """DATASET.FOLDER/<class>/*.jpg, split automatically; or train, val, test with class folders.

    A class is called like its folder, or as FOLDER/classnames.txt says.
    """

    def __init__(self, cfg):
        root = data_root(cfg)
        folder = (root / Path(cfg.DATASET.FOLDER).expanduser()) if cfg.DATASET.FOLDER else root
        if not folder.is_dir():
            raise ValueError(
                f"DATASET.FOLDER is {cfg.DATASET.FOLDER!r}: there is no folder {folder}. Set it to "
                "the folder of the images, absolute or under --root."
            )
        super().__init__(cfg, read_folder(folder))


@DATASET_REGISTRY.register()
class CSV(OwnDataset):
    """DATASET.CSV with the columns path, label and, if wanted, split and classname.

    Paths are absolute or relative to the CSV file. Without split the images are split
    automatically. A label is a class name, or a number with the name in classname.
    """

    def __init__(self, cfg):
        path = data_root(cfg) / Path(cfg.DATASET.CSV).expanduser()
        if not path.is_file():
            raise ValueError(
                f"DATASET.CSV is {cfg.DATASET.CSV!r}: there is no file {path}. Set it to a file "
                "with the columns path,label, absolute or under --root."
            )
        super().__init__(cfg, read_csv(path))
