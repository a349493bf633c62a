"""Runs that would share a row but are not the same run, seed aside: what differs names them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

from reporting.identity import (
    ABSENT,
    EPOCHS,
    OF_SEED,
    Identity,
    digest,
    flatten,
    options_identity,
    shown,
)
from reporting.methods import METHODS
from reporting.results import RunResult

MOST_NAMES = 3  # of a row; the rest are counted
# What belongs to the test set: runs of one data set and scope agree in it, others need not.
# So do options that a method has for some data sets alone.
OF_DATA = (
    "DATASET.", "classes", "test images",
    *{key for m in METHODS.values() for pairs in m.options.values() for key in pairs[::2]},
)  # fmt: skip
TOLD_ELSEWHERE = {  # by phase and knobs
    "DATASET.SUBSAMPLE_CLASSES", "TEST.TEXT_INTERPOLATION", "kind", "test: kind",
}  # fmt: skip
UNKNOWN = "identity unknown"  # an older version wrote the result

Fields = dict[str, Any]


class Told(NamedTuple):
    """A run, for names_of."""

    family: Hashable  # runs of one method with one recipe; their settings should be equal
    test_set: Hashable  # of the family's: data set and phase
    result: RunResult


def names_of(runs: Sequence[Told]) -> list[tuple[str, ...]]:
    """For each run, what sets it apart from others of its family; () where they are all alike."""
    fields = [settings_of(run.result) for run in runs]
    known = [run.result.identity is not None for run in runs]
    families: dict[Hashable, set[bool]] = defaultdict(set)
    settings: dict[Hashable, list[Fields]] = defaultdict(list)
    tests: dict[Hashable, list[Fields]] = defaultdict(list)
    for run, own, is_known in zip(runs, fields, known, strict=True):
        families[run.family].add(is_known)
        settings[run.family, is_known].append(_part(own, of_data=False))
        tests[run.family, run.test_set, is_known].append(_part(own, of_data=True))
    differ = {key: _differing(group) for key, group in {**settings, **tests}.items()}
    result = []
    for run, own, is_known in zip(runs, fields, known, strict=True):
        names = [
            *differ[run.family, is_known],
            *differ[run.family, run.test_set, is_known],
        ]
        mark = (UNKNOWN,) if not is_known and len(families[run.family]) > 1 else ()
        result.append((*mark, *_named(own, names)))
    return result


def settings_of(result: RunResult) -> Fields:
    """Everything that should be equal among the seeds of a row: no seed, nor what follows from it.

    Of a test, the settings are those of its training; its own stand beside them where they differ.
    """
    if result.identity is None:
        fields = options_identity(result.opts)
    else:
        own = dict(result.identity)
        trained = own.pop("trained", None)
        fields = _without_seed(own)
        if trained is None:
            if EPOCHS in own and own.get("TEST.FINAL_MODEL") == "last_step":
                fields["epoch"] = own[EPOCHS]
        elif trained.get("identity") == "unknown":
            fields |= {"training": "unknown", "epoch": trained.get("epoch")}
        else:
            fields = _of_test(fields, _without_seed(trained))
    return {name: value for name, value in fields.items() if name not in TOLD_ELSEWHERE}


def _of_test(own: Fields, trained: Fields) -> Fields:
    data = _part(own, of_data=True)
    training = _part(trained, of_data=False)
    other = {
        f"test: {name}": value
        for name, value in _part(own, of_data=False).items()
        if training.get(name, ABSENT) != value and not name.startswith("TEST.")
    }
    tested = {name: value for name, value in own.items() if name.startswith("TEST.")}
    return training | other | tested | data


def _without_seed(identity: Identity) -> Fields:
    kept: Fields = {}
    for name, value in identity.items():
        if name == "initial prompts":  # maybe of the seed
            kept[name] = "given"
        elif isinstance(value, dict):
            inner = {key: part for key, part in flatten(value) if key not in OF_SEED}
            kept |= {f"{name}: {key}": part for key, part in inner.items()}
        elif name not in OF_SEED:
            kept[name] = value
    return kept


def _part(fields: Fields, of_data: bool) -> Fields:
    return {name: value for name, value in fields.items() if name.startswith(OF_DATA) == of_data}


def _differing(group: Sequence[Fields]) -> list[str]:
    names = {name for fields in group for name in fields}
    return sorted(name for name in names if len(_values(name, group)) > 1)


def _values(name: str, group: Iterable[Fields]) -> set[str]:
    return {json.dumps(fields.get(name, ABSENT), sort_keys=True) for fields in group}


def _named(fields: Fields, names: Sequence[str]) -> tuple[str, ...]:
    told = [f"{name} {shown(fields[name])}" for name in names if name in fields]
    if len(told) <= MOST_NAMES:
        return tuple(told)
    rest = told[MOST_NAMES:]
    return (*told[:MOST_NAMES], f"and {len(rest)} more ({digest(rest)[:4]})")
