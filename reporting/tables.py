"""Base-to-new scores -> means over seeds -> one table, in five formats. No files are touched."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, pstdev

from tabulate import tabulate

FORMATS = ("text", "markdown", "latex", "csv", "json")
METHOD_ORDER = ("ZeroshotCLIP", "CoOp", "CoCoOp", "VPT", "MaPLe", "PromptSRC")
ABSENT = "—"


@dataclass(frozen=True)
class Score:
    """One seed of one method on one data set: percentages, None where that half is missing."""

    dataset: str
    trainer: str
    config: str
    backbone: str
    shots: int
    seed: int
    base: float | None = None
    new: float | None = None
    train_seconds: float | None = None  # None: nothing was trained
    dump_seconds: float | None = 0.0  # 0: no region store; None: its time is not known


@dataclass(frozen=True)
class Spread:
    """Mean over seeds; std is the population's, None where it cannot be told."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Row:
    """One method on one data set, or its average over `num_datasets` of them."""

    dataset: str
    trainer: str
    config: str
    backbone: str
    shots: int
    base: Spread | None
    new: Spread | None
    h: Spread | None
    train_seconds: float | None
    train_and_dump_seconds: float | None
    base_seeds: tuple[int, ...]
    new_seeds: tuple[int, ...]
    num_datasets: int = 1
    is_average: bool = False


@dataclass
class Table:
    rows: list[Row]
    caption: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def harmonic_mean(base: float, new: float) -> float:
    """H = 2 b n / (b + n) of two percentages, 0 where both are 0. Source: arXiv:2203.05557."""
    return 2 * base * new / (base + new) if base + new > 0 else 0.0


def aggregate(scores: Iterable[Score]) -> list[Row]:
    """One row per data set, shots, method, config and backbone, then averages over data sets.

    H of a row is the harmonic mean of its mean base and mean new accuracy, in the average row too,
    as the papers print it. Its std is that of the H of every seed, and needs both halves of all
    seeds. Averages are made where a method has two or more data sets. Configs of one method are
    averaged together only where each data set has a single one (ImageNet has its own schedule).
    """
    groups: dict[tuple, list[Score]] = defaultdict(list)
    for score in scores:
        key = (score.dataset, score.shots, score.trainer, score.config, score.backbone)
        groups[key].append(score)
    members = {key: sorted(group, key=lambda s: s.seed) for key, group in groups.items()}
    rows = [_row(group) for group in members.values()]
    rows.sort(key=lambda row: (row.dataset, row.shots, *_method_rank(row)))

    methods: dict[tuple, list[tuple]] = defaultdict(list)
    for key in members:
        dataset, shots, trainer, config, backbone = key
        methods[shots, trainer, backbone].append(key)
    averages = []
    for keys in methods.values():
        by_config: dict[str, list[tuple]] = defaultdict(list)
        one_each = len({key[0] for key in keys}) == len(keys)
        for key in keys:
            by_config["" if one_each else key[3]].append(key)
        for part in by_config.values():
            if len(part) > 1:
                averages.append(_average([members[key] for key in sorted(part)]))
    averages.sort(key=lambda row: (row.shots, *_method_rank(row)))
    return rows + averages


def _method_rank(row: Row) -> tuple:
    name = row.trainer.removesuffix("_KDPL").removesuffix("_FDBPL")
    distilled = 2 if row.trainer.endswith("FDBPL") else int(row.trainer.endswith("_KDPL"))
    order = METHOD_ORDER.index(name) if name in METHOD_ORDER else len(METHOD_ORDER)
    return row.backbone, distilled, order, row.trainer, row.config


def _row(group: Sequence[Score]) -> Row:
    first = group[0]
    base = {score.seed: score.base for score in group if score.base is not None}
    new = {score.seed: score.new for score in group if score.new is not None}
    train = [score.train_seconds for score in group if score.train_seconds is not None]
    return Row(
        dataset=first.dataset,
        trainer=first.trainer,
        config=first.config,
        backbone=first.backbone,
        shots=first.shots,
        base=_spread(base),
        new=_spread(new),
        h=_h_spread(base, new),
        train_seconds=fmean(train) if train else None,
        train_and_dump_seconds=_with_dump(group),
        base_seeds=tuple(base),
        new_seeds=tuple(new),
    )


def _average(groups: Sequence[Sequence[Score]]) -> Row:
    """Average each seed over the data sets where all have it; otherwise average the means alone."""
    rows = [_row(group) for group in groups]
    seeds = {(row.base_seeds, row.new_seeds) for row in rows}
    configs = sorted({row.config for row in rows})
    halves = {}
    for half in ("base", "new"):
        means = [getattr(row, half) for row in rows]
        if None in means:
            halves[half] = None
        elif len(seeds) == 1:
            own = getattr(rows[0], f"{half}_seeds")
            lookup = [{score.seed: getattr(score, half) for score in group} for group in groups]
            halves[half] = {seed: fmean(values[seed] for values in lookup) for seed in own}
        else:
            halves[half] = fmean(spread.mean for spread in means)
    base, new = halves["base"], halves["new"]
    if isinstance(base, dict) and isinstance(new, dict):
        spreads = _spread(base), _spread(new), _h_spread(base, new)
    else:
        mean_base, mean_new = _spread_of(base), _spread_of(new)
        h = None
        if mean_base and mean_new:
            h = Spread(harmonic_mean(mean_base.mean, mean_new.mean), None)
        spreads = mean_base, mean_new, h
    first = rows[0]
    return Row(
        "average", first.trainer, " + ".join(configs), first.backbone, first.shots, *spreads,
        _mean_or_none([row.train_seconds for row in rows]),
        _mean_or_none([row.train_and_dump_seconds for row in rows]),
        tuple(sorted(set.intersection(*(set(row.base_seeds) for row in rows)))),
        tuple(sorted(set.intersection(*(set(row.new_seeds) for row in rows)))),
        num_datasets=len(rows), is_average=True,
    )  # fmt: skip


def _spread_of(half: dict[int, float] | float | None) -> Spread | None:
    return _spread(half) if isinstance(half, dict) else half and Spread(half, None)


def _spread(values: dict[int, float]) -> Spread | None:
    if not values:
        return None
    std = pstdev(values.values()) if len(values) > 1 else None
    return Spread(fmean(values.values()), std)


def _h_spread(base: dict[int, float], new: dict[int, float]) -> Spread | None:
    """H of the mean base and the mean new accuracy, with the std of the H of every seed."""
    if not base or not new:
        return None
    mean = harmonic_mean(fmean(base.values()), fmean(new.values()))
    paired = base.keys() == new.keys() and len(base) > 1
    each = [harmonic_mean(base[seed], new[seed]) for seed in base if paired]
    return Spread(mean, pstdev(each) if each else None)


def _with_dump(group: Sequence[Score]) -> float | None:
    trained = [score for score in group if score.train_seconds is not None]
    return _mean_or_none(
        [
            None if score.dump_seconds is None else score.train_seconds + score.dump_seconds
            for score in trained
        ]
    )


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    return fmean(values) if values and None not in values else None


def render(table: Table, form: str) -> str:
    """The table as text that ends in a newline. csv and json keep full precision.

    Raises:
        ValueError: `form` is not one of FORMATS.
    """
    if form == "json":
        return json.dumps(asdict(table), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    if form == "csv":
        return _csv(table)
    styles = {"text": "simple", "markdown": "github", "latex": "latex_booktabs"}
    if form not in styles:
        raise ValueError(f"format is {form!r}; choose one of {', '.join(FORMATS)}.")
    body = _grid(table.rows, styles[form]) if table.rows else ""
    if form == "latex":
        remarks = [*table.caption, *table.notes]
        return "\n".join([*(f"% {line}" for line in remarks), body]) + "\n"
    if form == "markdown":
        notes = [f"- {note}" for note in table.notes]
        parts = ["  \n".join(table.caption), body, "\n".join(notes)]
    else:
        parts = ["\n".join(table.caption), body, "\n".join(table.notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _grid(rows: Sequence[Row], style: str) -> str:
    several_shots = len({row.shots for row in rows}) > 1
    columns = {
        "data set": [
            f"average of {row.num_datasets}" if row.is_average else row.dataset for row in rows
        ],
        "method": [row.trainer for row in rows],
        "config": [row.config for row in rows],
        "backbone": [row.backbone for row in rows],
        "shots": [str(row.shots) for row in rows],
        "seeds": [_seeds(row) for row in rows],
        "base": [_percent(row.base) for row in rows],
        "new": [_percent(row.new) for row in rows],
        "H": [_percent(row.h) for row in rows],
        "train s": [_seconds(row.train_seconds) for row in rows],
        "+ dump s": [_seconds(row.train_and_dump_seconds) for row in rows],
    }
    # What all rows share stands in the caption.
    if len(set(columns["data set"])) == 1:
        del columns["data set"]
    if len(set(columns["config"])) == 1:
        del columns["config"]
    if not several_shots:
        del columns["shots"]
    words = ("data set", "method", "config", "backbone")
    return tabulate(
        list(zip(*columns.values(), strict=True)),
        headers=list(columns),
        tablefmt=style,
        disable_numparse=True,
        colalign=["left" if name in words else "right" for name in columns],
    )


def _seeds(row: Row) -> str:
    base, new = len(row.base_seeds), len(row.new_seeds)
    return str(base) if row.base_seeds == row.new_seeds else f"{base} base, {new} new"


def _percent(spread: Spread | None) -> str:
    if spread is None:
        return ABSENT
    return f"{spread.mean:.2f}" + ("" if spread.std is None else f" ± {spread.std:.2f}")


def _seconds(seconds: float | None) -> str:
    return ABSENT if seconds is None else f"{seconds:.1f}"


def _csv(table: Table) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["dataset", "trainer", "config", "backbone", "shots", "base_seeds", "new_seeds",
         "base_mean", "base_std", "new_mean", "new_std", "h_mean", "h_std", "train_seconds",
         "train_and_dump_seconds", "num_datasets"]
    )  # fmt: skip
    for row in table.rows:
        numbers = []
        for spread in (row.base, row.new, row.h):
            numbers += [spread.mean, spread.std] if spread else [None, None]
        writer.writerow(
            [row.dataset, row.trainer, row.config, row.backbone, row.shots,
             " ".join(map(str, row.base_seeds)), " ".join(map(str, row.new_seeds)), *numbers,
             row.train_seconds, row.train_and_dump_seconds, row.num_datasets]
        )  # fmt: skip
    return out.getvalue()
