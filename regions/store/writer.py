"""The writing of a store: shards one by one, whole or absent, and the manifest last of all.

Several processes can write one dump: process r of N makes the shards r, r + N, r + 2 N, ... and the
one that finds all of them there writes the manifest. Nobody waits for anybody, no two need a
connection, and the bytes are those of a single process.

Letters: M regions per image, N images of a shard, C classes of the store, D width of a feature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from files import Busy, Lock, write_whole
from regions.store import contents
from regions.store.fit import require_same_spec
from regions.store.images import ImageTable
from regions.store.layout import (
    FORMAT,
    IMAGES,
    IN_PROGRESS,
    MANIFEST,
    TEXT,
    Shard,
    StoredFile,
    check_shard,
    encode_manifest,
    find_dump,
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
from regions.store.spec import RegionSpec
from regions.store.tensors import (
    DTYPES,
    REDO,
    RegionStoreError,
    Tensors,
    TensorSpec,
    check_values,
    encode_tensors,
    map_file,
)

LOCK = ".lock-"  # and the rank: held while a process writes


class StoreWriter:
    """A dump on its way: fixes the spec, knows the shards still missing, and finishes the store.

    A shard is whole or absent, and its header carries the checksum of its tensors; so a dump that
    was killed finds its whole shards again, and redoes damaged ones. Use it in a with statement:
    it keeps a second process of the same rank out of the folder meanwhile.
    """

    def __init__(
        self,
        path: str | Path,
        spec: RegionSpec,
        shard_images: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Start or continue.

        Args:
            shard_images: for a new dump; a dump going on keeps its own.
            rank, world: which process of how many this is.
        Raises:
            Busy: another process of this rank is writing to the folder.
            RegionStoreError: the folder holds another dump.
            OSError: the folder cannot be made or written to.
        """
        self.path = Path(path).expanduser()
        self.spec, self.rank, self.world = spec, rank, world
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = self._locked(rank)
        try:
            self._start(shard_images)
        except BaseException:
            self.close()
            raise

    def _locked(self, rank: int | str) -> Lock:
        """Raises Busy."""
        way_out = "Wait for it, or give another --store."
        return Lock(self.path / f"{LOCK}{rank}", f"dumping into {self.path}", way_out)

    def _start(self, shard_images: int | None) -> None:
        found = find_dump(self.path)
        listed: list[Shard] | None = None
        if found:
            require_same_spec(self.path, found.spec, self.spec)
            shard_images, listed = found.shard_images, found.shards
        self.shard_images = shard_images or images_per_shard(self.spec)
        self.ranges = shard_ranges(self.spec, self.shard_images)
        self._shards: dict[int, Shard] = {}
        for index in self.mine:
            shard = self._whole_shard(index)
            if shard and (listed is None or listed[index] == shard):
                self._shards[index] = shard
        self.is_new = not found and not self._shards
        if self.is_new:
            self._refuse_strange_shards()
            if self.world == 1:
                contents.forget(self.path)
        self.is_finished = (
            listed is not None
            and not self.missing
            and all(self._whole_file(name) == found.files[name] for name in other_files(self.spec))
        )
        if not self.is_finished:
            if not self._whole_file(IMAGES):
                self._put(self.path / IMAGES, self.spec.images.encode())
            self._put(self.path / IN_PROGRESS, encode_manifest(self._head()))
            if listed is not None:
                (self.path / MANIFEST).unlink(missing_ok=True)
        self._clean()

    def _refuse_strange_shards(self) -> None:
        """Nothing says what the folder is for: refuse it when its shards are of something else."""
        there = [i for i in range(len(self.ranges)) if (self.path / shard_name(i)).exists()]
        others = any(self.path.glob("shard_*.safetensors"))
        if others and not any(map(self._whole_shard, there)) and not find_dump(self.path):
            raise RegionStoreError(
                f"{self.path} has no {MANIFEST}, and its shards are not of this dump. Run the dump "
                "with the flags they were made with, or give another --store."
            )

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
        """Remove what killed processes may have left half-written."""
        left = [*self.path.glob("*.partial"), *self.path.glob(f"{LOCK}*")]
        for path in left:
            name = path.name
            rank = name[len(LOCK) :] if name.startswith(LOCK) else name.split(".")[-2]
            if rank != str(self.rank):
                try:  # a process of that rank may be at work; else its lock goes with close()
                    self._locked(rank).close()
                except Busy:
                    continue
            if path.suffix == ".partial":
                path.unlink(missing_ok=True)
        if self.is_finished and (self.path / IN_PROGRESS).exists():  # it may be read-only
            (self.path / IN_PROGRESS).unlink(missing_ok=True)

    @property
    def mine(self) -> range:
        """The shards that this process makes."""
        return range(self.rank, len(self.ranges), self.world)

    @property
    def missing(self) -> list[int]:
        """Those that are still to be written, in order."""
        return [index for index in self.mine if index not in self._shards]

    @property
    def written(self) -> np.ndarray:
        """Places of the images in this process's shards that are written."""
        ranges = [self.ranges[index] for index in self.mine if index in self._shards]
        return np.concatenate([np.arange(0), *(np.arange(i, i + n) for i, n in ranges)])

    def on_disk(self) -> int:
        """How many of its regions are written."""
        return len(self.written) * self.spec.num_regions

    @property
    def needs_text(self) -> bool:
        """Whether write_text is still to be called."""
        return TEXT in other_files(self.spec) and not self._whole_file(TEXT)

    def write(
        self, index: int, tensors: Tensors, images: Sequence[np.ndarray] | None = None
    ) -> None:
        """Write one shard: boxes (N, M, 4), flips (N, M), and of its regions what encode() gives.

        Args:
            images: records of the images' bytes, which are kept beside the store; see contents.
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
        if images is not None:  # before the shard: there is none whose images are not known
            contents.append(self.path, self.spec.id, images)
        self._put(path, content)
        sha256 = hashlib.sha256(content).hexdigest()
        self._shards[index] = Shard(path.name, first, num_images, len(content), sha256)

    def _put(self, path: Path, content: bytes) -> None:
        write_whole(path, content, str(self.rank))

    def write_text(self, text: np.ndarray) -> None:
        """Write the teacher's unit text features (C, D) of the spec's classes; kind features."""
        path, expected = self.path / TEXT, text_tensors(self.spec)
        tensors = _as_on_disk({"text": text}, expected)
        check_values(path, tensors, expected)
        self._put(path, encode_tensors(tensors, {"spec": self.spec.id}))

    def finish(self) -> bool:
        """Write the manifest, last of all: from now on the store is whole.

        Returns False when shards of other processes are not there, or not whole; whoever makes the
        last of them finishes.
        """
        assert not self.missing, f"shards {self.missing} are missing"
        for index in set(range(len(self.ranges))) - self._shards.keys():
            if (shard := self._whole_shard(index)) is None:
                return False
            self._shards[index] = shard
        shards = [self._shards[index]._asdict() for index in range(len(self.ranges))]
        files = {name: self._whole_file(name) for name in other_files(self.spec)}
        for name, file in files.items():
            if file is None:
                raise RegionStoreError(f"{self.path / name} is missing or damaged. {REDO}")
        rows = {name: file._asdict() for name, file in files.items()}
        manifest = {**self._head(), "shards": shards, "files": rows}
        contents.join(self.path, self.spec)
        self._put(self.path / MANIFEST, encode_manifest(manifest))
        self.is_finished = True
        self._clean()
        return True

    def close(self) -> None:
        """Let other dumps into the folder."""
        self._lock.close()

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
