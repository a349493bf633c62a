"""A run imports what it uses: the check is on what is loaded, not on a clock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
NOT_NEEDED = (  # by a run on the toy world or on OpenAI's models
    "gdown",
    "matplotlib",
    "open_clip",
    "pandas",
    "scipy",
    "sklearn",
    "submitit",
    "tensorboard",
    "timm",
    "torch.utils.tensorboard",
    "transformers",
)


def test_train_and_dump_start_without_what_they_may_never_use():
    code = (
        "import sys, train, dump_teacher_logits; "
        f"print(sorted(set({NOT_NEEDED!r}) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
