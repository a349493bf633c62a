"""Images to be read by benchmarks: drawn here, JPEG, as large as those of the usual data sets."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from models.clip import OPENAI_MEAN, OPENAI_STD
from regions.boxes import cut
from regions.dataset import to_input

HEIGHT, WIDTH = 375, 500  # pixels, ImageNet's most frequent size


def draw_image(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """Coarse coloured noise, smoothed: it compresses as photographs do, about 1 bit per pixel."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray((smooth + rng.integers(-9, 10, smooth.shape)).clip(0, 255).astype("u1"))


def write_images(folder: Path, count: int, height: int = HEIGHT, width: int = WIDTH) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:05d}.jpg" for index in range(count)]
    for index, path in enumerate(paths):
        draw_image(index, height, width).save(path, quality=90)
    return paths


def image_part(size: int = 224) -> Callable[[], object]:
    """What a step does with one image file before a network sees it: decode, cut, normalise."""
    file = io.BytesIO()
    draw_image(0).save(file, "JPEG", quality=90)

    def run() -> object:
        file.seek(0)
        region = cut(Image.open(file).convert("RGB"), (0.1, 0.1, 0.7, 0.7), True, size)
        return to_input(np.array(region)[None], OPENAI_MEAN, OPENAI_STD)

    return run


def cut_part(size: int = 224) -> Callable[[], object]:
    """One more region of an image that is decoded."""
    image = draw_image(0)
    return lambda: np.asarray(cut(image, (0.1, 0.1, 0.6, 0.6), True, size))
