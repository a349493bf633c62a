r"""The demo: methods base-to-new on the toy world, a table, a picture and a page of regions.

    make demo          or   python scripts/demo.py [--resume] [-- KEY VALUE ...]
    make demo-all      or   python scripts/demo.py --all: every method and host

Draws the toy images on first use, dumps the teacher's logits, and trains and tests each method on
each seed, as many runs at a time as there are CPU cores. All of it lies under demo/shown (or
demo/all), apart from the runs in output/. The runs are those of run_protocol.py; here they share a
few long-lived processes, which saves their start-up.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from entry import end_workers, run_script  # noqa: E402
from protocols.plan import Job, Settings, plan  # noqa: E402  (the repository is not a package)
from protocols.schedule import execute  # noqa: E402
from reporting.compare import compare  # noqa: E402
from reporting.methods import BASE2NEW, METHODS, find_method  # noqa: E402
from reporting.paths import store_dir  # noqa: E402
from reporting.plots import base_new_h  # noqa: E402
from reporting.results import write_text  # noqa: E402
from reporting.tables import render  # noqa: E402

# Long ones first, so that the last core does not wait for them.
SHOWN = ("fdbpl", "coop_kdpl", "coop", "zsclip")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--resume", action="store_true", help="keep the runs that are finished")
    parser.add_argument("--all", action="store_true", help="every method and every host")
    parser.add_argument(
        "--trainers", nargs="+", help="these alone: trainers, or folders of scripts/"
    )
    parser.add_argument("--dataset", default="toy_shapes", help="stem in configs/datasets")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--jobs", type=int, default=cores(), help="runs at a time")
    parser.add_argument("--out", type=Path, help="default demo/shown, or demo/all")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="for every run, after --")
    args = parser.parse_args(argv)
    args.out = (args.out or REPO / "demo" / ("all" if args.all else "shown")).absolute()
    return args


def cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    started = time.perf_counter()
    sys.stdout.reconfigure(line_buffering=True)  # so that a log of the demo can be followed
    if not args.resume:
        for name in ("base2new", "stores", "logs", "regions"):
            shutil.rmtree(args.out / name, ignore_errors=True)
        for name in ("table.md", "base_new_h.png"):
            (args.out / name).unlink(missing_ok=True)
    data_root().mkdir(parents=True, exist_ok=True)
    failed = run_all(args)
    report(args)
    print(f"\nThe demo took {time.perf_counter() - started:.0f} s.")
    if failed:
        print(f"{failed} runs failed: see above, and {args.out / 'logs'}.", file=sys.stderr)
    return 1 if failed else 0


# --- running


def data_root() -> Path:
    return Path(os.environ.get("DATA") or REPO / "data").absolute()


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """Every dump, training and test of the demo."""
    if args.all:
        every = {method.trainer: method.folder for method in METHODS.values()}
        del every["CoOp_FDBPL"]  # FDBPL under its other name
        names = list(every.values())
    else:
        names = args.trainers or SHOWN
    methods = list({find_method(name).folder: find_method(name) for name in names}.values())
    settings = Settings(
        data=str(data_root()),
        out=str(args.out),
        stores=str(args.out / "stores"),
        config="toy",
        opts=tuple(args.opts),
    )
    return plan(BASE2NEW, methods, [args.dataset], args.seeds, [args.shots], settings)


def run_all(args: argparse.Namespace) -> int:
    """Run what is not finished; returns how many runs failed."""
    jobs = jobs_of(args)
    # One thread per process: more of them stand in each other's way.
    os.environ["OMP_NUM_THREADS"] = "1"
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, spawn, initializer=start_worker) as pool:
        # Alone, so that the images are drawn once.
        first = next(job for job in jobs if job.kind == "train")
        data = pool.submit(prepare_data, first.command())
        for _ in range(args.jobs - 1):
            pool.submit(warm_up)
        error, seconds = data.result()
        if error:
            raise SystemExit(f"The toy images cannot be made.\n{error}")
        print(f"toy images: {seconds:.1f} s")
        try:
            outcome = execute(jobs, Workers(pool, args.jobs), "python", args.out / "logs")
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        store = store_dir(args.dataset, args.shots, "base", args.seeds[0], args.out / "stores")
        if (store / "manifest.json").exists():  # in a worker, where torch is there already
            pool.submit(show_regions, store, data_root(), args.out / "regions").result()
    return len(outcome.failed)


@dataclass
class Workers:
    """A backend of protocols.schedule: jobs are calls in the long-lived processes of a pool."""

    pool: ProcessPoolExecutor
    jobs: int
    under_way: int = 0
    seconds_between_looks: float = 0.1

    def free(self) -> bool:
        return self.under_way < self.jobs

    def start(self, command: Sequence[str], log: Path, cwd: Path, name: str) -> _Call:
        self.under_way += 1
        return _Call(self.pool.submit(work, list(command[1:]), log), self)


@dataclass
class _Call:
    future: Future
    workers: Workers

    def poll(self) -> int | None:
        if not self.future.done():
            return None
        self.workers.under_way -= 1
        return self.future.result()

    def stop(self) -> None:
        self.future.cancel()
        end_workers()


# --- in a worker


def start_worker() -> None:
    import torch

    os.chdir(REPO)
    torch.set_num_threads(1)


def warm_up() -> None:
    import dump_teacher_logits  # noqa: F401
    import train  # noqa: F401


def work(command: list[str], log: Path) -> int:
    """Run train.py or dump_teacher_logits.py in this process, all it says going to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    script, *flags = command
    with log.open("w", encoding="utf-8") as file:
        print("$ python", shlex.join(command), file=file, flush=True)
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            try:
                return call(script, flags)
            except SystemExit as stop:  # argparse has said why
                return stop.code if isinstance(stop.code, int) else 1
            except Exception:
                traceback.print_exc()
                return 1


def call(script: str, flags: list[str]) -> int:
    if script == "train.py":
        import train

        train.main(flags)
        return 0
    import dump_teacher_logits

    return dump_teacher_logits.run(flags)


def prepare_data(command: list[str]) -> tuple[str, float]:
    """Build the data set that `command` names, which draws its images where there are none.

    Returns:
        What went wrong, if anything, and the seconds it took.
    """
    started = time.perf_counter()
    from dassl.data.datasets import build_dataset

    import datasets  # noqa: F401  registers the data sets
    from configs.cli import add_family_flags, setup_cfg

    parser = argparse.ArgumentParser()
    add_family_flags(parser)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the bar on stderr may be seen
            build_dataset(setup_cfg(parser.parse_args(command[1:])))
    except Exception:
        return traceback.format_exc(), 0.0
    return "", time.perf_counter() - started


# --- what came of it


def report(args: argparse.Namespace) -> None:
    table = compare(BASE2NEW, args.out, datasets=[args.dataset], shots=[args.shots])
    write_text(args.out / "table.md", render(table, "markdown"))
    print("\n" + render(table, "text"))
    if table.rows:
        title = f"{args.dataset}, {args.shots} shots, seeds {', '.join(map(str, args.seeds))}"
        base_new_h(table.rows, args.out / "base_new_h.png", title)
    for name in ("table.md", "base_new_h.png", "regions/index.html"):
        if (args.out / name).exists():
            print(args.out / name)


def show_regions(store: Path, root: Path, folder: Path) -> None:
    """The page that `python -m regions show` makes of a store."""
    from regions.__main__ import main as regions

    with contextlib.redirect_stdout(io.StringIO()):
        regions(["show", str(store), "--root", str(root), "--out", str(folder)])


if __name__ == "__main__":
    sys.exit(run_script(main))
