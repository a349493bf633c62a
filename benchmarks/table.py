r"""Tables of the kept benchmark results, in Markdown.

    python -m benchmarks.table            print them
    python -m benchmarks.table --write    put them into benchmarks/README.md, and a short one into
                                          README.md, between their marks

Reads benchmarks/results/<machine>/step_time*, end_to_end*, dump* and text_memory*.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import REPO, dump_rows, markdown, whole_rows

RESULTS = REPO / "benchmarks" / "results"
README = REPO / "benchmarks" / "README.md"
BEGIN, END = "<!-- python -m benchmarks.table --write -->", "<!-- end of tables -->"
OURS = "FDBPL here, cached features"

FRONT_PAGE = REPO / "README.md"
FRONT_STUDENT, FRONT_CLASSES = "ViT-B/16", (50, 500)
FRONT_STEPS = (
    "KDPL, official, fp32 teacher",
    "CoOp, official",
    "FDBPL, its authors",
    "CoOp here, images each step",
    "CoOp here, cached features",
    "FDBPL here, images each step",
    OURS,
)
FRONT_ONLINE = "KDPL, official"
FRONT_RUNS = ("FDBPL here, M = 4", "FDBPL here, M = 16")


def step_table(record: dict[str, Any]) -> str:
    """Steps by number of classes: milliseconds, and how many of our FDBPL steps that is."""
    options, rows = record["options"], record["rows"]
    keys = list(dict.fromkeys((row["student"], row["classes"]) for row in rows))
    by_name = {(row["name"], row["student"], row["classes"]): row for row in rows}
    names = list(dict.fromkeys(row["name"] for row in rows))
    ours = {key: by_name[(OURS, *key)]["ms"] for key in keys}

    def cell(name: str, key: tuple[str, int]) -> str:
        row = by_name.get((name, *key))
        if row is None or row["ms"] is None:
            return row["note"] if row else "-"
        return f"{row['ms']:,.0f} ms ({row['ms'] / ours[key]:.3g}x)"

    unit = "GPU time" if options["device"] == "cuda" else "CPU time of one thread"
    head = ("one step", *(f"{classes} classes, {student}" for student, classes in keys))
    table = markdown(head, [(name, *(cell(name, key) for key in keys)) for name in names])
    return (
        f"One training step, {unit}, teacher {options['teacher']}, precision "
        f"{options['precision']}; in brackets: how many steps of FDBPL here.\n\n{table}\n\n"
        f"{memory_table(record)}\n\n{bar_table(record)}\n\n{check_line(record)}{origin(record)}"
    )


def check_line(record: dict[str, Any]) -> str:
    """How far a sum of pieces is from a step in one go, where that was timed."""
    check = record.get("check")
    if not check:
        return ""
    return (
        f"Check: the official CoOp step at {check['classes']} classes in one go took "
        f"{check['whole_seconds']:.1f} s, the sum of its pieces {check['composed_seconds']:.1f} s. "
    )


def memory_table(record: dict[str, Any]) -> str:
    """FLOP and memory of one step with the first student."""
    first = record["options"]["student"][0]
    rows = [row for row in record["rows"] if row["student"] == first and row["ms"] is not None]
    return markdown(
        (f"one step, {first}", "classes", "GFLOP", "peak MB", "kept for backward MB", "repeats"),
        [
            (
                row["name"],
                str(row["classes"]),
                f"{row['flop'] / 1e9:,.0f}",
                f"{row['peak_bytes'] / 1e6:,.0f}",
                f"{row['saved_bytes'] / 1e6:,.0f}",
                str(row["repeats"]),
            )
            for row in rows
        ],
    )


def bar_table(record: dict[str, Any]) -> str:
    return markdown(
        ("ratio", "classes", "student", "wanted", "found", ""),
        [
            (
                f"`{bar['ratio']}`",
                str(bar["classes"]),
                bar["student"],
                bar["wanted"],
                f"{bar['found']:g}x",
                "met" if bar["met"] else "**not met**",
            )
            for bar in record["bars"]
        ],
    )


def whole_table(record: dict[str, Any]) -> str:
    parts = []
    for world in dict.fromkeys(row["world"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["world"] == world]
        table = whole_rows(rows, rows[0]["name"])
        parts.append(f"{rows[0]['seeds']} seeds, {world}, CPU time of one thread:\n\n{table}")
    if record["bars"]:
        parts.append(bar_table(record))
    return "\n\n".join([*parts, origin(record)])


def dump_table(record: dict[str, Any]) -> str:
    options = record["options"]
    return (
        f"The dump: {options['images']} images x {options['regions']} regions, teacher "
        f"{options['teacher']}, wall time:\n\n{dump_rows(record['rows'])}\n\n{origin(record)}"
    )


def text_memory_table(record: dict[str, Any]) -> str:
    from benchmarks.text_memory import table  # loads torch

    title = "One training step over many names, ViT-B/16, peak above the loaded model:"
    return f"{title}\n\n{table(record['rows'])}\n\n{origin(record)}"


def origin(record: dict[str, Any]) -> str:
    machine, versions = record["machine"], record["versions"]
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}; torch "
        f"{versions['torch']}, commit {_commit(record)}, {record['finished']}."
    )


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "step_time": step_table,
    "end_to_end": whole_table,
    "dump": dump_table,
    "text_memory": text_memory_table,
}


def tables(folder: Path = RESULTS) -> str:
    """All tables of all machines."""
    parts = []
    for machine in sorted(path for path in folder.iterdir() if path.is_dir()):
        found = [
            make(json.loads(file.read_text(encoding="utf-8")))
            for name, make in TABLES.items()
            for file in sorted(machine.glob(f"{name}*.json"))
        ]
        parts += [f"### {machine.name}", *found] if found else []
    return "\n\n".join(parts)


# --- the table of the first page ------------------------------------------------------------


def front_table(folder: Path = RESULTS) -> str:
    """Steps and a whole run with ViT-B/16 on a CPU: the latest results that hold both.

    Raises:
        ValueError: there are none.
    """
    steps = _latest(folder, "step_time", _has_front_steps)
    whole = _latest(folder, "end_to_end", _has_front_runs)
    rows = {
        (row["name"], row["classes"]): row
        for row in steps["rows"]
        if row["student"] == FRONT_STUDENT
    }

    def cell(name: str, classes: int) -> str:
        row, ours = rows[name, classes], rows[OURS, classes]
        mark = "\\*" if any(times > 1 for _, times in row["parts"]) else ""
        return f"{row['ms'] / 1000:,.2f} s{mark} ({row['ms'] / ours['ms']:.3g}x)"

    head = ("one training step", *(f"{classes} classes" for classes in FRONT_CLASSES))
    table = markdown(
        head, [(name, *(cell(name, c) for c in FRONT_CLASSES)) for name in FRONT_STEPS]
    )
    online, *ours = (_row(whole, name) for name in (FRONT_ONLINE, *FRONT_RUNS))

    def cost(row: dict[str, Any], key: str) -> str:
        return f"{_hours(row[key])} ({online['seconds'] / row[key]:.3g}x faster)"

    runs = markdown(
        ("whole run of all seeds", "with the dump", "without"),
        [
            (online["name"], _hours(online["seconds"]), "has none"),
            *(
                (row["name"], cost(row, "seconds"), cost(row, "seconds_without_dump"))
                for row in ours
            ),
        ],
    )
    options, run = steps["options"], whole["options"]
    shown = [rows[name, classes] for name in FRONT_STEPS for classes in FRONT_CLASSES]
    scaled = dict.fromkeys(part for row in shown for part, times in row["parts"] if times > 1)
    return (
        f"Student {FRONT_STUDENT}, teacher {options['teacher']}, {options['precision']}, random "
        "weights, CPU time of one thread. In brackets: how many steps of FDBPL on cached features "
        f"that is.\n\n{table}\n\n\\* With pieces that were timed small and scaled up to the step: "
        f"{'; '.join(scaled)}. Fewest timings of a piece: {min(row['repeats'] for row in shown)}. "
        f"The whole run of {online['seeds']} seeds ({run['classes']} classes, "
        f"{run['images']} images, {run['epochs']} epochs; M regions of an image) is composed of "
        f"such pieces:\n\n{runs}\n\nSteps: {origin(steps)} Runs: commit {_commit(whole)}."
    )


def _latest(folder: Path, benchmark: str, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    records = [json.loads(file.read_text("utf-8")) for file in folder.glob(f"*/{benchmark}*.json")]
    fitting = [record for record in records if fits(record)]
    if not fitting:
        raise ValueError(
            f"{folder} holds no {benchmark}.json of a CPU with all rows of README.md's table; run "
            f"python -m benchmarks.{benchmark} --json {folder}/<machine>/{benchmark}.json"
        )
    return max(fitting, key=lambda record: record["finished"])


def _has_front_steps(record: dict[str, Any]) -> bool:
    there = {
        (row["name"], row["classes"])
        for row in record["rows"]
        if row["student"] == FRONT_STUDENT and row["ms"] is not None
    }
    wanted = {(name, classes) for name in FRONT_STEPS for classes in FRONT_CLASSES}
    return record["options"]["device"] == "cpu" and wanted <= there


def _has_front_runs(record: dict[str, Any]) -> bool:
    names = {row["name"] for row in record["rows"]}
    return record["options"]["student"] == FRONT_STUDENT and {FRONT_ONLINE, *FRONT_RUNS} <= names


def _row(record: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in record["rows"] if row["name"] == name)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h"


def _commit(record: dict[str, Any]) -> str:
    return (record["commit"] or "unknown")[:12]


# --- into the pages -------------------------------------------------------------------------


def filled(page: Path, tables: str) -> str:
    """A page with what stands between its marks replaced.

    Raises:
        ValueError: a mark is missing.
    """
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page} has lost its marks: put {BEGIN} and {END} around the tables.")
    head, rest = text.split(BEGIN, 1)
    return f"{head}{BEGIN}\n\n{tables}\n\n{END}{rest.split(END, 1)[1]}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="into README.md of both folders")
    args = parser.parse_args(argv)
    for page, make in PAGES.items():
        if args.write:
            page.write_text(filled(page, make()), encoding="utf-8")
        else:
            print(make(), end="\n\n")


PAGES: dict[Path, Callable[[], str]] = {README: tables, FRONT_PAGE: front_table}

if __name__ == "__main__":
    main()
