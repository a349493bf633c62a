"""Regions as boxes: drawn from a seed, stored as fractions, cut again bit for bit.

Letters: R regions. A box is top, left, height, width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from regions.store.spec import RegionImage, RegionSpec

TRIES = 10  # draws of a region's shape before the centre is taken, as torchvision does


def sample_boxes(spec: RegionSpec, image: RegionImage) -> tuple[np.ndarray, np.ndarray]:
    """Draw the regions of one image, as torchvision's RandomResizedCrop would, and their flips.

    The draw depends on (spec.seed, image.path) alone, so neither the order of images nor the
    number of workers matters; and the first k of many regions are those of a spec with k.

    Returns:
        boxes (R, 4) float32, fractions of the image height and width; flips (R,) bool.

    Source: random resized crops with stored coordinates, FKD (Shen and Xing, ECCV 2022).
    """
    seed = hashlib.sha256(f"{spec.seed}\n{image.path}".encode("utf-8", "surrogateescape"))
    rng = np.random.default_rng(int.from_bytes(seed.digest(), "little"))
    uniform = rng.random((spec.num_regions, 1 + TRIES * 4))
    flips = uniform[:, 0] < spec.flip
    area, shape, down, right = np.moveaxis(uniform[:, 1:].reshape(-1, TRIES, 4), 2, 0)

    (low, high), (log_low, log_high) = spec.scale, np.log(spec.ratio)
    area = (low + (high - low) * area) * image.height * image.width
    ratio = np.exp(log_low + (log_high - log_low) * shape)
    height, width = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
    fits = (height >= 1) & (height <= image.height) & (width >= 1) & (width <= image.width)

    rows, first = np.arange(spec.num_regions), fits.argmax(axis=1)  # first try that fits
    height, width = height[rows, first], width[rows, first]
    top = np.floor(down[rows, first] * (image.height - height + 1))
    left = np.floor(right[rows, first] * (image.width - width + 1))
    pixels = np.stack([top, left, height, width], axis=1)
    pixels[~fits.any(axis=1)] = _centre(image.height, image.width, spec.ratio)
    size = (image.height, image.width, image.height, image.width)
    return (pixels / size).astype(np.float32), flips


def _centre(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """The largest centred box whose shape is nearest to the image's within the ratio range."""
    box_height, box_width = height, width
    if width / height < ratio[0]:
        box_height = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        box_width = max(1, round(height * ratio[1]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def box_to_pixels(box: Sequence[float], height: int, width: int) -> tuple[int, int, int, int]:
    """Find the pixels a stored box covers, so that a region can be cut again exactly.

    Exact for float32 fractions of images below 2**24 pixels a side: the fraction is off by at
    most 2**-25, so its product with the side by less than half a pixel.

    Args:
        box: top, left, height, width, each in [0, 1].
        height, width: image size in pixels.
    Returns:
        top, left, height, width in pixels; inside the image and at least 1 x 1.
    Raises:
        ValueError: the box reaches outside the image.
    """
    # float: a product of numpy's float32 with an int would stay in float32 and lose pixels.
    top, left, box_height, box_width = (float(value) for value in box)
    spans = (top, left, top + box_height, left + box_width)
    if not (all(0 <= span <= 1 + 1e-6 for span in spans) and min(box_height, box_width) >= 0):
        raise ValueError(f"box {tuple(box)} leaves the image; values are fractions in [0, 1].")
    # round, not int: 0.29 * 100 is 28.999..., and a region must not drift by a pixel.
    y, x = min(round(top * height), height - 1), min(round(left * width), width - 1)
    rows, columns = max(1, round(box_height * height)), max(1, round(box_width * width))
    return y, x, min(rows, height - y), min(columns, width - x)


def cut(image: Image.Image, box: Sequence[float], flip: bool, size: int) -> Image.Image:
    """Cut a region and scale it to size x size pixels (bicubic), mirrored when flip is set.

    The dump and training both call this, so that a student sees the teacher's very pixels.
    """
    top, left, height, width = box_to_pixels(box, image.height, image.width)
    region = image.crop((left, top, left + width, top + height))
    region = region.resize((size, size), Image.Resampling.BICUBIC)
    return region.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else region


def cut_all(image: Image.Image, boxes_R4: np.ndarray, flips_R: np.ndarray, size: int) -> np.ndarray:
    """Cut several regions of an RGB image: uint8 (R, size, size, 3)."""
    regions = np.empty((len(boxes_R4), size, size, 3), np.uint8)
    for region, box, flip in zip(regions, boxes_R4, flips_R, strict=True):
        region[:] = np.asarray(cut(image, box, bool(flip), size))
    return regions
