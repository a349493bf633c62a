r"""The demo: every method base-to-new on the toy world, a table and two pictures.

    make demo          or          python scripts/demo.py [--resume] [-- KEY VALUE ...]

Draws the toy images on first use, dumps the teacher's logits, and trains and tests each method on
each seed, as many runs at a time as there are CPU cores. All of it lies under output/demo. The
commands are those of scripts/run.sh; they run in a few long-lived processes to save start-up time.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from tqdm import tqdm  # noqa: E402  (the repository is not a package)

from reporting.base2new import compare  # noqa: E402
from reporting.paths import store_dir  # noqa: E402
from reporting.plots import base_new_h, region_grid  # noqa: E402
from reporting.results import RunResult, write_text  # noqa: E402
from reporting.tables import render  # noqa: E402

# Long ones first, so that the last core does not wait for them.
METHODS = {
    "fdbpl": ("dump", "train", "test"),
    "coop_kdpl": ("train", "test"),
    "coop": ("train", "test"),
    "zsclip": ("train", "test"),
}
# Seconds a run took on one core with 16 shots: they make the time left a fair guess.
SECONDS = {
    "dump": 6, "fdbpl train": 11, "coop_kdpl train": 21, "coop train": 14, "zsclip train": 5,
    "test": 5,
}  # fmt: skip
SHOWN_REGIONS = 40


class Run(NamedTuple):
    method: str
    phase: str
    seed: int

    def __str__(self) -> str:
        phase = "test on base" if self.phase == "train" and self.method == "zsclip" else self.phase
        return f"{self.method} seed {self.seed} {phase}"

    @property
    def seconds(self) -> int:
        return SECONDS.get(f"{self.method} {self.phase}") or SECONDS[self.phase]

    @property
    def next(self) -> Run | None:
        phases = METHODS[self.method]
        place = phases.index(self.phase) + 1
        return self._replace(phase=phases[place]) if place < len(phases) else None


class Outcome(NamedTuple):
    error: str  # empty when all went well
    seconds: float


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--resume", action="store_true", help="keep the runs that are finished")
    parser.add_argument("--dataset", default="toy_shapes", help="stem in configs/datasets")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--jobs", type=int, default=cores(), help="runs at a time")
    parser.add_argument("--out", type=Path, default=REPO / "output" / "demo")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="for every run, after --")
    return parser.parse_args(argv)


def cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    args.out = args.out.absolute()
    started = time.perf_counter()
    sys.stdout.reconfigure(line_buffering=True)  # so that a log of the demo can be followed
    if not args.resume:
        for name in ("base2new", "stores", "logs"):
            shutil.rmtree(args.out / name, ignore_errors=True)
        for name in ("table.md", "regions.png", "base_new_h.png"):
            (args.out / name).unlink(missing_ok=True)
    data_root().mkdir(parents=True, exist_ok=True)
    failed = run_all(args)
    report(args)
    print(f"\nThe demo took {time.perf_counter() - started:.0f} s.")
    if failed:
        print(f"{failed} runs failed: see above, and {args.out / 'logs'}.", file=sys.stderr)
    return 1 if failed else 0


# --- running


def run_all(args: argparse.Namespace) -> int:
    """Run every phase of every method and seed; returns how many failed."""
    firsts = [Run(method, METHODS[method][0], seed) for method in METHODS for seed in args.seeds]
    total = sum(run.seconds for first in firsts for run in chain(first))
    # One thread per process: more of them stand in each other's way.
    os.environ["OMP_NUM_THREADS"] = "1"
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, spawn, initializer=start_worker) as pool:
        # Alone, so that the images are drawn once.
        data = pool.submit(prepare_data, command_of(firsts[0], args))
        for _ in range(args.jobs - 1):
            pool.submit(warm_up)
        drawn = data.result()
        if drawn.error:
            raise SystemExit(f"The toy images cannot be made.\n{drawn.error}")
        print(f"toy images: {drawn.seconds:.1f} s")
        form = "{l_bar}{bar}| {elapsed} passed, about {remaining} left"
        with tqdm(total=total, bar_format=form, desc="demo", smoothing=0, disable=None) as bar:
            try:
                failed = run_chains(firsts, args, pool, bar)
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        store = store_dir(args.dataset, args.shots, "base", args.seeds[0], args.out / "stores")
        if (store / "manifest.json").exists():  # in a worker, where torch is there already
            pool.submit(draw_regions, store, data_root(), args.out / "regions.png").result()
    return failed


def run_chains(
    firsts: list[Run], args: argparse.Namespace, pool: ProcessPoolExecutor, bar: tqdm
) -> int:
    """Run each of `firsts` and then what needs it; returns how many failed."""
    running: dict[Future, Run] = {}
    failed = 0

    def start(run: Run | None) -> None:
        while run is not None:
            command = command_of(run, args)
            if command:
                running[pool.submit(work, command, log_of(run, args))] = run
                return
            bar.update(run.seconds)  # finished before
            run = run.next

    for first in firsts:
        start(first)
    while running:
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            run, outcome = running.pop(future), future.result()
            if outcome.error:
                failed += 1
                bar.write(f"{run} FAILED:\n{outcome.error}")
                bar.update(sum(each.seconds for each in chain(run)))
                continue
            bar.write(f"{run}: {outcome.seconds:.1f} s{reached(run, args)}")
            bar.update(run.seconds)
            start(run.next)
    return failed


def chain(run: Run | None) -> list[Run]:
    """A run and those that need it."""
    return [run, *chain(run.next)] if run else []


def data_root() -> Path:
    return Path(os.environ.get("DATA") or REPO / "data").absolute()


def settings(args: argparse.Namespace) -> dict[str, str]:
    return {
        "DATA": str(data_root()),
        "OUT": str(args.out),
        "STORES": str(args.out / "stores"),
        "SHOTS": str(args.shots),
        "CFG": "toy",
        "PYTHON": sys.executable,
    }


def command_of(run: Run, args: argparse.Namespace) -> list[str]:
    """The script and its flags, as scripts/run.sh would call them; empty for a finished run."""
    command = ["bash", str(REPO / "scripts" / "run.sh"), run.method, f"base2new_{run.phase}"]
    command += [args.dataset, str(run.seed), *args.opts]
    env = {**os.environ, **settings(args), "DRY_RUN": "1"}
    answer = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True)
    if answer.returncode:
        raise SystemExit(answer.stderr.strip())
    return shlex.split(answer.stdout)[1:]


def log_of(run: Run, args: argparse.Namespace) -> Path:
    return args.out / "logs" / f"{run.method}_{run.phase}_seed{run.seed}.txt"


def reached(run: Run, args: argparse.Namespace) -> str:
    """The accuracy a run has just written, for its line on the screen."""
    if run.phase == "dump":
        return ""
    command = command_line_of(log_of(run, args))
    result = RunResult.read(Path(command[command.index("--output-dir") + 1]))
    return f", {result.accuracy:.1f} % on {result.scope} classes"


def command_line_of(log: Path) -> list[str]:
    with log.open(encoding="utf-8") as lines:
        return shlex.split(next(lines))[2:]


# --- in a worker


def start_worker() -> None:
    import torch

    os.chdir(REPO)
    torch.set_num_threads(1)


def warm_up() -> None:
    import dump_teacher_logits  # noqa: F401
    import train  # noqa: F401


def work(command: list[str], log: Path) -> Outcome:
    """Run train.py or dump_teacher_logits.py in this process, all it says going to `log`."""
    started = time.perf_counter()
    log.parent.mkdir(parents=True, exist_ok=True)
    script, *flags = command
    with log.open("w", encoding="utf-8") as file:
        print("$ python", shlex.join(command), file=file, flush=True)
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            try:
                code = call(script, flags)
            except SystemExit as stop:  # argparse has said why
                code = stop.code
            except Exception:
                traceback.print_exc()
                code = 1
    error = ""
    if code:
        end = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        error = "\n".join([*(f"    {line}" for line in end), f"    (the end of {log})"])
    return Outcome(error, time.perf_counter() - started)


def call(script: str, flags: list[str]) -> int:
    if script == "train.py":
        import train

        train.main(flags)
        return 0
    import dump_teacher_logits

    return dump_teacher_logits.run(flags)


def prepare_data(command: list[str]) -> Outcome:
    """Build the data set that `command` names, which draws its images where there are none."""
    started = time.perf_counter()
    from dassl.data.datasets import build_dataset

    import datasets  # noqa: F401  registers the data sets
    import dump_teacher_logits
    from configs.cli import setup_cfg

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the bar on stderr may be seen
            build_dataset(setup_cfg(dump_teacher_logits.parse_args(command[1:])))
    except Exception:
        return Outcome(traceback.format_exc(), 0.0)
    return Outcome("", time.perf_counter() - started)


# --- what came of it


def report(args: argparse.Namespace) -> None:
    table = compare(args.out, datasets=[args.dataset], shots=[args.shots])
    write_text(args.out / "table.md", render(table, "markdown"))
    print("\n" + render(table, "text"))
    if table.rows:
        title = f"{args.dataset}, {args.shots} shots, seeds {', '.join(map(str, args.seeds))}"
        base_new_h(table.rows, args.out / "base_new_h.png", title)
    for name in ("table.md", "base_new_h.png", "regions.png"):
        if (args.out / name).exists():
            print(args.out / name)


def draw_regions(path: Path, root: Path, picture: Path) -> Path:
    """Draw regions of a store from the most to the least informative, evenly spread between."""
    import numpy as np
    import torch

    from losses import region_weight
    from regions.boxes import cut
    from regions.dataset import read_image
    from regions.store import RegionStore

    store = RegionStore.open(path)
    spec = store.spec
    every = range(spec.num_regions)
    logits_NMC = np.stack([store.read(image, every).logits for image in range(len(store))])
    logits_RC = torch.from_numpy(logits_NMC).flatten(0, 1).float()
    weight_R = region_weight(logits_RC).numpy()
    probability_R, class_R = logits_RC.softmax(-1).max(-1)
    order = weight_R.argsort()
    chosen = order[np.linspace(0, len(order) - 1, min(SHOWN_REGIONS, len(order))).astype(int)]

    regions = []
    for place in chosen:
        index, region = divmod(int(place), spec.num_regions)
        image, row = spec.images[index], store.read(index, [region])
        pixels = read_image(str(root / image.path), image.height, image.width)
        regions.append(np.asarray(cut(pixels, row.boxes[0], row.flips[0], spec.image_size)))
    truth = [spec.classnames[spec.images[place // spec.num_regions].label] for place in chosen]
    return region_grid(
        np.stack(regions),
        [float(weight_R[place]) for place in chosen],
        [spec.classnames[class_R[place]] for place in chosen],
        [float(probability_R[place]) for place in chosen],
        picture,
        f"{len(chosen)} of {len(order)} regions in order of w = 1 - H(p) / ln C; below each: the "
        f"top class of {spec.teacher}, its probability, and whether it is the true class",
        classes=truth,
    )


if __name__ == "__main__":
    sys.exit(main())
