"""Which files a store has, and which tensors lie in them; docs/REGION_STORE.md says it in words.

Letters: M regions per image, N images of a shard, C classes of the store, D width of a feature.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

from regions.files import (
    REDO,
    RegionStoreError,
    Tensors,
    TensorSpec,
    check_values,
    map_file,
    parse_tensors,
    tensors_checksum,
)
from regions.kinds import KINDS
from regions.spec import RegionSpec

MANIFEST = "manifest.json"  # written last: its presence says that the store is whole
IN_PROGRESS = "in_progress.json"  # the manifest without files: fixes the spec of a running dump
IMAGES = "images.safetensors"
CLAIMS = ".claims"  # folder, while several processes write the dump
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
