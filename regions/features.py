"""Features of a frozen image tower: computed once, kept in a file, found again by id.

They never change while only text is learned. A file is a cache, not a source: one that is stale,
truncated, damaged or of something else counts as absent, and so does a folder that cannot be
written. Features of stored regions are kept beside the store, for runs of all methods, seeds and
settings: <store>.students/<key>.safetensors, and training opens no image.

Letters: N ids or images, D width of a feature, B images of a batch, R regions per step of each,
M stored regions per image.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from files import Lock, human, written_whole
from regions.boxes import cut_all
from regions.dataset import RegionDataset, read_image, to_input
from regions.store import RegionStore, RegionStoreError
from regions.store.tensors import (
    METADATA_KEY,
    Tensors,
    TensorSpec,
    canonical_json,
    check_values,
    header_length,
    map_file,
    parse_tensors,
    tensors_checksum,
)
from wording import counted

# --- the file ---

FORMAT = 1
SPARE_BYTES = 64 * 2**20  # a disk is not filled to its last byte for a cache


class Features(NamedTuple):
    """Features by id."""

    ids: np.ndarray  # (N,) uint64, ascending, each once
    features: np.ndarray  # (N, ..., D) float32, unit length along D

    def places(self, ids: np.ndarray) -> np.ndarray:
        """Where ids stand, int64. Raises KeyError when one is missing."""
        places = np.searchsorted(self.ids, ids)
        found = places < len(self.ids)
        found[found] = self.ids[places[found]] == ids[found]
        if not found.all():
            raise KeyError(f"no feature of id {ids[int((~found).argmax())]}")
        return places


class Found(NamedTuple):
    """What complete() did."""

    kept: Features
    computed: int  # ids that were not there
    path: Path | None  # where they are kept; None: only in memory
    seconds: float

    def __str__(self) -> str:
        """In words, after a colon."""
        if not self.computed:
            return f"read from {self.path} in {self.seconds:.1f} s"
        where = f"kept as {self.path}" if self.path else "not kept (the folder cannot be written)"
        some = f"those of {counted(self.computed, 'image')} were missing, "
        some = some if self.computed < len(self.kept.ids) else ""
        size = human(self.kept.features.nbytes)
        return f"{some}computed in {self.seconds:.1f} s and {where} ({size})"


def feature_key(of: dict[str, Any]) -> str:
    """One name for everything that features depend on, as strings and numbers."""
    text = canonical_json({"format": FORMAT, **of})
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def complete(
    path: Path,
    ids: np.ndarray,
    shape: tuple[int, ...],
    compute: Callable[[np.ndarray], np.ndarray],
    may_wait: bool = True,
) -> Found:
    """Features of some ids: those of the file, and the others computed and added to it.

    Of two processes that lack some, one computes and the other waits, and reads what the first has
    written. Without locks they do no harm: the later file stays, and the next run adds to it.

    Args:
        path: named by feature_key, so that another key is another file.
        ids: uint64, in any order.
        shape: of the features of one id, (..., D).
        compute: ids (n,) uint64 -> float32 (n, ..., D), in their order.
    """
    started = time.perf_counter()
    wanted = np.unique(np.asarray(ids, np.uint64))
    kept = read_features(path, shape)
    if kept is None and path.exists() and may_wait:
        print(f"{path} is damaged or of something else: it is not used, but made anew.")
    if kept is None:
        kept = Features(np.empty(0, np.uint64), np.empty((0, *shape), np.float32))
    missing = wanted[~np.isin(wanted, kept.ids)]
    if not len(missing):
        return Found(kept, 0, path, time.perf_counter() - started)
    if may_wait:  # another may be computing them
        with contextlib.suppress(OSError):  # a folder that cannot be written has no lock
            path.parent.mkdir(parents=True, exist_ok=True)
        doing = f"computing the features of {path.name}"
        with Lock(path.with_name(path.name + ".lock"), doing, "", wait=math.inf, tell=print):
            found = complete(path, ids, shape, compute, may_wait=False)
            return found._replace(seconds=time.perf_counter() - started)
    computed = np.ascontiguousarray(compute(missing), np.float32)
    assert computed.shape == (len(missing), *shape), (computed.shape, len(missing), shape)
    if len(kept.ids):
        every = np.concatenate([kept.ids, missing])
        order = np.argsort(every)
        kept = Features(every[order], np.concatenate([kept.features, computed])[order])
    else:
        kept = Features(missing, computed)
    where = path if _write(path, kept) else None
    return Found(kept, len(missing), where, time.perf_counter() - started)


def read_features(path: Path, shape: tuple[int, ...]) -> Features | None:
    """What a file holds, mapped and checked against its checksum; None where it cannot serve."""
    try:
        content = map_file(path)
        each = 8 + 4 * math.prod(shape)
        expected = _expected((len(content) - header_length(path, content)) // each, shape)
        tensors, checksum = parse_tensors(path, content, expected, _promise(path), "features")
        if tensors_checksum(tensors) != checksum:
            return None
        check_values(path, tensors, expected)
    except RegionStoreError:
        return None
    if not (tensors["ids"][1:] > tensors["ids"][:-1]).all():
        return None
    return Features(tensors["ids"], tensors["features"])


def _write(path: Path, kept: Features) -> bool:
    """Keep features in place of an earlier file, whole or not at all; whether that worked."""
    tensors: Tensors = {"ids": kept.ids, "features": kept.features}
    try:
        check_values(path, tensors, _expected(len(kept.ids), kept.features.shape[1:]))
    except RegionStoreError:  # NaN: training will say so; it is not kept
        return False
    promise = {**_promise(path), "sha256": tensors_checksum(tensors)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < kept.features.nbytes + SPARE_BYTES:
            return False
        with written_whole(path) as partial:
            metadata = {METADATA_KEY: canonical_json(promise)}
            safetensors.numpy.save_file(tensors, partial, metadata)
    except (OSError, safetensors.SafetensorError):  # read-only, or full
        return False
    return True


def _expected(count: int, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
    return {
        "ids": TensorSpec("U64", (count,)),
        "features": TensorSpec("F32", (count, *shape), -1.01, 1.01),
    }


def _promise(path: Path) -> dict[str, Any]:
    return {"holds": "features", "key": path.stem}


# --- of stored regions ---


class Student(NamedTuple):
    """The image tower whose features are kept."""

    encode: Callable[[Tensor], Tensor]  # (B, 3, size, size) float32 -> unit features (B, D)
    digest: str  # of its weights
    precision: str
    width: int  # D
    image_size: int
    mean: tuple[float, ...]  # per channel
    std: tuple[float, ...]
    at_once: int  # regions per pass, see regions_per_pass


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
    """Features (N, M, D) of all regions of some images of a store; ids are store.contents.keys.

    Args:
        places: of the images, as store.image_indices gives them.
        root: the data root, to which the store's paths are relative.
        workers: processes that decode and cut; 0 does it here.
    Raises:
        RegionStoreError: an image is missing, unreadable, or of another size.
    """

    keys = store.contents.keys(places)
    place_of = dict(zip(keys.tolist(), places.tolist(), strict=True))

    def compute(missing: np.ndarray) -> np.ndarray:
        wanted = np.array([place_of[key] for key in missing.tolist()])
        return _compute(store, wanted, student, Path(root).expanduser(), workers)

    shape = (store.spec.num_regions, student.width)
    return complete(features_path(store, student), keys, shape, compute)


def _compute(
    store: RegionStore, places: np.ndarray, student: Student, root: Path, workers: int
) -> np.ndarray:
    num_regions = store.spec.num_regions
    together = max(1, student.at_once // num_regions)  # images; whole ones, whatever is missing
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
            pixels = to_input(regions, student.mean, student.std)
            features = torch.cat([student.encode(part) for part in pixels.split(student.at_once)])
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
            path, digest = str(self.root / stored.path), self.store.contents.digest(place)
            image = read_image(path, stored.height, stored.width, digest)
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
        self._places = kept.places(regions.store.contents.keys(regions.places))

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
