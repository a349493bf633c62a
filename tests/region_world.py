"""A small world for the tests of regions: noise images, a spec over them, and a cheap teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regions.dump import dump, list_images
from regions.store import RegionStore
from regions.store.kinds import encode
from regions.store.spec import RegionImage, RegionSpec
from regions.store.writer import StoreWriter

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
CLASSES = ("ant", "bee", "cat", "dog")
SIZE = 12


@dataclass(frozen=True)
class Item:
    """What a data set lists of an image."""

    impath: str
    label: int


def draw_images(root: Path, count: int = 7) -> list[Item]:
    """Noise images of different sizes, odd ones too, in a folder per class."""
    rng = np.random.default_rng(5)
    items = []
    for index in range(count):
        label = index % len(CLASSES)
        path = root / "images" / CLASSES[label] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20 + 3 * index, 41 - 4 * index, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        items.append(Item(str(path), label))
    return items


def make_spec(root: Path, items: list[Item], **changes) -> RegionSpec:
    values = {
        "teacher": "toy-teacher",
        "teacher_digest": "d1",
        "teacher_precision": "fp32",
        "template": "a photo of a {}.",
        "classnames": CLASSES,
        "images": tuple(list_images(items, root)),
        "image_size": SIZE,
        "num_regions": 5,
        "scale": (0.08, 0.936),
        "ratio": (0.75, 4 / 3),
        "flip": 0.5,
        "seed": 1,
    }
    return RegionSpec(**{**values, **changes})


def teacher(images: Tensor) -> Tensor:
    """Logits that depend on every pixel; a row does not depend on the rest of its batch."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(3 * SIZE * SIZE, len(CLASSES), generator=generator)
    return (images.flatten(1)[:, :, None] * weights).sum(1)


def make_store(root: Path, store: Path, **changes) -> RegionStore:
    """Dump seven images into three shards."""
    spec = make_spec(root, draw_images(root), **changes)
    return run_dump(store, spec, root)


def run_dump(store: Path, spec: RegionSpec, root: Path, teacher=teacher, **options) -> RegionStore:
    options = {"mean": MEAN, "std": STD, "batch_size": 4, "shard_images": 3, **options}
    return dump(store, spec, root, teacher, **options)


def folder_bytes(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


GOLDEN_KINDS = {  # folder in tests/golden -> what its spec says of the kind
    "region_store_v1": {},
    "region_store_v1_float32": {"dtype": "float32"},
    "region_store_v1_topk": {"kind": "topk", "top_k": 2},
    "region_store_v1_features": {"kind": "features", "feature_width": 4, "logit_scale": 50.0},
}


def golden_spec(**changes) -> RegionSpec:
    """The spec of tests/golden/region_store_v1: three images, two regions each, three classes."""
    values = {
        "teacher": "ViT-H-14-quickgelu",
        "teacher_digest": "ab" * 32,
        "teacher_precision": "fp32",
        "template": "a photo of a {}, a type of pet.",
        "classnames": ("Abyssinian", "café cat", "pug"),
        "images": (
            RegionImage("oxford_pets/images/Abyssinian_1.jpg", 0, 400, 600),
            RegionImage("oxford_pets/images/pug_7.jpg", 2, 333, 500),
            RegionImage("oxford_pets/images/ünïcode 3.jpg", 1, 7, 7001),
        ),
        "image_size": 224,
        "num_regions": 2,
        "scale": (0.08, 0.936),
        "ratio": (0.75, 4 / 3),
        "flip": 0.5,
        "seed": 3,
    }
    return RegionSpec(**{**values, **changes})


def golden_arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """boxes, flips and logits of all three images in plain numbers, none of them drawn."""
    boxes = np.arange(24, dtype=np.float32).reshape(3, 2, 4) / np.float32(47)
    flips = np.array([[0, 1], [1, 1], [0, 0]], np.uint8)
    logits = np.arange(18, dtype=np.float32).reshape(3, 2, 3) % 7 * np.float32(1.5) + 11
    return boxes, flips, logits


def golden_features() -> tuple[np.ndarray, np.ndarray]:
    """Unit image features (3, 2, 4) and text features (3, 4) in plain numbers."""
    features = np.array([[3, 4, 0, 0], [0, 0, 0, 5], [1, 2, 2, 4]], np.float32) / 5
    image_features = np.stack([features, -features[:, ::-1]], axis=1)
    return image_features, np.array([[0, 1, 0, 0], [0, 0, -1, 0], [0.6, 0, 0, 0.8]], np.float32)


def golden_shard(spec: RegionSpec, images: slice = slice(None)) -> dict[str, np.ndarray]:
    """The tensors of a shard that holds these images."""
    boxes, flips, logits = golden_arrays()
    output = golden_features()[0] if spec.kind == "features" else logits
    rows = output[images].reshape(-1, output.shape[-1])
    names = np.repeat([image.path for image in spec.images[images]], spec.num_regions)
    kept = {
        name: tensor.reshape(-1, spec.num_regions, *tensor.shape[1:])
        for name, tensor in encode(spec, rows, names).items()
    }
    return {"boxes": boxes[images], "flips": flips[images], **kept}


def write_golden(path: Path, **changes) -> None:
    """How the golden stores were made: two shards, of two images and of one."""
    spec = golden_spec(**changes)
    with StoreWriter(path, spec, shard_images=2) as writer:
        for index, (first, count) in enumerate(writer.ranges):
            writer.write(index, golden_shard(spec, slice(first, first + count)))
        if writer.needs_text:
            writer.write_text(golden_features()[1])
        writer.finish()
