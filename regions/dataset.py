"""Images and their stored regions as training samples: cut, normalised, with teacher logits.

Letters: R regions per step, B images per batch, H and W pixels, C classes, M regions per image.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

import inputs
from regions.boxes import cut_all
from regions.store import RegionRows, RegionStore, RegionStoreError
from regions.store.contents import read_image_file
from regions.store.spec import relative_path

CACHE_BYTES = 512 * 2**20  # decoded images are kept when all of them take less than this


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn whatever goes wrong with an image file into one RegionStoreError that names it."""
    try:
        yield
    except Exception as error:  # decoders raise whatever they like
        raise RegionStoreError(inputs.unreadable(path, error)) from None


def read_image(path: str, height: int, width: int, digest: bytes | None = None) -> Image.Image:
    """Decode an image as RGB and check that it is the one whose regions were drawn.

    Args:
        digest: of its bytes then; None where that is not known.
    Raises:
        RegionStoreError: the file is missing, unreadable, of another size, or has other bytes.
    """
    image, record = read_with_record(path, height, width)
    if digest not in (None, bytes(record["digest"])):
        raise RegionStoreError(
            f"image {path} changed since its regions were drawn: it has other bytes. Restore it, "
            "or dump again into another --store."
        )
    return image


def read_with_record(
    path: str, height: int, width: int, place: int = 0
) -> tuple[Image.Image, np.ndarray]:
    """An image as read_image gives it, and the record of the very bytes it was decoded from."""
    with reading(path):
        content, record = read_image_file(path, place)
        image = inputs.decode(io.BytesIO(content))
    if image.size != (width, height):
        raise RegionStoreError(
            f"image {path} is {image.height} x {image.width} pixels, but its regions were drawn at "
            f"{height} x {width}. Restore the image, or dump again into another --store."
        )
    return image, record


def to_input(regions_RHW3: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 pixels (R, H, W, 3) to a network's input, (R, 3, H, W) float32: /255, normalised."""
    pixels = torch.from_numpy(regions_RHW3).permute(0, 3, 1, 2).contiguous().float().div_(255)
    mean_3, std_3 = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    return pixels.sub_(mean_3).div_(std_3)


def regions_per_pass(device: str | torch.device) -> int:
    """How many images an image tower takes at once.

    A GPU wants many. On a CPU the activations of many images are pages that the system has to hand
    out anew in each pass; few stay in its caches.
    """
    return 8 if torch.device(device).type == "cpu" else 256


class RegionDataset(Dataset):
    """Training images, each visited through some of its stored regions.

    Sample i is a dict: img (R, 3, H, W) float32, teacher_logits (R, C) float32, label (int),
    impath (str), index (int). Regions are drawn without replacement from torch's generator; index
    it with (i, regions) to choose them, as RegionSampler does.

    Args:
        items: objects with .impath and .label (a label of the run, not of the store).
        store: holds regions of every item.
        columns: columns of the stored logits, one per class of the run (store.columns).
        regions_per_step: R.
        image_size: side of a cut region in pixels, the student's input.
        mean, std: per channel, the student's.
        root: the data root, to which the store's paths are relative.
    Raises:
        RegionStoreError: an item is not in the store; when reading, its file has changed.
        ValueError: regions_per_step is not in 1..M.
    """

    def __init__(
        self,
        items: Sequence[Any],
        store: RegionStore,
        columns: np.ndarray,
        regions_per_step: int,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        root: str | os.PathLike,
    ) -> None:
        stored = store.spec.num_regions
        if not 1 <= regions_per_step <= stored:
            raise ValueError(
                f"TRAINER.FDBPL.REGIONS_PER_STEP is {regions_per_step}, but {store.path} holds "
                f"{stored} regions per image: set it to a number from 1 to {stored}."
            )
        self.items = list(items)
        self.store = store
        self.columns = np.asarray(columns)
        self.regions_per_step = regions_per_step
        self.image_size = image_size
        self.mean, self.std = tuple(mean), tuple(std)
        self.places = store.image_indices([relative_path(item.impath, root) for item in self.items])
        whole = np.array_equal(self.columns, np.arange(len(store.classnames)))
        self._some_columns = None if whole else self.columns
        self._cache: dict[int, Image.Image] | None = None
        pixels = int(store.spec.images.sizes[self.places].astype(np.int64).prod(axis=1).sum())
        if 4 * pixels <= CACHE_BYTES:  # PIL keeps four bytes per RGB pixel
            self._cache = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None if self._cache is None else {}}

    def draw_regions(self, generator: torch.Generator | None = None) -> Tensor:
        """Choose R of the M regions, (R,) int64."""
        permutation = torch.randperm(self.store.spec.num_regions, generator=generator)
        return permutation[: self.regions_per_step]

    def __getitem__(self, key: int | tuple[int, Tensor]) -> dict[str, Any]:
        index, regions = key if isinstance(key, tuple) else (key, self.draw_regions())
        item = self.items[index]
        rows = self.store.read(int(self.places[index]), np.asarray(regions), self._some_columns)
        cut = cut_all(self._image(index), rows.boxes, rows.flips, self.image_size)
        return {
            "img": to_input(cut, self.mean, self.std),
            "teacher_logits": torch.from_numpy(rows.logits),
            "label": int(item.label),
            "impath": item.impath,
            "index": index,
        }

    def read_batch(self, keys: Sequence[tuple[int, Tensor]]) -> tuple[dict[str, Any], RegionRows]:
        """All of a batch but the images: what collate_regions gives without img, and the regions.

        keys: (i, regions) of each image, as RegionSampler draws them.
        """
        index_B = np.array([index for index, _ in keys])
        chosen_BR = np.stack([np.asarray(chosen) for _, chosen in keys])
        rows = self.store.read_batch(self.places[index_B], chosen_BR, self._some_columns)
        items = [self.items[index] for index in index_B for _ in range(chosen_BR.shape[1])]
        batch = {
            "teacher_logits": torch.from_numpy(rows.logits).flatten(0, 1),
            "label": torch.tensor([int(item.label) for item in items]),
            "impath": [item.impath for item in items],
            "index": torch.from_numpy(index_B.repeat(chosen_BR.shape[1])),
        }
        return batch, rows

    def _image(self, index: int) -> Image.Image:
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        place = int(self.places[index])
        stored, digest = self.store.spec.images[place], self.store.contents.digest(place)
        image = read_image(self.items[index].impath, stored.height, stored.width, digest)
        if self._cache is not None:
            self._cache[index] = image
        return image
