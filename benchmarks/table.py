r"""Tables of the kept benchmark results, in Markdown.

    python -m benchmarks.table            print them
    python -m benchmarks.table --write    put them into benchmarks/README.md, between its marks

Reads benchmarks/results/<machine>/step_time*, end_to_end*, dump* and text_memory*.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import REPO, markdown

RESULTS = REPO / "benchmarks" / "results"
README = REPO / "benchmarks" / "README.md"
BEGIN, END = "<!-- python -m benchmarks.table --write -->", "<!-- end of tables -->"
OURS = "FDBPL here, cached features"


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
        names = list(dict.fromkeys(phase for row in rows for phase in row["phases"]))
        online = rows[0]["seconds"]
        head = ("run", *(f"{name}, s" for name in names), "whole, s", "faster", "without dump")
        table = markdown(
            head,
            [
                (
                    row["name"],
                    *(f"{row['phases'][n]:,.0f}" if n in row["phases"] else "-" for n in names),
                    f"{row['seconds']:,.0f}",
                    f"{online / row['seconds']:.2f}x",
                    f"{online / row['seconds_without_dump']:.2f}x",
                )
                for row in rows
            ],
        )
        parts.append(f"{rows[0]['seeds']} seeds, {world}, CPU time of one thread:\n\n{table}")
    if record["bars"]:
        parts.append(bar_table(record))
    return "\n\n".join([*parts, origin(record)])


def dump_table(record: dict[str, Any]) -> str:
    def share(row: dict[str, Any], name: str) -> str:
        return f"{100 * row[name]:.1f} %" if name in row else "-"

    options = record["options"]
    table = markdown(
        (
            "batch",
            "threads",
            "workers",
            "regions / s",
            "per CPU second",
            "teacher",
            "decode",
            "cut",
        ),
        [
            (
                *(str(row[name]) for name in ("batch_size", "threads", "workers")),
                f"{row['regions_per_second']:.2f}",
                f"{1000 / row['cpu_ms']:.2f}",
                *(share(row, f"{name}_share") for name in ("teacher", "decode", "cut")),
            )
            for row in record["rows"]
        ],
    )
    return (
        f"The dump: {options['images']} images x {options['regions']} regions, teacher "
        f"{options['teacher']}, wall time:\n\n{table}\n\n{origin(record)}"
    )


def text_memory_table(record: dict[str, Any]) -> str:
    from benchmarks.text_memory import table  # loads torch

    title = "One training step over many names, ViT-B/16, peak above the loaded model:"
    return f"{title}\n\n{table(record['rows'])}\n\n{origin(record)}"


def origin(record: dict[str, Any]) -> str:
    machine, versions = record["machine"], record["versions"]
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}; torch "
        f"{versions['torch']}, commit {(record['commit'] or 'unknown')[:12]}, {record['finished']}."
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


def between_marks(text: str, tables: str) -> str:
    """The text with what stands between its marks replaced.

    Raises:
        ValueError: a mark is missing.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"{README} has lost its marks: put {BEGIN} and {END} around the tables.")
    head, rest = text.split(BEGIN, 1)
    return f"{head}{BEGIN}\n\n{tables}\n\n{END}{rest.split(END, 1)[1]}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="into benchmarks/README.md")
    args = parser.parse_args(argv)
    if args.write:
        README.write_text(between_marks(README.read_text("utf-8"), tables()), "utf-8")
    else:
        print(tables())


if __name__ == "__main__":
    main()
