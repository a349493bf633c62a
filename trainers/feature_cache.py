"""Image features of a frozen tower, computed once: of stored regions and of test images.

Letters: N images, B images of a batch, D feature width.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from inputs import image_id
from models.prompted_clip import FrozenCLIP
from regions.dataset import RegionDataset, regions_per_pass
from regions.features import Features, Found, Student, complete, feature_key, student_features
from wording import counted


def has_frozen_images(model: FrozenCLIP) -> bool:
    """Whether image features are the same before and after training."""
    return getattr(model, "vision_encoder", None) is None


def cached_regions(model: FrozenCLIP, regions: RegionDataset, root: str, workers: int) -> Features:
    """Features of all stored regions of a run's images, and a line that says what they took."""
    clip = model.clip
    student = Student(
        encode=lambda images: model.image_features(images.to(clip.device)),
        digest=clip.digest,
        precision=clip.precision,
        width=clip.feature_width,
        image_size=clip.image_size,
        mean=clip.mean,
        std=clip.std,
        at_once=regions_per_pass(clip.device),
    )
    found = student_features(regions.store, regions.places, student, root, workers)
    seen = counted(len(regions), "image"), counted(regions.store.spec.num_regions, "region")
    what = f"Student features of {' x '.join(seen)}"
    print(f"{what}: {found}. Training opens no image")
    return found.kept


def with_kept_features(
    model: FrozenCLIP, cfg: Any, loader: DataLoader | None
) -> DataLoader | FeatureBatches | None:
    """A loader of test images as one of their features, where these never change.

    Image towers that are trained, transforms that cannot be told apart, and no loader at all are
    given back as they are.
    """
    transform = repr(getattr(getattr(loader, "dataset", None), "transform", None))
    if loader is None or isinstance(loader, FeatureBatches) or " at 0x" in transform:
        return loader
    if not (cfg.TEST.CACHE_FEATURES and has_frozen_images(model)):
        return loader
    return FeatureBatches(model, cfg, loader)


class FeatureBatches:
    """The batches of a test loader, features (B, D) in the place of images, in its order.

    They are found or computed when the first batch is asked for.
    """

    def __init__(self, model: FrozenCLIP, cfg: Any, loader: DataLoader) -> None:
        self.model, self.loader = model, loader
        self.dataset, self.batch_size = loader.dataset, loader.batch_size
        self.num_workers = loader.num_workers
        key = feature_key(
            {
                "student": model.clip.digest,
                "precision": model.clip.precision,
                "transform": repr(loader.dataset.transform),
                "mean": [float(value) for value in cfg.INPUT.PIXEL_MEAN],
                "std": [float(value) for value in cfg.INPUT.PIXEL_STD],
                "reader": 2,  # of inputs.to_rgb: before it, 16 bits were cut off at 255
                "decoders": [f"{name} {version(name)}" for name in ("pillow", "torchvision")],
            }
        )
        folder = Path(cfg.TEST.FEATURES_DIR or Path(cfg.DATASET.ROOT, ".features")).expanduser()
        self.path = folder / f"{cfg.DATASET.NAME}-{key}.safetensors"

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        items, size = self.dataset.data_source, self.batch_size
        try:
            ids = np.array([image_id(item.impath) for item in items], np.uint64)
        except OSError:  # a missing image: reading it will say so
            yield from self.loader
            return
        found = self._find(ids)
        print(f"Features of {counted(len(ids), 'image')}: {found}")
        features = found.kept.features[found.kept.places(ids)]
        for first in range(0, len(items), size):
            part = items[first : first + size]
            yield {
                "img": torch.from_numpy(features[first : first + size]),
                "label": torch.tensor([item.label for item in part]),
                "impath": [item.impath for item in part],
            }

    def _find(self, ids: np.ndarray) -> Found:
        clip, last = self.model.clip, {image: place for place, image in enumerate(ids.tolist())}

        def compute(missing: np.ndarray) -> np.ndarray:
            # In the loader's order: the first test has the bits of one without a cache.
            places = sorted(last[image] for image in missing.tolist())
            subset = DataLoader(
                Subset(self.dataset, places),
                batch_size=self.batch_size,
                num_workers=self.num_workers,
                pin_memory=self.loader.pin_memory,
                generator=torch.Generator(),  # leaves the run's random numbers as they are
            )
            waits = 0.5 if sys.stderr.isatty() else 10
            parts = []
            with torch.no_grad():
                for batch in tqdm(subset, desc="image features", mininterval=waits):
                    for images in batch["img"].split(regions_per_pass(clip.device)):
                        parts.append(self.model.image_features(images.to(clip.device)).cpu())
            order = np.argsort(ids[places])
            return torch.cat(parts).float().numpy()[order]

        return complete(self.path, ids, (clip.feature_width,), compute)
