"""Fixtures: a folder of tiny images and a config; one thread, so that runs can fork."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from . import dassl_toy as toy

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def image_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    toy.draw_images(root)
    return root


@pytest.fixture
def cfg(image_root, tmp_path):
    return toy.make_cfg(image_root, tmp_path / "out")


@pytest.fixture
def keep_stdout():
    """Undo setup_logger()."""
    stdout = sys.stdout
    yield
    if sys.stdout is not stdout:
        sys.stdout.close()
        sys.stdout = stdout
