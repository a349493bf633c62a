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

# First, since a signal may come during the imports below.
from entry import UsageError, run_script

# isort: split
import argparse
import shlex
import sys
from collections.abc import Sequence
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
from reporting.results import FILE_NAME
from wording import counted, printable, unknown

DATASETS = {BASE2NEW: ELEVEN, CROSS: CROSS_TARGETS, DOMAINS: DOMAIN_TARGETS, FEW_SHOT: ELEVEN}
EPOCHS = "EPOCHS"  # stands where a test will read the last epoch of its training
SHOTS = dict.fromkeys(PROTOCOLS, (16,)) | {FEW_SHOT: FEW_SHOTS}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("protocol", type=protocol, metavar=f"{{{','.join(PROTOCOLS)}}}")
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


def protocol(name: str) -> str:
    if name not in PROTOCOLS:
        raise argparse.ArgumentTypeError(unknown("the protocol", name, PROTOCOLS))
    return name


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    return run_script(lambda: run(args))


def run(args: argparse.Namespace) -> int:
    try:
        methods, datasets, settings, jobs = planned(args)
    except ValueError as error:
        raise UsageError(error) from error
    if args.dry_run:
        print_plan(jobs, settings)
        return 0
    outcome = execute(jobs, backend_of(args, settings), python(), Path(settings.out, "logs"))
    report(outcome)
    print_table(args, methods, datasets, settings)
    return 1 if outcome.failed else 0


def planned(
    args: argparse.Namespace,
) -> tuple[list[Method], list[str], Settings, Sequence[AnyJob]]:
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
    return methods, datasets, settings, jobs


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
        raise UsageError("--gpus are this machine's; on a cluster ask with --slurm gres=gpu:1")
    odd = [word for word in args.slurm if "=" not in word]
    if odd:
        raise UsageError(f"--slurm takes NAME=VALUE, not {odd[0]!r}; for example partition=gpu")
    options = dict(word.split("=", 1) for word in args.slurm)
    return Cluster(Path(settings.root, settings.out, "slurm"), options, args.jobs or 64)


def print_plan(jobs: Sequence[AnyJob], settings: Settings) -> None:
    """Every job with what would happen to it, and its command; a shell can run it as it is."""
    print(f"cd {shlex.quote(str(settings.root))}")
    counts = {"finished": 0, "refused": 0, "to run": 0}
    for number, job in enumerate(jobs, start=1):
        verdict, why = job.decide()
        word = {SKIP: "finished", REFUSE: "refused"}.get(verdict, "to run")
        counts[word] += 1
        print(f"# {number:3d}  {word:8s}  {job}")
        if verdict == REFUSE:
            print(f"#      {why}")
        elif verdict != SKIP:
            print(as_pasted([python(), *job.command(epochs=EPOCHS)]))
    print("# " + ", ".join(f"{count} {word}" for word, count in counts.items() if count))


def as_pasted(words: Sequence[str]) -> str:
    """A line for bash. What the last epoch of a training will be, it reads when it runs."""
    line = shlex.join(words)
    if EPOCHS not in words:
        return line
    seeds = words[words.index("--seeds") + 1] if "--seeds" in words else ""
    folder = words[words.index("--model-dir") + 1].replace("{seed}", seeds)
    code = f"import json; print(json.load(open({str(Path(folder, FILE_NAME))!r}))['epochs'])"
    read = f'"$({shlex.join([words[0], "-c", code])})"'
    return line.replace(f"--load-epoch {EPOCHS}", f"--load-epoch {read}")


def report(outcome: Outcome) -> None:
    print(
        f"{counted(len(outcome.done), 'job')} done, {len(outcome.skipped)} finished before, "
        f"{len(outcome.failed)} failed."
    )
    for job, why in outcome.failed:
        cause, *rest = why.strip().splitlines()
        print(printable(f"FAILED {job}: {cause.strip()}"), file=sys.stderr)
        print(*(printable(line) for line in rest[:1]), sep="\n", file=sys.stderr)


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
