r"""Dump a region store with an array of single-GPU jobs on Slurm.

    python scripts/dump_slurm.py --jobs 8 --slurm partition=gpu --slurm mem_gb=32 --minutes 240 -- \
        --root $DATA --seed 1 --store stores/imagenet \
        --dataset-config-file configs/datasets/imagenet.yaml \
        --config-file configs/trainers/FDBPL/vit_b32_ctxv1.yaml

What follows -- is a line of dump_teacher_logits.py; of N jobs each makes every N-th shard of the
store, at any time, and the one that finds all of them there finishes it. A job that is preempted or
out of time is queued again; after one that failed, submit the same line again, with any --jobs.
--cluster local runs the jobs as processes of this machine. Exit code 0: all jobs have done theirs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import submitit

REPO = Path(__file__).resolve().parents[1]


class Dump(submitit.helpers.Checkpointable):
    """One job: a process of its own, which continues what an earlier one has done."""

    def __call__(self, python: str, flags: list[str], rank: int, jobs: int) -> None:
        place = {"RANK": str(rank), "WORLD_SIZE": str(jobs), "LOCAL_RANK": "0"}
        script = str(REPO / "dump_teacher_logits.py")
        subprocess.run([python, script, *flags], check=True, env=os.environ | place)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=4, help="in the array; default 4")
    parser.add_argument("--minutes", type=int, default=240, help="of each job; default 240")
    parser.add_argument("--cpus", type=int, default=8, help="of each job; default 8")
    parser.add_argument("--gpus", type=int, default=1, help="of each job: 1, or 0; default 1")
    parser.add_argument("--logs", default="slurm_logs", help="folder of their output")
    parser.add_argument("--cluster", default=None, help="slurm or local; default: slurm, if there")
    parser.add_argument(
        "--slurm", action="append", default=[], metavar="KEY=VALUE", help="such as partition=gpu"
    )
    parser.add_argument("--no-wait", action="store_true", help="submit, print the ids, and go")
    parser.add_argument("flags", nargs="+", help="after --: of dump_teacher_logits.py")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """0: every job has done its work, or with --no-wait was submitted; 1: one has failed."""
    args = parse_args(argv)
    executor = submitit.AutoExecutor(folder=args.logs, cluster=args.cluster)
    given = dict(pair.partition("=")[::2] for pair in args.slurm)
    # submitit knows some names without a prefix (mem_gb), Slurm's own need one (slurm_partition)
    known = {"mem_gb": int, "nodes": int, "name": str}
    settings = {k if k in known else f"slurm_{k}": known.get(k, str)(v) for k, v in given.items()}
    executor.update_parameters(
        timeout_min=args.minutes,
        cpus_per_task=args.cpus,
        gpus_per_node=args.gpus,
        name="region_dump",
        **settings,
    )
    with executor.batch():
        jobs = [
            executor.submit(Dump(), sys.executable, args.flags, rank, args.jobs)
            for rank in range(args.jobs)
        ]
    print(f"Submitted {', '.join(job.job_id for job in jobs)}; their output is in {args.logs}/")
    if args.no_wait:
        return 0
    failed = 0
    for job in jobs:
        try:
            job.result()
        except Exception as error:  # submitit's, which quote the job's log
            failed += 1
            why = str(error).strip().splitlines()[-1]
            print(f"job {job.job_id} failed: {why}", file=sys.stderr)
    if failed:
        print("What is finished is kept: submit the same line again.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
