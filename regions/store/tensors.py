"""A file of tensors: encoded with its checksum, size-checked and strictly parsed when read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

METADATA_KEY = "region_store"  # the one key of a safetensors header's metadata
MAX_HEADER = 2**20  # bytes; a header takes about 500
DTYPES = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
}
REDO = (
    "Copy the file again from where the store came from, or run the dump again "
    "with the flags it was made with: it redoes this file and keeps the others."
)


class RegionStoreError(ValueError):
    """The store on disk cannot serve this run. The message says what to do."""


class TensorSpec(NamedTuple):
    """What a tensor of a file must be."""

    dtype: str  # as safetensors names it
    shape: tuple[int, ...]
    low: float = -math.inf  # every value lies in low..high; NaN lies nowhere
    high: float = math.inf

    @property
    def nbytes(self) -> int:
        return DTYPES[self.dtype].itemsize * math.prod(self.shape)


Tensors = dict[str, np.ndarray]


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, ASCII, shortest floats."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


# --- writing --------------------------------------------------------------------------------


def encode_tensors(tensors: Tensors, promise: dict[str, Any]) -> bytes:
    """A safetensors file whose metadata promises what it is and the checksum of its tensors."""
    promise = {**promise, "sha256": tensors_checksum(tensors)}
    # One metadata key: safetensors does not promise an order for several.
    return safetensors.numpy.save(tensors, {METADATA_KEY: canonical_json(promise)})


def tensors_checksum(tensors: Tensors) -> str:
    """sha256 over the bytes of the tensors in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


# --- reading --------------------------------------------------------------------------------


@contextlib.contextmanager
def reading_file(path: Path) -> Any:
    """Turn what the system says of a file into a RegionStoreError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise RegionStoreError(f"{path} is missing. {REDO}") from error
    except OSError as error:
        raise RegionStoreError(f"{path} cannot be read: {error.strerror or error}.") from error


def regular_size(path: Path) -> int:
    """The size of a file; a folder, pipe or device in its place is refused, and never opened."""
    with reading_file(path):
        found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise RegionStoreError(f"{path} is no regular file. {REDO}")
    return found.st_size


def check_size(path: Path, expected_bytes: int) -> None:
    """Refuse a file of another size, before anything of it is mapped."""
    found = regular_size(path)
    if found != expected_bytes:
        raise RegionStoreError(f"{path} has {found} bytes instead of {expected_bytes}. {REDO}")


def file_checksum(path: Path) -> str:
    """sha256 of a file, read in pieces: a mapped file would count as memory of the process."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(2**18))
    regular_size(path)
    with reading_file(path), path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def map_file(path: Path, expected_bytes: int | None = None) -> mmap.mmap:
    """Map a file for reading, after its size was found right: no read beyond its end can follow."""
    regular_size(path)
    with reading_file(path), path.open("rb") as file:
        found = os.fstat(file.fileno()).st_size
        if expected_bytes not in (None, found) or found == 0:
            wanted = "" if expected_bytes is None else f" instead of {expected_bytes}"
            raise RegionStoreError(f"{path} has {found} bytes{wanted}. {REDO}")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def header_length(path: Path, content: mmap.mmap | bytes) -> int:
    """Where the data of a safetensors file begins."""
    length = int.from_bytes(content[:8], "little")
    if not 2 <= length <= min(MAX_HEADER, len(content) - 8):
        raise RegionStoreError(f"{path} has a damaged header. {REDO}")
    return 8 + length


def parse_tensors(
    path: Path,
    content: mmap.mmap | bytes,
    expected: dict[str, TensorSpec],
    promise: dict[str, Any],
    what: str,
) -> tuple[Tensors, str]:
    """Lay arrays over the bytes of a file, without a copy; nothing in its header is believed.

    Args:
        expected: the tensors that it must hold, without gap, overlap or rest.
        promise: what its metadata must say, the checksum aside.
        what: what the file should be, for the message.
    Returns:
        The tensors by name, and the checksum of their bytes that the metadata promises.
    Raises:
        RegionStoreError: the header is anything else.
    """
    start = header_length(path, content)
    try:
        header = json.loads(content[8:start].decode())
        found = json.loads(header["__metadata__"][METADATA_KEY])
        checksum = found.pop("sha256")
        offsets = {name: header[name]["data_offsets"] for name in expected}
        if header.keys() - {"__metadata__"} != expected.keys() or found != promise:
            raise ValueError
        end = 0
        for name in sorted(offsets, key=lambda name: (offsets[name], name)):
            dtype, shape, *_ = expected[name]
            size = expected[name].nbytes
            fits = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
            if header[name] != fits:
                raise ValueError
            end += size
        if start + end != len(content) or type(checksum) is not str:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RegionStoreError(f"{path} is not {what}. {REDO}") from error
    tensors = {}
    for name, (dtype, shape, *_) in expected.items():
        offset = start + offsets[name][0]
        flat = np.frombuffer(content, DTYPES[dtype], math.prod(shape), offset)
        tensors[name] = flat.reshape(shape)
    return tensors, checksum


def check_values(path: Path, tensors: Tensors, expected: dict[str, TensorSpec]) -> None:
    """Refuse values outside the range of their tensor. Raises RegionStoreError."""
    for name, tensor in tensors.items():
        _, _, low, high = expected[name]
        if tensor.size and not (low <= tensor.min() and tensor.max() <= high):  # NaN: False
            raise RegionStoreError(
                f"{path} holds {name} from {tensor.min()} to {tensor.max()}, "
                f"but they lie in {low}..{high}. {REDO}"
            )
