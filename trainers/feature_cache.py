"""Image features of a frozen tower, computed once: of stored regions and of test images.

Letters: N images, B images of a batch, D feature width.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from yacs.config import CfgNode

from models.prompted_clip import FrozenCLIP
from regions.dataset import RegionDataset
from regions.feature_file import Features, Found, complete, feature_key
from regions.student_features import Student, student_features


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
    )
    start = time.perf_counter()
    found = student_features(regions.store, regions.places, student, root, workers)
    what = f"Student features of {len(regions)} images x {regions.store.spec.num_regions} regions"
    print(f"{what}: {_told(found, time.perf_counter() - start)}. Training opens no image")
    return found.kept


def with_kept_features(model: FrozenCLIP, cfg: CfgNode, loader: DataLoader) -> Iterable[dict]:
    """A loader of test images, or batches of their features where these never change.

    Image towers that are trained, or transforms that cannot be told apart, are left alone.
    """
    transform = repr(getattr(loader.dataset, "transform", None))
    if not (cfg.TEST.CACHE_FEATURES and has_frozen_images(model)) or " at 0x" in transform:
        return loader
    folder = Path(cfg.TEST.FEATURES_DIR or Path(cfg.DATASET.ROOT, ".features")).expanduser()
    try:
        ids = np.array([image_id(item.impath) for item in loader.dataset.data_source], np.uint64)
    except OSError:  # a missing image: reading it will say so
        return loader
    return FeatureBatches(model, cfg, loader, transform, folder, ids)


class FeatureBatches:
    """The batches of a test loader, features (B, D) in the place of images, in its order."""

    def __init__(
        self,
        model: FrozenCLIP,
        cfg: CfgNode,
        loader: DataLoader,
        transform: str,
        folder: Path,
        ids: np.ndarray,
    ) -> None:
        self.dataset, self.batch_size = loader.dataset, loader.batch_size
        self.items = loader.dataset.data_source
        start = time.perf_counter()
        found = self._find(model, cfg, loader, transform, folder, ids)
        print(f"Features of {len(ids)} images: {_told(found, time.perf_counter() - start)}")
        self.features = found.kept.features[found.kept.places(ids)]

    def __len__(self) -> int:
        return -(-len(self.items) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for first in range(0, len(self.items), self.batch_size):
            items = self.items[first : first + self.batch_size]
            yield {
                "img": torch.from_numpy(self.features[first : first + self.batch_size]),
                "label": torch.tensor([item.label for item in items]),
                "impath": [item.impath for item in items],
            }

    def _find(
        self,
        model: FrozenCLIP,
        cfg: CfgNode,
        loader: DataLoader,
        transform: str,
        folder: Path,
        ids: np.ndarray,
    ) -> Found:
        clip = model.clip
        key = feature_key(
            {
                "student": clip.digest,
                "precision": clip.precision,
                "transform": transform,
                "mean": [float(value) for value in cfg.INPUT.PIXEL_MEAN],
                "std": [float(value) for value in cfg.INPUT.PIXEL_STD],
                "decoders": [f"{name} {version(name)}" for name in ("pillow", "torchvision")],
            }
        )
        last = {int(image): place for place, image in enumerate(ids.tolist())}

        def compute(missing: np.ndarray) -> np.ndarray:
            # In the loader's order and batches: the first test has the bits of one without a cache.
            places = sorted(last[image] for image in missing.tolist())
            subset = DataLoader(
                Subset(loader.dataset, places),
                batch_size=loader.batch_size,
                num_workers=loader.num_workers,
                pin_memory=loader.pin_memory,
                generator=torch.Generator(),  # leaves the run's random numbers as they are
            )
            bar = tqdm(subset, desc="image features", mininterval=0.5 if _is_shown() else 10)
            with torch.no_grad():
                parts = [model.image_features(b["img"].to(clip.device)).cpu() for b in bar]
            order = np.argsort(ids[places])
            return torch.cat(parts).float().numpy()[order]

        path = folder / f"{cfg.DATASET.NAME}-{key}.safetensors"
        return complete(path, ids, (clip.feature_width,), compute)


def image_id(path: str) -> int:
    """64 bits of an image's path, size, and times of change; another id is another image.

    The inode's time counts as well: no program can write a file and leave that as it was.
    """
    file = os.stat(path)
    text = f"{os.path.abspath(path)}\n{file.st_size}\n{file.st_mtime_ns}\n{file.st_ctime_ns}"
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "little")


def _told(found: Found, seconds: float) -> str:
    if not found.computed:
        return f"read from {found.path} in {seconds:.1f} s"
    where = f"kept as {found.path}" if found.path else "not kept (the folder cannot be written)"
    size = found.kept.features.nbytes / 1e6
    count = len(found.kept.ids)
    some = "" if found.computed == count else f"those of {found.computed} images were missing, "
    return f"{some}computed in {seconds:.1f} s and {where} ({size:.1f} MB)"


def _is_shown() -> bool:
    return sys.stderr.isatty()
