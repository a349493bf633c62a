"""Random number states as plain values, so that a checkpoint can carry them."""

from __future__ import annotations

import random

import numpy as np
import torch


def get_rng_state() -> dict:
    """State of python's, numpy's and torch's global generators, CUDA's too once it is in use."""
    _, keys, position, has_gauss, cached_gaussian = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": {
            "keys": torch.from_numpy(keys.astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached_gaussian": float(cached_gaussian),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_rng_state(state: dict) -> None:
    """Put the generators back. CUDA devices beyond those of this machine are left out."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy_state = state["numpy"]
    np.random.set_state(
        (
            "MT19937",
            numpy_state["keys"].cpu().numpy().astype(np.uint32),
            numpy_state["position"],
            numpy_state["has_gauss"],
            numpy_state["cached_gaussian"],
        )
    )
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        for device, device_state in zip(devices, state["cuda"], strict=False):
            torch.cuda.set_rng_state(device_state.cpu(), device)
