r"""Start-up: seconds from `python train.py ...` to its first training step, on the toy world.

    python -m benchmarks.startup --json benchmarks/results/<machine>/startup.json
    python -m benchmarks.startup --trees . ../before      two states of the code, in turn

The command that a user types, in a process of its own, read from outside: `import` ends with the
line that shows the arguments, `first_step` is the time that the first line of training tells, its
data included, and `setup` is what lies between them. The process is stopped at that line; its CPU
time is what the system tells of it. Images, region store and kept features are there before.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from datasets.toy import STAMP, TOY_SETS

PHASES = ("import", "setup", "first_step")
IMPORTED = "** Arguments **"
FIRST_STEP = re.compile(r"epoch \[1/\d+\] batch \[1/\d+\] time ([0-9.]+) ")


def command(tree: Path, folder: Path, script: str, trainer: str, *extra: str) -> list[str]:
    return [
        *(sys.executable, "-u", str(tree / script)),
        *("--root", str(folder / "data"), "--seed", "1", "--trainer", trainer),
        *("--dataset-config-file", str(tree / "configs/datasets/toy_shapes.yaml")),
        *("--config-file", str(tree / f"configs/trainers/{trainer}/toy.yaml"), *extra),
        *("DATASET.NUM_SHOTS", "1", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", "1"),
        *("TRAIN.PRINT_FREQ", "1", "TEST.NO_TEST", "True", "TRAINER.FDBPL.NUM_REGIONS", "4"),
        *("TRAINER.FDBPL.STORE", str(folder / "store")),
    ]


def draw_images(root: Path) -> None:
    """The toy world with empty files for the images that are listed and not opened."""
    toys = TOY_SETS["ToyShapes"]
    for split, count in toys.counts.items():
        for label in range(len(toys.classes)):
            for index in range(count):
                path = root / toys.folder / toys.path(split, label, index)
                path.parent.mkdir(parents=True, exist_ok=True)
                if split == "train":
                    toys.picture(split, label, index).save(path)
                else:
                    path.touch()
    (root / toys.folder / STAMP).write_text(json.dumps(toys.stamp()))


def environment(tree: Path) -> dict[str, str]:
    """One thread, and the engine of that tree even where another is installed."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree.resolve() / "dassl-lite")}


def until_first_step(call: Sequence[str], tree: Path) -> dict[str, float]:
    """Wall seconds by phase, and CPU seconds, of a training that is stopped at its first step."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started, found, said = time.perf_counter(), {}, []
    child = subprocess.Popen(call, cwd=tree, env=environment(tree), **pipes)
    for line in child.stdout:
        said.append(line)
        now = time.perf_counter() - started
        if line.startswith(IMPORTED):
            found["import"] = now
        if first := FIRST_STEP.match(line):
            found.update(wall=now, first_step=float(first[1]))
            child.kill()
            break
    child.stdout.close()
    _, _, usage = os.wait4(child.pid, 0)
    child.returncode = 0
    if set(found) != {"import", "first_step", "wall"}:
        raise RuntimeError(f"{' '.join(call)}\nended before its first step:\n{''.join(said[-5:])}")
    found["setup"] = found["wall"] - found["import"] - found["first_step"]
    return {**found, "cpu": usage.ru_utime + usage.ru_stime}


def measure(
    trees: Sequence[Path], trainers: Sequence[str], rounds: int, folder: Path
) -> list[dict[str, Any]]:
    draw_images(folder / "data")
    dump = command(trees[0].resolve(), folder, "dump_teacher_logits.py", "FDBPL")
    subprocess.run(dump, cwd=trees[0], env=environment(trees[0]), check=True, capture_output=True)
    found = {(trainer, tree): [] for trainer in trainers for tree in trees}
    for turn in range(rounds + 1):
        for (trainer, tree), runs in found.items():
            out = str(folder / f"{trainer}_{trees.index(tree)}_{turn}")
            call = command(tree.resolve(), folder, "train.py", trainer, "--output-dir", out)
            runs.append(until_first_step(call, tree))
    rows = []
    for (trainer, tree), (_, *runs) in found.items():  # the first warms up, and keeps the features
        medians = {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
        rows.append({"name": trainer, "tree": str(tree), **medians})
    return rows


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trainers", nargs="+", default=["CoOp", "FDBPL"])
    parser.add_argument("--trees", type=Path, nargs="+", default=[Path(".")])
    parser.add_argument("--rounds", type=int, default=5)
    report.add_flags(parser)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="startup_") as name:
        rows = measure(args.trees, args.trainers, args.rounds, Path(name))
    keys = (*PHASES, "wall", "cpu")
    lines = [(row["name"], row["tree"], *(f"{row[key]:.2f}" for key in keys)) for row in rows]
    print(report.markdown(("trainer", "tree", *(f"{key}, s" for key in keys)), lines))
    options = {"trainers": args.trainers, "rounds": args.rounds}
    report.keep(args.json, "startup", options, rows=rows)
    return rows


if __name__ == "__main__":
    main()
