"""Shared fixtures: the random CLIP that the parity fixtures were made with, built once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import parity
import pytest
import torch
from safetensors import safe_open
from toy_runs import store, world  # noqa: F401  (fixtures)

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of child processes; two busy threads are slower
torch.set_num_threads(1)
PARITY = Path(__file__).parent / "data" / "parity"


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device; none is here"))


def read_parity(name: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and description of a fixture; tests/data/parity/README.md tells what they are."""
    with safe_open(PARITY / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        return tensors, json.loads(file.metadata()["json"])


@pytest.fixture(scope="session")
def random_clip(tmp_path_factory) -> Path:
    """A file with the fixtures' student: ViT-B wide, 4 + 4 layers, random from seed 11."""
    path = tmp_path_factory.mktemp("clip") / "student.pt"
    torch.save(parity.random_clip(11), path)
    return path


@pytest.fixture(scope="session")
def parity_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (4, 3, 224, 224) and labels (4,) of the fixtures."""
    return parity.images_and_labels()
