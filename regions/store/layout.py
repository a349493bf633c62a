"""Which files a store has, which tensors lie in them, and what manifest.json says of them.

docs/REGION_STORE.md says it in words. Letters: M regions per image, N images of a shard, C classes
of the store, D width of a feature.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from pathlib import Path
from typing import Any, NamedTuple

from regions.store.images import ImageTable
from regions.store.kinds import KINDS
from regions.store.spec import RegionSpec
from regions.store.tensors import (
    REDO,
    RegionStoreError,
    Tensors,
    TensorSpec,
    canonical_json,
    check_values,
    map_file,
    parse_tensors,
    reading_file,
    regular_size,
    tensors_checksum,
)

FORMAT = 1
MAX_MANIFEST = 2**26  # bytes; 1024 shards take 200 kB, 20,000 class names 500 kB
MANIFEST = "manifest.json"  # written last: its presence says that the store is whole
IN_PROGRESS = "in_progress.json"  # the manifest without files: fixes the spec of a running dump
IMAGES = "images.safetensors"
TEXT = "text.safetensors"  # text features of the store's classes; kind features only
REGIONS_PER_SHARD = 4096  # what a killed dump may lose
MAX_SHARDS = 1024


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


# --- is a file of a running dump whole? ------------------------------------------------------
# There is no manifest yet to ask: a file says in its own header what it is and its checksum.


def whole_shard(
    folder: Path, spec: RegionSpec, index: int, first: int, num_images: int
) -> tuple[Tensors, mmap.mmap] | None:
    """The tensors and the content of a shard; None when it is absent, damaged or of another dump.

    first, num_images: the images that it holds, see shard_ranges.
    """
    path = folder / shard_name(index)
    try:
        content = map_file(path)
        tensors, checksum = parse_shard(path, content, spec, index, first, num_images)
        if tensors_checksum(tensors) != checksum:
            return None
        check_shard(path, tensors, spec, num_images)
    except RegionStoreError:
        return None
    return tensors, content


def whole_text(folder: Path, spec: RegionSpec) -> tuple[Tensors, mmap.mmap] | None:
    """The same of text.safetensors."""
    path, expected = folder / TEXT, text_tensors(spec)
    try:
        content = map_file(path)
        tensors, checksum = parse_tensors(path, content, expected, {"spec": spec.id}, "text")
        if tensors_checksum(tensors) != checksum:
            return None
        check_values(path, tensors, expected)
    except RegionStoreError:
        return None
    return tensors, content


# --- manifest.json and in_progress.json -----------------------------------------------------


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


def encode_manifest(fields: dict[str, Any]) -> bytes:
    """One line of canonical JSON, with the checksum of all other fields under sha256."""
    checksum = hashlib.sha256(canonical_json(fields).encode()).hexdigest()
    return (canonical_json({**fields, "sha256": checksum}) + "\n").encode()


def read_manifest(path: Path) -> Manifest:
    """Read manifest.json or in_progress.json.

    Raises RegionStoreError for whatever is not exactly what this module writes.
    """
    damaged = (
        f"{path} is damaged. Copy it again from where the store came from, or delete it and run "
        "the dump again with the flags it was made with: whole shards are kept."
    )
    try:
        if regular_size(path) > MAX_MANIFEST:
            raise RegionStoreError(damaged)
        with reading_file(path):
            content = path.read_bytes()
        manifest = json.loads(content.decode(), parse_constant=_no_constant)
    except RegionStoreError:
        raise
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
        encoded = encode_manifest(manifest)
        if checksum != json.loads(encoded)["sha256"]:
            raise ValueError("its checksum is not its own")
        if content != encoded:
            raise ValueError("it is not canonical JSON and one line end")
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
