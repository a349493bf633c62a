"""EuroSAT: land use from a satellite, 10 classes."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from datasets.base import FamilyDataset
from datasets.fewshot import class_folders, divide

RENAMED = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}


@DATASET_REGISTRY.register()
class EuroSAT(FamilyDataset):
    """The RGB version; its folder is called 2750."""

    dataset_dir = "eurosat"
    image_dir = "2750"
    split_file = "split_zhou_EuroSAT.json"

    @classmethod
    def make_split(cls, folder, rng):
        return divide(class_folders(folder / cls.image_dir, renamed=RENAMED), rng)
