"""Scores -> means over seeds -> one table, in five formats. No files are touched."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean, pstdev

from tabulate import tabulate

from reporting.methods import PLAIN
from reporting.paired import Difference
from wording import printable

FORMATS = ("text", "markdown", "latex", "csv", "json")
ABSENT = "—"
BASE, NEW, H = "base", "new", "H"
AVERAGE = "average"


@dataclass(frozen=True)
class Score:
    """One number of a table: what one seed of a row reached in one column, in percent."""

    dataset: str
    trainer: str
    config: str  # "" where a row joins several recipes
    backbone: str
    shots: int | None  # None: a column each
    column: str
    seed: int
    value: float
    recipe: str = ""  # the config, where a row joins several
    train_seconds: float | None = None  # of the column that the times are of; None: none trained
    dump_seconds: float | None = 0.0  # 0: no region store; None: its time is not known
    knobs: tuple[str, ...] = ()
    transductive: bool = False

    @property
    def row(self) -> tuple:
        """Scores with equal ones stand in one row."""
        return (self.dataset, self.shots, self.trainer, self.config, self.backbone, self.knobs,
                self.transductive)  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """Mean over seeds; std is the population's, None where it cannot be told."""

    mean: float
    std: float | None
    count: int = field(default=1, compare=False)  # seeds


@dataclass(frozen=True)
class Row:
    """One method on one data set, its average over several, or its transfer to several.

    `cells` holds a value per column: base, new and H; the targets of a transfer; or the shots.
    """

    dataset: str
    trainer: str
    config: str
    backbone: str
    shots: int | None  # None: one column each
    cells: dict[str, Spread | None]
    seeds: dict[str, tuple[int, ...]]  # of each column that has a value of its own
    train_seconds: float | None = None
    train_and_dump_seconds: float | None = None
    num_datasets: int = 1
    is_average: bool = False
    knobs: tuple[str, ...] = ()  # what was switched on beyond the method as published
    transductive: bool = False
    published: str = ""  # where the numbers were printed; "" for ours
    differences: dict[str, Difference] = field(default_factory=dict)  # to the baseline, by column

    @property
    def base(self) -> Spread | None:
        return self.cells.get(BASE)

    @property
    def new(self) -> Spread | None:
        return self.cells.get(NEW)

    @property
    def h(self) -> Spread | None:
        return self.cells.get(H)

    @property
    def base_seeds(self) -> tuple[int, ...]:
        return self.seeds.get(BASE, ())

    @property
    def new_seeds(self) -> tuple[int, ...]:
        return self.seeds.get(NEW, ())

    @property
    def method(self) -> str:
        """The trainer and what a reader must not overlook about it."""
        marks = ["transductive"] * self.transductive + ["published"] * bool(self.published)
        return self.trainer + (f" ({', '.join(marks)})" if marks else "")


def sources_of(rows: Iterable[Row]) -> dict[str, int]:
    """Number of each source of published rows, in order of appearance."""
    sources = dict.fromkeys(row.published for row in rows if row.published)
    return {source: number for number, source in enumerate(sources, start=1)}


@dataclass
class Table:
    rows: list[Row]
    caption: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    columns: tuple[str, ...] = (BASE, NEW, H)
    baseline: str = ""  # the method that differences are taken to


def harmonic_mean(base: float, new: float) -> float:
    """H = 2 b n / (b + n) of two percentages, 0 where both are 0. Source: arXiv:2203.05557."""
    return 2 * base * new / (base + new) if base + new > 0 else 0.0


def aggregate(
    scores: Iterable[Score],
    means: Mapping[str, Sequence[str]] | None = None,
    over_datasets: bool = True,
) -> list[Row]:
    """The rows of a table; see aggregate_with_keys."""
    return [row for row, _ in aggregate_with_keys(scores, means, over_datasets)]


def aggregate_with_keys(
    scores: Iterable[Score],
    means: Mapping[str, Sequence[str]] | None = None,
    over_datasets: bool = True,
) -> list[tuple[Row, list[tuple]]]:
    """Each row of a table, and the Score.row of those that it is made of.

    One row per data set, shots, method, config and backbone, then, with `over_datasets`, averages
    over data sets. `means` names for a data set the columns that its AVERAGE is over; it needs all
    of them.

    H of a row is the harmonic mean of its mean base and mean new accuracy, in the average row too,
    as the papers print it. Its std is that of the H of every seed, and needs both halves of all
    seeds. Averages are made where a method has two or more data sets. Configs of one method are
    averaged together only where each data set has a single one (ImageNet has its own schedule).
    """
    groups: dict[tuple, list[Score]] = defaultdict(list)
    for score in scores:
        groups[score.row].append(score)
    rows = {key: _row(group, means or {}) for key, group in groups.items()}
    result = [(row, [key]) for key, row in rows.items()]
    result.sort(key=lambda each: (each[0].dataset, each[0].shots or 0, *method_rank(each[0])))
    averages = []
    for keys in alike(groups) if over_datasets else ():
        values = [_by_column(groups[key]) for key in keys]
        averages.append((_average([rows[key] for key in keys], values), keys))
    averages.sort(key=lambda each: (each[0].shots or 0, *method_rank(each[0])))
    return result + averages


def alike(keys: Iterable[tuple]) -> list[list[tuple]]:
    """Keys (data set, shots, trainer, config, backbone, ...) that one average is taken over.

    See aggregate: two or more data sets, and either one config each or all with the same.
    """
    methods: dict[tuple, list[tuple]] = defaultdict(list)
    for key in keys:
        dataset, shots, trainer, config, *rest = key
        methods[(shots, trainer, *rest)].append(key)
    found = []
    for members in methods.values():
        by_config: dict[str, list[tuple]] = defaultdict(list)
        one_each = len({key[0] for key in members}) == len(members)
        for key in members:
            by_config["" if one_each else key[3]].append(key)
        found += [sorted(part) for part in by_config.values() if len(part) > 1]
    return found


def method_rank(row: Row) -> tuple:
    """Order of the rows of one data set: published, plain, distilled, FDBPL."""
    name = row.trainer.removesuffix("_KDPL").removesuffix("_FDBPL")
    distilled = 2 if row.trainer.endswith("FDBPL") else int(row.trainer.endswith("_KDPL"))
    order = PLAIN.index(name) if name in PLAIN else len(PLAIN)
    ours = not row.published
    return (ours, row.backbone, row.transductive, distilled, order, row.trainer, row.config,
            row.knobs)  # fmt: skip


def _by_column(group: Iterable[Score]) -> dict[str, dict[int, float]]:
    """Values of a row by column and seed; base and new always have a column both."""
    values: dict[str, dict[int, float]] = defaultdict(dict)
    for score in sorted(group, key=lambda score: score.seed):
        values[score.column][score.seed] = score.value
    if values.keys() & {BASE, NEW}:
        return {half: values.get(half, {}) for half in (BASE, NEW)}
    return dict(values)


def _row(group: Sequence[Score], means: Mapping[str, Sequence[str]]) -> Row:
    first, values = group[0], _by_column(group)
    cells = {column: spread(each) for column, each in values.items()}
    if BASE in values:
        cells[H] = _h_spread(values[BASE], values[NEW])
    wanted = means.get(first.dataset, ())
    if wanted and all(column in values for column in wanted):
        cells[AVERAGE] = spread(
            mean_over([cells[each] for each in wanted], [values[each] for each in wanted])
        )
    train = [score.train_seconds for score in group if score.train_seconds is not None]
    return Row(
        dataset=first.dataset,
        trainer=first.trainer,
        config=_names({score.recipe or score.config for score in group}),
        backbone=first.backbone,
        shots=first.shots,
        cells=cells,
        seeds={column: tuple(each) for column, each in values.items()},
        train_seconds=fmean(train) if train else None,
        train_and_dump_seconds=_with_dump(group),
        knobs=first.knobs,
        transductive=first.transductive,
    )


def _average(rows: Sequence[Row], values: Sequence[Mapping[str, Mapping[int, float]]]) -> Row:
    """Average each seed over the data sets where all have it; otherwise average the means alone."""
    first, means = rows[0], {}
    for column in sorted({column for each in values for column in each}):
        by_seed = [each.get(column, {}) for each in values]
        means[column] = mean_over([row.cells.get(column) for row in rows], by_seed)
    cells = {column: spread(mean) for column, mean in means.items()}
    seeds = {
        column: _common(each.get(column, ()) for each in values)
        for column in means
        if cells[column] or column in (BASE, NEW)
    }
    if BASE in means:
        base, new = means[BASE], means[NEW]
        if isinstance(base, dict) and isinstance(new, dict):
            cells[H] = _h_spread(base, new)
        elif cells[BASE] and cells[NEW]:
            cells[H] = Spread(harmonic_mean(cells[BASE].mean, cells[NEW].mean), None)
        else:
            cells[H] = None
    return replace(
        first,
        dataset=AVERAGE,
        config=_names({row.config for row in rows}),
        cells=cells,
        seeds=seeds,
        train_seconds=mean_or_none([row.train_seconds for row in rows]),
        train_and_dump_seconds=mean_or_none([row.train_and_dump_seconds for row in rows]),
        num_datasets=len(rows),
        is_average=True,
    )


def mean_over(
    cells: Sequence[Spread | None], by_seed: Sequence[Mapping[int, float]]
) -> dict[int, float] | float | None:
    """The average of cells: per seed where all have the same ones, else of their means alone."""
    if not cells or None in cells:
        return None
    seeds = {tuple(sorted(values)) for values in by_seed}
    if len(seeds) == 1:
        return {seed: fmean(values[seed] for values in by_seed) for seed in seeds.pop()}
    return fmean(cell.mean for cell in cells if cell)


def _names(configs: Iterable[str]) -> str:
    return " + ".join(sorted(configs))


def _common(seeds: Iterable[Iterable[int]]) -> tuple[int, ...]:
    return tuple(sorted(set.intersection(*map(set, seeds))))


def spread(values: Mapping[int, float] | float | None) -> Spread | None:
    """Mean and std of values by seed; of a plain mean no std is known."""
    if values is None or values == {}:
        return None
    if not isinstance(values, Mapping):
        return Spread(values, None)
    std = pstdev(values.values()) if len(values) > 1 else None
    return Spread(fmean(values.values()), std, len(values))


def _h_spread(base: dict[int, float], new: dict[int, float]) -> Spread | None:
    """H of the mean base and the mean new accuracy, with the std of the H of every seed."""
    if not base or not new:
        return None
    mean = harmonic_mean(fmean(base.values()), fmean(new.values()))
    paired = base.keys() == new.keys() and len(base) > 1
    each = [harmonic_mean(base[seed], new[seed]) for seed in base if paired]
    return Spread(mean, pstdev(each) if each else None, len(base))


def _with_dump(group: Sequence[Score]) -> float | None:
    trained = [score for score in group if score.train_seconds is not None]
    return mean_or_none(
        [
            None if score.dump_seconds is None else score.train_seconds + score.dump_seconds
            for score in trained
        ]
    )


def mean_or_none(values: Sequence[float | None]) -> float | None:
    return fmean(values) if values and None not in values else None


def with_ci95(table: Table) -> Table:
    """The table with 1.96 std / sqrt(seeds) in place of each std, as the family's --ci95."""
    rows = []
    for row in table.rows:
        cells = {
            name: cell
            if cell is None or cell.std is None
            else replace(cell, std=1.96 * cell.std / math.sqrt(cell.count))
            for name, cell in row.cells.items()
        }
        rows.append(replace(row, cells=cells))
    caption = [
        line.replace("mean ± std over seeds", "mean ± 95 % confidence interval over seeds")
        for line in table.caption
    ]
    return replace(table, rows=rows, caption=caption)


# --- the five formats


def render(table: Table, form: str) -> str:
    """The table as text that ends in a newline. csv and json keep full precision.

    Raises:
        ValueError: `form` is not one of FORMATS.
    """
    if form == "json":
        plain = asdict(table) | {"rows": [_plain(row) for row in table.rows]}
        return json.dumps(plain, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    if form == "csv":
        return _csv(table)
    styles = {"text": "simple", "markdown": "github", "latex": "latex_booktabs"}
    if form not in styles:
        raise ValueError(f"format is {form!r}; choose one of {', '.join(FORMATS)}.")
    safe = _markdown if form == "markdown" else printable
    body = _grid(table, styles[form], safe) if table.rows else ""
    caption, notes = ([safe(line) for line in lines] for lines in (table.caption, table.notes))
    if form == "latex":
        return "\n".join([*(f"% {line}" for line in (*caption, *notes)), body]) + "\n"
    if form == "markdown":
        parts = ["  \n".join(caption), body, "\n".join(f"- {note}" for note in notes)]
    else:
        parts = ["\n".join(caption), body, "\n".join(notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


# Names come from folders and from files that others wrote: none of them may act as anything else.


def _markdown(text: str) -> str:
    """Without a new column, a tag or an entity. tabulate does this for LaTeX, for Markdown not."""
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|")):
        text = text.replace(sign, safe)
    return printable(text)


def _spreadsheet(value: object) -> object:
    """A cell that no spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def _plain(row: Row) -> dict:
    """A row for JSON: each cell under its column's name in small letters."""
    values = asdict(row)
    cells = values.pop("cells")
    return values | {name.lower(): cell for name, cell in cells.items()}


def _grid(table: Table, style: str, safe: Callable[[str], str]) -> str:
    rows, sources = table.rows, sources_of(table.rows)
    columns = {
        "data set": [f"average of {r.num_datasets}" if r.is_average else r.dataset for r in rows],
        "method": [
            row.method + (f" [{sources[row.published]}]" if row.published else "") for row in rows
        ],
        "config": [row.config for row in rows],
        "knobs": [", ".join(row.knobs) for row in rows],
        "backbone": [row.backbone for row in rows],
        "shots": ["" if row.shots is None else str(row.shots) for row in rows],
        "seeds": [_seeds(row) for row in rows],
    }
    for name in table.columns:
        columns[name] = [_percent(row.cells.get(name)) for row in rows]
    columns |= {
        "train s": [_seconds(row.train_seconds) for row in rows],
        "+ dump s": [_seconds(row.train_and_dump_seconds) for row in rows],
    }
    # What all rows share stands in the caption.
    for name in ("data set", "config", "shots"):
        if len({text for text, row in zip(columns[name], rows, strict=True)
                if not (row.published and name != "data set")}) <= 1:  # fmt: skip
            del columns[name]
    if not any(columns["knobs"]):
        del columns["knobs"]
    lines = list(zip(*columns.values(), strict=True))
    if table.baseline:
        lines = _with_differences(table, list(columns), lines)
    words = ("data set", "method", "config", "knobs", "backbone")
    return tabulate(
        [[safe(text) for text in line] for line in lines],
        headers=[safe(name) for name in columns],
        tablefmt=style,
        disable_numparse=True,
        colalign=["left" if name in words else "right" for name in columns],
    )


def _with_differences(table: Table, names: list[str], lines: list[tuple]) -> list[tuple]:
    """Below each method its difference to the baseline, where there is one."""
    result = []
    for row, line in zip(table.rows, lines, strict=True):
        result.append(line)
        if not row.differences:
            continue
        cells = dict.fromkeys(names, "")
        cells["method"] = f"  minus {table.baseline}"
        for name in table.columns:
            found = row.differences.get(name)
            cells[name] = _signed(found) if found else ABSENT
        result.append(tuple(cells.values()))
    return result


def _signed(found: Difference) -> str:
    error = "" if found.error is None else f" ± {found.error:.2f}"
    return f"{found.mean:+.2f}{error}"


def _seeds(row: Row) -> str:
    if row.published:
        return ""
    counts = {name: len(seeds) for name, seeds in row.seeds.items()}
    if len(set(row.seeds.values())) <= 1:
        return str(next(iter(counts.values()), 0))
    if set(counts) == {BASE, NEW}:
        return f"{counts[BASE]} base, {counts[NEW]} new"
    low, high = min(counts.values()), max(counts.values())
    return str(low) if low == high else f"{low}-{high}"


def _percent(cell: Spread | None) -> str:
    if cell is None:
        return ABSENT
    return f"{cell.mean:.2f}" + ("" if cell.std is None else f" ± {cell.std:.2f}")


def _seconds(seconds: float | None) -> str:
    return ABSENT if seconds is None else f"{seconds:.1f}"


def _csv(table: Table) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    own = [name for name in table.columns if any(name in row.seeds for row in table.rows)]
    header = ["dataset", "trainer", "config", "backbone", "shots"]
    header += [f"{name.lower()}_seeds" for name in own]
    for name in table.columns:
        header += [f"{name.lower()}_mean", f"{name.lower()}_std"]
    header += ["train_seconds", "train_and_dump_seconds", "num_datasets", "knobs", "transductive",
               "published"]  # fmt: skip
    if table.baseline:
        for name in table.columns:
            header += [f"{name.lower()}_difference", f"{name.lower()}_difference_error"]
    writer.writerow(map(_spreadsheet, header))
    for row in table.rows:
        numbers = []
        for name in table.columns:
            cell = row.cells.get(name)
            numbers += [cell.mean, cell.std] if cell else [None, None]
        differences = []
        for name in table.columns if table.baseline else ():
            found = row.differences.get(name)
            differences += [found.mean, found.error] if found else [None, None]
        values = [row.dataset, row.trainer, row.config, row.backbone, row.shots,
                  *(" ".join(map(str, row.seeds.get(name, ()))) for name in own), *numbers,
                  row.train_seconds, row.train_and_dump_seconds, row.num_datasets,
                  " ".join(row.knobs), row.transductive, row.published, *differences]  # fmt: skip
        writer.writerow(map(_spreadsheet, values))
    return out.getvalue()
