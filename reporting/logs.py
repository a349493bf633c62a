"""Logs of the family: the last result after the end of training, and a summary over seeds."""

from __future__ import annotations

import math
import re
from pathlib import Path
from statistics import fmean, pstdev
from typing import NamedTuple

# CoOp's engine prints the first, the copies of it that MaPLe and others carry print the second.
END_OF_TRAINING = ("Finish training", "Finished training")
TEST_LOG = ("=> result",)
CONTINUED = "=== log continued on "  # dassl-lite: the same file goes on with a further start


class LogResult(NamedTuple):
    file: Path
    value: float  # percent


class LogError(ValueError):
    """A folder holds no result. The message says why."""


def read_log(folder: str | Path, keyword: str = "accuracy", test_log: bool = False) -> LogResult:
    """Find the newest `* keyword: 12.3%` after an end signal in the logs of one run.

    A run that was resumed has log.txt and, beside it, log.txt-<time> for each further start; the
    newest of them that has a result wins.

    Raises:
        LogError: no log, no end signal, or no number after it.
    """
    # log.txt is the oldest; the time stamps of the others sort as text.
    logs = sorted([*Path(folder).glob("log.txt"), *Path(folder).glob("log.txt-*")])
    if not logs:
        raise LogError("no log.txt")
    signals = TEST_LOG if test_log else END_OF_TRAINING
    number = re.compile(rf"\* {re.escape(keyword)}: ([\.\deE+-]+)%")
    ended = False
    for log in reversed(logs):
        armed, value = False, None
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            armed = (armed and not line.startswith(CONTINUED)) or line.strip() in signals
            match = number.search(line) if armed else None
            value = float(match[1]) if match else value
        if value is not None:
            return LogResult(log, value)
        ended = ended or armed
    if ended:
        raise LogError(f"no '* {keyword}: ...%' after '{signals[0]}' in {logs[-1].name}")
    hint = "" if test_log else "; a log of --eval-only needs --test-log"
    raise LogError(f"no line '{signals[0]}' in {logs[-1].name}: crashed or still running{hint}")


class Summary(NamedTuple):
    text: str
    mean: float  # percent


def summarise(
    directory: str | Path, keyword: str = "accuracy", test_log: bool = False, ci95: bool = False
) -> Summary:
    """Mean and population standard deviation over the seed folders of `directory`.

    With `ci95` the spread is 1.96 sigma / sqrt(n). A seed without a result is named and left out.

    Raises:
        LogError: not a folder, or no seed has a result.
    """
    if not Path(directory).is_dir():
        raise LogError(f"{directory} is not a folder; give the one that holds seed1, seed2, ...")
    lines, values = [f"Parsing files in {directory}"], []
    seeds = subfolders(directory)
    left_out = []
    for folder in seeds:
        try:
            found = read_log(folder, keyword, test_log)
        except LogError as error:
            left_out.append(f"{folder.name}: no result found ({error}); left out")
            continue
        values.append(found.value)
        lines.append(f"file: {found.file}. {keyword}: {found.value:.2f}%.")
    if not values:
        reasons = left_out or ["it has no seed folders"]
        if list(Path(directory).glob("log.txt*")):
            reasons = ["it is itself the folder of a run; give the folder above it"]
        raise LogError(f"Nothing found in {directory}\n" + "\n".join(reasons))
    mean, spread = fmean(values), pstdev(values)
    if ci95:
        spread *= 1.96 / math.sqrt(len(values))
    lines += [
        *left_out,
        "===",
        f"Summary of directory: {directory}",
        f"* {keyword}: {mean:.2f}% +- {spread:.2f}%",
        f"seeds: {len(values)}" + (f" of {len(seeds)}" if left_out else ""),
        "===",
    ]
    return Summary("\n".join(lines), mean)


def subfolders(directory: str | Path) -> list[Path]:
    """The folders in `directory` that are not hidden; seed2 before seed10."""

    def natural(path: Path) -> list[tuple[int, int | str]]:
        parts = re.split(r"(\d+)", path.name)
        return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]

    folders = (path for path in Path(directory).iterdir() if path.is_dir())
    return sorted((path for path in folders if not path.name.startswith(".")), key=natural)
