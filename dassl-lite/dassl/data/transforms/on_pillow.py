"""The transforms that every recipe of CoOp's family uses, for Pillow images.

Pixels and random draws (torch's global generator) are torchvision's, bit for bit. torchvision takes
as long to import as torch, for networks, video and operators that a run has no use for.

Sizes are height, width. Transforms with equal repr() do the same: kept features are found by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

TRIES = 10  # draws of a crop's shape before the centre is taken
RATIO = (3 / 4, 4 / 3)  # width / height of a random crop, low and high


@dataclass(frozen=True)
class Compose:
    """One transform after the other."""

    transforms: list[Callable[[Any], Any]]

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


@dataclass(frozen=True)
class Resize:
    """Scale to a size; to an edge, the shorter one, keeping the shape."""

    size: int | Sequence[int]
    interpolation: Image.Resampling

    def __call__(self, image: Image.Image) -> Image.Image:
        if isinstance(self.size, int):
            longer = int(self.size * max(image.size) / min(image.size))
            narrow = image.width <= image.height
            height, width = (longer, self.size) if narrow else (self.size, longer)
        else:
            height, width = self.size
        return image.resize((width, height), self.interpolation)


@dataclass(frozen=True)
class CenterCrop:
    """Cut out the centre; an image that is too small is framed in black."""

    size: Sequence[int]

    def __call__(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        lacks = max(0, width - image.width), max(0, height - image.height)
        if any(lacks):
            before = [each // 2 for each in lacks]
            after = [(each + 1) // 2 for each in lacks]
            image = ImageOps.expand(image, (*before, *after))
        # round, as torchvision does: of two centres that are equally near, the even one.
        top, left = round((image.height - height) / 2), round((image.width - width) / 2)
        return image.crop((left, top, left + width, top + height))


@dataclass(frozen=True)
class RandomResizedCrop:
    """Cut out a part of random area and shape, and scale it to a size."""

    size: Sequence[int]
    scale: Sequence[float]  # area of the part / area of the image, low and high
    interpolation: Image.Resampling

    def __call__(self, image: Image.Image) -> Image.Image:
        top, left, height, width = self.draw(image.height, image.width)
        part = image.crop((left, top, left + width, top + height))
        return part.resize((self.size[1], self.size[0]), self.interpolation)

    def draw(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of a part, in pixels, of an image of that size."""
        low, high = torch.tensor(RATIO).log().tolist()
        for _ in range(TRIES):
            area = height * width * torch.empty(1).uniform_(*self.scale).item()
            ratio = torch.empty(1).uniform_(low, high).exp().item()
            columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < columns <= width and 0 < rows <= height:
                top, left = (
                    torch.randint(0, free + 1, size=(1,)).item()
                    for free in (height - rows, width - columns)
                )
                return top, left, rows, columns
        rows, columns = height, width
        if width / height < RATIO[0]:
            rows = round(width / RATIO[0])
        elif width / height > RATIO[1]:
            columns = round(height * RATIO[1])
        return (height - rows) // 2, (width - columns) // 2, rows, columns


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Mirror every other image, by chance."""

    def __call__(self, image: Image.Image) -> Image.Image:
        mirrored = bool(torch.rand(1) < 0.5)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image


@dataclass(frozen=True)
class ToTensor:
    """A Pillow image of 8 bits a channel as float tensor (channels, height, width) in [0, 1]."""

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = np.array(image, np.uint8).reshape(image.height, image.width, -1)
        pixels_CHW = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        return pixels_CHW.to(torch.get_default_dtype()).div(255)


@dataclass(frozen=True)
class Normalize:
    """Subtract a mean from every channel and divide by a standard deviation."""

    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        if 0 in self.std:
            raise ValueError(f"INPUT.PIXEL_STD is {list(self.std)}; pixels are divided by it.")

    def __call__(self, image_CHW: Tensor) -> Tensor:
        mean_C, std_C = (
            torch.tensor(values, dtype=image_CHW.dtype).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return (image_CHW - mean_C) / std_C
