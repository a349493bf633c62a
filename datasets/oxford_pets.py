"""OxfordPets: breeds of cats and dogs, 37 classes."""

from __future__ import annotations

from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from datasets.base import FamilyDataset
from datasets.fewshot import Entry, Split, hold_out


@DATASET_REGISTRY.register()
class OxfordPets(FamilyDataset):
    """A breed's name is its image files' name without the number, in lower case."""

    dataset_dir = "oxford_pets"
    image_dir = "images"
    split_file = "split_zhou_OxfordPets.json"
    reproducible = True
    needed = ("annotations/trainval.txt", "annotations/test.txt")

    @classmethod
    def make_split(cls, folder, rng):
        trainval, test = (_read(folder / name) for name in cls.needed)
        return Split(*hold_out(trainval, rng), test)


def _read(path: Path) -> list[Entry]:
    """Lines of "Abyssinian_100 1 1 1": image, class from 1, species, breed within the species."""
    return [
        Entry(f"{image}.jpg", int(number) - 1, image.rpartition("_")[0].lower())
        for image, number, *_ in map(str.split, path.read_text().splitlines())
    ]
