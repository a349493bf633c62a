"""OxfordFlowers: 102 flowers."""

from __future__ import annotations

import json

import numpy as np
from dassl.data.datasets import DATASET_REGISTRY

from datasets.base import FamilyDataset, load_mat
from datasets.fewshot import Entry, divide

RENAMED = {"lotus lotus": "lotus"}  # Udacity's copy of cat_to_name.json against the published one


@DATASET_REGISTRY.register()
class OxfordFlowers(FamilyDataset):
    """The family's split: 50/20/30 of all images, not the authors' own."""

    dataset_dir = "oxford_flowers"
    image_dir = "jpg"
    split_file = "split_zhou_OxfordFlowers.json"
    reproducible = True
    needed = ("imagelabels.mat", "cat_to_name.json")

    @classmethod
    def make_split(cls, folder, rng):
        labels_file, names_file = (folder / name for name in cls.needed)
        names = json.loads(names_file.read_text(encoding="utf-8"))  # by label, from "1"
        names = {number: RENAMED.get(name, name) for number, name in names.items()}
        labels = np.atleast_1d(load_mat(labels_file)["labels"]).tolist()
        images = [
            Entry(f"image_{i:05d}.jpg", int(label) - 1, names[str(label)])
            for i, label in enumerate(labels, start=1)
        ]
        return divide(images, rng)
