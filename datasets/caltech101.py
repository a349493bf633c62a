"""Caltech101: objects, 100 classes."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from datasets.base import FamilyDataset
from datasets.fewshot import class_folders, divide

IGNORED = ("BACKGROUND_Google", "Faces_easy")
RENAMED = {
    "airplanes": "airplane",
    "Faces": "face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
}


@DATASET_REGISTRY.register()
class Caltech101(FamilyDataset):
    """Labels follow the ASCII order of the folders: face, leopard, motorbike come first."""

    dataset_dir = "caltech-101"
    image_dir = "101_ObjectCategories"
    split_file = "split_zhou_Caltech101.json"

    @classmethod
    def make_split(cls, folder, rng):
        return divide(class_folders(folder / cls.image_dir, IGNORED, RENAMED), rng)
