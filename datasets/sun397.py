"""SUN397: scenes, 397 classes."""

from __future__ import annotations

from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from datasets.base import FamilyDataset
from datasets.fewshot import Entry, Split, hold_out


@DATASET_REGISTRY.register()
class SUN397(FamilyDataset):
    """Class /a/apse/indoor is called "indoor apse". A split made here uses partition 01."""

    dataset_dir = "sun397"
    image_dir = "SUN397"
    split_file = "split_zhou_SUN397.json"
    reproducible = True
    needed = ("ClassName.txt", "Training_01.txt", "Testing_01.txt")

    @classmethod
    def make_split(cls, folder, rng):
        names, trainval, test = (_lines(folder / name) for name in cls.needed)
        label = {name: i for i, name in enumerate(names)}
        trainval, test = ([_entry(path, label) for path in paths] for paths in (trainval, test))
        return Split(*hold_out(trainval, rng), test)


def _entry(path: str, label: dict[str, int]) -> Entry:
    raw = path.rpartition("/")[0]  # a/apse/indoor
    return Entry(path, label[raw], " ".join(reversed(raw.split("/")[1:])))


def _lines(path: Path) -> list[str]:
    """Lines without the / they start with."""
    return [line.strip()[1:] for line in path.read_text().splitlines() if line.strip()]
