"""Unit features kept in a file, by id: found again, or computed where they are missing.

A cache, not a source: a file that is stale, truncated, damaged or of something else counts as
absent, and so does a folder that cannot be written. Letters: N ids, D width of a feature.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from regions.files import (
    METADATA_KEY,
    RegionStoreError,
    Tensors,
    TensorSpec,
    canonical_json,
    check_values,
    header_length,
    map_file,
    parse_tensors,
    tensors_checksum,
)

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


def feature_key(of: dict[str, Any]) -> str:
    """One name for everything that features depend on, as strings and numbers."""
    text = canonical_json({"format": FORMAT, **of})
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def complete(
    path: Path,
    ids: np.ndarray,
    shape: tuple[int, ...],
    compute: Callable[[np.ndarray], np.ndarray],
) -> Found:
    """Features of some ids: those of the file, and the others computed and added to it.

    Two processes that add at once do no harm: the later file stays, and what it lacks is computed
    again by the next run.

    Args:
        path: named by feature_key, so that another key is another file.
        ids: uint64, in any order.
        shape: of the features of one id, (..., D).
        compute: ids (n,) uint64 -> float32 (n, ..., D), in their order.
    """
    wanted = np.unique(np.asarray(ids, np.uint64))
    kept = read_features(path, shape)
    if kept is None:
        kept = Features(np.empty(0, np.uint64), np.empty((0, *shape), np.float32))
    missing = wanted[~np.isin(wanted, kept.ids)]
    if not len(missing):
        return Found(kept, 0, path)
    computed = np.ascontiguousarray(compute(missing), np.float32)
    assert computed.shape == (len(missing), *shape), (computed.shape, len(missing), shape)
    if len(kept.ids):
        every = np.concatenate([kept.ids, missing])
        order = np.argsort(every)
        kept = Features(every[order], np.concatenate([kept.features, computed])[order])
    else:
        kept = Features(missing, computed)
    return Found(kept, len(missing), path if _write(path, kept) else None)


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
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < kept.features.nbytes + SPARE_BYTES:
            return False
        metadata = {METADATA_KEY: canonical_json(promise)}
        safetensors.numpy.save_file(tensors, unfinished, metadata)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, safetensors.SafetensorError):  # read-only, or full
        with contextlib.suppress(OSError):
            unfinished.unlink()
        return False
    return True


def _expected(count: int, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
    return {
        "ids": TensorSpec("U64", (count,)),
        "features": TensorSpec("F32", (count, *shape), -1.01, 1.01),
    }


def _promise(path: Path) -> dict[str, Any]:
    return {"holds": "features", "key": path.stem}
