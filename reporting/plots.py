"""Two pictures: base, new and H with the training time; and regions ordered by their weight."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reporting.tables import Row

if TYPE_CHECKING:
    import numpy as np

# Okabe and Ito's palette, told apart with every kind of colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#999999"
NAN = float("nan")  # draws nothing


def base_new_h(rows: Sequence[Row], path: str | Path, title: str = "") -> Path:
    """Draw base, new and H of each row as bars with their std, beside the training time.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("there is nothing to draw: the table has no rows.")
    plt = _pyplot()
    names = _names(rows)
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
        left.bar_label(bars, texts, padding=2, fontsize=8)
    left.set_xticks(places, names)
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
    right.set_yticks(places, names)
    right.invert_yaxis()
    right.set_xlim(0, 1.4 * longest)
    right.set_xlabel("seconds per run")
    right.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=11)
    return _save(figure, path)


def region_grid(
    regions_RHW3: np.ndarray,
    weights_R: Sequence[float],
    teacher_classes: Sequence[str],
    teacher_probabilities: Sequence[float],
    path: str | Path,
    title: str = "",
    classes: Sequence[str] | None = None,
    columns: int = 10,
) -> Path:
    """Draw regions in order of their weight, framed and tinted by it, with the teacher's word.

    Args:
        regions_RHW3: uint8 pixels; all regions have one size.
        weights_R: region weights w in [0, 1]; the largest comes first.
        teacher_classes, teacher_probabilities: the teacher's top class and its probability.
        classes: the true classes; where given, each caption says whether the teacher is right.

    Raises:
        ValueError: no regions, or sequences of different lengths.
    """
    count = len(regions_RHW3)
    lengths = {count, len(weights_R), len(teacher_classes), len(teacher_probabilities)}
    lengths |= {len(classes)} if classes is not None else set()
    if lengths != {count} or not count:
        raise ValueError(f"needs one entry per region, and a region; found lengths {lengths}.")
    plt = _pyplot()
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    columns = min(columns, count)
    lines = -(-count // columns)
    # A high weight is bright, a low one dark: the order survives in grey, too.
    scale = ScalarMappable(Normalize(0, 1), "cividis")
    figure, axes = plt.subplots(
        lines, columns, figsize=(1.25 * columns + 1, 1.75 * lines + 0.6), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    order = sorted(range(count), key=lambda region: -weights_R[region])
    for place, axis in enumerate(axes.flat):
        if place >= count:
            axis.set_axis_off()
            continue
        region = order[place]
        weight, colour = weights_R[region], scale.to_rgba(weights_R[region])
        axis.imshow(_tinted(regions_RHW3[region], colour[:3]), interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set(color=colour, linewidth=3.5)
        mark = ""
        if classes is not None:
            mark = " ✓" if classes[region] == teacher_classes[region] else " ✗"
        name = textwrap.fill(teacher_classes[region].replace("_", " "), 16)
        axis.set_title(f"w {weight:.2f}", fontsize=8, pad=4)
        axis.set_xlabel(f"{name}\n{teacher_probabilities[region]:.2f}{mark}", fontsize=7)
    figure.colorbar(scale, ax=axes, fraction=0.02, pad=0.01, label="region weight w")
    if title:
        figure.suptitle(title, fontsize=10)
    return _save(figure, path)


def _tinted(region_HW3: np.ndarray, colour: Sequence[float], strength: float = 0.15) -> np.ndarray:
    tint = [round(255 * part) for part in colour]
    return ((1 - strength) * region_HW3 + [strength * part for part in tint]).astype("uint8")


def _names(rows: Sequence[Row]) -> list[str]:
    """Method names, with the data set or config where the name alone is not enough."""
    names = [row.trainer for row in rows]
    for field in ("dataset", "config", "backbone", "shots"):
        values = [str(getattr(row, field)) for row in rows]
        if len(set(names)) < len(names) and len(set(values)) > 1:
            names = [f"{name}\n{value}" for name, value in zip(names, values, strict=True)]
    return names


def _spreads(rows: Sequence[Row]) -> list:
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
