"""The reading of a finished store: open it, see whether it fits, and read regions of its images.

Letters: B images read at once, R regions of one image, M regions per image, N images of a shard,
C classes of the store, T classes of a run, D width of a feature.
"""

from __future__ import annotations

import copy
import mmap
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from regions.store.contents import Contents
from regions.store.fit import SETTINGS, RunNeeds, refuse, split_moved
from regions.store.kinds import decode
from regions.store.layout import (
    IN_PROGRESS,
    MANIFEST,
    TEXT,
    Manifest,
    check_shard,
    parse_shard,
    read_manifest,
    shard_tensors,
    text_tensors,
)
from regions.store.tensors import (
    DTYPES,
    REDO,
    RegionStoreError,
    Tensors,
    check_size,
    check_values,
    file_checksum,
    map_file,
    parse_tensors,
)

VERIFY_AT_OPEN = 256 * 2**20  # bytes; the files of a larger store are verified at first touch
READS_KEPT = 512  # reads of a larger store after which its pages are let go


class RegionRows(NamedTuple):
    """Stored regions of one image."""

    boxes: np.ndarray  # (R, 4) float32: top, left, height, width as fractions
    flips: np.ndarray  # (R,) bool
    logits: np.ndarray  # (R, T) float32, at the teacher's own logit scale


class RegionStore:
    """A finished store, opened for reading. Arrays are mapped, never loaded whole.

    Sizes of all files are checked at open. Checksums and values are verified at open when the
    files take less than 256 MB together, and otherwise when a process first touches one. A store
    can be sent to forked and spawned workers: each maps the files itself, and they share the pages.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.spec, self.shard_images, self.shards, self.files = manifest
        self.classnames = self.spec.classnames  # that logits are for; see with_text
        self.template = self.spec.template
        self.variant = ""  # of the text features, see teacher_text; "": the teacher's own
        self.is_small = sum(f.bytes for f in (*self.shards, *self.files.values())) < VERIFY_AT_OPEN
        self._verified: set[str] = set()
        self._maps: list[mmap.mmap] = []
        self._arrays: dict[int, Tensors] = {}
        self._reads = 0

    @classmethod
    def open(cls, path: str | Path) -> RegionStore:
        """Open a finished store. Raises RegionStoreError when it is not whole."""
        path = Path(path).expanduser()
        if not (path / MANIFEST).exists():
            if (path / IN_PROGRESS).exists():
                raise RegionStoreError(
                    f"the dump in {path} is not finished. Run it again with the flags it was "
                    "started with: it continues."
                )
            raise RegionStoreError(
                f"{path} holds no region store. Check TRAINER.FDBPL.STORE, or make one: "
                f"python dump_teacher_logits.py --store {path} ..."
            )
        store = cls(path, read_manifest(path / MANIFEST))
        for shard in store.shards:
            check_size(path / shard.file, shard.bytes)
        for name, file in store.files.items():
            check_size(path / name, file.bytes)
        if store.is_small:
            store.verify()
        return store

    def __len__(self) -> int:
        return len(self.spec.images)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}, "_maps": []}  # maps stay with their process

    def verify(self) -> None:
        """Compare every file with its checksum. Raises RegionStoreError at the first damage."""
        for name, file in self.files.items():
            self._verify(name, file.sha256)
        self.spec.images.tensors  # noqa: B018  reads the table, and thereby checks it
        if self.spec.kind == "features":
            self.stored_text  # noqa: B018
        for shard in range(len(self.shards)):
            self.arrays(shard)

    def _verify(self, name: str, sha256: str) -> bool:
        """Whether this is the first time; raises RegionStoreError when the checksum is another."""
        if name in self._verified:
            return False
        if file_checksum(self.path / name) != sha256:
            raise RegionStoreError(
                f"{self.path / name} is damaged: its checksum is not the manifest's. {REDO}"
            )
        self._verified.add(name)
        return True

    def arrays(self, shard: int) -> Tensors:
        """The mapped tensors of one shard, (N, M, ...) each; see shard_tensors."""
        arrays = self._arrays.get(shard)
        if arrays is None:
            file, first, num_images, size, sha256 = self.shards[shard]
            path = self.path / file
            content = map_file(path, size)
            is_new = self._verify(file, sha256)
            arrays, _ = parse_shard(path, content, self.spec, shard, first, num_images)
            if is_new:
                check_shard(path, arrays, self.spec, num_images)
                if not self.is_small:
                    _let_go(content)  # the check has touched every page
            self._arrays[shard] = arrays
            self._maps.append(content)
        return arrays

    @cached_property
    def stored_text(self) -> np.ndarray:
        """(C, D) float32: unit text features of the store's own classes; kind features only."""
        path, (size, sha256) = self.path / TEXT, self.files[TEXT]
        content = map_file(path, size)
        self._verify(TEXT, sha256)
        expected = text_tensors(self.spec)
        tensors, _ = parse_tensors(path, content, expected, {"spec": self.spec.id}, "text features")
        check_values(path, tensors, expected)
        return tensors["text"].copy()

    @cached_property
    def text(self) -> np.ndarray | None:
        """(C, D) text features of self.classnames; None when the kind needs none."""
        return self.stored_text if self.spec.kind == "features" else None

    def with_text(
        self, classnames: Sequence[str], template: str, text: np.ndarray, variant: str = ""
    ) -> RegionStore:
        """The same regions, with logits for other classes or another prompt; kind features only.

        text: (C, D) float32, unit text features of the teacher.
        variant: which of the text features for these classes and template, see teacher_text.
        """
        assert self.spec.kind == "features" and text.shape == (
            len(classnames),
            self.spec.feature_width,
        )
        other = copy.copy(self)
        other.classnames, other.template, other.variant = tuple(classnames), template, variant
        other.text = np.ascontiguousarray(text, np.float32)
        return other

    @cached_property
    def contents(self) -> Contents:
        """What the bytes of the images were at the dump; RegionStoreError when that is damaged."""
        return Contents.read(self.path, self.spec)

    def image_index(self, relative_path: str) -> int:
        """Where an image stands in the store, by its path under the data root."""
        return int(self.image_indices([relative_path])[0])

    def image_indices(self, relative_paths: Sequence[str]) -> np.ndarray:
        """Where images stand in the store, int64. Raises RegionStoreError when one is missing."""
        indices = self.spec.images.find(relative_paths)
        if (indices < 0).any():
            missing = [path for path, i in zip(relative_paths, indices, strict=True) if i < 0]
            raise RegionStoreError(split_moved(self.path, len(self), len(indices), missing))
        return indices

    def read(
        self,
        image_index: int,
        region_indices: Sequence[int] | np.ndarray,
        columns: np.ndarray | None = None,
    ) -> RegionRows:
        """Copy some regions of one image out of the store.

        columns: those of the classes wanted, from self.columns; None for all of self.classnames.
        """
        if not 0 <= image_index < len(self):
            raise IndexError(f"image {image_index} of {len(self)}")
        shard, row = divmod(image_index, self.shard_images)
        rows = {name: array[row, region_indices] for name, array in self.arrays(shard).items()}
        if not self.is_small:
            self._let_go()
        return self._rows(rows, columns)

    def read_batch(
        self,
        image_indices: np.ndarray,
        region_indices: np.ndarray,
        columns: np.ndarray | None = None,
    ) -> RegionRows:
        """Copy R regions of each of B images, as read does, in a third of its time.

        Args:
            image_indices: (B,) integers.
            region_indices: (B, R) integers, those of each image.
            columns: as in read.
        Returns:
            boxes (B, R, 4), flips (B, R) and logits (B, R, T).
        Raises:
            IndexError: there is no such image or region.
        """
        images_B, regions_BR = np.asarray(image_indices), np.asarray(region_indices)
        for noun, index, end in (
            ("image", images_B, len(self)),
            ("region", regions_BR, self.spec.num_regions),
        ):
            if index.size and not 0 <= index.min() <= index.max() < end:
                raise IndexError(f"{noun} {index.min()} to {index.max()} of {end}")
        tensors = shard_tensors(self.spec, 1)
        rows = {
            name: np.empty((*regions_BR.shape, *tensor.shape[2:]), DTYPES[tensor.dtype])
            for name, tensor in tensors.items()
        }
        for place, image in enumerate(images_B.tolist()):
            shard, row = divmod(image, self.shard_images)
            arrays, regions_R = self.arrays(shard), regions_BR[place]
            for name, out in rows.items():  # clip: checked above, and raise would copy twice
                arrays[name][row].take(regions_R, 0, out[place], "clip")
            if not self.is_small:
                self._let_go()
        return self._rows(rows, columns)

    def features(self, image_indices: np.ndarray) -> np.ndarray:
        """The teacher's features of all regions of B images, (B, M, D) float32; kind features."""
        assert self.spec.kind == "features"
        places = [divmod(int(image), self.shard_images) for image in image_indices]
        rows = [self.arrays(shard)["features"][row] for shard, row in places]
        return np.stack(rows).astype(np.float32)

    def read_shard(self, shard: int, columns: np.ndarray | None = None) -> RegionRows:
        """All regions of a shard: boxes (N, M, 4), flips (N, M), logits (N, M, T)."""
        return self._rows(self.arrays(shard), columns)

    def teacher_is_right(self, shard: int) -> np.ndarray:
        """Whether the labelled class is the teacher's likeliest, of all regions: (N, M) bool."""
        _, first, num_images, *_ = self.shards[shard]
        labels_N = self.spec.images.labels[first : first + num_images]
        return self.read_shard(shard).logits.argmax(-1) == labels_N[:, None]

    def teacher_accuracy(self) -> float:
        """The share of all regions whose labelled class is the teacher's likeliest, in percent."""
        right = sum(int(self.teacher_is_right(shard).sum()) for shard in range(len(self.shards)))
        return 100 * right / (len(self) * self.spec.num_regions)

    def _rows(self, tensors: Tensors, columns: np.ndarray | None) -> RegionRows:
        logits = decode(self.spec, tensors, columns, self.text)
        return RegionRows(tensors["boxes"], tensors["flips"].astype(bool), logits)

    def _let_go(self) -> None:
        """Now and then drop the pages of a large store, which would count as our memory.

        They stay in the system's cache, so that the next read finds them there.
        """
        self._reads += 1
        if self._reads % READS_KEPT == 0:
            for content in self._maps:
                _let_go(content)

    def columns(self, classnames: Sequence[str]) -> np.ndarray:
        """Columns of the logits for the classes of a run, (T,) int64.

        Classes are found by name. Where a name occurs several times, occurrences match in order.
        Raises RegionStoreError when the store lacks a class.
        """
        places: dict[str, list[int]] = {}
        for column, name in enumerate(self.classnames):
            places.setdefault(name, []).append(column)
        seen: Counter[str] = Counter()
        columns = []
        for name in classnames:
            if seen[name] == len(places.get(name, ())):
                raise RegionStoreError(
                    f"{self.path} holds logits of {len(self.classnames)} classes, but not of "
                    f"{name!r}, one of the run's {len(classnames)} classes. Set "
                    "DATASET.SUBSAMPLE_CLASSES and the data set as in the dump, or dump again "
                    "into another --store; one with DATASET.SUBSAMPLE_CLASSES all serves every "
                    "run, and one of kind features any classes."
                )
            columns.append(places[name][seen[name]])
            seen[name] += 1
        return np.array(columns, np.int64)

    def check_teacher(self, name: str, digest: str | None) -> None:
        """Refuse another teacher, or other weights (None: not known, not compared)."""
        if name != self.spec.teacher:
            refuse(self.path, "teacher", self.spec.teacher, name)
        if digest not in (None, self.spec.teacher_digest):
            refuse(self.path, "teacher_digest", self.spec.teacher_digest, digest)

    def check_run(self, needs: RunNeeds) -> None:
        """Refuse a run that this store does not fit, naming the field and the way out.

        Raises RegionStoreError.
        """
        self.check_teacher(needs.teacher, needs.teacher_digest)
        found = {**vars(self.spec), "template": self.template}
        for field in SETTINGS:
            if found[field] != getattr(needs, field):
                refuse(self.path, field, found[field], getattr(needs, field))
        if needs.seed not in self.spec.image_seeds:
            seeds = self.spec.image_seeds
            raise RegionStoreError(
                f"{self.path} holds regions of the images of seed {', '.join(map(str, seeds))}, "
                f"but --seed is {needs.seed}. Set --seed {seeds[0]}, or dump again into another "
                "--store; --union-of-seeds dumps the images of several seeds into one."
            )
        self.columns(needs.classnames)
        indices = self.spec.images.find(needs.images)
        missing = [path for path, index in zip(needs.images, indices, strict=True) if index < 0]
        if missing:
            raise RegionStoreError(split_moved(self.path, len(self), len(needs.images), missing))


def _let_go(content: mmap.mmap) -> None:
    if hasattr(mmap, "MADV_DONTNEED"):
        content.madvise(mmap.MADV_DONTNEED)
