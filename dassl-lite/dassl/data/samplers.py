"""Samplers by name."""

from __future__ import annotations

from collections.abc import Sized

from torch.utils.data import RandomSampler, Sampler, SequentialSampler
from yacs.config import CfgNode

KNOWN = {"RandomSampler": RandomSampler, "SequentialSampler": SequentialSampler}


def build_sampler(
    sampler_type: str,
    cfg: CfgNode | None = None,
    data_source: Sized | None = None,
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
) -> Sampler:
    """Build a sampler over a data source; the last three arguments serve samplers of upstream.

    Raises:
        ValueError: an unknown name.
    """
    if sampler_type not in KNOWN:
        raise ValueError(
            f"DATALOADER.*.SAMPLER is {sampler_type!r}. Known to dassl-lite: {', '.join(KNOWN)}"
        )
    return KNOWN[sampler_type](data_source)
