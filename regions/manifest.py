"""manifest.json and in_progress.json: what dump a folder holds, and which files are its own."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from regions.files import RegionStoreError, canonical_json, reading_file, regular_size
from regions.images import ImageTable
from regions.layout import IMAGES, IN_PROGRESS, MANIFEST, other_files, shard_name, shard_ranges
from regions.spec import RegionSpec

FORMAT = 1
MAX_MANIFEST = 2**26  # bytes; 1024 shards take 200 kB, 20,000 class names 500 kB


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
