r"""A whole protocol in one command: train, dump, test, over methods, data sets and seeds; a table.

    python run_protocol.py base2new --trainers CoOp MaPLe FDBPL --datasets oxford_pets dtd \
        --seeds 1 2 3 --root data --gpus 0,1
    python run_protocol.py cross_dataset --trainers CoOp FDBPL --dry-run
    python run_protocol.py few_shot --trainers CoOp --datasets toy_shapes --shots 1 2 4

Protocols: base2new, cross_dataset, domain_generalization, few_shot (docs/REPRODUCE.md). Runs that
results.json proves finished are skipped, interrupted ones continue, one that fails does not stop
the others. The exit code is 1 where any failed.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from protocols.__main__ import python, settings_of_environment
from protocols.plan import REFUSE, SKIP, Settings, check_datasets, plan
from protocols.schedule import AnyJob, Cluster, Local, Outcome, execute
from protocols.seeds import join_seeds
from reporting.methods import (
    BASE2NEW,
    CROSS,
    CROSS_TARGETS,
    DOMAIN_TARGETS,
    DOMAINS,
    ELEVEN,
    FEW_SHOT,
    FEW_SHOTS,
    PROTOCOLS,
    Method,
    common_backbone,
    find_method,
    source_of,
)

DATASETS = {BASE2NEW: ELEVEN, CROSS: CROSS_TARGETS, DOMAINS: DOMAIN_TARGETS, FEW_SHOT: ELEVEN}
SHOTS = dict.fromkeys(PROTOCOLS, (16,)) | {FEW_SHOT: FEW_SHOTS}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("protocol", choices=PROTOCOLS)
    add = parser.add_argument
    add("--trainers", nargs="+", required=True, help="trainers, or METHODs of scripts/run.sh")
    add("--datasets", nargs="+", help="stems in configs/datasets; targets of a transfer")
    add("--seeds", nargs="+", type=int, default=[1, 2, 3])
    add("--together", action="store_true", help="a method's seeds in one process: one start-up")
    add("--shots", nargs="+", type=int, help="per class; default 16, few_shot: 1 2 4 8 16")
    add("--backbone", default="", help="prefix of the recipes: vit_b16, vit_b32, rn50, ...")
    add("--root", help="folder that holds the data sets; default $DATA, else data")
    add("--out", help="default $OUT, else output")
    add("--stores", help="where region stores go; default $STORES, else stores")
    add("--dry-run", action="store_true", help="print the plan, run nothing")
    add("--jobs", type=int, help="runs at a time; default 1, one per GPU, or 64 on a cluster")
    add("--gpus", default="", help="for example 0,1: each run sees one of them")
    add("--slurm", nargs="+", metavar="NAME=VALUE", help="for example partition=gpu time=240 "
        "gres=gpu:1: a queue's job per run; cluster=local tries that without Slurm")  # fmt: skip
    parser.usage = f"{parser.format_usage()[7:].strip()} [-- KEY VALUE ...]"
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:end])
    args.opts = words[end + 1 :]  # KEY VALUE pairs for every run
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        with stopped_like_ctrl_c():
            return run(args)
    except KeyboardInterrupt:
        print("\nstopped: run the same line again, it continues.", file=sys.stderr)
        return 130
    except ValueError as error:
        print(f"run_protocol.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def stopped_like_ctrl_c() -> Iterator[None]:
    """A closed terminal or a kill must not leave runs behind that the next start knows not of."""

    def stop(*_):
        raise KeyboardInterrupt

    found = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP; nohup ignores it
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            found[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in found.items():
            signal.signal(number, handler)


def run(args: argparse.Namespace) -> int:
    methods = list({find_method(name).folder: find_method(name) for name in args.trainers}.values())
    datasets = args.datasets or list(DATASETS[args.protocol])
    check_datasets(args.protocol, datasets)
    if args.protocol in (CROSS, DOMAINS):  # the source first: its own test images count, too
        datasets = list(dict.fromkeys([*map(source_of, datasets), *datasets]))
    settings = settings_of(args, methods)
    shots = args.shots or SHOTS[args.protocol]
    jobs = plan(args.protocol, methods, datasets, args.seeds, shots, settings)
    if args.together:
        jobs = join_seeds(jobs)
    if args.dry_run:
        print_plan(jobs)
        return 0
    outcome = execute(jobs, backend_of(args, settings), python(), Path(settings.out, "logs"))
    report(outcome)
    print_table(args, methods, datasets, settings)
    return 1 if outcome.failed else 0


def settings_of(args: argparse.Namespace, methods: Sequence[Method]) -> Settings:
    found = settings_of_environment(Path.cwd(), tuple(args.opts))

    def here(given: str | None, default: str) -> str:
        return str(Path(given).absolute()) if given else default

    return Settings(
        data=here(args.root, found.data),
        out=here(args.out, found.out),
        stores=here(args.stores, found.stores),
        backbone=args.backbone or found.backbone or common_backbone(list(methods)),
        config=found.config,
        opts=found.opts,
    )


def backend_of(args: argparse.Namespace, settings: Settings) -> Local | Cluster:
    gpus = [gpu for gpu in args.gpus.split(",") if gpu]
    if args.slurm is None:
        return Local(args.jobs or len(gpus) or 1, gpus)
    if gpus:
        raise ValueError("--gpus are this machine's; on a cluster ask with --slurm gres=gpu:1")
    odd = [word for word in args.slurm if "=" not in word]
    if odd:
        raise ValueError(f"--slurm takes NAME=VALUE, not {odd[0]!r}; for example partition=gpu")
    options = dict(word.split("=", 1) for word in args.slurm)
    return Cluster(Path(settings.root, settings.out, "slurm"), options, args.jobs or 64)


def print_plan(jobs: Sequence[AnyJob]) -> None:
    """Every job with what would happen to it, and its command."""
    counts = {"finished": 0, "refused": 0, "to run": 0}
    for number, job in enumerate(jobs, start=1):
        verdict, why = job.decide()
        word = {SKIP: "finished", REFUSE: "refused"}.get(verdict, "to run")
        counts[word] += 1
        print(f"{number:4d}  {word:8s}  {job}")
        if verdict == REFUSE:
            print(f"                {why}")
        elif verdict != SKIP:
            command = job.command(epochs="EPOCHS")
            print(f"                python {shlex.join(command)}")
    print(", ".join(f"{count} {word}" for word, count in counts.items() if count))
    if any("EPOCHS" in job.command(epochs="EPOCHS") for job in jobs):
        print("EPOCHS: the last epoch of the training, read from its results.json.")


def report(outcome: Outcome) -> None:
    print(
        f"{len(outcome.done)} jobs done, {len(outcome.skipped)} finished before, "
        f"{len(outcome.failed)} failed."
    )
    for job, why in outcome.failed:
        print(f"FAILED {job}: {why.strip().splitlines()[-1].strip()}", file=sys.stderr)


def print_table(
    args: argparse.Namespace,
    methods: Sequence[Method],
    datasets: Sequence[str],
    settings: Settings,
) -> None:
    import parse_test_res  # not for a dry run

    out = Path(settings.root, settings.out)
    if not out.is_dir():
        return
    words = [str(out), "--compare", "--protocol", args.protocol, "--trainers"]
    words += [*dict.fromkeys(method.trainer for method in methods), "--datasets", *datasets]
    parse_test_res.main(words)


if __name__ == "__main__":
    sys.exit(main())
