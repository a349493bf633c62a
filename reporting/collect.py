"""Runs below an output root -> what a table needs of them, and what is amiss."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from reporting.identity import differences, told
from reporting.methods import source_of
from reporting.paths import (
    SCOPE_OF_PHASE,
    TEACHERS,
    TEST_NEW,
    TRAIN_BASE,
    XD_TEST,
    XD_TRAIN,
    RunPlace,
    parse_run_dir,
)
from reporting.results import FoundResult, RunResult, find_results
from reporting.variants import Told, names_of
from wording import counted


@dataclass(frozen=True)
class Filters:
    """What a table shows; an empty filter lets everything pass."""

    trainers: Collection[str] = ()
    datasets: Collection[str] = ()  # yaml stems or registry names
    configs: Collection[str] = ()
    shots: Collection[int] = ()

    def let(self, place: RunPlace, name: str | None = None) -> bool:
        return (
            (not self.trainers or place.trainer in self.trainers)
            and (not self.datasets or place.dataset in self.datasets or name in self.datasets)
            and (not self.configs or place.config in self.configs)
            and (not self.shots or place.shots in self.shots)
        )


class Key(NamedTuple):
    """Runs with equal keys are one row, or one part of it."""

    dataset: str
    shots: int | None  # None: of several
    trainer: str
    config: str
    backbone: str
    knobs: tuple[str, ...] = ()
    transductive: bool = False

    def __str__(self) -> str:
        knobs = "".join(f" {knob}" for knob in self.knobs)
        shots = "" if self.shots is None else f" {self.shots} shots"
        return f"{self.dataset} {self.trainer} {self.config}{knobs}{shots}"


class Entry(NamedTuple):
    phase: str
    key: Key
    seed: int
    run: FoundResult


def collect(
    root: str | Path, phases: Collection[str], filters: Filters, sweep: bool = False
) -> tuple[list[Entry], list[str]]:
    """Every finished run of the phases in one output folder, and notes about all others.

    Runs that are not the same but for the seed have other keys: their knobs name what differs.
    With `sweep`, each further share of the hand-written prompt that a run was tested with is an
    entry of its own, told by its knobs.

    Raises:
        ResultError: `root` is not a folder.
    """
    found, unreadable = find_results(root)
    notes = [str(error) for error in unreadable]
    entries: list[Entry] = []
    placed = [(parse_run_dir(run.path), run) for run in found]
    placed = [
        (place, run)
        for place, run in placed
        if place is not None
        and place.phase in phases
        and not _of_teacher(run.path, root)
        and filters.let(place, run.result.dataset)
    ]
    own, more = _one_output(root, placed)
    for place, run in placed:
        result = run.result
        if place.root != own:
            continue
        complaint = _misplaced(place, result)
        if complaint:
            notes.append(f"{run.path}: {complaint}; left out")
            continue
        for each in _swept(run) if sweep else [run]:
            key = key_of(place, each.result)
            entries.append(Entry(place.phase, key, place.seed, each))
    entries, strangers = told_apart(entries)
    return entries, [*notes, *more, *strangers, *_unfinished(own or root, phases, filters)]


def _one_output(
    root: str | Path, placed: Collection[tuple[RunPlace, FoundResult]]
) -> tuple[Path | None, list[str]]:
    """The output folder that a table is of, and notes about others below the same root.

    The one nearest to the root; of several, the one that was written last.
    """
    last: dict[Path, str] = {}
    for place, run in placed:
        last[place.root] = max(last.get(place.root, ""), run.result.finished)
    if not last:
        return None, []
    depth = min(len(path.parts) for path in last)
    own = max((p for p in last if len(p.parts) == depth), key=lambda path: (last[path], path))
    below = [f"these are the runs of {own}"] if Path(root) in own.parents else []
    return own, below + [
        f"{path} holds runs of its own, which are not in this table: "
        f"python parse_test_res.py {path} --compare"
        for path in sorted(last.keys() - {own})
    ]


def told_apart(entries: Collection[Entry]) -> tuple[list[Entry], list[str]]:
    """The entries with what sets them apart among their knobs; and notes about strangers.

    A test whose training is not the one that lies beside it, though their settings are the same,
    is left out.
    """
    runs = [
        Told(
            entry.key._replace(dataset=""),
            (entry.phase, entry.key.dataset),
            entry.run.result,
        )
        for entry in entries
    ]
    named = [
        entry._replace(key=entry.key._replace(knobs=(*entry.key.knobs, *names)))
        for entry, names in zip(entries, names_of(runs), strict=True)
    ]
    trainings = {entry[:3]: entry.run for entry in named}
    kept, notes = [], []
    for entry in named:
        phase = _TRAINING_OF.get(entry.phase)
        source = source_of(entry.key.dataset) if phase == XD_TRAIN else entry.key.dataset
        training = trainings.get((phase, entry.key._replace(dataset=source), entry.seed))
        trained = (entry.run.result.identity or {}).get("trained")
        found = []
        if training and training.result.identity and trained:
            beside = training.result.identity.get("trained", training.result.identity)
            drop = {"epoch": None}
            found = differences({**beside, **drop}, {**trained, **drop})
        if found:
            notes.append(
                f"{entry.run.path}: its prompts are not those of {training.path} ({told(found)}); "
                "left out"
            )
        else:
            kept.append(entry)
    older = sum(entry.run.result.identity is None for entry in kept)
    if older:
        notes.append(f"{older} runs have no identity: their options alone tell what they are")
    return kept, notes


_TRAINING_OF = {TEST_NEW: TRAIN_BASE, XD_TEST: XD_TRAIN}


def _of_teacher(folder: Path, root: str | Path) -> bool:
    """Trainings of teachers have tables of their own: give their folder as the root."""
    return TEACHERS in folder.relative_to(root).parts


def key_of(place: RunPlace, result: RunResult) -> Key:
    where = place.dataset, place.shots, place.trainer, place.config
    return Key(*where, result.backbone, tuple(result.knobs), result.transductive)


def _swept(run: FoundResult) -> list[FoundResult]:
    """The run once more for each further value of its sweep; no predictions are kept of these."""
    more = [
        FoundResult(
            run.path,
            replace(
                run.result,
                accuracy=point["accuracy"],
                knobs=[*run.result.knobs, f"TEXT_INTERPOLATION {point['alpha']}"],
            ),
        )
        for point in run.result.sweep[1:]
    ]
    return [run, *more]


def _misplaced(place: RunPlace, result: RunResult) -> str | None:
    """Say how a result contradicts the folder it lies in."""
    pairs = {
        "class scope": (result.scope, SCOPE_OF_PHASE[place.phase]),
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


def _unfinished(root: str | Path, phases: Collection[str], filters: Filters) -> list[str]:
    notes = []
    for folder in sorted(Path(root).rglob("seed*")):
        place = parse_run_dir(folder)
        if place is None or place.phase not in phases or not filters.let(place):
            continue
        if (folder / "results.json").exists() or _of_teacher(folder, root):
            continue
        why = "crashed or still running" if (folder / "log.txt").exists() else "no log either"
        notes.append(f"{folder}: no results.json ({why}); left out")
    return notes


def mixed(entries: Iterable[Entry]) -> list[str]:
    """Name what should be equal among the seeds of a row, and is not."""
    notes = []
    facts: dict[tuple[Key, str], set] = defaultdict(set)
    tests: dict[tuple[str, str], set] = defaultdict(set)
    for _, key, seed, (_, result) in entries:
        facts[key, "teacher"].add(str(result.teacher))
        facts[key, "precision"].add(result.precision)
        facts[key, "device"].add(result.device)
        tests[key.dataset, result.scope].add(counted(result.num_images, "image"))
        tests[key.dataset, result.scope].add(counted(result.num_classes, "class"))
        if not result.eval_only and result.seconds["train"] is None:
            notes.append(f"{key} seed{seed}: resumed, so its training time is not counted")
    for (key, name), values in facts.items():
        if len(values) > 1:
            notes.append(f"{key}: {name} differ among its runs: {join(values, ' | ')}")
    for (dataset, scope), values in tests.items():
        if len(values) > 2:
            notes.append(f"{dataset}: runs were tested on different {scope} sets: {join(values)}")
    return notes


def facts_of(entries: Collection[Entry]) -> list[str]:
    """Lines of a caption: what the runs have in common or differ in."""
    results = [entry.run.result for entry in entries]
    teachers, epochs = {}, defaultdict(set)
    for result in results:
        if not result.eval_only:
            epochs[result.trainer].add(result.epochs)
        if result.store:
            regions = counted(result.store.get("num_regions") or 0, "stored region")
            teachers[result.trainer] = f"{result.store.get('teacher')} ({regions})"
        elif result.teacher:
            teachers[result.trainer] = result.teacher
    keys = [entry.key for entry in entries]
    lines = [
        f"Backbone {join(key.backbone for key in keys)}; "
        f"config {join(key.config for key in keys)}; "
        f"shots {join(key.shots for key in keys)}; seeds {join(e.seed for e in entries)}.",
        "Epochs: " + "; ".join(f"{name} {join(epochs[name])}" for name in sorted(epochs)) + ".",
        "Teacher: " + "; ".join(f"{name} {teachers[name]}" for name in sorted(teachers)) + ".",
        f"Times: seconds of training on {join(result.device for result in results)}, "
        f"{join(result.precision for result in results)}, without and with the dump.",
        f"Commit {join(_short(result.commit) for result in results)}.",
    ]
    if any(result.transductive for result in results):
        lines.append(
            "Transductive: learned from unlabelled images of the classes it is tested on; not "
            "comparable with the others."
        )
    return [line for line in lines if not line.endswith(": .")]


def sizes_of(entries: Iterable[Entry]) -> dict[str, dict[str, RunResult]]:
    """By data set and class scope, a result that tells how many classes and images it has."""
    sizes: Mapping[str, dict[str, RunResult]] = defaultdict(dict)
    for entry in entries:
        sizes[entry.key.dataset][entry.run.result.scope] = entry.run.result
    return dict(sizes)


def train_seconds(result: RunResult) -> tuple[float | None, float | None]:
    """Seconds of the training and of the dump it read; None: nothing trained, or not known."""
    if result.eval_only:
        return None, 0.0
    return result.seconds["train"], result.seconds["dump"] if result.store else 0.0


def _short(commit: str | None) -> str:
    if commit is None:
        return "unknown"
    return commit[:10] + ("-dirty" if commit.endswith("-dirty") else "")


def join(values: Iterable[object], between: str = ", ") -> str:
    distinct = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    return between.join(str(value) for value in distinct)
