"""What stored logits say: the region weight w, and how often the teacher is right.

Letters: M regions per image, N images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from losses import region_weight
from regions.store import RegionStore

SURVEYED = 20_000  # images; of a larger store, whole shards spread over it are looked at


def weights_of(logits: np.ndarray) -> np.ndarray:
    """w of logits (..., C), as training weighs their regions: (...) float32."""
    return region_weight(torch.from_numpy(logits)).numpy()


class Survey(NamedTuple):
    """The teacher's word on the images of a store, or on some shards of a large one."""

    images_N: np.ndarray  # their indices, rising
    labels_N: np.ndarray  # index into the class names
    weights_NM: np.ndarray  # w of every region
    right_NM: np.ndarray  # bool: the labelled class is the likeliest

    @property
    def teacher_accuracy(self) -> float:
        """As RegionStore.teacher_accuracy, of these images."""
        return 100 * float(self.right_NM.mean())


def survey(store: RegionStore, max_images: int = SURVEYED) -> Survey:
    """Read the logits of a store, of a large one in shards evenly spread over its images.

    Raises:
        RegionStoreError: a shard is damaged.
    """
    shards = np.arange(len(store.shards))
    if len(store) > max_images:
        count = max(1, max_images // store.shard_images)
        shards = np.unique(np.linspace(0, len(shards) - 1, count).round().astype(int))
    ranges = [(store.shards[i].first_image, store.shards[i].num_images) for i in shards.tolist()]
    images_N = np.concatenate([np.arange(first, first + number) for first, number in ranges])
    return Survey(
        images_N,
        store.spec.images.labels[images_N].astype(np.int64),
        np.concatenate([weights_of(store.read_shard(shard).logits) for shard in shards.tolist()]),
        np.concatenate([store.teacher_is_right(shard) for shard in shards.tolist()]),
    )
