"""What stored logits say: probabilities, the region weight w, and how often the teacher is right.

Letters: R regions of an image, M regions per image, N images, C classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from regions.store import RegionStore

SURVEYED = 20_000  # images; of a larger store, whole shards spread over it are looked at


def log_probabilities(logits_RC: np.ndarray) -> np.ndarray:
    """log softmax over the last axis, float32."""
    wide_RC = np.asarray(logits_RC, np.float32)
    shifted_RC = wide_RC - wide_RC.max(-1, keepdims=True)
    return shifted_RC - np.log(np.exp(shifted_RC).sum(-1, keepdims=True))


def probabilities(logits_RC: np.ndarray) -> np.ndarray:
    """softmax over the last axis, float32."""
    return np.exp(log_probabilities(logits_RC))


def confidence(logits_RC: np.ndarray) -> np.ndarray:
    """w = 1 - H(p) / ln C, (R,) float32: 1 for a certain teacher, 0 for one that cannot tell.

    The same as losses.region_weight, which training computes, but without torch.
    """
    if logits_RC.shape[-1] == 1:
        return np.ones(logits_RC.shape[:-1], np.float32)
    log_p_RC = log_probabilities(logits_RC)
    entropy_R = -(np.exp(log_p_RC) * log_p_RC).sum(-1)
    return np.clip(1 - entropy_R / math.log(logits_RC.shape[-1]), 0, 1)


class Survey(NamedTuple):
    """The teacher's word on the images of a store, or on some shards of a large one."""

    images_N: np.ndarray  # their indices, rising
    labels_N: np.ndarray  # index into the class names
    weights_NM: np.ndarray  # w of every region
    right_NM: np.ndarray  # bool: the labelled class is the likeliest
    image_right_N: np.ndarray  # bool: the same for the mean probability over the regions

    @property
    def region_accuracy(self) -> float:
        """Top-1 over the regions, in percent."""
        return 100 * float(self.right_NM.mean())

    @property
    def image_accuracy(self) -> float:
        """Top-1 over the images, in percent."""
        return 100 * float(self.image_right_N.mean())


def survey(store: RegionStore, max_images: int = SURVEYED) -> Survey:
    """Read the logits of a store, of a large one in shards evenly spread over its images.

    Raises:
        RegionStoreError: a shard is damaged.
    """
    images_N = surveyed_images(store, max_images)
    labels_N = np.array([store.spec.images[int(index)].label for index in images_N])
    shape = (len(images_N), store.spec.num_regions)
    weights_NM, right_NM = np.empty(shape, np.float32), np.empty(shape, bool)
    image_right_N = np.empty(len(images_N), bool)
    every_M = np.arange(store.spec.num_regions)
    for place, (index, label) in enumerate(zip(images_N.tolist(), labels_N, strict=True)):
        logits_MC = store.read(index, every_M).logits
        weights_NM[place] = confidence(logits_MC)
        right_NM[place] = logits_MC.argmax(-1) == label
        image_right_N[place] = probabilities(logits_MC).mean(0).argmax() == label
    return Survey(images_N, labels_N, weights_NM, right_NM, image_right_N)


def surveyed_images(store: RegionStore, max_images: int) -> np.ndarray:
    """Indices of the images that survey looks at: all, or those of evenly spread shards."""
    if len(store) <= max_images:
        return np.arange(len(store))
    # Whole shards: each must be read through once for its checksum anyway.
    count = max(1, max_images // store.shard_images)
    places = np.unique(np.linspace(0, len(store.shards) - 1, count).round().astype(int))
    ranges = [(store.shards[i].first_image, store.shards[i].num_images) for i in places.tolist()]
    return np.concatenate([np.arange(first, first + number) for first, number in ranges])[
        :max_images
    ]
