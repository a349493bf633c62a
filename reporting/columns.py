"""Tables with a column per target, or per number of shots: transfer and few-shot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace
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
from reporting.differences import Answers, Part, difference
from reporting.methods import (
    CROSS,
    CROSS_TARGETS,
    DOMAIN_TARGETS,
    DOMAINS,
    FEW_SHOT,
    SOURCE,
    TOY_SOURCE,
    is_domain,
    source_of,
)
from reporting.paths import FEW_SHOT_TRAIN, XD_TEST, XD_TRAIN
from reporting.results import RunResult
from reporting.tables import AVERAGE, Row, Table, mean_or_none, mean_over, method_rank, spread
from wording import counted

# By column, then by seed.
Cells = dict[str, dict[int, Entry]]


@dataclass(frozen=True)
class RowKey:
    """Entries with equal ones stand in one row."""

    dataset: str  # the source of a transfer
    key: Key  # of one of the entries; what varies over the columns is left empty


def compare_columns(
    protocol: str,
    root: str | Path,
    trainers: Collection[str] = (),
    datasets: Collection[str] = (),
    configs: Collection[str] = (),
    shots: Collection[int] = (),
    baseline: str = "",
    sweep: bool = False,
) -> Table:
    """The table of cross_dataset, domain_generalization or few_shot; see base2new.compare.

    A transfer has a row per method, a column per target and their average, the source apart. A
    few-shot table has a row per data set and method, a column per number of shots, and the
    average over data sets.

    Raises:
        ResultError: `root` is not a folder.
    """
    filters = Filters(trainers, datasets, configs, shots)
    if protocol == FEW_SHOT:
        entries, notes = collect(root, (FEW_SHOT_TRAIN,), filters, sweep)
        table = _few_shot(entries, baseline)
    else:
        if datasets:  # the source's own accuracy goes with those of its targets
            named = [*datasets, SOURCE, TOY_SOURCE]
            filters = replace(filters, datasets=named)
        entries, notes = collect(root, (XD_TRAIN, XD_TEST), filters, sweep)
        wanted = is_domain if protocol == DOMAINS else lambda name: not is_domain(name)
        entries = [e for e in entries if e.phase == XD_TRAIN or wanted(e.key.dataset)]
        if not any(e.phase == XD_TEST for e in entries):
            entries = []
        table = _transfer(protocol, entries, baseline)
    notes += mixed(entries)
    if not entries:
        notes.append(f"no {protocol} results below {root}; run: python run_protocol.py {protocol}")
    table.notes = notes + table.notes
    return table


# --- cross-data-set transfer and domain generalisation


def _transfer(protocol: str, entries: Sequence[Entry], baseline: str) -> Table:
    rows: dict[RowKey, Cells] = defaultdict(lambda: defaultdict(dict))
    for entry in entries:
        source = source_of(entry.key.dataset)
        row = RowKey(source, entry.key._replace(dataset=source))
        rows[row][entry.key.dataset][entry.seed] = entry
    rows = {row: cells for row, cells in rows.items() if set(cells) - {row.dataset}}
    sources = sorted({row.dataset for row in rows})
    order = [*CROSS_TARGETS, *DOMAIN_TARGETS]
    targets = sorted(
        {name for cells in rows.values() for name in cells} - set(sources),
        key=lambda name: (order.index(name) if name in order else len(order), name),
    )
    columns = (*sources, *targets, AVERAGE)
    notes, result = [], []
    for row, cells in rows.items():
        wanted = [name for name in targets if source_of(name) == row.dataset]
        missing = [name for name in wanted if name not in cells]
        if missing:
            notes.append(f"{row.key}: no average, {', '.join(missing)} missing")
        notes += _missing_seeds(row.key, cells)
        parts = {} if missing else {AVERAGE: wanted}
        training = cells.get(row.dataset, {})
        result.append((_row(row, cells, parts, training), row, cells, parts))
    table = Table([], columns=columns, baseline=baseline, notes=notes)
    table.rows = _finish(result, baseline, table.notes)
    if rows:
        what = {CROSS: "Cross-data-set transfer", DOMAINS: "Domain generalisation"}[protocol]
        table.caption = [
            f"{what}: trained on all classes of {' or '.join(sources)}, tested there and on each "
            "target among all",
            "of its classes. Top-1 accuracy in %, mean ± std over seeds; the average is over the "
            f"{len(targets)} target{'s' * (len(targets) > 1)}.",
            _data(entries),
            *facts_of(entries),
        ]
    return table


# --- few-shot


def _few_shot(entries: Sequence[Entry], baseline: str) -> Table:
    rows: dict[RowKey, Cells] = defaultdict(lambda: defaultdict(dict))
    configs: dict[RowKey, set[str]] = defaultdict(set)
    for entry in entries:
        row = RowKey(entry.key.dataset, entry.key._replace(config="", shots=0))
        taken = rows[row][str(entry.key.shots)].setdefault(entry.seed, entry)
        if taken is not entry:  # two recipes with the same shots: two rows
            row = RowKey(entry.key.dataset, entry.key._replace(shots=0))
            rows[row][str(entry.key.shots)][entry.seed] = entry
        configs[row].add(entry.key.config)
    columns = tuple(sorted({name for cells in rows.values() for name in cells}, key=int))
    notes, result = [], []
    for row, cells in rows.items():
        notes += _missing_seeds(row.key._replace(config=" + ".join(sorted(configs[row]))), cells)
        longest = cells[max(cells, key=int)]
        built = _row(row, cells, {}, longest)
        built = replace(built, shots=None, config=" + ".join(sorted(configs[row])))
        result.append((built, row, cells, {}))
    table = Table([], columns=columns, baseline=baseline, notes=notes)
    table.rows = _finish(result, baseline, table.notes)
    table.rows += _averages(result, columns)
    if rows:
        table.caption = [
            "Few-shot: trained on k images of every class, tested on all classes. A column per k; "
            "0: nothing is trained.",
            "Top-1 accuracy in %, mean ± std over seeds; times are those of the largest k.",
            _data(entries),
            *facts_of(entries),
        ]
    return table


def _averages(built: Sequence[tuple], columns: Sequence[str]) -> list[Row]:
    """Over the data sets, for methods that have two or more and the same shots on each."""
    groups: dict[Hashable, list[tuple[Row, Cells]]] = defaultdict(list)
    for row, key, cells, _ in built:
        groups[key.key._replace(dataset="")].append((row, cells))
    averages = []
    for members in groups.values():
        if len(members) < 2:
            continue
        first = members[0][0]
        cells, seeds = {}, {}
        for name in columns:
            by_seed = [
                {seed: entry.run.result.accuracy for seed, entry in each.get(name, {}).items()}
                for _, each in members
            ]
            cells[name] = spread(mean_over([row.cells.get(name) for row, _ in members], by_seed))
            if cells[name]:
                seeds[name] = tuple(sorted(set.intersection(*map(set, by_seed))))
        averages.append(
            replace(
                first, dataset=AVERAGE, cells=cells, seeds=seeds, is_average=True,
                config=" + ".join(sorted({row.config for row, _ in members})), differences={},
                num_datasets=len(members),
                train_seconds=mean_or_none([row.train_seconds for row, _ in members]),
                train_and_dump_seconds=mean_or_none(
                    [row.train_and_dump_seconds for row, _ in members]
                ),
            )
        )  # fmt: skip
    return sorted(averages, key=method_rank)


# --- both


def _row(key: RowKey, cells: Cells, parts: dict[str, list[str]], training: dict[int, Entry]) -> Row:
    """`parts` names the columns that others are the average of; `training` gives the times."""
    accuracies = {
        name: {seed: each[seed].run.result.accuracy for seed in sorted(each)}
        for name, each in cells.items()
    }
    found = {name: spread(values) for name, values in accuracies.items()}
    for name, of in parts.items():
        by_seed = [accuracies[each] for each in of]
        found[name] = spread(mean_over([found[each] for each in of], by_seed))
    times = [train_seconds(entry.run.result) for entry in training.values()]
    times = [(train, dump) for train, dump in times if train is not None]
    train = [train for train, _ in times]
    both = [None if dump is None else train + dump for train, dump in times]
    return Row(
        dataset=key.dataset,
        trainer=key.key.trainer,
        config=key.key.config,
        backbone=key.key.backbone,
        shots=key.key.shots,
        cells=found,
        seeds={name: tuple(values) for name, values in accuracies.items()},
        train_seconds=fmean(train) if train else None,
        train_and_dump_seconds=mean_or_none(both),
        knobs=key.key.knobs,
        transductive=key.key.transductive,
    )


def _finish(
    built: Sequence[tuple[Row, RowKey, Cells, dict[str, list[str]]]],
    baseline: str,
    notes: list[str],
) -> list[Row]:
    """The rows in order, with differences to the baseline where one is asked for."""
    rows, answers = [], Answers()
    for row, key, cells, parts in built:
        if baseline and row.trainer != baseline:
            others = [
                each
                for each in built
                if each[0].trainer == baseline
                and (each[1].dataset, each[0].backbone, each[0].shots)
                == (key.dataset, row.backbone, row.shots)
            ]
            others.sort(key=lambda each: (each[0].knobs != (), each[0].config != row.config))
            if others:
                found, why = _differences(cells, others[0][2], parts, answers)
                row = replace(row, differences=found)
                notes += [f"{row.dataset} {row.trainer}: {text}" for text in why]
            else:
                notes.append(f"{row.dataset} {row.trainer}: no {baseline} to compare with")
        rows.append(row)
    return sorted(rows, key=lambda row: (row.dataset, row.shots or 0, *method_rank(row)))


def _differences(own: Cells, other: Cells, parts: dict[str, list[str]], answers: Answers):
    found, notes = {}, []
    columns = {name: [name] for name in own} | parts
    for name, of in columns.items():
        if any(each not in other or each not in own for each in of):
            continue
        seeds = sorted(set.intersection(*(set(side[each]) for each in of for side in (own, other))))
        if not seeds:
            continue
        mean = fmean(
            own[each][seed].run.result.accuracy - other[each][seed].run.result.accuracy
            for each in of
            for seed in seeds
        )
        shares = [
            Part(
                1 / len(of), [own[each][seed].run.path for seed in seeds],
                1 / len(of), [other[each][seed].run.path for seed in seeds],
            )
            for each in of
        ]  # fmt: skip
        found[name], why = difference(mean, shares, answers)
        notes += [why] if why and why not in notes else []
    return found, notes


def _missing_seeds(key: Key, cells: Cells) -> list[str]:
    every = sorted({seed for each in cells.values() for seed in each})
    return [
        f"{key}: {name} has no seed {', '.join(map(str, sorted(set(every) - set(each))))}"
        for name, each in cells.items()
        if set(every) - set(each)
    ]


def _data(entries: Sequence[Entry]) -> str:
    sizes = sizes_of(entries)

    def words(result: RunResult) -> str:
        classes = counted(result.num_classes, "class")
        return f"{classes}, {counted(result.num_images, 'test image')}"

    return "Data: " + "; ".join(f"{name} ({words(sizes[name]['all'])})" for name in sizes) + "."
