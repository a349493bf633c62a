"""A frozen student's features of stored regions: computed once, kept beside the store, trained on.

They never change while only text is learned, so runs of all such methods, seeds and settings share
<store>.students/<key>.safetensors, and training opens no image. Letters: B images of a batch,
R regions per step of each, M stored regions per image, D feature width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from regions.boxes import cut_all
from regions.dataset import RegionDataset, read_image, to_input
from regions.feature_file import Features, Found, complete, feature_key
from regions.store import RegionStore, RegionStoreError

PASS = 256  # regions per pass of the image tower, about


class Student(NamedTuple):
    """The image tower whose features are kept."""

    encode: Callable[[Tensor], Tensor]  # (B, 3, size, size) float32 -> unit features (B, D)
    digest: str  # of its weights
    precision: str
    width: int  # D
    image_size: int
    mean: tuple[float, ...]  # per channel
    std: tuple[float, ...]


def features_path(store: RegionStore, student: Student) -> Path:
    """Where they are kept: by the student's weights, precision and pixels, and the store's spec."""
    key = feature_key(
        {
            "store": store.spec.id,
            "student": student.digest,
            "precision": student.precision,
            "image_size": student.image_size,
            "mean": [float(value) for value in student.mean],
            "std": [float(value) for value in student.std],
        }
    )
    return store.path.with_name(store.path.name + ".students") / f"{key}.safetensors"


def student_features(
    store: RegionStore, places: np.ndarray, student: Student, root: str | Path, workers: int = 0
) -> Found:
    """Features (N, M, D) of all regions of some images of a store; ids are places in the store.

    Args:
        places: of the images, as store.image_indices gives them.
        root: the data root, to which the store's paths are relative.
        workers: processes that decode and cut; 0 does it here.
    Raises:
        RegionStoreError: an image is missing, unreadable, or of another size.
    """

    def compute(ids: np.ndarray) -> np.ndarray:
        return _compute(store, ids.astype(np.int64), student, Path(root).expanduser(), workers)

    shape = (store.spec.num_regions, student.width)
    return complete(features_path(store, student), places, shape, compute)


def _compute(
    store: RegionStore, places: np.ndarray, student: Student, root: Path, workers: int
) -> np.ndarray:
    num_regions = store.spec.num_regions
    together = max(1, PASS // num_regions)  # images in a pass; whole ones, whatever else is missing
    loader = DataLoader(
        _AllRegions(store, places, student.image_size, root),
        batch_size=together,
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),  # leaves the run's random numbers as they are
    )
    bar = tqdm(
        total=len(places) * num_regions,
        unit=" regions",
        desc="student features",
        mininterval=0.5 if sys.stderr.isatty() else 10,
    )
    out = np.empty((len(places), num_regions, student.width), np.float32)
    done = 0
    with bar, torch.no_grad():
        for samples in loader:
            for sample in samples:
                if isinstance(sample, RegionStoreError):
                    raise sample
            regions = np.concatenate(samples)
            features = student.encode(to_input(regions, student.mean, student.std))
            part = features.float().cpu().numpy().reshape(len(samples), num_regions, -1)
            out[done : done + len(samples)] = part
            done += len(samples)
            bar.update(len(regions))
    return out


class _AllRegions(Dataset):
    """All regions of an image, uint8 (M, H, W, 3); or the error, which no worker should print."""

    def __init__(self, store: RegionStore, places: np.ndarray, size: int, root: Path) -> None:
        self.store, self.places, self.size, self.root = store, places, size, root

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> np.ndarray | RegionStoreError:
        place = int(self.places[index])
        stored = self.store.spec.images[place]
        shard, row = divmod(place, self.store.shard_images)
        arrays = self.store.arrays(shard)
        try:
            image = read_image(str(self.root / stored.path), stored.height, stored.width)
        except RegionStoreError as error:
            return error
        return cut_all(image, arrays["boxes"][row], arrays["flips"][row], self.size)


class RegionFeatures(Dataset):
    """The samples of a RegionDataset as features: no image is opened.

    Indexed by a whole batch of keys (i, regions), as RegionSampler draws them, it gives what
    collate_regions makes of them, but for img, which is (B*R, D) float32.
    """

    def __init__(self, regions: RegionDataset, kept: Features) -> None:
        self.regions, self.kept = regions, kept
        self._places = kept.places(regions.places.astype(np.uint64))

    def __len__(self) -> int:
        return len(self.regions)

    def draw_regions(self, generator: torch.Generator | None = None) -> Tensor:
        return self.regions.draw_regions(generator)

    def __getitem__(self, key: int | tuple[int, Tensor]) -> dict[str, Any]:
        return self.__getitems__([key if isinstance(key, tuple) else (key, self.draw_regions())])

    def __getitems__(self, keys: Sequence[tuple[int, Tensor]]) -> dict[str, Any]:
        index_B = np.array([index for index, _ in keys])
        chosen_BR = np.stack([np.asarray(chosen) for _, chosen in keys])
        features = self.kept.features[self._places[index_B, None], chosen_BR]
        batch, _ = self.regions.read_batch(keys)
        return {"img": torch.from_numpy(features).flatten(0, 1), **batch}
