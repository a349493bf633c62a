"""Where a run lives: the one place that knows the output folders.

    base2new/train_base   trained on the base classes, tested on them
    base2new/test_new     the same prompts on the new classes
    xd/train              trained on all classes of the source, tested on them
    xd/test               the same prompts on a target: another data set, or another domain
    few_shot/train        trained on all classes with k shots, tested on them

Each is followed by <data set>/shots_<k>/<Trainer>/<recipe>/seed<s>. The names of base-to-new are
the family's; those of the other protocols differ between its repositories, and in KDPL between the
training script and the test script. Teachers that are trained first lie the same way below
<output>/teachers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

TRAIN_BASE, TEST_NEW = "base2new/train_base", "base2new/test_new"
XD_TRAIN, XD_TEST = "xd/train", "xd/test"
FEW_SHOT_TRAIN = "few_shot/train"
TEACHERS = "teachers"
PHASE_OF_SCOPE = {"base": TRAIN_BASE, "new": TEST_NEW}
SCOPE_OF_PHASE = {
    TRAIN_BASE: "base",
    TEST_NEW: "new",
    XD_TRAIN: "all",
    XD_TEST: "all",
    FEW_SHOT_TRAIN: "all",
}


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

    `dataset` and `config` are the stems of the two yaml files, `phase` a key of SCOPE_OF_PHASE.
    """
    return Path(root, phase, dataset, f"shots_{shots}", trainer, config, f"seed{seed}")


def store_dir(dataset: str, shots: int, scope: str, seed: int, root: str | Path = "stores") -> Path:
    """stores/oxford_pets/shots_16/base/seed1: one region store for every method.

    `scope` is that of the classes whose images and logits it holds: base or all.
    """
    return Path(root, dataset, f"shots_{shots}", scope, f"seed{seed}")


def parse_run_dir(path: str | Path) -> RunPlace | None:
    """Undo run_dir; None for a folder that is not laid out like one."""
    parts = Path(path).parts
    if len(parts) < 7:
        return None
    phase = "/".join(parts[-7:-5])
    dataset, shots, trainer, config, seed = parts[-5:]
    numbers = re.fullmatch(r"shots_(-?\d+)/seed(\d+)", f"{shots}/{seed}")
    if phase not in SCOPE_OF_PHASE or not numbers:
        return None
    shots, seed = int(numbers[1]), int(numbers[2])
    return RunPlace(Path(*parts[:-7]), phase, dataset, shots, trainer, config, seed)
