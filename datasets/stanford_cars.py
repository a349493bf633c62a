"""StanfordCars: make, model and year of cars, 196 classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from dassl.data.datasets import DATASET_REGISTRY

from datasets.base import FamilyDataset, load_mat
from datasets.fewshot import Entry, Split, hold_out


@DATASET_REGISTRY.register()
class StanfordCars(FamilyDataset):
    """The split's paths start with cars_train/ or cars_test/. Class names start with the year."""

    dataset_dir = "stanford_cars"
    image_dir = "."
    split_file = "split_zhou_StanfordCars.json"
    reproducible = True
    needed = (
        "devkit/cars_train_annos.mat",
        "cars_test_annos_withlabels.mat",
        "devkit/cars_meta.mat",
    )

    @classmethod
    def make_split(cls, folder, rng):
        train_file, test_file, names_file = (folder / name for name in cls.needed)
        names = [_year_first(str(name)) for name in load_mat(names_file)["class_names"]]
        trainval = _read(train_file, "cars_train", names)
        return Split(*hold_out(trainval, rng), _read(test_file, "cars_test", names))


def _year_first(name: str) -> str:
    words = name.split(" ")
    return " ".join([words[-1], *words[:-1]])


def _read(path: Path, folder: str, names: list[str]) -> list[Entry]:
    cars = np.atleast_1d(load_mat(path)["annotations"])
    labels = [int(car["class"]) - 1 for car in cars]
    return [
        Entry(f"{folder}/{car['fname']}", label, names[label])
        for car, label in zip(cars, labels, strict=True)
    ]
