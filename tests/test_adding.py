"""docs/ADDING.md is true: its files, put beside the trainers, train and are evaluated."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from toy_runs import REPO, options

from reporting.results import RunResult

CODE = re.findall(r"```python\n(.*?)```", (REPO / "docs/ADDING.md").read_text(), re.DOTALL)
# Imports the pages' files as what they would be in trainers/, then runs train.py.
CHILD = """
import importlib.util, sys
import train
from dataclasses import replace
from datasets import toy
small = replace(toy.TOY_SETS["ToyShapes"], counts={"train": 4, "val": 2, "test": 4})
toy.TOY_SETS["ToyShapes"] = small
folder, out, *flags = sys.argv[1:]
for name in ("gained", "hard"):
    spec = importlib.util.spec_from_file_location(f"trainers.{name}", f"{folder}/{name}.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
for trainer in ("GainedCoOp", "GainedCoOp_KDPL", "GainedCoOp_FDBPL", "CoOp_HARD", "MaPLe_HARD"):
    recipe = {"GainedCoOp": "CoOp", "CoOp": "CoOp", "MaPLe": "MaPLe"}[trainer.split("_")[0]]
    recipe += "_" + trainer.split("_")[1].replace("HARD", "KDPL") if "_" in trainer else ""
    train.main(["--trainer", trainer, "--output-dir", f"{out}/{trainer}",
                "--config-file", f"configs/trainers/{recipe}/toy.yaml", *flags])
"""


def test_the_examples_run(world, store, tmp_path):
    files = {code.splitlines()[0].removeprefix("# trainers/"): code for code in CODE}
    assert set(files) == {"gained.py", "hard.py"}
    for name, code in files.items():
        (tmp_path / name).write_text(code)
    flags = ["--root", str(world / "data"), "--seed", "1"]
    flags += ["--dataset-config-file", "configs/datasets/toy_shapes.yaml"]
    keys = options(epochs=2, **{"TRAINER.FDBPL.STORE": store})
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), str(tmp_path / "out"), *flags, *keys],
        cwd=REPO, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for trainer in ("GainedCoOp", "GainedCoOp_KDPL", "GainedCoOp_FDBPL", "CoOp_HARD", "MaPLe_HARD"):
        result = RunResult.read(tmp_path / "out" / trainer)
        assert result.trainer == trainer and result.accuracy > 20  # chance is 4.2
    from safetensors.torch import load_file

    prompts = "GainedCoOp_FDBPL/prompt_learner/prompts-2.safetensors"
    saved = load_file(tmp_path / "out" / prompts)
    assert set(saved) == {"ctx", "gain", "negative_ctx"}
    assert (saved["gain"] != 1).any()


@pytest.mark.parametrize("code", CODE, ids=lambda code: code.splitlines()[0][2:])
def test_the_examples_do_not_live_in_the_repository(code):
    assert not (REPO / code.splitlines()[0][2:]).exists()
