"""DescribableTextures (DTD): 47 adjectives for textures."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from datasets.base import FamilyDataset
from datasets.fewshot import class_folders, divide


@DATASET_REGISTRY.register()
class DescribableTextures(FamilyDataset):
    """Folder dtd, yaml dtd.yaml, but registered under the long name, as in CoOp."""

    dataset_dir = "dtd"
    image_dir = "images"
    split_file = "split_zhou_DescribableTextures.json"

    @classmethod
    def make_split(cls, folder, rng):
        return divide(class_folders(folder / cls.image_dir), rng)
