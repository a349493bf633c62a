"""The images of a dump, kept as arrays so that a store of a million opens at once.

Letters: N images, P bytes of all paths together, Q paths looked up.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from regions.store.tensors import (
    REDO,
    RegionStoreError,
    Tensors,
    TensorSpec,
    check_values,
    encode_tensors,
    header_length,
    map_file,
    parse_tensors,
    tensors_checksum,
)

PROMISE = {"holds": "images"}  # of the file's metadata
MAX_IMAGES = 2**31 - 1


class RegionImage(NamedTuple):
    """One image of a dump."""

    path: str  # relative to the data root, with forward slashes
    label: int  # index into the class names of the dump
    height: int  # pixels
    width: int


def image_tensors(count: int, path_bytes: int, num_classes: int) -> dict[str, TensorSpec]:
    """The tensors of images.safetensors."""
    return {
        "paths": TensorSpec("U8", (path_bytes,)),  # one after the other
        "ends": TensorSpec("I64", (count,), 1, path_bytes),  # where each path ends
        "labels": TensorSpec("I32", (count,), 0, num_classes - 1),
        "sizes": TensorSpec("I32", (count, 2), 1, 2**31 - 1),  # height, width
        "hashes": TensorSpec("U64", (count,)),  # of the paths, rising
        "order": TensorSpec("I32", (count,), 0, count - 1),  # the image of each hash
    }


class ImageTable(Sequence[RegionImage]):
    """A sequence of RegionImage, equal to another when its digest is.

    The table of an opened store is read from its file when first touched; of a table that goes to
    another process only the place of the file travels.
    """

    def __init__(self, count: int, load: Callable[[], Tensors], digest: str | None = None) -> None:
        self._count = count
        self._load = load
        self._tensors: Tensors | None = None
        if digest is not None:
            self.digest = digest

    @classmethod
    def of(cls, images: Iterable[RegionImage]) -> ImageTable:
        """
        Raises:
            ValueError: an image is listed twice, or has no pixels.
        """
        count, paths, numbers = 0, bytearray(), array("i")
        ends, hashes = array("q"), bytearray()
        for image in images:  # taken one by one: there may be too many for a list
            if min(image.height, image.width) < 1:
                raise ValueError(f"{image.path} is {image.height} x {image.width} pixels.")
            if not _is_inside(image.path):
                raise ValueError(f"{image.path!r} is not a path below the data root.")
            path = _encode(image.path)
            paths += path
            ends.append(len(paths))
            hashes += _hashes([path]).tobytes()
            numbers.extend(image[1:])
            count += 1
        hashes_N = np.frombuffer(hashes, "<u8")
        order = np.argsort(hashes_N, kind="stable").astype("<i4")
        table_N3 = np.array(numbers, "<i4").reshape(-1, 3)
        tensors = {
            "paths": np.frombuffer(bytes(paths), "u1"),
            "ends": np.array(ends, "<i8"),
            "labels": np.ascontiguousarray(table_N3[:, 0]),
            "sizes": np.ascontiguousarray(table_N3[:, 1:]),
            "hashes": hashes_N[order],
            "order": order,
        }
        table = cls(count, partial(dict, tensors))
        table._require_distinct()
        return table

    def _require_distinct(self) -> None:
        """Raises ValueError when two images have the same path; only equal hashes are compared."""
        hashes, order = self.tensors["hashes"], self.tensors["order"]
        places = np.flatnonzero(hashes[1:] == hashes[:-1])
        for group in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1):
            if len(group):
                images = order[group[0] : group[-1] + 2].tolist()
                if len({self._path(image) for image in images}) < len(images):
                    raise ValueError("an image is listed twice among the training images.")

    @classmethod
    def at(cls, path: Path, size: int | None, count: int, digest: str, classes: int) -> ImageTable:
        """The table in a file, which is read when needed. size None: any."""
        return cls(count, partial(_read_table, path, size, count, digest, classes), digest)

    @cached_property
    def digest(self) -> str:
        """The checksum of the tensors."""
        return tensors_checksum(self.tensors)

    @property
    def tensors(self) -> Tensors:
        if self._tensors is None:
            self._tensors = self._load()
        return self._tensors

    @property
    def is_loaded(self) -> bool:
        return self._tensors is not None

    @property
    def labels(self) -> np.ndarray:
        """(N,) int32"""
        return self.tensors["labels"]

    @property
    def sizes(self) -> np.ndarray:
        """(N, 2) int32: height and width in pixels."""
        return self.tensors["sizes"]

    def encode(self) -> bytes:
        """The file images.safetensors."""
        return encode_tensors(self.tensors, PROMISE)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int | slice) -> Any:
        """A RegionImage, or a tuple of them for a slice."""
        if isinstance(index, slice):
            return tuple(map(self.__getitem__, range(*index.indices(self._count))))
        if not -self._count <= index < self._count:
            raise IndexError(f"image {index} of {self._count}")
        index %= self._count
        path = self._path(index).decode("utf-8", "surrogateescape")
        if not _is_inside(path):
            raise RegionStoreError(f"an image of the store has the path {path[:200]!r}. {REDO}")
        height, width = self.sizes[index].tolist()
        return RegionImage(path, int(self.labels[index]), height, width)

    def find(self, paths: Sequence[str]) -> np.ndarray:
        """The index of each path, (len(paths),) int64; -1 where there is none."""
        wanted = [_encode(path) for path in paths]
        hashes, order, ends = (self.tensors[name] for name in ("hashes", "order", "ends"))
        blob, found = memoryview(self.tensors["paths"]), np.full(len(wanted), -1, np.int64)
        hashes_Q = _hashes(wanted)
        places_Q = np.searchsorted(hashes, hashes_Q)
        queries = np.arange(len(wanted))
        while len(queries):  # once, or again for the few whose hash stands for several paths
            queries = queries[places_Q[queries] < self._count]
            queries = queries[hashes[places_Q[queries]] == hashes_Q[queries]]
            images = order[places_Q[queries]].astype(np.int64)
            starts = np.where(images > 0, ends[images - 1], 0).tolist()
            rows = zip(queries.tolist(), starts, ends[images].tolist(), strict=True)
            same = np.array([blob[start:end] == wanted[query] for query, start, end in rows], bool)
            found[queries[same]] = images[same]
            queries = queries[~same]
            places_Q[queries] += 1
        return found

    def _path(self, index: int) -> bytes:
        ends = self.tensors["ends"]
        start = int(ends[index - 1]) if index else 0
        return self.tensors["paths"][start : int(ends[index])].tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageTable) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"<{self._count} images, {self.digest[:12]}>"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tensors": None}


def _read_table(path: Path, size: int | None, count: int, digest: str, classes: int) -> Tensors:
    content = map_file(path, size)
    others = sum(tensor.nbytes for tensor in image_tensors(count, 0, classes).values())
    path_bytes = len(content) - header_length(path, content) - others
    expected = image_tensors(count, max(0, path_bytes), classes)
    tensors, promised = parse_tensors(path, content, expected, PROMISE, "the list of images")
    if not tensors_checksum(tensors) == promised == digest:
        raise RegionStoreError(f"{path} is damaged: its checksum is not the spec's. {REDO}")
    check_values(path, tensors, expected)
    ends, hashes = tensors["ends"], tensors["hashes"]
    if (ends[1:] <= ends[:-1]).any() or ends[-1] != path_bytes or (hashes[1:] < hashes[:-1]).any():
        raise RegionStoreError(f"{path} is not the list of images: it has no order. {REDO}")
    return tensors


def _encode(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")  # the very bytes that the file system has


def _hashes(paths: Sequence[bytes]) -> np.ndarray:
    """First eight bytes of the sha256 of each path, as a little-endian number: (N,) uint64."""
    digests = b"".join(hashlib.sha256(path).digest()[:8] for path in paths)
    return np.frombuffer(digests, "<u8")


def _is_inside(path: str) -> bool:
    """Whether a path stays below the folder it is joined to."""
    parts = path.replace(os.sep, "/").split("/")
    return not {"", ".", ".."} & set(parts) and "\0" not in path and not os.path.splitdrive(path)[0]
