"""Numbers that others printed, as rows beside ours: published.json, each with its source.

Percentages as printed, means over seeds. A pair is base and new, a triple base, new and H.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from reporting.collect import join
from reporting.methods import BASE2NEW, CROSS_TARGETS, DOMAIN_TARGETS, FEW_SHOT, SOURCE
from reporting.tables import (
    AVERAGE,
    BASE,
    NEW,
    H,
    Row,
    Spread,
    Table,
    harmonic_mean,
    method_rank,
    sources_of,
)

FILE = Path(__file__).with_name("published.json")


def read_published() -> list[dict]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def with_published(
    table: Table, protocol: str, trainers: Collection[str] = (), datasets: Collection[str] = ()
) -> Table:
    """The table with the published rows of its data sets and backbones among its own.

    A table without rows gets all that is known. The filters are those of the comparison.
    """
    backbones = {row.backbone for row in table.rows}
    own = {row.dataset for row in table.rows if not row.is_average}
    average = not own or any(row.is_average for row in table.rows)
    rows: list[Row] = []
    for entry in read_published():
        if entry["protocol"] != protocol or (backbones and entry["backbone"] not in backbones):
            continue
        if trainers and entry["method"] not in trainers:
            continue
        rows += _rows(entry, own or set(datasets), average)
    if not rows:
        which = f"{join(own)} with {join(backbones)}" if own else protocol
        return replace(table, notes=[*table.notes, f"nothing published is known for {which}"])
    columns = table.columns
    if protocol == FEW_SHOT:
        columns = tuple(
            sorted(
                {*(columns if table.rows else ()), *(k for row in rows for k in row.cells)}, key=int
            )
        )
    elif not table.rows:
        columns = tuple(dict.fromkeys(name for row in rows for name in row.cells))
    merged = sorted(
        [*table.rows, *rows],
        key=lambda row: (row.is_average, row.dataset, row.shots or 0, *method_rank(row)),
    )
    marks = sources_of(merged)
    notes = [f"[{marks[source]}] published: {source}" for source in marks]
    return replace(table, rows=merged, columns=columns, notes=[*table.notes, *notes])


def _rows(entry: dict, wanted: set[str], average: bool) -> list[Row]:
    common = dict(
        trainer=entry["method"],
        config="",
        backbone=entry["backbone"],
        shots=entry["shots"],
        seeds={},
        transductive=entry.get("transductive", False),
        published=entry["source"],
    )
    numbers = entry.get("numbers", {})
    if entry["protocol"] == BASE2NEW:
        rows = [
            Row(dataset=name, cells=_base_new_h(*pair), **common)
            for name, pair in numbers.items()
            if not wanted or name in wanted
        ]
        if average and "average" in entry:
            printed = _base_new_h(*entry["average"])
            rows.append(
                Row(dataset=AVERAGE, cells=printed, num_datasets=11, is_average=True, **common)
            )
        return rows
    if entry["protocol"] == FEW_SHOT:
        return [
            Row(dataset=name, cells={k: Spread(v, None) for k, v in by_shots.items()}, **common)
            for name, by_shots in numbers.items()
            if not wanted or name in wanted
        ]
    if wanted and not wanted & {SOURCE, *CROSS_TARGETS, *DOMAIN_TARGETS}:
        return []
    cells = {name: Spread(value, None) for name, value in numbers.items()}
    if "average" in entry:
        cells[AVERAGE] = Spread(entry["average"], None)
    return [Row(dataset=SOURCE, cells=cells, **common)]


def _base_new_h(base: float, new: float, h: float | None = None) -> dict[str, Spread | None]:
    h = harmonic_mean(base, new) if h is None else h
    return {BASE: Spread(base, None), NEW: Spread(new, None), H: Spread(h, None)}
