"""The region store on disk: safetensors shards and a JSON manifest (docs/REGION_STORE.md).

Letters: R regions of one image, M regions per image, N images of a shard, C classes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from regions.spec import RegionImage, RegionSpec, canonical_json, region_settings

try:
    import fcntl
except ImportError:  # not a Unix: two dumps into one folder are then not noticed
    fcntl = None

FORMAT = 1
MANIFEST = "manifest.json"  # written last: its presence says that the store is whole
IN_PROGRESS = "in_progress.json"  # the manifest without shards: fixes the spec of a running dump
METADATA_KEY = "region_store"  # of a shard's header
VERIFY_AT_OPEN = 256 * 2**20  # bytes; the shards of a larger store are verified at first touch
MAX_HEADER = 2**20  # bytes; a shard's own header takes about 500
DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "U8": np.dtype("u1")}
REGIONS_PER_SHARD = 4096  # what a killed dump may lose
MAX_SHARDS = 1024


class RegionStoreError(ValueError):
    """The store on disk cannot serve this run. The message says what to do."""


class RegionRows(NamedTuple):
    """Stored regions of one image."""

    boxes: np.ndarray  # (R, 4) float32: top, left, height, width as fractions
    flips: np.ndarray  # (R,) bool
    logits: np.ndarray  # (R, C) float16, at the teacher's own logit scale


class Shard(NamedTuple):
    """A row of the manifest."""

    file: str
    first_image: int
    num_images: int
    bytes: int
    sha256: str


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


def shard_tensors(spec: RegionSpec, num_images: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Names of a shard's tensors, each with its safetensors dtype and shape."""
    rows = (num_images, spec.num_regions)
    return {
        "boxes": ("F32", (*rows, 4)),
        "flips": ("U8", rows),
        "logits": ("F16", (*rows, len(spec.classnames))),
    }


def data_bytes(spec: RegionSpec, num_images: int) -> int:
    """Bytes of the tensors of num_images images."""
    tensors = shard_tensors(spec, num_images).values()
    return sum(DTYPES[dtype].itemsize * math.prod(shape) for dtype, shape in tensors)


# --- files ----------------------------------------------------------------------------------


def write_whole(path: Path, content: bytes) -> None:
    """Write beside, then rename: a killed dump leaves no file that looks finished."""
    unfinished = path.with_name(path.name + ".partial")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk says which file it refused
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def map_file(path: Path, expected_bytes: int | None = None) -> mmap.mmap:
    """Map a file for reading, after its size was found right: no read beyond its end can follow."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno()).st_size
            if expected_bytes not in (None, found) or found == 0:
                wanted = "" if expected_bytes is None else f" instead of {expected_bytes}"
                raise RegionStoreError(f"{path} has {found} bytes{wanted}. {REDO}")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise RegionStoreError(f"{path} is missing. {REDO}") from error
    except OSError as error:
        raise RegionStoreError(f"{path} cannot be read: {error.strerror or error}.") from error


REDO = (
    "Copy the file again from where the store came from, or run the dump again "
    "with the flags it was made with: it redoes this shard and keeps the others."
)


def parse_shard(
    path: Path, content: mmap.mmap, spec: RegionSpec, shard: int, first: int, num_images: int
) -> tuple[dict[str, np.ndarray], str]:
    """Lay arrays over the bytes of a shard file, without a copy.

    Returns the arrays by name and the checksum of their bytes that the header promises.
    Raises RegionStoreError when the header is anything but the one this shard must have.
    """
    expected = shard_tensors(spec, num_images)
    length = int.from_bytes(content[:8], "little")
    start = 8 + length
    if not 2 <= length <= min(MAX_HEADER, len(content) - 8):
        raise RegionStoreError(f"{path} has a damaged header. {REDO}")
    try:
        header = json.loads(content[8:start].decode())
        promise = json.loads(header["__metadata__"][METADATA_KEY])
        checksum = promise.pop("sha256")
        found = {name: header[name] for name in expected}
        offsets = {name: tensor["data_offsets"] for name, tensor in found.items()}
        if header.keys() - {"__metadata__"} != expected.keys() or promise != {
            "spec": spec.id,
            "shard": shard,
            "first_image": first,
            "num_images": num_images,
        }:
            raise ValueError
        end = 0
        for name in sorted(offsets, key=lambda name: offsets[name]):  # without gap or overlap
            dtype, shape = expected[name]
            size = DTYPES[dtype].itemsize * math.prod(shape)
            fits = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
            if found[name] != fits:
                raise ValueError
            end += size
        if start + end != len(content) or type(checksum) is not str:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RegionStoreError(f"{path} is not shard {shard} of this store. {REDO}") from error
    arrays = {}
    for name, (dtype, shape) in expected.items():
        offset = start + offsets[name][0]
        flat = np.frombuffer(content, DTYPES[dtype], math.prod(shape), offset)
        arrays[name] = flat.reshape(shape)
    return arrays, checksum


def tensors_checksum(arrays: dict[str, np.ndarray]) -> str:
    """sha256 over the bytes of the tensors in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def read_manifest(path: Path) -> tuple[RegionSpec, int, list[Shard] | None]:
    """Read manifest.json, or in_progress.json, which has no shards (None).

    Returns the spec, the images per shard and the shards.
    Raises RegionStoreError for whatever is not exactly what this module writes.
    """
    damaged = (
        f"{path} is damaged. Copy it again from where the store came from, or delete it and run "
        "the dump again with the flags it was made with: whole shards are kept."
    )
    try:
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
    keys = {"format", "spec", "spec_id", "shard_images"}
    finished = path.name == MANIFEST
    try:
        checksum = manifest.pop("sha256")
        if checksum != hashlib.sha256(canonical_json(manifest).encode()).hexdigest():
            raise ValueError("its checksum is not its own")
        spec = RegionSpec.from_json(manifest["spec"])
        shard_images = manifest["shard_images"]
        ok = manifest.keys() == keys | ({"shards"} if finished else set())
        ok = ok and manifest["spec_id"] == spec.id
        ok = ok and type(shard_images) is int and shard_images >= 1
        if not ok:
            raise ValueError("fields do not fit each other")
        shards = None
        if finished:
            shards = [Shard(**row) for row in manifest["shards"]]
            ranges = [(shard.file, shard.first_image, shard.num_images) for shard in shards]
            wanted = [(shard_name(i), *r) for i, r in enumerate(shard_ranges(spec, shard_images))]
            whole = all(type(s.bytes) is int and type(s.sha256) is str for s in shards)
            if ranges != wanted or not whole:
                raise ValueError("the shards do not cover the images")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RegionStoreError(f"{damaged} ({error})") from error
    return spec, shard_images, shards


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# --- reading --------------------------------------------------------------------------------


class RegionStore:
    """A finished store, opened for reading. Arrays are mapped, never loaded whole.

    Sizes of all shards are checked at open. Checksums are verified at open when the shards take
    less than 256 MB together, and otherwise when a process first touches a shard. A store can be
    sent to forked and spawned workers: each maps the files itself.
    """

    def __init__(
        self, path: Path, spec: RegionSpec, shard_images: int, shards: list[Shard]
    ) -> None:
        self.path = path
        self.spec = spec
        self.shards = shards
        self.shard_images = shard_images
        self._index = {image.path: index for index, image in enumerate(spec.images)}
        self._verified: set[int] = set()
        self._arrays: dict[int, dict[str, np.ndarray]] = {}

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
        spec, shard_images, shards = read_manifest(path / MANIFEST)
        assert shards is not None
        for shard in shards:
            map_file(path / shard.file, shard.bytes).close()
        store = cls(path, spec, shard_images, shards)
        if sum(shard.bytes for shard in shards) < VERIFY_AT_OPEN:
            store.verify()
        return store

    def __len__(self) -> int:
        return len(self.spec.images)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}  # maps stay with their process

    def verify(self) -> None:
        """Compare every shard with its checksum. Raises RegionStoreError at the first damage."""
        for shard in range(len(self.shards)):
            self.arrays(shard)

    def arrays(self, shard: int) -> dict[str, np.ndarray]:
        """The mapped tensors of one shard: boxes (N, M, 4), flips (N, M), logits (N, M, C)."""
        arrays = self._arrays.get(shard)
        if arrays is None:
            file, first, num_images, size, sha256 = self.shards[shard]
            content = map_file(self.path / file, size)
            if shard not in self._verified and hashlib.sha256(content).hexdigest() != sha256:
                raise RegionStoreError(
                    f"{self.path / file} is damaged: its checksum is not the manifest's. {REDO}"
                )
            arrays, _ = parse_shard(self.path / file, content, self.spec, shard, first, num_images)
            self._verified.add(shard)
            self._arrays[shard] = arrays
        return arrays

    def image_index(self, relative_path: str) -> int:
        """Where an image stands in the store, by its path under the data root."""
        try:
            return self._index[relative_path]
        except KeyError:
            raise RegionStoreError(
                f"{self.path} has no regions of {relative_path}. {_OTHER_IMAGES}"
            ) from None

    def read(self, image_index: int, region_indices: Sequence[int] | np.ndarray) -> RegionRows:
        """Copy some regions of one image out of the store."""
        if not 0 <= image_index < len(self):
            raise IndexError(f"image {image_index} of {len(self)}")
        shard, row = divmod(image_index, self.shard_images)
        arrays = self.arrays(shard)
        return RegionRows(
            arrays["boxes"][row, region_indices],
            arrays["flips"][row, region_indices].astype(bool),
            arrays["logits"][row, region_indices],
        )

    def columns(self, classnames: Sequence[str]) -> np.ndarray:
        """Columns of the logits for the classes of a run, (C of the run,) int64.

        Classes are found by name. Where a name occurs several times, occurrences match in order.
        Raises RegionStoreError when the store lacks a class.
        """
        places: dict[str, list[int]] = {}
        for column, name in enumerate(self.spec.classnames):
            places.setdefault(name, []).append(column)
        seen: Counter[str] = Counter()
        columns = []
        for name in classnames:
            if seen[name] == len(places.get(name, ())):
                raise RegionStoreError(
                    f"{self.path} holds logits of {len(self.spec.classnames)} classes, but not of "
                    f"{name!r}, one of the run's {len(classnames)} classes. Set "
                    "DATASET.SUBSAMPLE_CLASSES and the data set as in the dump, or dump again "
                    "into another --store; one with DATASET.SUBSAMPLE_CLASSES all serves every run."
                )
            columns.append(places[name][seen[name]])
            seen[name] += 1
        return np.array(columns, np.int64)

    def check_run(self, needs: RunNeeds) -> None:
        """Refuse a run that this store does not fit, naming the field and the way out.

        Raises RegionStoreError.
        """
        for field in _SETTINGS:
            if field == "teacher_digest" and needs.teacher_digest is None:
                continue
            found, wanted = getattr(self.spec, field), getattr(needs, field)
            if found != wanted:
                _refuse(self.path, field, found, wanted)
        self.columns(needs.classnames)
        missing = [path for path in needs.images if path not in self._index]
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
    "teacher": ("logits of {}", "TRAINER.FDBPL.TEACHER"),
    "teacher_digest": ("logits of a teacher with weights {}", ""),
    "template": ("logits for the prompt {!r}", "DATASET.TEMPLATE"),
    "seed": ("regions drawn with seed {}", "--seed"),
    "num_regions": ("{} regions per image", "TRAINER.FDBPL.NUM_REGIONS"),
    "scale": ("regions with an area of {} of the image", "TRAINER.FDBPL.REGION_SCALE"),
    "ratio": ("regions with width / height in {}", "TRAINER.FDBPL.REGION_RATIO"),
    "flip": ("regions mirrored with probability {}", "TRAINER.FDBPL.REGION_FLIP"),
}
_DUMP_SETTINGS = {
    **_SETTINGS,
    "teacher_precision": ("logits computed in {}", "TRAINER.FDBPL.TEACHER_PREC"),
    "image_size": ("regions of {} pixels a side", ""),
    "kind": ("{}", ""),
    "dtype": ("values in {}", ""),
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
    place = next(i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
    values = [_describe(value) for value in (old[place], new[place])]
    return tuple(f"{num_old} {noun}, number {place + 1} being {value}" for value in values)


def _describe(value: RegionImage | str) -> str:
    if isinstance(value, RegionImage):
        return f"{value.path} (label {value.label}, {value.height} x {value.width})"
    return repr(value)


# --- writing --------------------------------------------------------------------------------


def to_float16(logits_BC: np.ndarray, images_B: Sequence[str]) -> np.ndarray:
    """Round float32 logits to float16.

    Raises:
        RegionStoreError: a logit is not finite, or too large for float16; names the image.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        rounded_BC = np.asarray(logits_BC, np.float32).astype(np.float16)
    bad = np.argwhere(~np.isfinite(rounded_BC))
    if len(bad):
        row, column = bad[0]
        value = logits_BC[row, column]
        why = (
            "float16 ends at 65504: is the teacher's logit scale right?"
            if np.isfinite(value)
            else "Set TRAINER.FDBPL.TEACHER_PREC fp32, and look at the image and the weights."
        )
        raise RegionStoreError(
            f"the teacher's logit {column} of a region of {images_B[row]} is {value}. {why}"
        )
    return rounded_BC


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

    def __init__(self, path: str | Path, spec: RegionSpec, shard_images: int | None = None) -> None:
        """Start or continue. shard_images is for a new dump; a dump going on keeps its own.

        Raises:
            RegionStoreError: the folder holds another dump, or is being written to.
            OSError: the folder cannot be made or written to.
        """
        self.path = Path(path).expanduser()
        self.spec = spec
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.path)
        try:
            self._start(shard_images)
        except BaseException:
            self.close()
            raise

    def _start(self, shard_images: int | None) -> None:
        found = find_dump(self.path)
        listed: list[Shard] | None = None
        if found:
            require_same_spec(self.path, found.spec, self.spec)
            shard_images, listed = found.shard_images, found.shards
        self.shard_images = shard_images or images_per_shard(self.spec)
        self.ranges = shard_ranges(self.spec, self.shard_images)
        self.is_new = not found
        self._shards: dict[int, Shard] = {}
        for index in range(len(self.ranges)):
            shard = self._whole_shard(index)
            if shard and (listed is None or listed[index] == shard):
                self._shards[index] = shard
        if not found and not self._shards and any(self.path.glob("*.safetensors")):
            raise RegionStoreError(
                f"{self.path} has no {MANIFEST}, and its shards are not of this dump. Run the dump "
                "with the flags they were made with, or give another --store."
            )
        self.is_finished = listed is not None and not self.missing
        if not self.is_finished:
            write_whole(self.path / IN_PROGRESS, encode_manifest(self._head()))
            (self.path / MANIFEST).unlink(missing_ok=True)
        self._clean()

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

    def _clean(self) -> None:
        """Remove what a killed dump may have left half-written."""
        for unfinished in self.path.glob("*.partial"):
            unfinished.unlink()
        if self.is_finished:
            (self.path / IN_PROGRESS).unlink(missing_ok=True)

    @property
    def missing(self) -> list[int]:
        """Shards still to be written, in order."""
        return [index for index in range(len(self.ranges)) if index not in self._shards]

    def write(self, index: int, boxes: np.ndarray, flips: np.ndarray, logits: np.ndarray) -> None:
        """Write one shard: boxes (N, M, 4), flips (N, M) and logits (N, M, C) of its images.

        Raises:
            RegionStoreError: a logit is NaN, infinite or too large for float16.
            OSError: the disk is full or not writable; whole shards stay.
        """
        first, num_images = self.ranges[index]
        names = [image.path for image in self.spec.images[first : first + num_images]]
        if logits.dtype != np.float16 or not np.isfinite(logits).all():
            rows = np.repeat(names, self.spec.num_regions)
            logits = to_float16(logits.reshape(len(rows), -1), rows).reshape(logits.shape)
        given = {"boxes": boxes, "flips": flips, "logits": logits}
        arrays = {}
        for name, (dtype, shape) in shard_tensors(self.spec, num_images).items():
            arrays[name] = np.ascontiguousarray(given[name], DTYPES[dtype])
            assert arrays[name].shape == shape, f"{name}: {arrays[name].shape} is not {shape}"
        promise = {
            "spec": self.spec.id,
            "shard": index,
            "first_image": first,
            "num_images": num_images,
            "sha256": tensors_checksum(arrays),
        }
        # One metadata key: safetensors does not promise an order for several.
        content = safetensors.numpy.save(arrays, {METADATA_KEY: canonical_json(promise)})
        write_whole(self.path / shard_name(index), content)
        sha256 = hashlib.sha256(content).hexdigest()
        self._shards[index] = Shard(shard_name(index), first, num_images, len(content), sha256)

    def finish(self) -> None:
        """Write the manifest, last of all: from now on the store is whole."""
        assert not self.missing, f"shards {self.missing} are missing"
        shards = [self._shards[index]._asdict() for index in range(len(self.ranges))]
        write_whole(self.path / MANIFEST, encode_manifest({**self._head(), "shards": shards}))
        self.is_finished = True
        self._clean()

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


class FoundDump(NamedTuple):
    """A dump on disk, finished (shards listed) or not (None)."""

    spec: RegionSpec
    shard_images: int
    shards: list[Shard] | None


def find_dump(path: str | Path) -> FoundDump | None:
    """Read what dump a folder holds; None for an absent or empty folder.

    Raises:
        RegionStoreError: the folder holds something else, or a damaged manifest.
    """
    path = Path(path).expanduser()
    for name in (MANIFEST, IN_PROGRESS):
        if (path / name).exists():
            return FoundDump(*read_manifest(path / name))
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


def _lock(path: Path) -> int | None:
    """Lock the folder against a second dump, until the process ends or close() is called."""
    if fcntl is None:
        return None
    folder = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(folder)
        raise RegionStoreError(
            f"another dump is writing to {path}. Wait for it, or give another --store."
        ) from error
    except OSError:  # network file systems without locks
        os.close(folder)
        return None
    return folder
