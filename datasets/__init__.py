"""Data sets, registered with Dassl under DATASET.NAME by being imported here."""

from __future__ import annotations

import entry  # noqa: F401  first, since a signal may come during the slow imports below

# isort: split
from datasets import (
    caltech101,
    dtd,
    eurosat,
    fgvc_aircraft,
    food101,
    imagenet,
    imagenet_variants,
    own_data,
    oxford_flowers,
    oxford_pets,
    stanford_cars,
    sun397,
    toy,
    ucf101,
)

__all__ = [
    "caltech101",
    "dtd",
    "eurosat",
    "fgvc_aircraft",
    "food101",
    "imagenet",
    "imagenet_variants",
    "oxford_flowers",
    "oxford_pets",
    "own_data",
    "stanford_cars",
    "sun397",
    "toy",
    "ucf101",
]
