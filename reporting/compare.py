"""Results of a protocol below an output folder -> one table, a caption, and what is amiss."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
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
from reporting.methods import (
    BASE2NEW,
    CROSS,
    CROSS_TARGETS,
    DOMAIN_TARGETS,
    DOMAINS,
    FEW_SHOT,
    PROTOCOLS,
    SOURCE,
    TOY_SOURCE,
    is_domain,
    source_of,
)
from reporting.paired import Answers, Part, baseline_of, difference
from reporting.paths import FEW_SHOT_TRAIN, PHASE_OF_SCOPE, XD_TEST, XD_TRAIN, parse_run_dir
from reporting.published import with_published
from reporting.results import FILE_NAME, ResultError
from reporting.tables import (
    AVERAGE,
    BASE,
    NEW,
    H,
    Row,
    Score,
    Table,
    aggregate_with_keys,
    harmonic_mean,
    with_ci95,
)
from wording import counted

PHASES = {
    BASE2NEW: tuple(PHASE_OF_SCOPE.values()),
    CROSS: (XD_TRAIN, XD_TEST),
    DOMAINS: (XD_TRAIN, XD_TEST),
    FEW_SHOT: (FEW_SHOT_TRAIN,),
}
Cells = dict[str, dict[int, Entry]]  # of a row: by column, then by seed
Lines = dict[Key, Cells]  # the key has no value where its entries differ by column


def protocols_below(root: str | Path) -> list[str]:
    """The protocols that have a result below `root`; base-to-new where none has.

    Raises:
        ResultError: `root` is not a folder.
    """
    if not Path(root).is_dir():
        raise ResultError(f"{root} is not a folder; give the folder that --output-dir lies in.")
    found = set()
    for path in Path(root).rglob(FILE_NAME):
        place = parse_run_dir(path.parent)
        if place is None:
            continue
        if place.phase in PHASE_OF_SCOPE.values():
            found.add(BASE2NEW)
        elif place.phase == FEW_SHOT_TRAIN:
            found.add(FEW_SHOT)
        elif place.phase == XD_TEST:
            found.add(DOMAINS if is_domain(place.dataset) else CROSS)
    return [name for name in PROTOCOLS if name in found] or [BASE2NEW]


def compare(
    protocol: str,
    root: str | Path,
    trainers: Collection[str] = (),
    datasets: Collection[str] = (),
    configs: Collection[str] = (),
    shots: Collection[int] = (),
    baseline: str = "",
    sweep: bool = False,
    published: bool = False,
    ci95: bool = False,
) -> Table:
    """Read results.json of all runs of a protocol below `root` into one table.

    Base-to-new has the columns base, new and H. A transfer has a column per target and their
    average, the source apart. A few-shot table has a column per number of shots. Where a method
    has several data sets, their average follows.

    An empty filter lets everything pass; `datasets` takes yaml stems and registry names. What is
    missing, unreadable or does not fit together is told in the notes and never merged silently.
    With `baseline`, a trainer, every other row gets its paired difference to that one's.

    Raises:
        ResultError: `root` is not a folder.
    """
    filters = Filters(trainers, datasets, configs, shots)
    if protocol in (CROSS, DOMAINS) and datasets:  # the source's accuracy goes with its targets'
        filters = replace(filters, datasets=[*datasets, SOURCE, TOY_SOURCE])
    entries, notes = collect(root, PHASES[protocol], filters, sweep)
    if protocol in (CROSS, DOMAINS):
        entries = _of_transfer(protocol, entries)
    lines = _lines(protocol, entries)
    columns, means = _columns(protocol, lines)
    notes += mixed(entries)
    if not lines:
        command = "bash scripts/base2new.sh" if protocol == BASE2NEW else (
            f"python run_protocol.py {protocol}")  # fmt: skip
        name = "base-to-new" if protocol == BASE2NEW else protocol
        notes.append(f"no {name} results below {root}; run: {command}")
    notes += _missing(protocol, lines, means)
    built = aggregate_with_keys(
        _scores(protocol, lines), means, over_datasets=protocol in (BASE2NEW, FEW_SHOT)
    )
    if baseline:
        rows, more = _with_differences(built, lines, means, baseline)
        notes += more
    else:
        rows = [row for row, _ in built]
    caption = [*_about(protocol, columns, lines), *_data(protocol, entries), *facts_of(entries)]
    table = Table(rows, caption if rows else [], notes, columns, baseline)
    if ci95:
        table = with_ci95(table)
    return with_published(table, protocol, trainers, datasets) if published else table


# --- which run stands where


def _of_transfer(protocol: str, entries: Sequence[Entry]) -> list[Entry]:
    wanted = is_domain if protocol == DOMAINS else lambda name: not is_domain(name)
    entries = [e for e in entries if e.phase == XD_TRAIN or wanted(e.key.dataset)]
    return entries if any(e.phase == XD_TEST for e in entries) else []


def _lines(protocol: str, entries: Iterable[Entry]) -> Lines:
    lines: Lines = defaultdict(lambda: defaultdict(dict))
    for entry in entries:
        key, column = entry.key, entry.run.result.scope
        if protocol in (CROSS, DOMAINS):
            key, column = key._replace(dataset=source_of(key.dataset)), key.dataset
        elif protocol == FEW_SHOT:
            key, column = key._replace(config="", shots=None), str(key.shots)
            if entry.seed in lines[key][column]:  # two recipes with the same shots: two rows
                key = key._replace(config=entry.key.config)
        lines[key][column][entry.seed] = entry
    if protocol in (CROSS, DOMAINS):
        return {key: cells for key, cells in lines.items() if set(cells) - {key.dataset}}
    return {key: dict(cells) for key, cells in lines.items()}


def _columns(protocol: str, lines: Lines) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """Columns of the table, and by data set those that an average is over."""
    if protocol == BASE2NEW:
        return (BASE, NEW, H), {}
    there = {name for cells in lines.values() for name in cells}
    if protocol == FEW_SHOT:
        return tuple(sorted(there, key=int)), {}
    sources = sorted({key.dataset for key in lines})
    order = [*CROSS_TARGETS, *DOMAIN_TARGETS]
    targets = sorted(
        there - set(sources),
        key=lambda name: (order.index(name) if name in order else len(order), name),
    )
    means = {source: [name for name in targets if source_of(name) == source] for source in sources}
    return (*sources, *targets, AVERAGE), means


def _scores(protocol: str, lines: Lines) -> Iterable[Score]:
    for key, cells in lines.items():
        timed = BASE if protocol == BASE2NEW else key.dataset
        if protocol == FEW_SHOT:
            timed = max(cells, key=int)
        for column, by_seed in cells.items():
            for seed, entry in by_seed.items():
                train, dump = train_seconds(entry.run.result) if column == timed else (None, 0.0)
                yield Score(
                    dataset=key.dataset,
                    trainer=key.trainer,
                    config=key.config,
                    backbone=key.backbone,
                    shots=key.shots,
                    column=column,
                    seed=seed,
                    value=entry.run.result.accuracy,
                    recipe=entry.key.config,
                    train_seconds=train,
                    dump_seconds=dump,
                    knobs=key.knobs,
                    transductive=key.transductive,
                )


# --- what is amiss, and what the table is of


def _missing(protocol: str, lines: Lines, means: Mapping[str, list[str]]) -> list[str]:
    if protocol == BASE2NEW:
        return _missing_halves(lines) + _out_of_step(lines)
    notes = []
    for key, cells in lines.items():
        configs = {e.key.config for by_seed in cells.values() for e in by_seed.values()}
        name = key._replace(config=" + ".join(sorted(configs)))
        absent = [column for column in means.get(key.dataset, ()) if column not in cells]
        if absent:
            notes.append(f"{name}: no average, {', '.join(absent)} missing")
        every = {seed for by_seed in cells.values() for seed in by_seed}
        for column, by_seed in cells.items():
            if every - set(by_seed):
                gone = ", ".join(map(str, sorted(every - set(by_seed))))
                notes.append(f"{name}: {column} has no seed {gone}")
    return notes


def _missing_halves(lines: Lines) -> list[str]:
    present: dict[Key, set[int]] = defaultdict(set)  # of a method, whatever its knobs
    for key, cells in lines.items():
        present[key._replace(knobs=())] |= {seed for half in cells.values() for seed in half}
    seeds = sorted(set().union(*present.values()))
    notes = []
    for key, cells in sorted(lines.items(), key=lambda each: each[0]):
        for seed in seeds:
            missing = [half for half in (BASE, NEW) if seed not in cells.get(half, {})]
            if len(missing) == 2 and seed in present[key._replace(knobs=())]:
                continue  # in another row of the method
            if missing:
                notes.append(f"{key} seed{seed}: {' and '.join(missing)} missing")
    return notes


def _out_of_step(lines: Lines) -> list[str]:
    """Halves of one run that do not belong together."""
    notes = []
    for key, cells in lines.items():
        for seed in sorted(cells.get(BASE, {}).keys() & cells.get(NEW, {}).keys()):
            base, new = (cells[half][seed].run.result for half in (BASE, NEW))
            if base.eval_only:
                continue
            if new.load_epoch != base.epochs:
                notes.append(
                    f"{key} seed{seed}: base is of epoch {base.epochs}, new of {new.load_epoch}"
                )
            if new.finished < base.finished:
                notes.append(f"{key} seed{seed}: new was tested before base was trained; repeat it")
    return notes


def _about(protocol: str, columns: Sequence[str], lines: Lines) -> list[str]:
    if protocol == BASE2NEW:
        return [
            "Base-to-new: trained on the base classes, tested on base and on new classes apart. "
            "Top-1 accuracy in %,",
            "mean ± std over seeds; H is the harmonic mean of mean base and mean new.",
        ]
    if protocol == FEW_SHOT:
        return [
            "Few-shot: trained on k images of every class, tested on all classes. A column per k; "
            "0: nothing is trained.",
            "Top-1 accuracy in %, mean ± std over seeds; times are those of the largest k.",
        ]
    sources = sorted({key.dataset for key in lines})
    targets = len(columns) - len(sources) - 1
    what = {CROSS: "Cross-data-set transfer", DOMAINS: "Domain generalisation"}[protocol]
    return [
        f"{what}: trained on all classes of {' or '.join(sources)}, tested there and on each "
        "target among all",
        "of its classes. Top-1 accuracy in %, mean ± std over seeds; the average is over the "
        f"{targets} target{'s' * (targets > 1)}.",
    ]


def _data(protocol: str, entries: Sequence[Entry]) -> list[str]:
    sizes = sizes_of(entries)
    if protocol == BASE2NEW:
        told = []
        for name in sorted(sizes):
            parts = [
                f"{counted(sizes[name][scope].num_classes, f'{scope} class')} with "
                f"{counted(sizes[name][scope].num_images, 'test image')}"
                for scope in PHASE_OF_SCOPE
                if scope in sizes[name]
            ]
            told.append(f"{name} ({', '.join(parts)})")
    else:
        told = [
            f"{name} ({counted(of['all'].num_classes, 'class')}, "
            f"{counted(of['all'].num_images, 'test image')})"
            for name, of in sizes.items()
        ]
    return ["Data: " + "; ".join(told) + "."]


# --- differences to a baseline


def _with_differences(
    built: Sequence[tuple[Row, list[tuple]]],
    lines: Lines,
    means: Mapping[str, list[str]],
    baseline: str,
) -> tuple[list[Row], list[str]]:
    """The rows with the paired difference of each column to the row of the baseline."""
    answers, rows, notes = Answers(), [], []
    for row, members in built:
        own = [Key(*key) for key in members]
        other = [baseline_of(key, lines, baseline) for key in own]
        found, why = {}, []
        if row.trainer != baseline and None in other:
            why = [f"no {baseline} to compare with"]
        elif row.trainer != baseline:
            sides = [lines[key] for key in own], [lines[key] for key in other]
            for column in row.cells:
                needed = means.get(row.dataset, ()) if column == AVERAGE else [column]
                told, reason = _difference(column, needed, *sides, answers)
                if told:
                    found[column] = told
                why += [reason] if reason else []
            shared = set.intersection(*(set(cells) for side in sides for cells in side))
            if shared and not found:
                why = [f"no seed in common with {baseline}"]
        notes += [f"{row.dataset} {row.trainer}: {reason}" for reason in dict.fromkeys(why)]
        rows.append(replace(row, differences=found))
    return rows, list(dict.fromkeys(notes))


def _difference(
    column: str,
    needed: Sequence[str],
    own: Sequence[Cells],
    other: Sequence[Cells],
    answers: Answers,
):
    """Of one column, over the data sets of a row; the columns `needed` are averaged in it."""
    halves = column in (BASE, NEW, H)
    wanted = (BASE, NEW) if halves else needed  # seeds that have both halves
    seeds = sorted(
        set.intersection(*(set(cells.get(each, ())) for cells in (*own, *other) for each in wanted))
    )
    if not seeds:
        return None, ""
    sides = []
    for side in (own, other):
        mean = {
            each: fmean(cells[each][seed].run.result.accuracy for cells in side for seed in seeds)
            for each in wanted
        }
        if column == H:
            sides.append((harmonic_mean(mean[BASE], mean[NEW]), _slope(mean[BASE], mean[NEW])))
        else:
            value = fmean(mean[each] for each in needed)
            sides.append((value, dict.fromkeys(needed, 1 / len(needed))))
    (mine, weight), (theirs, other_weight) = sides
    parts = [
        Part(
            weight[each] / len(own), [a[each][seed].run.path for seed in seeds],
            other_weight[each] / len(own), [b[each][seed].run.path for seed in seeds],
        )
        for a, b in zip(own, other, strict=True)
        for each in weight
    ]  # fmt: skip
    return difference(mine - theirs, parts, answers)


def _slope(base: float, new: float) -> dict[str, float]:
    """How fast H grows with base and with new."""
    total = (base + new) ** 2
    return {BASE: 2 * new**2 / total, NEW: 2 * base**2 / total} if total else {BASE: 0.0, NEW: 0.0}
