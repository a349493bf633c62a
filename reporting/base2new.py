"""Base-to-new runs below an output root -> scores per seed, a caption, and what is amiss."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from reporting.paths import PHASE_OF_SCOPE, RunPlace, parse_run_dir
from reporting.results import FoundResult, RunResult, find_results
from reporting.tables import Score, Table, aggregate

# Options that differ between the two halves of a run, or that only say where something lies.
NOT_THE_METHOD = ("DATASET.SUBSAMPLE_CLASSES", "TRAINER.FDBPL.STORE", "OUTPUT_DIR", "DATASET.ROOT")


class Key(NamedTuple):
    """Runs with equal keys are one row of the table."""

    dataset: str
    shots: int
    trainer: str
    config: str
    backbone: str

    def __str__(self) -> str:
        return f"{self.dataset} {self.trainer} {self.config} {self.shots} shots"


# Of one row and seed: its results by class scope, "base" and "new".
Runs = dict[tuple[Key, int], dict[str, FoundResult]]


def compare(
    root: str | Path,
    trainers: Collection[str] = (),
    datasets: Collection[str] = (),
    configs: Collection[str] = (),
    shots: Collection[int] = (),
) -> Table:
    """Read results.json of all base-to-new runs below `root` into one table.

    An empty filter lets everything pass; `datasets` takes yaml stems and registry names. What is
    missing, unreadable or does not fit together is told in the notes and never merged silently.

    Raises:
        ResultError: `root` is not a folder.
    """
    filters = trainers, datasets, configs, shots
    found, unreadable = find_results(root)
    notes = [str(error) for error in unreadable]
    runs: Runs = defaultdict(dict)
    for run in found:
        place, result = parse_run_dir(run.path), run.result
        if place is None or not _wanted(place, filters, result.dataset):
            continue
        complaint = _misplaced(place, result)
        if complaint:
            notes.append(f"{run.path}: {complaint}; left out")
            continue
        key = Key(place.dataset, place.shots, place.trainer, place.config, result.backbone)
        halves = runs[key, place.seed]
        other = halves.get(result.scope)
        if other:
            which = f"{key} seed{place.seed} {result.scope}"
            notes.append(f"{which}: {other.path} and {run.path}; the newer one counts")
            run = max(run, other, key=lambda run: run.result.finished)
        halves[result.scope] = run
    notes += _unfinished(root, filters)
    notes += _missing_halves(runs)
    notes += _mixed(runs)
    scores = [_score(key, seed, halves) for (key, seed), halves in runs.items()]
    if not scores:
        notes.append(f"no base-to-new results below {root}; run: bash scripts/base2new.sh")
    return Table(aggregate(scores), _caption(runs) if scores else [], notes)


def _wanted(place: RunPlace, filters: tuple, name: str | None = None) -> bool:
    trainers, datasets, configs, shots = filters
    return (
        (not trainers or place.trainer in trainers)
        and (not datasets or place.dataset in datasets or name in datasets)
        and (not configs or place.config in configs)
        and (not shots or place.shots in shots)
    )


def _misplaced(place: RunPlace, result: RunResult) -> str | None:
    """Say how a result contradicts the folder it lies in."""
    pairs = {
        "class scope": (result.scope, {v: k for k, v in PHASE_OF_SCOPE.items()}[place.phase]),
        "trainer": (result.trainer, place.trainer),
        "config": (result.config, place.config),
        "shots": (result.shots, place.shots),
        "seed": (result.seed, place.seed),
        "split": (result.split, "test"),
    }
    for name, (found, wanted) in pairs.items():
        if found != wanted:
            return f"its {name} is {found!r}, not {wanted!r}"
    return None


def _unfinished(root: str | Path, filters: tuple) -> list[str]:
    notes = []
    for folder in sorted(Path(root).rglob("seed*")):
        place = parse_run_dir(folder)
        if place is None or not _wanted(place, filters) or (folder / "results.json").exists():
            continue
        why = "crashed or still running" if (folder / "log.txt").exists() else "no log either"
        notes.append(f"{folder}: no results.json ({why}); left out")
    return notes


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


def _mixed(runs: Runs) -> list[str]:
    """Name what should be equal among the seeds of a row, or between its halves, and is not."""
    notes = []
    facts: dict[tuple[Key, str], set] = defaultdict(set)
    tests: dict[tuple[str, str], set] = defaultdict(set)
    for (key, seed), halves in runs.items():
        for scope, (_, result) in halves.items():
            options = sorted(
                f"{name} {value}"
                for name, value in zip(result.opts[::2], result.opts[1::2], strict=True)
                if name not in NOT_THE_METHOD
            )
            facts[key, "options"].add(", ".join(options))
            facts[key, "teacher"].add(str(result.teacher))
            facts[key, "precision"].add(result.precision)
            facts[key, "device"].add(result.device)
            tests[key.dataset, scope].add(f"{result.num_images} images")
            tests[key.dataset, scope].add(f"{result.num_classes} classes")
        if "base" in halves:
            base = halves["base"].result
            if not base.eval_only and base.seconds["train"] is None:
                notes.append(f"{key} seed{seed}: resumed, so its training time is not counted")
        if len(halves) == 2:
            base, new = halves["base"].result, halves["new"].result
            if not base.eval_only and new.load_epoch != base.epochs:
                notes.append(
                    f"{key} seed{seed}: base is of epoch {base.epochs}, new of {new.load_epoch}"
                )
            if not base.eval_only and new.finished < base.finished:
                notes.append(f"{key} seed{seed}: new was tested before base was trained; repeat it")
    for (key, name), values in facts.items():
        if len(values) > 1:
            notes.append(f"{key}: {name} differ among its runs: {_join(values, ' | ')}")
    for (dataset, scope), values in tests.items():
        if len(values) > 2:
            notes.append(f"{dataset}: runs were tested on different {scope} sets: {_join(values)}")
    return notes


def _score(key: Key, seed: int, halves: dict[str, FoundResult]) -> Score:
    base = halves["base"].result if "base" in halves else None
    new = halves["new"].result if "new" in halves else None
    trained = base is not None and not base.eval_only
    return Score(
        dataset=key.dataset,
        trainer=key.trainer,
        config=key.config,
        backbone=key.backbone,
        shots=key.shots,
        seed=seed,
        base=base.accuracy if base else None,
        new=new.accuracy if new else None,
        train_seconds=base.seconds["train"] if trained else None,
        dump_seconds=base.seconds["dump"] if trained and base.store else 0.0,
    )


def _caption(runs: Runs) -> list[str]:
    results: list[RunResult] = []
    of_dataset: dict[str, list[RunResult]] = defaultdict(list)
    for (key, _), halves in runs.items():
        results += [run.result for run in halves.values()]
        of_dataset[key.dataset] += [run.result for run in halves.values()]
    teachers, epochs = {}, defaultdict(set)
    for result in results:
        if result.scope == "base" and not result.eval_only:
            epochs[result.trainer].add(result.epochs)
        if result.store:
            regions = result.store.get("num_regions")
            teachers[result.trainer] = f"{result.store.get('teacher')} ({regions} stored regions)"
        elif result.teacher:
            teachers[result.trainer] = result.teacher
    lines = [
        "Base-to-new: trained on the base classes, tested on base and on new classes apart. Top-1 "
        "accuracy in %,",
        "mean ± std over seeds; H is the harmonic mean of mean base and mean new.",
        "Data: " + "; ".join(_data(name, of_dataset[name]) for name in sorted(of_dataset)) + ".",
        f"Backbone {_join(key.backbone for key, _ in runs)}; "
        f"config {_join(key.config for key, _ in runs)}; "
        f"shots {_join(key.shots for key, _ in runs)}; seeds {_join(seed for _, seed in runs)}.",
        "Epochs: " + "; ".join(f"{name} {_join(epochs[name])}" for name in sorted(epochs)) + ".",
        "Teacher: " + "; ".join(f"{name} {teachers[name]}" for name in sorted(teachers)) + ".",
        f"Times: seconds of training on {_join(result.device for result in results)}, "
        f"{_join(result.precision for result in results)}, without and with the dump.",
        f"Commit {_join(_short(result.commit) for result in results)}.",
    ]
    return [line for line in lines if not line.endswith(": .")]


def _data(name: str, results: list[RunResult]) -> str:
    sizes = {result.scope: result for result in results}
    parts = [
        f"{sizes[scope].num_classes} {scope} classes with {sizes[scope].num_images} test images"
        for scope in PHASE_OF_SCOPE
        if scope in sizes
    ]
    return f"{name} ({', '.join(parts)})"


def _short(commit: str | None) -> str:
    if commit is None:
        return "unknown"
    return commit[:10] + ("-dirty" if commit.endswith("-dirty") else "")


def _join(values: Iterable[object], between: str = ", ") -> str:
    distinct = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    return between.join(str(value) for value in distinct)
