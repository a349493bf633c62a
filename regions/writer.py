"""The writing of a store: shards one by one, whole or absent, and the manifest last of all.

Letters: M regions per image, N images of a shard, C classes of the store, D width of a feature.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from regions.files import (
    DTYPES,
    REDO,
    RegionStoreError,
    Tensors,
    TensorSpec,
    check_values,
    encode_tensors,
    map_file,
    write_whole,
)
from regions.fit import require_same_spec
from regions.images import ImageTable
from regions.layout import (
    CLAIMS,
    IMAGES,
    IN_PROGRESS,
    MANIFEST,
    TEXT,
    check_shard,
    images_per_shard,
    other_files,
    shard_name,
    shard_promise,
    shard_ranges,
    shard_tensors,
    text_tensors,
    whole_shard,
    whole_text,
)
from regions.lock import leave_lock, lock_folder
from regions.manifest import FORMAT, Shard, StoredFile, encode_manifest, find_dump
from regions.spec import RegionSpec


class StoreWriter:
    """A dump on its way: fixes the spec, knows the shards still missing, and finishes the store.

    A shard is whole or absent, and its header carries the checksum of its tensors; so a dump that
    was killed finds its whole shards again, and redoes damaged ones. Use it in a with statement:
    it keeps a second dump out of the folder meanwhile.
    """

    process = ""  # a name of this process, where several write the same dump

    def __init__(self, path: str | Path, spec: RegionSpec, shard_images: int | None = None) -> None:
        """Start or continue. shard_images is for a new dump; a dump going on keeps its own.

        Raises:
            RegionStoreError: the folder holds another dump, or is being written to.
            OSError: the folder cannot be made or written to.
        """
        self.path = Path(path).expanduser()
        self.spec = spec
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        try:
            self._start(shard_images)
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> int | None:
        return lock_folder(self.path)

    def _start(self, shard_images: int | None) -> None:
        found = find_dump(self.path)
        listed: list[Shard] | None = None
        if found:
            require_same_spec(self.path, found.spec, self.spec)
            shard_images, listed = found.shard_images, found.shards
        self._lay_out(shard_images)
        self.is_new = not found
        self._find_whole(listed)
        if not found and not self._shards and any(self.path.glob("shard_*.safetensors")):
            raise RegionStoreError(
                f"{self.path} has no {MANIFEST}, and its shards are not of this dump. Run the dump "
                "with the flags they were made with, or give another --store."
            )
        self.is_finished = (
            listed is not None
            and not self.missing
            and all(self._whole_file(name) == found.files[name] for name in other_files(self.spec))
        )
        if not self.is_finished:
            self._fix_spec(write_whole)
            (self.path / MANIFEST).unlink(missing_ok=True)
        self._clean()

    def _lay_out(self, shard_images: int | None) -> None:
        self.shard_images = shard_images or images_per_shard(self.spec)
        self.ranges = shard_ranges(self.spec, self.shard_images)
        self._shards: dict[int, Shard] = {}

    def _find_whole(self, listed: Sequence[Shard] | None = None) -> None:
        """Verify the shards that are there, and count those as written that are whole."""
        for index in range(len(self.ranges)):
            shard = self._whole_shard(index)
            if shard and (listed is None or listed[index] == shard):
                self._shards[index] = shard

    def _fix_spec(self, put: Callable[[Path, bytes], None]) -> None:
        """Say in the folder what dump it is for."""
        if not self._whole_file(IMAGES):
            put(self.path / IMAGES, self.spec.images.encode())
        put(self.path / IN_PROGRESS, encode_manifest(self._head()))

    def _head(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "spec_id": self.spec.id,
            "spec": self.spec.to_json(),
            "shard_images": self.shard_images,
        }

    def _whole_shard(self, index: int) -> Shard | None:
        first, num_images = self.ranges[index]
        found = whole_shard(self.path, self.spec, index, first, num_images)
        if found is None:
            return None
        content = found[1]
        sha256 = hashlib.sha256(content).hexdigest()
        return Shard(shard_name(index), first, num_images, len(content), sha256)

    def _whole_file(self, name: str) -> StoredFile | None:
        """Size and checksum of images or text features when they are whole and of this dump."""
        if name == IMAGES:
            path = self.path / name
            try:
                content = map_file(path)
                ImageTable.at(path, None, *self._images_promise()).tensors  # noqa: B018
            except RegionStoreError:
                return None
        else:
            found = whole_text(self.path, self.spec)
            if found is None:
                return None
            content = found[1]
        return StoredFile(len(content), hashlib.sha256(content).hexdigest())

    def _images_promise(self) -> tuple[int, str, int]:
        images = self.spec.images
        return len(images), images.digest, len(self.spec.classnames)

    def _clean(self) -> None:
        """Remove what a killed dump may have left half-written."""
        for unfinished in self.path.glob("*.partial"):
            unfinished.unlink(missing_ok=True)
        if self.is_finished:
            if (self.path / IN_PROGRESS).exists():  # a finished store may be read-only
                (self.path / IN_PROGRESS).unlink(missing_ok=True)
            shutil.rmtree(self.path / CLAIMS, ignore_errors=True)

    @property
    def missing(self) -> list[int]:
        """Shards still to be written, in order."""
        return [index for index in range(len(self.ranges)) if index not in self._shards]

    def to_do(self) -> Iterator[int]:
        """The shards that this process is to write, one by one."""
        yield from self.missing

    def on_disk(self) -> set[int]:
        """The shards that are written."""
        return set(self._shards)

    def is_left_to_others(self) -> bool:
        """Whether other processes are at work on all that is missing: see regions.shared."""
        return False

    @property
    def needs_text(self) -> bool:
        """Whether write_text is still to be called."""
        return TEXT in other_files(self.spec) and not self._whole_file(TEXT)

    def write(self, index: int, tensors: Tensors) -> None:
        """Write one shard: boxes (N, M, 4), flips (N, M), and of its regions what encode() gives.

        Raises:
            RegionStoreError: a value is not finite or out of its range.
            OSError: the disk is full or not writable; whole shards stay.
        """
        first, num_images = self.ranges[index]
        path, expected = self.path / shard_name(index), shard_tensors(self.spec, num_images)
        tensors = _as_on_disk(tensors, expected)
        check_shard(path, tensors, self.spec, num_images)
        promise = shard_promise(self.spec, index, first, num_images)
        content = encode_tensors(tensors, promise)
        self._put(path, content)
        sha256 = hashlib.sha256(content).hexdigest()
        self._shards[index] = Shard(path.name, first, num_images, len(content), sha256)

    def _put(self, path: Path, content: bytes) -> None:
        write_whole(path, content)

    def write_text(self, text: np.ndarray) -> None:
        """Write the teacher's unit text features (C, D) of the spec's classes; kind features."""
        path, expected = self.path / TEXT, text_tensors(self.spec)
        tensors = _as_on_disk({"text": text}, expected)
        check_values(path, tensors, expected)
        self._put(path, encode_tensors(tensors, {"spec": self.spec.id}))

    def finish(self) -> bool:
        """Write the manifest, last of all: from now on the store is whole.

        Returns whether no work is left for this process; see regions.shared.
        """
        assert not self.missing, f"shards {self.missing} are missing"
        shards = [self._shards[index]._asdict() for index in range(len(self.ranges))]
        files = {name: self._whole_file(name) for name in other_files(self.spec)}
        for name, file in files.items():
            if file is None:
                raise RegionStoreError(f"{self.path / name} is missing or damaged. {REDO}")
        rows = {name: file._asdict() for name, file in files.items()}
        manifest = {**self._head(), "shards": shards, "files": rows}
        self._put(self.path / MANIFEST, encode_manifest(manifest))
        self.is_finished = True
        self._clean()
        return True

    def close(self) -> None:
        """Let other dumps into the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def worker_init(self) -> Callable[[int], None]:
        """What a worker process calls first: see leave_lock."""
        return partial(leave_lock, self.path, self._lock)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _as_on_disk(tensors: Tensors, expected: dict[str, TensorSpec]) -> Tensors:
    """The tensors in the order, dtype and byte order of a file."""
    assert tensors.keys() == expected.keys(), f"{sorted(tensors)} are not {sorted(expected)}"
    for name, (_, shape, *_) in expected.items():
        assert tensors[name].shape == shape, f"{name}: {tensors[name].shape} is not {shape}"
    return {
        name: np.ascontiguousarray(tensors[name], DTYPES[expected[name].dtype]) for name in expected
    }
