r"""Tables of the kept benchmark results, in Markdown.

    python -m benchmarks.table            print them
    python -m benchmarks.table --write    put them into benchmarks/README.md, and a short one into
                                          README.md, between their marks

Reads benchmarks/results/<machine>/step_time*, end_to_end*, dump* and store_io*.json.
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
READ_BATCH = 32  # images, of benchmarks.store_io

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


def step_rows(record: dict[str, Any]) -> str:
    """Steps by number of classes: time, ratios, FLOP and memory."""
    options, rows = record["options"], record["rows"]
    keys = list(dict.fromkeys((row["student"], row["classes"]) for row in rows))
    by_name = {(row["name"], row["student"], row["classes"]): row for row in rows}
    ours = {key: by_name[(OURS, *key)]["ms"] for key in keys}

    def table(title: str, keys: Sequence[tuple[str, int]], cell: Callable[..., str]) -> str:
        head = (title, *(f"{classes} classes, {student}" for student, classes in keys))
        names = dict.fromkeys(row["name"] for row in rows)
        found = [(name, [by_name.get((name, *key)) for key in keys]) for name in names]
        return markdown(
            head, [(name, *(cell(*x) for x in zip(keys, of, strict=True))) for name, of in found]
        )

    def time(key: tuple[str, int], row: dict[str, Any] | None) -> str:
        if row is None or row["ms"] is None:
            return row["note"] if row else "-"
        return f"{row['ms']:,.0f} ms ({row['ms'] / ours[key]:.3g}x)"

    def cost(_: tuple[str, int], row: dict[str, Any] | None) -> str:
        if row is None or row["ms"] is None:
            return "-"
        gigaflop, peak = row["flop"] / 1e9, row["peak_bytes"] / 1e6
        kept = row["saved_bytes"] / 1e6
        return f"{gigaflop:,.0f} / {peak:,.0f} / {kept:,.0f} ({row['repeats']})"

    unit = "GPU time" if options["device"] == "cuda" else "CPU time of one thread"
    first = [key for key in keys if key[0] == options["student"][0]]
    ratios = {name: None for found in record["ratios"] for name in found}
    named = [name for name in ratios if name not in ("student", "classes")]
    ratio_table = markdown(
        (
            "ratio",
            *(f"{found['classes']} classes, {found['student']}" for found in record["ratios"]),
        ),
        [
            (f"`{name}`", *(f"{r[name]:g}x" if name in r else "-" for r in record["ratios"]))
            for name in named
        ],
    )
    return (
        f"One training step, {unit}, teacher {options['teacher']}, precision "
        f"{options['precision']}; in brackets: how many steps of FDBPL here.\n\n"
        f"{table('one step', keys, time)}\n\n{ratio_table}\n\nGFLOP / peak MB / MB kept for the "
        f"backward pass (how often the piece timed least was timed):\n\n"
        f"{table('one step', first, cost)}{check_line(record)}"
    )


def check_line(record: dict[str, Any]) -> str:
    """How far a sum of pieces is from a step in one go, where that was timed."""
    check = record.get("check")
    if not check:
        return ""
    return (
        f"\n\nCheck: the official CoOp step at {check['classes']} classes in one go took "
        f"{check['whole_seconds']:.1f} s, the sum of its pieces {check['composed_seconds']:.1f} s."
    )


def whole_rows(rows: Sequence[dict[str, Any]]) -> str:
    """Whole runs, a table for each world: seconds by phase, and how many times faster than KDPL."""
    parts = []
    for world in dict.fromkeys(row["world"] for row in rows):
        runs = [row for row in rows if row["world"] == world]
        online = runs[0]["seconds"]
        names = list(dict.fromkeys(phase for row in runs for phase in row["phases"]))
        head = ("run", *(f"{name}, s" for name in names), "whole, s", "faster", "without dump")
        cells = [
            (
                row["name"],
                *(f"{row['phases'][n]:,.0f}" if n in row["phases"] else "-" for n in names),
                f"{row['seconds']:,.0f}",
                f"{online / row['seconds']:.2f}x",
                f"{online / row['seconds_without_dump']:.2f}x",
            )
            for row in runs
        ]
        title = f"{runs[0]['seeds']} seeds, {world}, CPU time of one thread:"
        parts.append(f"{title}\n\n{markdown(head, cells)}")
    return "\n\n".join(parts)


def dump_rows(record: dict[str, Any]) -> str:
    def share(row: dict[str, Any], name: str) -> str:
        return f"{100 * row[name]:.1f} %" if name in row else "-"

    options = record["options"]
    head = ("batch", "threads", "workers", "regions / s", "per CPU second")
    table = markdown(
        (*head, "teacher", "decode", "cut"),
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
        f"{options['teacher']}, wall time:\n\n{table}"
    )


def store_rows(record: dict[str, Any]) -> str:
    """Reading a region store: speed, memory, and one as large as ImageNet's."""
    reads, memory = record["reads"], record["memory"]
    sizes = [name for name in reads if " x " in name]
    readers = list(reads[sizes[0]]["rows_per_second"])

    def cell(size: str, reader: str) -> str:
        rows, times = reads[size]["rows_per_second"], reads[size]["times_torch_save"]
        return f"{rows[reader]:,}" + (f" ({times[reader]:g}x)" if reader in times else "")

    table = markdown(
        ("rows per second of CPU time", *(f"batches of {size}" for size in sizes)),
        [(reader, *(cell(size, reader) for size in sizes)) for reader in readers],
    )
    workers = [one for found in memory["three_workers_of_the_largest"].values() for one in found]
    of_workers = {k: max(one["most_mb"][k] for one in workers) for k in ("own", "mapped")}
    text = (
        f"The region store: {reads['images']} images x {reads['regions']} regions x "
        f"{reads['classes']} float16 logits, files in the system's cache; in brackets, against a "
        f"torch.save per image.\n\n{table}\n\nMost memory of a reader, its own and mapped: "
    )
    text += "; ".join(
        f"{one['most_mb']['own']} and {one['most_mb']['mapped']} MB of a store of "
        f"{one['store_mb']} MB"
        for one in memory["one_reader"]
    )
    text += (
        f"; each of three workers, forked or spawned, at most {of_workers['own']} and "
        f"{of_workers['mapped']}."
    )
    large = record.get("large")
    if large:
        checks = ", ".join(f"{name} {s} s" for name, s in large["verify_seconds"].items())
        first, again = (
            one["rows_per_second"] for one in large[f"reads of {READ_BATCH} x 8"].values()
        )
        text += (
            f" A store of {large['images']:,} images x {large['regions']} regions x top-"
            f"{large['top_k']}, {large['bytes'] / 1e9:.1f} GB in {large['shards']} shards: written "
            f"in {large['write_seconds']} s, opened in {large['open_seconds']} s, verified in "
            f"{checks}; random batches of {READ_BATCH} x 8 read {first:,} rows a second while a "
            f"shard is verified at its first touch, then {again:,}."
        )
    return text


def origin(record: dict[str, Any]) -> str:
    machine, versions = record["machine"], record["versions"]
    cpu = machine["cpu"]
    if machine.get("stepping"):
        cpu += " family {family} model {model} stepping {stepping}".format(**machine)
        cpu += f" ({', '.join(machine['flags'])})"
    return (
        f"{cpu}, {machine['cores']} cores, {machine['system']}; torch "
        f"{versions['torch']}, commit {_commit(record)}, {record['finished']}."
    )


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "step_time": step_rows,
    "end_to_end": lambda record: whole_rows(record["rows"]),
    "dump": dump_rows,
    "store_io": store_rows,
}


def tables(folder: Path = RESULTS) -> str:
    """All tables of all machines."""
    parts = []
    for machine in sorted(path for path in folder.iterdir() if path.is_dir()):
        records = [
            (make, json.loads(file.read_text(encoding="utf-8")))
            for name, make in TABLES.items()
            for file in sorted(machine.glob(f"{name}*.json"))
        ]
        found = [f"{make(record)}\n\n{origin(record)}" for make, record in records]
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
