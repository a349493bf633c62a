"""Regions cut, scaled and mirrored in batches by matrix products, on any device.

It follows Pillow's bicubic resize, which the dump uses (regions/boxes.py): the same cubic, widened
when it shrinks, one direction after the other, and whole grey levels between the two. Sums are
floating point here and fixed point there, so that single pixels differ by a level or two.

Letters: R regions, H and W pixels of a region before it is scaled, S side of a cut region.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from regions.boxes import box_to_pixels
from regions.dataset import RegionDataset, read_image

CUBIC = -0.5  # the cubic's parameter; Pillow's, and torch's with antialias
GROUP = 2**25  # padded values in a product: 128 MB of float32


def resize_weights(lengths_R: Tensor, size: int, padded: int) -> Tensor:
    """Bicubic weights (R, size, padded) that scale the first lengths_R pixels to size pixels.

    Source: the antialiased cubic convolution of Pillow's Image.resize.
    """
    lengths = lengths_R.double()[:, None, None]
    scale = lengths / size
    width = scale.clamp(min=1)
    device = lengths_R.device
    centre = (torch.arange(size, device=device, dtype=torch.float64)[:, None] + 0.5) * scale
    pixel = torch.arange(padded, device=device, dtype=torch.float64)
    t = ((pixel + 0.5 - centre) / width).abs()
    near = ((CUBIC + 2) * t - (CUBIC + 3)) * t * t + 1
    far = (((t - 5) * t + 8) * t - 4) * CUBIC
    weights = torch.where(t < 1, near, torch.where(t < 2, far, 0.0))
    weights = torch.where(pixel < lengths, weights, 0.0)
    return (weights / weights.sum(dim=-1, keepdim=True)).float()


def scale_regions(
    regions: Sequence[np.ndarray], flips_R: np.ndarray, size: int, device: torch.device
) -> Tensor:
    """Scale cut-out pixels to size x size, mirrored where flips_R is set.

    Args:
        regions: R arrays (H, W, 3) of uint8, of any sizes.
    Returns:
        (R, 3, S, S) float32 on the device: whole numbers from 0 to 255.
    """
    out = torch.empty(len(regions), 3, size, size, device=device)
    shapes_R2 = np.array([region.shape[:2] for region in regions]).reshape(-1, 2)
    first_R = rows_first(shapes_R2, size)
    for group in _groups(shapes_R2, first_R):
        height, width = shapes_R2[group].max(axis=0).tolist()
        padded = np.zeros((len(group), height, width, 3), np.uint8)
        for place, index in enumerate(group):
            rows, columns = shapes_R2[index]
            padded[place, :rows, :columns] = regions[index]
        shapes = torch.from_numpy(shapes_R2[group]).to(device)
        pixels_R3HW = torch.from_numpy(padded).to(device).permute(0, 3, 1, 2).float()
        across_RSW = resize_weights(shapes[:, 1], size, width)
        flips = torch.from_numpy(np.asarray(flips_R, bool)[group]).to(device)
        across_RSW = torch.where(flips[:, None, None], across_RSW.flip(1), across_RSW)
        across_RWS = across_RSW.transpose(1, 2)[:, None]
        down_RSH = resize_weights(shapes[:, 0], size, height)[:, None]
        if first_R[group[0]]:
            out[group] = _levels(_levels(down_RSH @ pixels_R3HW) @ across_RWS)
        else:
            out[group] = _levels(down_RSH @ _levels(pixels_R3HW @ across_RWS))
    return out


def rows_first(shapes_R2: np.ndarray, size: int) -> np.ndarray:
    """Whether Pillow scales the height before the width, (R,) bool, for (R, 2) heights and widths.

    Found by trial on Pillow 13.0 for 20 to 500 pixels a side. It matters to noise alone: values
    clipped between the two directions.
    """
    height, width = (shapes_R2 - size).T
    return (height > 0) & (height > 2 * width)


def _levels(values: Tensor) -> Tensor:
    """To whole grey levels, half up, as Pillow rounds."""
    return values.add_(0.5).floor_().clamp_(0, 255)


def _groups(shapes_R2: np.ndarray, first_R: np.ndarray) -> list[list[int]]:
    """Regions of one order and like size together, so that padding and memory stay small."""
    shapes, first = shapes_R2.tolist(), first_R.tolist()
    order = sorted(range(len(shapes)), key=lambda index: (first[index], shapes[index]))
    groups: list[list[int]] = []
    for index in order:
        if groups and first[groups[-1][0]] == first[index]:
            longest = max(shapes[other][1] for other in (*groups[-1], index))
            if (len(groups[-1]) + 1) * 3 * shapes[index][0] * longest <= GROUP:
                groups[-1].append(index)
                continue
        groups.append([index])
    return groups


class DecodedImages:
    """Images decoded once, as RGB bytes in a temporary file that ends with this object.

    Args:
        paths: of the images.
        sizes: (N, 2) height and width of each.
        folder: for the file; None: the system's folder for such files.
    Raises:
        RegionStoreError: an image is missing, unreadable, or of another size.
    """

    def __init__(
        self, paths: Sequence[str], sizes: np.ndarray, folder: str | Path | None = None
    ) -> None:
        self.sizes = np.asarray(sizes, np.int64)
        ends = 3 * self.sizes.prod(axis=1).cumsum()
        self._starts = np.concatenate([[0], ends])
        self._file = tempfile.TemporaryFile(dir=folder)
        self._file.truncate(int(self._starts[-1]))
        self._bytes = np.memmap(self._file, np.uint8, "r+", shape=(int(self._starts[-1]),))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            list(pool.map(self._decode, range(len(paths)), paths))

    def __getitem__(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8, mapped."""
        start, end = self._starts[index], self._starts[index + 1]
        return self._bytes[start:end].reshape(*self.sizes[index], 3)

    def _decode(self, index: int, path: str) -> None:
        height, width = self.sizes[index].tolist()
        self[index][:] = np.asarray(read_image(path, height, width))


def decoded_bytes(sizes: np.ndarray) -> int:
    """What images of these heights and widths take decoded."""
    return 3 * int(np.asarray(sizes, np.int64).prod(axis=1).sum())


class RegionPixels(Dataset):
    """The samples of a RegionDataset, cut and scaled by a whole batch on a device.

    Indexed by a batch of keys (i, regions), as RegionSampler draws them, it gives what
    collate_regions makes of them, with img on the device and agreeing to a grey level or so.
    """

    def __init__(self, regions: RegionDataset, images: DecodedImages, device: torch.device) -> None:
        self.regions, self.images, self.device = regions, images, device
        self._mean = torch.tensor(regions.mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(regions.std, device=device).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.regions)

    def __getitems__(self, keys: Sequence[tuple[int, Tensor]]) -> dict[str, Any]:
        batch, rows = self.regions.read_batch(keys)
        cut_out = []
        for index, box in zip(batch["index"].tolist(), rows.boxes.reshape(-1, 4), strict=True):
            image = self.images[index]
            top, left, height, width = box_to_pixels(box, *image.shape[:2])
            cut_out.append(image[top : top + height, left : left + width])
        levels = scale_regions(
            cut_out, rows.flips.reshape(-1), self.regions.image_size, self.device
        )
        return {"img": levels.div_(255).sub_(self._mean).div_(self._std), **batch}
