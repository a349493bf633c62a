"""Food101: dishes, 101 classes."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from datasets.base import FamilyDataset
from datasets.fewshot import class_folders, divide


@DATASET_REGISTRY.register()
class Food101(FamilyDataset):
    """Class names keep their underscores; prompts say spaces."""

    dataset_dir = "food-101"
    image_dir = "images"
    split_file = "split_zhou_Food101.json"

    @classmethod
    def make_split(cls, folder, rng):
        return divide(class_folders(folder / cls.image_dir), rng)
