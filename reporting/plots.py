"""Pictures: bars, few-shot curves, and accuracy against time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reporting.methods import BASE2NEW, FEW_SHOT
from reporting.tables import AVERAGE, H, Row, Spread, Table, sources_of

if TYPE_CHECKING:
    pass

# Okabe and Ito's palette, told apart with every kind of colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#999999"
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#B8A800")
MARKERS = "osD^vP*X"
KINDS = (".png", ".pdf")
NAN = float("nan")  # draws nothing


MANY_ROWS = 8


def base_new_h(rows: Sequence[Row], path: str | Path, title: str = "") -> Path:
    """Draw base, new and H of each row as bars with their std, beside the training time.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("there is nothing to draw: the table has no rows.")
    plt = _pyplot()
    names = _names(rows)
    many = len(rows) > MANY_ROWS  # one above the other, with room for names and numbers
    if many:
        heights = (4.2, 1.5 + 0.28 * len(rows))
        figure, (left, right) = plt.subplots(
            2, 1, figsize=(1.5 + 0.8 * len(rows), sum(heights)), height_ratios=heights,
            layout="constrained",
        )  # fmt: skip
    else:
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(4.5 + 1.7 * len(rows), 4.2), width_ratios=(1.7, 1), layout="constrained"
        )
    places = range(len(rows))
    halves = (("base", BLUE, "base"), ("new", ORANGE, "new"), ("H", GREEN, "h"))
    for offset, (label, colour, field) in enumerate(halves, start=-1):
        spreads = [getattr(row, field) for row in rows]
        means = [spread.mean if spread else 0.0 for spread in spreads]
        bars = left.bar(
            [place + 0.27 * offset for place in places],
            means,
            width=0.26,
            color=colour,
            label=label,
            yerr=[spread.std if spread and spread.std is not None else NAN for spread in spreads],
            error_kw={"elinewidth": 1, "capsize": 2.5, "ecolor": "#333333"},
        )
        texts = [f"{spread.mean:.1f}" if spread else "–" for spread in spreads]
        left.bar_label(bars, texts, padding=2, fontsize=6 if many else 8)
    slant = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if many else {}
    left.set_xticks(places, names, **slant)
    left.set_ylabel("top-1 accuracy, %")
    left.set_ylim(0, 1.14 * max([s.mean + (s.std or 0) for s in _spreads(rows)], default=1.0))
    left.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)

    train = [row.train_seconds or 0.0 for row in rows]
    both = [row.train_and_dump_seconds or row.train_seconds or 0.0 for row in rows]
    dump = [total - own for total, own in zip(both, train, strict=True)]
    right.barh(places, train, height=0.5, color=BLUE, label="training")
    right.barh(places, dump, height=0.5, left=train, color=GREY, label="dump, once per store")
    longest = max([*both, 1e-9])
    for place, row in enumerate(rows):
        text = "—"
        if row.train_seconds is not None:
            text = f"{train[place]:.1f}"
            if row.train_and_dump_seconds is None:
                text += " + ?"
            elif dump[place]:
                text += f" + {dump[place]:.1f}"
        right.text(both[place] + 0.02 * longest, place, text, va="center", fontsize=8)
    right.set_yticks(places, [name.replace("\n", " ") for name in names] if many else names)
    right.invert_yaxis()
    right.set_xlim(0, (1.15 if many else 1.4) * longest)
    right.set_xlabel("seconds per run")
    right.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=11)
    return _save(figure, path)


def draw_all(protocol: str, table: Table, folder: str | Path) -> list[Path]:
    """Draw what suits the protocol's table, as PNG and PDF; nothing for a table without rows."""
    if not table.rows:
        return []
    rows = table.rows
    drawn = []
    for kind in KINDS:
        if protocol == BASE2NEW:
            for name in sorted({row.dataset for row in rows}):
                part = [row for row in rows if row.dataset == name]
                drawn.append(base_new_h(part, Path(folder, f"base2new_{name}{kind}"), name))
            column = H
        elif protocol == FEW_SHOT:
            drawn.append(few_shot_curves(table, Path(folder, f"few_shot{kind}")))
            column = max(table.columns, key=int)
        else:
            drawn.append(transfer_bars(table, Path(folder, f"{protocol}{kind}")))
            column = AVERAGE
        timed = [row for row in rows if row.train_seconds is not None and row.cells.get(column)]
        if timed:
            path = Path(folder, f"{protocol}_time{kind}")
            drawn.append(accuracy_against_time(rows, column, path))
    return drawn


def few_shot_curves(table: Table, path: str | Path) -> Path:
    """Draw accuracy over shots, a panel per data set and one for the average, a line per method.

    What is not trained (0 shots) is a level line.

    Raises:
        ValueError: no rows.
    """
    rows = table.rows
    if not rows:
        raise ValueError("there is nothing to draw: the table has no rows.")
    plt = _pyplot()
    # The average first, larger panels are not needed: every data set is one claim.
    panels = sorted({row.dataset for row in rows}, key=lambda name: (name != AVERAGE, name))
    wide = min(4, len(panels))
    lines = -(-len(panels) // wide)
    figure, axes = plt.subplots(
        lines, wide, figsize=(3.4 * wide + 0.6, 2.9 * lines + 0.9), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    shots = sorted({int(name) for name in table.columns} - {0})
    look = _looks(rows)
    handles: dict[str, object] = {}
    for place, axis in enumerate(axes.flat):
        if place >= len(panels):
            axis.set_axis_off()
            continue
        for row in (row for row in rows if row.dataset == panels[place]):
            label, (colour, marker) = _line_name(row, rows), look[_line_name(row, rows)]
            untrained = row.cells.get("0")
            if untrained:
                line = axis.axhline(untrained.mean, color=colour, linestyle="--", linewidth=1.2)
                handles.setdefault(label, line)
            own = [k for k in shots if row.cells.get(str(k))]
            if own:
                cells = [row.cells[str(k)] for k in own]
                drawn = axis.errorbar(
                    [shots.index(k) for k in own],
                    [cell.mean for cell in cells],
                    yerr=[cell.std if cell.std is not None else 0 for cell in cells],
                    color=colour, marker=marker, markersize=4.5, linewidth=1.4, capsize=2,
                    linestyle=":" if row.published else "-",
                    markerfacecolor="white" if row.published else colour,
                )  # fmt: skip
                handles.setdefault(label, drawn)
        count = next(row.num_datasets for row in rows if row.dataset == panels[place])
        name = f"average of {count}" if panels[place] == AVERAGE else panels[place]
        axis.set_title(name, fontsize=10)
        axis.set_xticks(range(len(shots)), [str(k) for k in shots])
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        if place % wide == 0:
            axis.set_ylabel("top-1 accuracy, %")
        axis.set_xlabel("training images per class")
    figure.legend(
        list(handles.values()), list(handles), loc="outside upper center",
        ncols=min(len(handles), 1 + wide), frameon=False, fontsize=9,
    )  # fmt: skip
    return _save(figure, path)


def transfer_bars(table: Table, path: str | Path) -> Path:
    """Draw a group of bars per target, the source first and the average last; a bar per method.

    Raises:
        ValueError: no rows.
    """
    rows = table.rows
    if not rows:
        raise ValueError("there is nothing to draw: the table has no rows.")
    plt = _pyplot()
    columns = [name for name in table.columns if any(row.cells.get(name) for row in rows)]
    width = 0.84 / len(rows)
    figure, axis = plt.subplots(
        figsize=(2 + max(1.0, 0.22 * len(rows)) * len(columns), 4.2), layout="constrained"
    )
    look = _looks(rows)
    for number, row in enumerate(rows):
        label = _line_name(row, rows)
        cells = [row.cells.get(name) for name in columns]
        axis.bar(
            [place + width * (number - (len(rows) - 1) / 2) for place in range(len(columns))],
            [cell.mean if cell else 0.0 for cell in cells],
            width=0.94 * width,
            color=look[label][0],
            label=label,
            hatch="///" if row.published else None,
            alpha=0.55 if row.published else 1.0,
            yerr=[cell.std if cell and cell.std is not None else NAN for cell in cells],
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#333333"},
        )
    axis.set_xticks(
        range(len(columns)),
        [f"{name}\n(source)" if name == rows[0].dataset else name for name in columns],
        rotation=30 if len(columns) > 5 else 0,
        ha="right" if len(columns) > 5 else "center",
    )
    axis.set_ylabel("top-1 accuracy, %")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=min(len(rows), 4), frameon=False, fontsize=9)
    return _save(figure, path)


def accuracy_against_time(rows: Sequence[Row], column: str, path: str | Path) -> Path:
    """Draw one column over the seconds of training, the dump included; a panel per data set.

    A thin line leads back to the time without the dump. Methods that are not trained are level
    lines.

    Raises:
        ValueError: no row has both a time and a value.
    """
    timed = [row for row in rows if row.train_seconds is not None and row.cells.get(column)]
    if not timed:
        raise ValueError(f"there is nothing to draw: no row has a training time and {column}.")
    plt = _pyplot()
    panels = sorted({row.dataset for row in timed}, key=lambda name: (name != AVERAGE, name))
    wide = min(4, len(panels))
    lines = -(-len(panels) // wide)
    figure, axes = plt.subplots(
        lines, wide, figsize=(4.0 * wide + 0.8, 3.2 * lines + 0.8), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    look = _looks(rows)
    handles: dict[str, object] = {}
    for place, axis in enumerate(axes.flat):
        if place >= len(panels):
            axis.set_axis_off()
            continue
        for row in (row for row in rows if row.dataset == panels[place]):
            cell = row.cells.get(column)
            if cell is None:
                continue
            label = _line_name(row, rows)
            colour, marker = look[label]
            if row.train_seconds is None:
                style = ":" if row.published else "--"
                line = axis.axhline(cell.mean, color=colour, linestyle=style, linewidth=1.2)
                handles.setdefault(label, line)
                continue
            both = row.train_and_dump_seconds
            end = row.train_seconds if both is None else both
            axis.plot([row.train_seconds, end], [cell.mean] * 2, color=colour, linewidth=1)
            drawn = axis.errorbar(
                end, cell.mean, yerr=cell.std or 0, color=colour, marker=marker, capsize=2,
                linestyle="",
            )  # fmt: skip
            handles.setdefault(label, drawn)
        axis.set_xscale("log")
        _plain_ticks(axis, [row for row in timed if row.dataset == panels[place]])
        axis.set_title(panels[place], fontsize=10)
        axis.set_xlabel("seconds of training, dump included")
        what = f"{column} shots" if column.isdigit() else column
        axis.set_ylabel(f"top-1 accuracy, %: {what}" if column != H else "H, %")
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(
        list(handles.values()), list(handles), loc="outside upper center",
        ncols=min(len(handles), 1 + wide), frameon=False, fontsize=9,
    )  # fmt: skip
    return _save(figure, path)


def _plain_ticks(axis, rows: Sequence[Row]) -> None:
    """Seconds as 1, 2, 5, 10, ... around the times of the rows."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    times = [row.train_seconds for row in rows]
    times += [row.train_and_dump_seconds or row.train_seconds for row in rows]
    low, high = max(min(times), 1e-3) / 1.6, max(times) * 1.6
    ticks = [digit * 10.0**power for power in range(-3, 8) for digit in (1, 2, 5)]
    axis.set_xlim(low, high)
    axis.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _looks(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each line by its name; a method has one colour, whoever measured it."""
    trainers = list(dict.fromkeys(row.trainer for row in rows))
    places = {_line_name(row, rows): trainers.index(row.trainer) for row in rows}
    return {
        name: (COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)])
        for name, place in places.items()
    }


def _line_name(row: Row, rows: Sequence[Row]) -> str:
    """The method, with what tells it from others of its name."""
    name = row.method
    if row.published:
        name += f" [{sources_of(rows)[row.published]}]"
    twins = [o for o in rows if (o.dataset, o.method) == (row.dataset, row.method)]
    if len({other.backbone for other in twins}) > 1:
        name += f" {row.backbone}"
    if row.knobs:
        name += f" {', '.join(row.knobs)}"
    return name


def _names(rows: Sequence[Row]) -> list[str]:
    """Method names, with the data set or config where the name alone is not enough."""
    names = [row.method.replace(" (", "\n(") for row in rows]
    for field in ("dataset", "knobs", "config", "backbone", "shots", "published"):
        values = [getattr(row, field) for row in rows]
        values = [", ".join(v) if isinstance(v, tuple) else str(v) for v in values]
        if len(set(names)) < len(names) and len(set(values)) > 1:
            names = [f"{name}\n{value}" for name, value in zip(names, values, strict=True)]
    return names


def _spreads(rows: Sequence[Row]) -> list[Spread]:
    return [spread for row in rows for spread in (row.base, row.new, row.h) if spread]


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    _pyplot().close(figure)
    return path
