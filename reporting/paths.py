"""Where a run lives: the one place that knows the output folders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

TRAIN_BASE, TEST_NEW = "base2new/train_base", "base2new/test_new"
PHASE_OF_SCOPE = {"base": TRAIN_BASE, "new": TEST_NEW}


class RunPlace(NamedTuple):
    """The parts of a run folder; `root / phase / dataset / ...` gives it back."""

    root: Path
    phase: str
    dataset: str
    shots: int
    trainer: str
    config: str
    seed: int


def run_dir(
    phase: str,
    dataset: str,
    shots: int,
    trainer: str,
    config: str,
    seed: int,
    root: str | Path = "output",
) -> Path:
    """output/base2new/train_base/oxford_pets/shots_16/CoOp/vit_b32_ctxv1/seed1

    `dataset` and `config` are the stems of the two yaml files, `phase` is TRAIN_BASE or TEST_NEW.
    """
    return Path(root, phase, dataset, f"shots_{shots}", trainer, config, f"seed{seed}")


def store_dir(
    dataset: str, shots: int, config: str, seed: int, root: str | Path = "stores"
) -> Path:
    """stores/oxford_pets/shots_16/vit_b32_ctxv1/seed1; `config` is the one that was dumped with."""
    return Path(root, dataset, f"shots_{shots}", config, f"seed{seed}")


def parse_run_dir(path: str | Path) -> RunPlace | None:
    """Undo run_dir; None for a folder that is not laid out like one."""
    parts = Path(path).parts
    if len(parts) < 7:
        return None
    phase = "/".join(parts[-7:-5])
    dataset, shots, trainer, config, seed = parts[-5:]
    numbers = re.fullmatch(r"shots_(-?\d+)/seed(\d+)", f"{shots}/{seed}")
    if phase not in PHASE_OF_SCOPE.values() or not numbers:
        return None
    shots, seed = int(numbers[1]), int(numbers[2])
    return RunPlace(Path(*parts[:-7]), phase, dataset, shots, trainer, config, seed)
