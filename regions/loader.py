"""The order of a training run: which images, which of their regions, joined to batches.

Letters: R regions per step, B images per batch, H and W pixels, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from regions.dataset import RegionDataset


class RegionSampler(Sampler):
    """Every image once, in random order, with its regions already drawn.

    Drawing here, in the main process, gives the same regions for any number of workers. An epoch
    takes one number from torch's generator, so a restored RNG state replays it.
    """

    def __init__(self, dataset: RegionDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        for index in torch.randperm(len(self.dataset), generator=generator).tolist():
            yield index, self.dataset.draw_regions(generator)


def as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    """Collate function of data sets that give a whole batch at once."""
    return batch


def collate_regions(batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join samples, the regions of an image side by side.

    Returns img (B*R, 3, H, W), teacher_logits (B*R, C), label (B*R,) int64, and impath (list) and
    index (int64) of length B*R.
    """
    counts = torch.tensor([len(sample["img"]) for sample in batch])
    return {
        "img": torch.cat([sample["img"] for sample in batch]),
        "teacher_logits": torch.cat([sample["teacher_logits"] for sample in batch]),
        "label": torch.tensor([s["label"] for s in batch]).repeat_interleave(counts),
        "impath": [s["impath"] for s in batch for _ in range(len(s["img"]))],
        "index": torch.tensor([s["index"] for s in batch]).repeat_interleave(counts),
    }
