r"""A whole base-to-new run of three seeds, with and without its dump, against online KDPL.

    python -m benchmarks.end_to_end --json benchmarks/results/<machine>/end_to_end.json

1. The toy world, measured: train.py and dump_teacher_logits.py on fresh folders in this process,
   training on base classes, test on base and on new ones, seeds 1 to 3. Seconds by phase, CPU time
   of one thread; the images are drawn before, and start-up is not in it. Toy networks are so small
   that the rest of a run decides.
2. 50 classes, 800 images, 50 epochs, batch 32, ViT-B/16, teacher ViT-H/14, composed: medians of the
   pieces that benchmarks.step_time measured (--steps FILE; without it, it is run here), CPU time of
   one thread, multiplied by how often a run does each:
       training  online KDPL: epochs x 800 images through teacher and image tower, and 1250 steps;
                 FDBPL: 1250 steps
       dump      800 images x M regions through the teacher, images decoded once, regions cut
       features  800 images x M regions through the image tower
       test      1600 images through the image tower: each seed in the official code, once here
   Each seed draws its own images, so everything but the test is done for every seed. Not counted,
   of all methods alike: start-up, loading of weights, text features of test and teacher, logs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import report, step_time, table
from benchmarks.steps import BATCH

REPO = report.REPO
TEST_IMAGES = 1600  # 800 of base classes, 800 of new ones


# --- 1. the toy world, measured -------------------------------------------------------------


class ToyRuns:
    """Runs of the toy recipes in folders of their own. Phases: seconds by name."""

    def __init__(self, folder: Path, options: Sequence[str]):
        self.folder, self.options = folder, list(options)
        (folder / "data").mkdir()

    def flags(self, trainer: str, seed: int, scope: str) -> tuple[list[str], list[str]]:
        """Flags, and the KEY VALUE pairs that follow them."""
        return [
            *("--root", str(self.folder / "data"), "--seed", str(seed), "--trainer", trainer),
            *("--dataset-config-file", str(REPO / "configs/datasets/toy_shapes.yaml")),
            *("--config-file", str(REPO / f"configs/trainers/{trainer}/toy.yaml")),
        ], ["DATASET.NUM_SHOTS", "16", "DATASET.SUBSAMPLE_CLASSES", scope, *self.options]

    def draw_images(self) -> None:
        self._train("ZeroshotCLIP", 1, "base", "first", [], ["--no-train"])

    def run(self, trainer: str, seed: int, regions: int | None) -> dict[str, float]:
        """Dump where regions are given, train and test on base, test on new."""
        name = f"{trainer}_{regions}_{seed}"
        # Of this method alone, so that none works for another.
        keys = ["TEST.FEATURES_DIR", str(self.folder / f"features_{trainer}_{regions}")]
        seconds: dict[str, float] = {}
        if regions is not None:
            store = str(self.folder / f"store_{name}")
            keys += ["TRAINER.FDBPL.NUM_REGIONS", str(regions), "TRAINER.FDBPL.STORE", store]
            seconds["dump"] = self._dump(trainer, seed, keys)
        seconds["train and test on base"] = self._train(trainer, seed, "base", name, keys, [])
        trained = ["--eval-only", "--model-dir", str(self.folder / name)]
        seconds["test on new"] = self._train(trainer, seed, "new", f"{name}_new", keys, trained)
        return seconds

    def _dump(self, trainer: str, seed: int, keys: list[str]) -> float:
        import dump_teacher_logits

        flags, options = self.flags(trainer, seed, "base")
        with silent():
            started = time.process_time()
            if dump_teacher_logits.run([*flags, *options, *keys]):
                raise RuntimeError(f"the dump for {trainer}, seed {seed} failed; run it by hand.")
            return time.process_time() - started

    def _train(
        self, trainer: str, seed: int, scope: str, out: str, keys: list[str], extra: list[str]
    ) -> float:
        import train

        flags, options = self.flags(trainer, seed, scope)
        flags += ["--output-dir", str(self.folder / out), *extra]
        with silent():
            started = time.process_time()
            train.main([*flags, *options, *keys])
            return time.process_time() - started


@contextlib.contextmanager
def silent() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def measure_toy(
    seeds: Sequence[int], regions: Sequence[int], options: Sequence[str]
) -> list[dict[str, Any]]:
    """Seconds of all seeds by phase, of online KDPL and of FDBPL at each M."""
    with tempfile.TemporaryDirectory(prefix="end_to_end_") as name:
        runs = ToyRuns(Path(name), options)
        runs.draw_images()
        methods = [("CoOp_KDPL", None), *(("FDBPL", count) for count in regions)]
        found: dict[tuple, list[dict[str, float]]] = {method: [] for method in methods}
        for seed in seeds:  # the methods in turn
            for trainer, count in methods:
                found[trainer, count].append(runs.run(trainer, seed, count))
    rows = []
    for (_, count), of_seeds in found.items():
        label = "KDPL here" if count is None else f"FDBPL here, M = {count}"
        phases = {phase: sum(each[phase] for each in of_seeds) for phase in of_seeds[0]}
        rows.append(Run(label, count, phases).as_json("toy world", len(seeds)))
    return rows


# --- 2. ViT-B/16, composed ------------------------------------------------------------------


class Run(NamedTuple):
    """All seeds of one method: seconds by phase."""

    name: str
    regions: int | None
    phases: dict[str, float]

    def as_json(self, world: str, seeds: int) -> dict[str, Any]:
        total = sum(self.phases.values())
        return {
            "name": self.name,
            "world": world,
            "seeds": seeds,
            "regions": self.regions,
            "phases": {phase: round(seconds, 2) for phase, seconds in self.phases.items()},
            "seconds": round(total, 2),
            "seconds_without_dump": round(total - self.phases.get("dump", 0), 2),
        }


class Pieces(NamedTuple):
    """Seconds of CPU time that the composed run is made of."""

    teacher: float  # one image
    image: float  # the student's tower, one image
    official_step: float  # 77 tokens and KDPL's loss
    kdpl_step: float
    fdbpl_step: float
    file: float  # decode, one region, to tensor
    cut: float  # one more region

    @classmethod
    def of(cls, steps: dict[str, Any], student: str, classes: int) -> Pieces:
        """
        Args:
            steps: what benchmarks.step_time found or kept.
        Raises:
            ValueError: a piece is missing.
        """
        parts = {part["name"]: part["seconds"]["cpu"][1] for part in steps["parts"]}

        def median(name: str) -> float:
            if name not in parts:
                raise ValueError(
                    f"the step times hold no {name!r}. Run benchmarks.step_time on a CPU with "
                    f"--classes {classes} --student {student}."
                )
            return parts[name]

        return cls(
            teacher=median("teacher fp32, 1 images"),
            image=median(f"image tower {student}, 4 images") / 4,
            official_step=median(f"77 tokens, {classes} classes")
            + median(f"loss of kdpl, {classes} classes"),
            kdpl_step=median(f"kdpl here, {classes} classes"),
            fdbpl_step=median(f"fdbpl here, {classes} classes"),
            file=median(step_time.FILE),
            cut=median(step_time.CUT),
        )


def compose(found: Pieces, args: argparse.Namespace, seeds: int) -> list[dict[str, Any]]:
    """Seconds of one thread, by phase, of every method."""
    images, views = args.images, args.images * args.epochs
    steps = args.images // BATCH * args.epochs
    online = views * (found.teacher + found.image + found.file)
    test = TEST_IMAGES * (found.image + found.file)
    runs = [
        Run(
            "KDPL, official",
            None,
            {"train": seeds * (online + steps * found.official_step), "test": seeds * test},
        ),
        Run(
            "KDPL here",
            None,
            {"train": seeds * (online + steps * found.kdpl_step), "test": test},
        ),
    ]
    for regions in args.regions:
        cutting = images * (found.file + (regions - 1) * found.cut)
        runs.append(
            Run(
                f"FDBPL here, M = {regions}",
                regions,
                {
                    "dump": seeds * (images * regions * found.teacher + cutting),
                    "features": seeds * (images * regions * found.image + cutting),
                    "train": seeds * steps * found.fdbpl_step,
                    "test": test,
                },
            )
        )
    world = f"{args.classes} classes, {args.images} images, {args.student}, composed"
    return [run.as_json(world, seeds) for run in runs]


def run_steps(args: argparse.Namespace) -> dict[str, Any]:
    keys = ("student", "teacher", "classes")
    flags = [word for key in keys for word in (f"--{key}", str(getattr(args, key)))]
    return step_time.main([*flags, "--joint-classes", "--rounds", "3"])


# --- the command ----------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--worlds", nargs="+", choices=("toy", "composed"), default=["toy", "composed"]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--regions", type=int, nargs="+", default=[4, 16, 50], help="M")
    parser.add_argument("--classes", type=int, default=50, help="of the composed run")
    parser.add_argument("--images", type=int, default=800, help="of the composed run")
    parser.add_argument("--epochs", type=int, default=50, help="of the composed run")
    parser.add_argument("--student", default="ViT-B/16", help="of the composed run")
    parser.add_argument("--teacher", default="ViT-H-14", help="of the composed run")
    parser.add_argument("--steps", type=Path, metavar="FILE", help="JSON of benchmarks.step_time")
    parser.add_argument(
        "--toy-options", nargs="*", default=[], metavar="KEY VALUE", help="for every toy run"
    )
    report.add_flags(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    result: dict[str, Any] = {"rows": []}
    if "toy" in args.worlds:
        result["rows"] += measure_toy(args.seeds, args.regions, args.toy_options)
    if "composed" in args.worlds:
        steps = json.loads(args.steps.read_text()) if args.steps else run_steps(args)
        found = Pieces.of(steps, args.student, args.classes)
        result["rows"] += compose(found, args, len(args.seeds))
        result["steps"] = {name: steps.get(name) for name in ("commit", "finished", "options")}
    print(table.whole_rows(result["rows"]))
    options = {key: value for key, value in vars(args).items() if key not in ("json", "steps")}
    report.keep(args.json, "end_to_end", options, **result)
    return result


if __name__ == "__main__":
    main()
