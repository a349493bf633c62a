"""Base-to-new runs below an output root -> scores per seed, a caption, and what is amiss."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from reporting.collect import (
    Entry,
    Filters,
    Key,
    collect,
    facts_of,
    mixed,
    sizes_of,
    train_seconds,
)
from reporting.differences import Answers, Part, baseline_of, difference
from reporting.paths import PHASE_OF_SCOPE
from reporting.results import FoundResult
from reporting.tables import BASE, NEW, H, Row, Score, Table, aggregate, alike, harmonic_mean
from wording import counted

# Of one row and seed: its results by class scope, "base" and "new".
Runs = dict[tuple[Key, int], dict[str, FoundResult]]


def compare(
    root: str | Path,
    trainers: Collection[str] = (),
    datasets: Collection[str] = (),
    configs: Collection[str] = (),
    shots: Collection[int] = (),
    baseline: str = "",
    sweep: bool = False,
) -> Table:
    """Read results.json of all base-to-new runs below `root` into one table.

    An empty filter lets everything pass; `datasets` takes yaml stems and registry names. What is
    missing, unreadable or does not fit together is told in the notes and never merged silently.
    With `baseline`, a trainer, every other row gets its paired difference to that one's.

    Raises:
        ResultError: `root` is not a folder.
    """
    filters = Filters(trainers, datasets, configs, shots)
    entries, notes = collect(root, PHASE_OF_SCOPE.values(), filters, sweep)
    runs: Runs = defaultdict(dict)
    for _, key, seed, run in entries:
        runs[key, seed][run.result.scope] = run
    notes += _missing_halves(runs)
    notes += mixed(entries)
    notes += _out_of_step(runs)
    rows = aggregate(_score(key, seed, halves) for (key, seed), halves in runs.items())
    if not rows:
        notes.append(f"no base-to-new results below {root}; run: bash scripts/base2new.sh")
    elif baseline:
        rows, more = _with_differences(rows, runs, baseline)
        notes += more
    return Table(rows, _caption(entries) if rows else [], notes, baseline=baseline)


def _missing_halves(runs: Runs) -> list[str]:
    seeds = sorted({seed for _, seed in runs})
    notes = []
    for key in sorted({key for key, _ in runs}):
        for seed in seeds:
            halves = runs.get((key, seed), {})
            missing = " and ".join(scope for scope in PHASE_OF_SCOPE if scope not in halves)
            if missing:
                notes.append(f"{key} seed{seed}: {missing} missing")
    return notes


def _out_of_step(runs: Runs) -> list[str]:
    """Halves of one run that do not belong together."""
    notes = []
    for (key, seed), halves in runs.items():
        if len(halves) == 2:
            base, new = halves["base"].result, halves["new"].result
            if not base.eval_only and new.load_epoch != base.epochs:
                notes.append(
                    f"{key} seed{seed}: base is of epoch {base.epochs}, new of {new.load_epoch}"
                )
            if not base.eval_only and new.finished < base.finished:
                notes.append(f"{key} seed{seed}: new was tested before base was trained; repeat it")
    return notes


def _score(key: Key, seed: int, halves: dict[str, FoundResult]) -> Score:
    base = halves["base"].result if "base" in halves else None
    new = halves["new"].result if "new" in halves else None
    train, dump = train_seconds(base) if base else (None, 0.0)
    return Score(
        dataset=key.dataset,
        trainer=key.trainer,
        config=key.config,
        backbone=key.backbone,
        shots=key.shots,
        seed=seed,
        base=base.accuracy if base else None,
        new=new.accuracy if new else None,
        train_seconds=train,
        dump_seconds=dump,
        knobs=key.knobs,
        transductive=key.transductive,
    )


def _caption(entries: list[Entry]) -> list[str]:
    sizes = sizes_of(entries)
    data = []
    for name in sorted(sizes):
        parts = [
            f"{counted(sizes[name][scope].num_classes, f'{scope} class')} with "
            f"{counted(sizes[name][scope].num_images, 'test image')}"
            for scope in PHASE_OF_SCOPE
            if scope in sizes[name]
        ]
        data.append(f"{name} ({', '.join(parts)})")
    return [
        "Base-to-new: trained on the base classes, tested on base and on new classes apart. Top-1 "
        "accuracy in %,",
        "mean ± std over seeds; H is the harmonic mean of mean base and mean new.",
        "Data: " + "; ".join(data) + ".",
        *facts_of(entries),
    ]


# --- differences to a baseline


def _with_differences(rows: list[Row], runs: Runs, baseline: str) -> tuple[list[Row], list[str]]:
    """The rows with paired differences, of base, new and H, to the row of the baseline."""
    answers, notes = Answers(), []
    keys = {key for key, _ in runs}
    groups = {key: [key] for key in keys}
    groups |= {("average", *part[0][1:]): part for part in map(list, alike(keys))}
    result = []
    for row in rows:
        own = _keys_of(row, groups)
        other = [baseline_of(key, keys, baseline) for key in own]
        if row.trainer == baseline or None in other:
            if row.trainer != baseline:
                notes.append(f"{row.dataset} {row.trainer}: no {baseline} to compare with")
            result.append(row)
            continue
        seeds = sorted(
            seed
            for seed in {seed for _, seed in runs}
            if all(len(runs.get((key, seed), {})) == 2 for key in [*own, *other])
        )
        if not seeds:
            notes.append(f"{row.dataset} {row.trainer}: no seed in common with {baseline}")
            result.append(row)
            continue
        means = {
            side: tuple(
                fmean(runs[key, seed][scope].result.accuracy for key in part for seed in seeds)
                for scope in (BASE, NEW)
            )
            for side, part in (("own", own), ("other", other))
        }
        found = {}
        weights = {  # of base and new in each column: how much H moves with either
            BASE: ((1.0, 0.0), (1.0, 0.0)),
            NEW: ((0.0, 1.0), (0.0, 1.0)),
            H: (_slope(*means["own"]), _slope(*means["other"])),
        }
        for column, (mine, theirs) in weights.items():
            parts = [
                Part(
                    mine[half] / len(own),
                    [runs[a, seed][scope].path for seed in seeds],
                    theirs[half] / len(own),
                    [runs[b, seed][scope].path for seed in seeds],
                )
                for a, b in zip(own, other, strict=True)
                for half, scope in enumerate((BASE, NEW))
                if mine[half] or theirs[half]
            ]
            pick = {BASE: lambda b, n: b, NEW: lambda b, n: n, H: harmonic_mean}[column]
            mean = pick(*means["own"]) - pick(*means["other"])
            found[column], why = difference(mean, parts, answers)
            notes += [f"{row.dataset} {row.trainer}: {why}"] if why and why not in notes else []
        result.append(replace(row, differences=found))
    return result, list(dict.fromkeys(notes))


def _slope(base: float, new: float) -> tuple[float, float]:
    """How fast H grows with base and with new."""
    total = (base + new) ** 2
    return (2 * new**2 / total, 2 * base**2 / total) if total else (0.0, 0.0)


def _keys_of(row: Row, groups: dict[tuple, list[Key]]) -> list[Key]:
    for group in groups.values():
        key = group[0]
        same = (key.trainer, key.backbone, key.shots, key.knobs, key.transductive) == (
            row.trainer, row.backbone, row.shots, row.knobs, row.transductive
        )  # fmt: skip
        configs = " + ".join(sorted({key.config for key in group}))
        if not same or configs != row.config or len(group) != row.num_datasets:
            continue
        if row.is_average or key.dataset == row.dataset:
            return group
    raise AssertionError(row)
