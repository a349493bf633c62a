"""One step of one method: what scripts/run.sh hands over, as it describes it.

python -m protocols [/FOLDER/OF/THE/CALLER] run METHOD STEP DATASET SEED [KEY VALUE ...]
"""

from __future__ import annotations

# First, since a signal may come during the imports below.
from entry import UsageError, call, run_script

# isort: split
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from protocols.plan import REFUSE, SKIP, STEPS, Job, PlanError, Settings, step_jobs
from reporting.methods import BASE2NEW, find_method
from reporting.results import REPO, ResultError

REFUSED = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: that of the run, 0 where it was finished before, 2 for a refusal."""
    words = list(sys.argv[1:] if argv is None else argv)
    caller = Path(words.pop(0)) if words and words[0].startswith("/") else Path.cwd()
    return run_script(lambda: run_words(words, caller))


def run_words(words: list[str], caller: Path) -> int:
    try:
        if words[:1] != ["run"]:
            raise PlanError("python -m protocols run METHOD STEP DATASET SEED [KEY VALUE ...]")
        return run_step(words[1:], caller)
    except ValueError as error:  # of a plan, a method's name, or a result
        raise UsageError(f"scripts/run.sh: {error}") from error


def run_step(words: list[str], caller: Path) -> int:
    script = os.environ.get("METHOD_SCRIPT", "run.sh METHOD STEP")
    few = words[1:2] == ["few_shot"]
    arguments = "DATASET SHOTS [SEED ...]" if few else "DATASET SEED"
    usage = f"usage: bash scripts/{script} {arguments} [KEY VALUE ...]"
    if len(words) < 4 and words[1:2] != [BASE2NEW]:
        raise PlanError(usage)
    name, step, dataset, *rest = words
    method = find_method(name)
    if step == BASE2NEW:
        return whole_protocol(method.folder, dataset, rest)
    if step not in STEPS:
        raise PlanError(f"STEP is {step!r}, not {', '.join((*STEPS, BASE2NEW))}")
    shots = rest.pop(0) if few else os.environ.get("SHOTS", "16")
    if not shots.isdigit():
        raise PlanError(f"SHOTS is {shots!r}, not a whole number; {usage}")
    if not few and not rest[0].isdigit():
        raise PlanError(f"SEED is {rest[0]!r}, not a whole number; {usage}")
    seeds, opts = split_seeds(rest)
    if len(seeds) > 1 and not few:
        raise PlanError(f"one SEED at a time; {usage}")
    if len(opts) % 2:
        raise PlanError(f"a KEY without a VALUE among: {' '.join(opts)}; {usage}")
    settings = settings_of_environment(caller, tuple(opts))
    codes = []
    for seed in seeds or [1, 2, 3]:
        jobs = step_jobs(step, method, dataset, int(shots), seed, settings)
        codes.append(run_jobs(jobs, always=STEPS[step][1] == "dump"))
    return max(codes)


def split_seeds(words: Sequence[str]) -> tuple[list[int], list[str]]:
    """Leading whole numbers, and the rest."""
    end = next((i for i, word in enumerate(words) if not word.isdigit()), len(words))
    return [int(word) for word in words[:end]], list(words[end:])


def settings_of_environment(caller: Path, opts: tuple[str, ...] = ()) -> Settings:
    """DATA, OUT and STORES are meant from where the user stands; absent, from the repository."""

    def here(name: str, default: str) -> str:
        value = os.environ.get(name)
        if not value:
            return default
        return value if caller == REPO else str(caller / value)

    return Settings(
        data=here("DATA", "data"),
        out=here("OUT", "output"),
        stores=here("STORES", "stores"),
        backbone=os.environ.get("BACKBONE", ""),
        config=os.environ.get("CFG", ""),
        opts=opts,
    )


def python() -> str:
    """The interpreter of the runs: PYTHON, or the one that runs this."""
    return os.environ.get("PYTHON") or sys.executable


def run_jobs(jobs: Sequence[Job], always: bool) -> int:
    """Run those that are not finished, one after the other; stop at the first that fails."""
    for job in jobs:
        verdict, why = (None, "") if always else job.decide()
        if why:
            print(why, file=sys.stderr)
        if verdict == REFUSE:
            return REFUSED
        if verdict == SKIP:
            continue
        try:
            command = [python(), *job.command()]
        except ResultError:
            raise PlanError(
                f"nothing to test yet: bash scripts/run.sh {job.method.folder} "
                f"{'base2new' if job.protocol == BASE2NEW else 'xd'}_train "
                f"{job.needs[0].dataset} {job.seed}"
            ) from None
        if os.environ.get("DRY_RUN"):
            print(f"cd {shlex.quote(str(job.root))} && {shlex.join(command)}")
            continue
        code = call(command, cwd=job.root)
        if code:
            return code
    return 0


def whole_protocol(method: str, dataset: str, rest: Sequence[str]) -> int:
    """scripts/base2new.sh: everything over seeds, and a table."""
    seeds, opts = split_seeds(rest)
    command = [sys.executable, str(REPO / "run_protocol.py"), BASE2NEW, "--trainers", method]
    command += ["--datasets", dataset, "--seeds", *map(str, seeds or (1, 2, 3))]
    command += ["--shots", os.environ.get("SHOTS", "16")]
    return call([*command, "--", *opts])


if __name__ == "__main__":
    sys.exit(main())
