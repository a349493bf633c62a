"""results.json: what one run was and what it reached, in full precision."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import sys
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from files import write_whole

FILE_NAME = "results.json"
FORMAT = 1
REPO = Path(__file__).resolve().parents[1]

# Distributions that can move a number; those that are absent are left out.
LIBRARIES = (
    "torch", "torchvision", "numpy", "pillow", "safetensors", "yacs", "dassl", "dassl-lite",
    "clip-anytorch", "clip", "open_clip_torch",
)  # fmt: skip


class ResultError(ValueError):
    """A results.json cannot be used. The message names the file and what to do."""


def now() -> str:
    """This moment in UTC, as `finished` holds it; sorts as text."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


@dataclass
class RunResult:
    """One run: a training with its final test, or an evaluation alone.

    Accuracies, macro F1 and error rate are percentages in full precision, times are seconds of
    wall clock, memory is bytes. `config` is the stem of --config-file. `seconds` has the keys
    setup, train, test, dump (None where there was none); dump is the time that the store this run
    read took to make. `peak_memory_bytes` has the keys rss and device. `knobs` names what was
    switched on beyond the method as published ("LABEL_LOGIT 16.0"), `transductive` a method that
    saw unlabelled images of the test classes. `together` are the seeds that one process trained,
    where there were several: times are this seed's share, memory is the process's. `sweep` holds
    the accuracy for each value of TEST.TEXT_INTERPOLATION where several were given; `accuracy` is
    that of the first. `identity` is what the run is (reporting/identity.py), None where an older
    version wrote the file.
    """

    trainer: str
    dataset: str
    scope: str
    split: str
    shots: int
    seed: int
    backbone: str
    precision: str
    device: str
    teacher: str | None
    config: str
    config_files: list[str]
    opts: list[Any]
    eval_only: bool
    model_dir: str | None
    load_epoch: int | None
    epochs: int | None
    accuracy: float
    macro_f1: float
    error_rate: float
    num_images: int
    num_classes: int
    seconds: dict[str, float | None]
    peak_memory_bytes: dict[str, int | None]
    store: dict[str, Any] | None = None
    knobs: list[str] = field(default_factory=list)
    transductive: bool = False
    together: list[int] = field(default_factory=list)
    sweep: list[dict[str, float]] = field(default_factory=list)
    identity: dict[str, Any] | None = None
    commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    finished: str = field(default_factory=now)
    format: int = FORMAT

    def write(self, folder: str | Path) -> Path:
        """Write FOLDER/results.json, whole or not at all.

        Raises:
            ResultError: a field does not hold what it should.
        """
        path = Path(folder) / FILE_NAME
        values = asdict(self)
        _check(values, path)
        values["sha256"] = _checksum(values)
        write_text(path, json.dumps(values, indent=1, allow_nan=False) + "\n")
        return path

    @classmethod
    def read(cls, path: str | Path) -> RunResult:
        """Read a results.json, given the file or its folder. Unknown fields are passed over.

        Raises:
            ResultError: no such file, not JSON, another format, or a field that is absent or odd.
        """
        path = Path(path)
        path = path / FILE_NAME if path.is_dir() else path
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ResultError(f"{path} cannot be read ({error.strerror}); run it first.") from error
        except ValueError as error:
            raise ResultError(f"{path} is not JSON ({error}); {REPEAT}") from error
        if not isinstance(values, dict):
            raise ResultError(f"{path} holds a {type(values).__name__}, not an object; {REPEAT}")
        checksum = values.pop("sha256", None)  # older ones have none
        _check(values, path)
        if checksum not in (None, _checksum(values)):
            raise ResultError(f"{path} is damaged: its checksum is not its own; {REPEAT}")
        return cls(**{spec.name: values[spec.name] for spec in fields(cls) if spec.name in values})


def _checksum(values: dict[str, Any]) -> str:
    """sha256 of all other fields."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


REPEAT = "delete the file and repeat the run."
_TEXT, _WHOLE = (str,), (int,)
_KINDS: dict[str, tuple[type, ...]] = {
    "trainer": _TEXT, "dataset": _TEXT, "scope": _TEXT, "split": _TEXT, "shots": _WHOLE,
    "seed": _WHOLE, "backbone": _TEXT, "precision": _TEXT, "device": _TEXT,
    "teacher": (str, type(None)), "config": _TEXT, "config_files": (list,), "opts": (list,),
    "eval_only": (bool,), "model_dir": (str, type(None)), "load_epoch": (int, type(None)),
    "epochs": (int, type(None)), "accuracy": (float, int), "macro_f1": (float, int),
    "error_rate": (float, int), "num_images": _WHOLE, "num_classes": _WHOLE, "seconds": (dict,),
    "peak_memory_bytes": (dict,), "store": (dict, type(None)), "commit": (str, type(None)),
    "knobs": (list,), "transductive": (bool,), "sweep": (list,), "identity": (dict, type(None)),
    "together": (list,),
    "versions": (dict,), "finished": _TEXT, "format": _WHOLE,
}  # fmt: skip
_CHOICES = {"scope": ("all", "base", "new"), "split": ("test", "val")}
_KEYS = {
    "seconds": ("setup", "train", "test", "dump"),
    "peak_memory_bytes": ("rss", "device"),
}


def _check(values: dict[str, Any], path: Path) -> None:
    """Raise ResultError for the first field of `values` that is absent or odd."""

    def odd(name: str, value: object, wanted: str) -> ResultError:
        return ResultError(f"{path}: {name} is {value!r}, not {wanted}; {REPEAT}")

    if values.get("format") != FORMAT:
        raise ResultError(
            f"{path}: format is {values.get('format')!r}, this code reads {FORMAT}. "
            "Use the version of the code that wrote it, or repeat the run."
        )
    for name, kinds in _KINDS.items():
        if name not in values and name in (
            "identity",
            "together",
        ):  # older versions did not write it
            continue
        if name not in values:
            raise ResultError(f"{path}: {name} is absent; {REPEAT}")
        value = values[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = ["null" if kind is type(None) else kind.__name__ for kind in kinds]
            raise odd(name, value, " or ".join(names))
    for name, choices in _CHOICES.items():
        if values[name] not in choices:
            raise odd(name, values[name], "one of " + ", ".join(choices))
    for name in ("accuracy", "macro_f1", "error_rate"):
        if not 0 <= values[name] <= 100:  # false for NaN too
            raise odd(name, values[name], "a percentage")
    for name, keys in _KEYS.items():
        for key in keys:
            number = values[name].get(key, "absent")
            is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
            if number is not None and not (is_number and 0 <= number < math.inf):
                raise odd(f"{name}.{key}", number, "a number of at least 0, or null")


class FoundResult(NamedTuple):
    path: Path  # the folder of the run
    result: RunResult


def find_results(root: str | Path) -> tuple[list[FoundResult], list[ResultError]]:
    """Read every results.json below `root`, in order of path; second, what cannot be read.

    Raises:
        ResultError: `root` is not a folder.
    """
    if not Path(root).is_dir():
        raise ResultError(f"{root} is not a folder; give the folder that --output-dir lies in.")
    found, unreadable = [], []
    for path in sorted(Path(root).rglob(FILE_NAME)):
        try:
            found.append(FoundResult(path.parent, RunResult.read(path)))
        except ResultError as error:
            unreadable.append(error)
    return found, unreadable


def write_text(path: str | Path, text: str) -> None:
    """Write beside, then rename: the file is whole or absent; its folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)


def git_commit(repo: str | Path = REPO) -> str | None:
    """The commit of the code, "-dirty" where tracked files differ from it; None without git."""

    import subprocess  # here, since the scripts ask this module often and for little

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(repo), *arguments]
        # Parallel runs must not fight over the index.
        env = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        return subprocess.run(
            command, env=env, check=True, capture_output=True, text=True, timeout=30
        ).stdout.strip()

    try:
        # A copy of the code inside somebody else's repository has no commit of its own.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != Path(repo).resolve():
            return None
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return None


def library_versions() -> dict[str, str]:
    """Versions of Python and of the installed libraries that can move a number."""
    from importlib import metadata

    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def peak_rss_bytes() -> int | None:
    """The most memory this process has held since it started; None where the system cannot say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
