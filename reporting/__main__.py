"""What the shell scripts ask: where a run lives, whether it is finished, which epoch it reached.

python -m reporting places oxford_pets 16 CoOp vit_b32_ctxv1 1 output stores
python -m reporting finished [--trained FOLDER] FOLDER [KEY VALUE ...]
python -m reporting epochs FOLDER
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from reporting.paths import (
    PHASE_OF_SCOPE,
    TEST_NEW,
    TRAIN_BASE,
    parse_run_dir,
    run_dir,
    store_dir,
)
from reporting.results import FILE_NAME, ResultError, RunResult

RUN, SKIP, REFUSE = 0, 10, 2
# Where things lie does not change what a run is.
PLACES = ("TRAINER.FDBPL.STORE", "OUTPUT_DIR", "DATASET.ROOT")


def finished(folder: str, opts: Sequence[str], trained: str | None = None) -> tuple[int, str]:
    """Decide what to do about the run in `folder`: RUN it, SKIP it, or REFUSE, and why.

    A crashed run has no results.json and is run again (the trainer resumes by itself). A finished
    run of the same kind is skipped; one with other options is not overwritten. `trained` is the
    folder of the training that an evaluation reads: an evaluation older than that is repeated.
    """
    path = Path(folder) / FILE_NAME
    if not path.exists():
        return RUN, ""
    try:
        result = RunResult.read(path)
    except ResultError as error:
        return RUN, f"{error} It is repeated now."
    place = parse_run_dir(folder)
    assert place is not None, folder
    scope = {phase: scope for scope, phase in PHASE_OF_SCOPE.items()}[place.phase]
    stems = [Path(file).stem for file in result.config_files]
    wanted = _options(opts)
    found = _options(result.opts)
    checks = {
        "trainer": (result.trainer, place.trainer),
        "scope": (result.scope, scope),
        "seed": (result.seed, place.seed),
        "shots": (result.shots, place.shots),
        "config files": (sorted(stems), sorted([place.dataset, place.config])),
        **{key: (found.get(key), wanted.get(key)) for key in sorted({*found, *wanted})},
    }
    for name, (there, here) in checks.items():
        if there != here:
            return REFUSE, (
                f"{folder} holds a finished run of another kind: {name} is {there!r} there and "
                f"{here!r} now. Set another OUT, or delete the folder."
            )
    if trained is not None and RunResult.read(trained).finished > result.finished:
        return RUN, f"{folder} is older than {trained}; it is repeated now."
    return SKIP, (
        f"{folder} is finished ({result.accuracy:.2f} % on {result.finished}, commit "
        f"{str(result.commit)[:12]}); skipped. Delete the folder to repeat it."
    )


def _options(opts: Sequence[object]) -> dict[str, str]:
    pairs = zip(opts[::2], opts[1::2], strict=True)
    return {str(key): str(value) for key, value in pairs if key not in PLACES}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reporting")
    commands = parser.add_subparsers(dest="command", required=True)
    places = commands.add_parser("places")
    for name in ("dataset", "shots", "trainer", "config", "seed", "out", "stores"):
        places.add_argument(name, type=int if name in ("shots", "seed") else str)
    check = commands.add_parser("finished")
    check.add_argument("folder")
    check.add_argument("--trained")
    check.add_argument("opts", nargs=argparse.REMAINDER)
    commands.add_parser("epochs").add_argument("folder")
    arguments = vars(parser.parse_args(argv))
    command = arguments.pop("command")
    try:
        if command == "places":
            *run, out, stores = arguments.values()
            dataset, shots, _, config, seed = run
            print(run_dir(TRAIN_BASE, *run, root=out))
            print(run_dir(TEST_NEW, *run, root=out))
            print(store_dir(dataset, shots, config, seed, root=stores))
        elif command == "finished":
            code, message = finished(**arguments)
            if message:
                print(message, file=sys.stderr)
            return code
        else:
            print(RunResult.read(arguments["folder"]).epochs)
    except ResultError as error:
        print(error, file=sys.stderr)
        return REFUSE
    return 0


if __name__ == "__main__":
    sys.exit(main())
