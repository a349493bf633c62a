"""Paired differences: runs of a method and of a baseline on the same seeds and images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from reporting.collect import Key
from reporting.predictions import Difference, Predictions, read_predictions, standard_error
from reporting.results import ResultError


class Part(NamedTuple):
    """One test set's share: folders of both sides' runs, one per seed, and their weights."""

    weight: float
    folders: Sequence[Path]
    other_weight: float
    other_folders: Sequence[Path]


class Answers:
    """Predictions of runs, each read once."""

    def __init__(self):
        self._read: dict[Path, Predictions] = {}

    def of(self, folder: Path) -> Predictions:
        if folder not in self._read:
            self._read[folder] = read_predictions(folder)
        return self._read[folder]


def baseline_of(key: Key, keys: Iterable[Key], baseline: str) -> Key | None:
    """The baseline's runs that a row is compared with: same data, shots and student.

    Of several recipes the one of the same name, else the first; without knobs if there is one.
    """
    same = [
        other
        for other in keys
        if other.trainer == baseline
        and (other.dataset, other.shots, other.backbone) == (key.dataset, key.shots, key.backbone)
    ]
    return min(
        same, key=lambda k: (k.knobs != (), k.knobs, k.config != key.config, k.config), default=None
    )


def difference(mean: float, parts: Sequence[Part], answers: Answers) -> tuple[Difference, str]:
    """`mean` with its standard error from the kept predictions; and why there is none.

    Letters: S seeds, I images.
    """
    import numpy as np

    count = len(parts[0].folders)
    values_SI = []
    try:
        for part in parts:
            own = [answers.of(folder) for folder in part.folders]
            other = [answers.of(folder) for folder in part.other_folders]
            for each, folder in zip([*own, *other], [*part.folders, *part.other_folders],
                                    strict=True):  # fmt: skip
                if not each.same_images(own[0]):
                    raise ResultError(f"{folder} was tested on other images than {part.folders[0]}")
            if len(own[0].labels_I) < 2:
                raise ResultError(f"{part.folders[0]} has one test image only")
            own_SI = 100 * np.array([each.correct_I for each in own], dtype=float)
            other_SI = 100 * np.array([each.correct_I for each in other], dtype=float)
            values_SI.append(part.weight * own_SI - part.other_weight * other_SI)
    except ResultError as error:
        return Difference(mean, None, count), f"no standard error: {error}"
    return Difference(mean, standard_error(values_SI), count), ""
