"""The region store on disk: safetensors files and a JSON manifest (docs/REGION_STORE.md).

Letters: R regions of one image, M regions per image, N images of a shard, C classes of the store,
T classes of a run, D width of a feature.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import mmap
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from regions.files import (
    DTYPES,
    REDO,
    RegionStoreError,
    Tensors,
    TensorSpec,
    canonical_json,
    check_size,
    check_values,
    encode_tensors,
    file_checksum,
    map_file,
    parse_tensors,
    tensors_checksum,
    write_whole,
)
from regions.images import ImageTable, RegionImage
from regions.kinds import KINDS, decode
from regions.spec import RegionSpec, region_settings

try:
    import fcntl
except ImportError:  # not a Unix: two dumps into one folder are then not noticed
    fcntl = None

FORMAT = 1
MANIFEST = "manifest.json"  # written last: its presence says that the store is whole
IN_PROGRESS = "in_progress.json"  # the manifest without files: fixes the spec of a running dump
IMAGES = "images.safetensors"
CLAIMS = ".claims"  # folder, while several processes write the dump
TEXT = "text.safetensors"  # text features of the store's classes; kind features only
MAX_MANIFEST = 2**26  # bytes; 1024 shards take 200 kB, 20,000 class names 500 kB
VERIFY_AT_OPEN = 256 * 2**20  # bytes; the files of a larger store are verified at first touch
READS_KEPT = 1024  # reads of a larger store after which its pages are let go
REGIONS_PER_SHARD = 4096  # what a killed dump may lose
MAX_SHARDS = 1024


class RegionRows(NamedTuple):
    """Stored regions of one image."""

    boxes: np.ndarray  # (R, 4) float32: top, left, height, width as fractions
    flips: np.ndarray  # (R,) bool
    logits: np.ndarray  # (R, T) float32, at the teacher's own logit scale


class Shard(NamedTuple):
    """A row of the manifest."""

    file: str
    first_image: int
    num_images: int
    bytes: int
    sha256: str


class StoredFile(NamedTuple):
    """Size and checksum of a file that is no shard."""

    bytes: int
    sha256: str


class Manifest(NamedTuple):
    """What manifest.json says, or in_progress.json, which lists no files (None)."""

    spec: RegionSpec
    shard_images: int
    shards: list[Shard] | None
    files: dict[str, StoredFile] | None


# --- layout ---------------------------------------------------------------------------------


def shard_name(index: int) -> str:
    return f"shard_{index:05d}.safetensors"


def images_per_shard(spec: RegionSpec) -> int:
    """About 4096 regions a shard, and never more than 1024 shards."""
    return max(1, REGIONS_PER_SHARD // spec.num_regions, -(-len(spec.images) // MAX_SHARDS))


def shard_ranges(spec: RegionSpec, shard_images: int) -> list[tuple[int, int]]:
    """First image and number of images of each shard."""
    total = len(spec.images)
    return [(i, min(shard_images, total - i)) for i in range(0, total, shard_images)]


def shard_tensors(spec: RegionSpec, num_images: int) -> dict[str, TensorSpec]:
    """The tensors of a shard: where its regions lie, and what the kind keeps of the teacher."""
    rows = (num_images, spec.num_regions)
    tensors = {
        "boxes": TensorSpec("F32", (4,), 0, 1),
        "flips": TensorSpec("U8", (), 0, 1),
        **KINDS[spec.kind].tensors(spec),
    }
    return {name: one._replace(shape=(*rows, *one.shape)) for name, one in tensors.items()}


def shard_promise(spec: RegionSpec, index: int, first: int, num_images: int) -> dict[str, Any]:
    """What the metadata of a shard says."""
    return {"spec": spec.id, "shard": index, "first_image": first, "num_images": num_images}


def text_tensors(spec: RegionSpec) -> dict[str, TensorSpec]:
    """The tensor of text.safetensors: unit text features of the classes."""
    shape = (len(spec.classnames), spec.feature_width)
    return {"text": TensorSpec("F32", shape, -1.01, 1.01)}


def other_files(spec: RegionSpec) -> list[str]:
    """Files of a finished store besides the manifest and the shards."""
    return [IMAGES, TEXT] if spec.kind == "features" else [IMAGES]


def data_bytes(spec: RegionSpec, num_images: int) -> int:
    """Bytes of the tensors of num_images images."""
    return sum(tensor.nbytes for tensor in shard_tensors(spec, num_images).values())


# --- reading --------------------------------------------------------------------------------


def parse_shard(
    path: Path, content: mmap.mmap, spec: RegionSpec, index: int, first: int, num_images: int
) -> tuple[Tensors, str]:
    """The tensors of a shard and the checksum its header promises; see parse_tensors."""
    expected = shard_tensors(spec, num_images)
    promise = shard_promise(spec, index, first, num_images)
    return parse_tensors(path, content, expected, promise, f"shard {index} of this store")


def check_shard(path: Path, tensors: Tensors, spec: RegionSpec, num_images: int) -> None:
    """Refuse boxes outside the image, and values that no teacher gives. RegionStoreError."""
    check_values(path, tensors, shard_tensors(spec, num_images))
    boxes = tensors["boxes"]
    if not (boxes[..., :2] + boxes[..., 2:] <= 1 + 1e-6).all():
        raise RegionStoreError(f"{path} holds a box that leaves its image. {REDO}")


def read_manifest(path: Path) -> Manifest:
    """Read manifest.json or in_progress.json.

    Raises RegionStoreError for whatever is not exactly what this module writes.
    """
    damaged = (
        f"{path} is damaged. Copy it again from where the store came from, or delete it and run "
        "the dump again with the flags it was made with: whole shards are kept."
    )
    try:
        if path.stat().st_size > MAX_MANIFEST:
            raise RegionStoreError(damaged)
        manifest = json.loads(path.read_bytes().decode(), parse_constant=_no_constant)
    except FileNotFoundError as error:
        raise RegionStoreError(f"{path} is missing.") from error
    except OSError as error:
        raise RegionStoreError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise RegionStoreError(damaged) from error
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if type(version) is not int or version < 1:
        raise RegionStoreError(damaged)
    if version > FORMAT:
        raise RegionStoreError(
            f"{path} has format {version}, but this code reads up to format {FORMAT}. "
            "Update the code, or dump again into another --store."
        )
    try:
        checksum = manifest.pop("sha256")
        if checksum != hashlib.sha256(canonical_json(manifest).encode()).hexdigest():
            raise ValueError("its checksum is not its own")
        return _parse_manifest(path, manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RegionStoreError(f"{damaged} ({error})") from error


def _parse_manifest(path: Path, manifest: dict[str, Any]) -> Manifest:
    """Raises ValueError, KeyError, TypeError or AttributeError unless every field is right."""
    finished = path.name == MANIFEST
    keys = {"format", "spec", "spec_id", "shard_images"} | (
        {"shards", "files"} if finished else set()
    )
    if manifest.keys() != keys:
        raise ValueError(f"it needs exactly {', '.join(sorted(keys))}")
    files = {name: StoredFile(**row) for name, row in manifest["files"].items()} if finished else {}
    size = files[IMAGES].bytes if finished else None
    spec = RegionSpec.from_json(
        manifest["spec"], lambda *about: ImageTable.at(path.parent / IMAGES, size, *about)
    )
    shard_images = manifest["shard_images"]
    if manifest["spec_id"] != spec.id or type(shard_images) is not int or shard_images < 1:
        raise ValueError("fields do not fit each other")
    if not finished:
        return Manifest(spec, shard_images, None, None)
    shards = [Shard(**row) for row in manifest["shards"]]
    if len(shards) != -(-len(spec.images) // shard_images):  # before a list of them is made
        raise ValueError("the shards do not cover the images")
    ranges = [(shard.file, shard.first_image, shard.num_images) for shard in shards]
    if ranges != [(shard_name(i), *r) for i, r in enumerate(shard_ranges(spec, shard_images))]:
        raise ValueError("the shards do not cover the images")
    if sorted(files) != sorted(other_files(spec)):
        raise ValueError(f"its files are not {', '.join(other_files(spec))}")
    if not all(type(f.bytes) is int and type(f.sha256) is str for f in (*shards, *files.values())):
        raise ValueError("a size or checksum is missing")
    return Manifest(spec, shard_images, shards, files)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


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

    def with_text(self, classnames: Sequence[str], template: str, text: np.ndarray) -> RegionStore:
        """The same regions, with logits for other classes or another prompt; kind features only.

        text: (C, D) float32, unit text features of the teacher.
        """
        assert self.spec.kind == "features" and text.shape == (
            len(classnames),
            self.spec.feature_width,
        )
        other = copy.copy(self)
        other.classnames, other.template = tuple(classnames), template
        other.text = np.ascontiguousarray(text, np.float32)
        return other

    def image_index(self, relative_path: str) -> int:
        """Where an image stands in the store, by its path under the data root."""
        return int(self.image_indices([relative_path])[0])

    def image_indices(self, relative_paths: Sequence[str]) -> np.ndarray:
        """Where images stand in the store, int64. Raises RegionStoreError when one is missing."""
        indices = self.spec.images.find(relative_paths)
        if (indices < 0).any():
            missing = relative_paths[int((indices < 0).argmax())]
            raise RegionStoreError(f"{self.path} has no regions of {missing}. {_OTHER_IMAGES}")
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

    def read_shard(self, shard: int, columns: np.ndarray | None = None) -> RegionRows:
        """All regions of a shard: boxes (N, M, 4), flips (N, M), logits (N, M, T)."""
        return self._rows(self.arrays(shard), columns)

    def _rows(self, tensors: Tensors, columns: np.ndarray | None) -> RegionRows:
        logits = decode(self.spec, tensors, columns, self.text)
        return RegionRows(tensors["boxes"], tensors["flips"].astype(bool), logits)

    def _let_go(self) -> None:
        """Now and then drop the pages of a large store, which would count as our memory.

        They stay in the system's cache, so that the next read finds them there.
        """
        self._reads += 1
        if self._reads % READS_KEPT == 0 and hasattr(mmap, "MADV_DONTNEED"):
            for content in self._maps:
                content.madvise(mmap.MADV_DONTNEED)

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
            _refuse(self.path, "teacher", self.spec.teacher, name)
        if digest not in (None, self.spec.teacher_digest):
            _refuse(self.path, "teacher_digest", self.spec.teacher_digest, digest)

    def check_run(self, needs: RunNeeds) -> None:
        """Refuse a run that this store does not fit, naming the field and the way out.

        Raises RegionStoreError.
        """
        self.check_teacher(needs.teacher, needs.teacher_digest)
        found = {**vars(self.spec), "template": self.template}
        for field in _SETTINGS:
            if found[field] != getattr(needs, field):
                _refuse(self.path, field, found[field], getattr(needs, field))
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
            raise RegionStoreError(
                f"{self.path} holds regions of {len(self)} images, but not of {len(missing)} of "
                f"the run's {len(needs.images)}, for example {missing[0]}. {_OTHER_IMAGES}"
            )


_OTHER_IMAGES = (
    "Set --root, --seed, DATASET.NUM_SHOTS and DATASET.SUBSAMPLE_CLASSES as in the dump, "
    "or dump again into another --store."
)


# --- does it fit? ---------------------------------------------------------------------------


@dataclass(frozen=True)
class RunNeeds:
    """What a training run asks of a store."""

    teacher: str
    teacher_digest: str | None  # None: not known without loading the teacher, not compared
    template: str
    num_regions: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: float
    seed: int
    classnames: tuple[str, ...]  # in the order of the run's labels; a subset of the store's
    images: tuple[str, ...]  # relative paths; a subset of the store's

    @classmethod
    def from_cfg(
        cls,
        cfg: Any,
        *,
        template: str,
        classnames: Sequence[str],
        images: Sequence[str],
        teacher_digest: str | None = None,
    ) -> RunNeeds:
        """Join the config's region keys with what the data set says."""
        return cls(
            teacher=cfg.TRAINER.FDBPL.TEACHER,
            teacher_digest=teacher_digest,
            template=template,
            classnames=tuple(classnames),
            images=tuple(images),
            **region_settings(cfg),
        )


# field of the spec -> what the store holds, and the config key or flag that asks for it
_SETTINGS = {
    "template": ("logits for the prompt {!r}", "DATASET.TEMPLATE"),
    "num_regions": ("{} regions per image", "TRAINER.FDBPL.NUM_REGIONS"),
    "scale": ("regions with an area of {} of the image", "TRAINER.FDBPL.REGION_SCALE"),
    "ratio": ("regions with width / height in {}", "TRAINER.FDBPL.REGION_RATIO"),
    "flip": ("regions mirrored with probability {}", "TRAINER.FDBPL.REGION_FLIP"),
}
_DUMP_SETTINGS = {
    **_SETTINGS,
    "teacher": ("logits of {}", "TRAINER.FDBPL.TEACHER"),
    "teacher_digest": ("logits of a teacher with weights {}", ""),
    "seed": ("regions drawn with seed {}", "--seed"),
    "image_seeds": ("images of the seeds {}", "--union-of-seeds"),
    "teacher_precision": ("logits computed in {}", "TRAINER.FDBPL.TEACHER_PREC"),
    "image_size": ("regions of {} pixels a side", ""),
    "kind": ("{} of each region", "TRAINER.FDBPL.STORE_KIND"),
    "dtype": ("values in {}", "TRAINER.FDBPL.STORE_DTYPE"),
    "top_k": ("the {} likeliest classes", "TRAINER.FDBPL.TOP_K"),
    "feature_width": ("features of width {}", ""),
    "logit_scale": ("features for a logit scale of {}", ""),
}


def _refuse(path: Path, field: str, found: Any, wanted: Any) -> None:
    noun, key = _DUMP_SETTINGS[field]
    holds = f"{path} holds {noun.format(found)}"
    if not key:
        raise RegionStoreError(
            f"{holds}, but this run has {noun.format(wanted)}. "
            "Use the teacher the store was made with, or dump again into another --store."
        )
    value = f'"{found}"' if isinstance(found, (tuple, str)) and " " in str(found) else found
    raise RegionStoreError(
        f"{holds}, but {key} is {wanted}. Set {key} {value}, or dump again into another --store."
    )


def require_same_spec(
    path: Path, found: RegionSpec, wanted: RegionSpec, ignore: Sequence[str] = ()
) -> None:
    """Refuse to continue a dump under another spec. Raises RegionStoreError for the first field."""
    for field in (f.name for f in fields(RegionSpec)):
        old, new = getattr(found, field), getattr(wanted, field)
        if field in ignore or old == new:
            continue
        if field == "classnames":
            old, new = _first_difference(old, new, len(old), len(new), "classes", "{!r}")
        elif field == "images":
            old, new = _first_difference(old, new, len(old), len(new), "images", "{}")
        else:
            _refuse(path, field, old, new)
        raise RegionStoreError(f"{path} is a dump of {old}, but this call has {new}. {_OTHER_DUMP}")


_OTHER_DUMP = (
    "Set --root, --seed, DATASET.NUM_SHOTS and DATASET.SUBSAMPLE_CLASSES as in that dump, "
    "or give another --store."
)


def _first_difference(
    old: Sequence, new: Sequence, num_old: int, num_new: int, noun: str, form: str
) -> tuple[str, str]:
    if num_old != num_new:
        return f"{num_old} {noun}", f"{num_new}"
    pairs = enumerate(zip(old, new, strict=True))
    place = next((i for i, (a, b) in pairs if a != b), 0)
    values = [_describe(value) for value in (old[place], new[place])]
    return tuple(f"{num_old} {noun}, number {place + 1} being {value}" for value in values)


def _describe(value: RegionImage | str) -> str:
    if isinstance(value, RegionImage):
        return f"{value.path} (label {value.label}, {value.height} x {value.width})"
    return repr(value)


# --- writing --------------------------------------------------------------------------------


def encode_manifest(fields: dict[str, Any]) -> bytes:
    """One line of canonical JSON, with the checksum of all other fields under sha256."""
    checksum = hashlib.sha256(canonical_json(fields).encode()).hexdigest()
    return (canonical_json({**fields, "sha256": checksum}) + "\n").encode()


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
        path = self.path / shard_name(index)
        first, num_images = self.ranges[index]
        try:
            content = map_file(path)
            arrays, checksum = parse_shard(path, content, self.spec, index, first, num_images)
        except RegionStoreError:
            return None
        if tensors_checksum(arrays) != checksum:
            return None
        sha256 = hashlib.sha256(content).hexdigest()
        return Shard(path.name, first, num_images, len(content), sha256)

    def _whole_file(self, name: str) -> StoredFile | None:
        """Size and checksum of images or text features when they are whole and of this dump."""
        path = self.path / name
        try:
            content = map_file(path)
            if name == IMAGES:
                ImageTable.at(path, None, *self._images_promise()).tensors  # noqa: B018
            else:
                promise = {"spec": self.spec.id}
                expected = text_tensors(self.spec)
                tensors, checksum = parse_tensors(path, content, expected, promise, "text features")
                check_values(path, tensors, expected)
                if tensors_checksum(tensors) != checksum:
                    return None
        except RegionStoreError:
            return None
        return StoredFile(len(content), hashlib.sha256(content).hexdigest())

    def _images_promise(self) -> tuple[int, str, int]:
        images = self.spec.images
        return len(images), images.digest, len(self.spec.classnames)

    def _clean(self) -> None:
        """Remove what a killed dump may have left half-written."""
        for unfinished in self.path.glob("*.partial"):
            unfinished.unlink(missing_ok=True)
        if self.is_finished:
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
        """What a worker process calls first: see _leave_lock."""
        return partial(_leave_lock, self.path, self._lock)

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


def find_dump(path: str | Path) -> Manifest | None:
    """Read what dump a folder holds, finished or not; None for an absent or empty folder.

    Raises:
        RegionStoreError: the folder holds something else, or a damaged manifest.
    """
    path = Path(path).expanduser()
    for name in (MANIFEST, IN_PROGRESS):
        if (path / name).exists():
            return read_manifest(path / name)
    try:
        names = [entry for entry in os.listdir(path) if not entry.startswith(".")]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RegionStoreError(f"{path} cannot be read: {error.strerror or error}.") from error
    strangers = [name for name in names if not name.endswith((".partial", ".safetensors"))]
    if strangers:
        raise RegionStoreError(
            f"{path} holds other files, for example {sorted(strangers)[0]}. "
            "Give --store a folder of its own."
        )
    return None


def _leave_lock(path: Path, lock: int | None, _worker: int = 0) -> None:
    """Drop a forked worker's share of the lock, so that the lock ends with the dump itself."""
    if lock is not None:
        with contextlib.suppress(OSError):  # a spawned worker never had it
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                os.close(lock)


def lock_folder(path: Path, shared: bool = False) -> int | None:
    """Lock the folder against a second dump, until the process ends or close() is called.

    shared: only against one that is not shared, see regions.shared.
    """
    if fcntl is None:
        return None
    folder = os.open(path, os.O_RDONLY)
    try:
        if relock(folder, shared):
            return folder
    except OSError:  # network file systems without locks
        os.close(folder)
        return None
    os.close(folder)
    raise busy(path)


def busy(path: Path) -> RegionStoreError:
    return RegionStoreError(
        f"another dump is writing to {path}. Wait for it, or give another --store. "
        "(Processes that are to share one dump all need --shared, or torchrun.)"
    )


def relock(folder: int, shared: bool) -> bool:
    """Change a lock between shared and exclusive; False: another process does not let us."""
    try:
        fcntl.flock(folder, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
