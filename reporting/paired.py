"""Paired differences: a method and a baseline on the same seeds and the same test images.

What each run answered for each test image is kept beside its results, and makes the standard error.

predictions.npz holds three arrays: `images` (32 bytes, sha256 of the sorted image paths), `labels`
and `predictions` (whole numbers, in the order of the sorted paths). Two runs with equal `images`
and `labels` can be compared image by image. Letters: S seeds, I images.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from files import written_whole
from reporting.collect import Key
from reporting.results import ResultError

if TYPE_CHECKING:
    import numpy as np

FILE_NAME = "predictions.npz"


@dataclass(frozen=True)
class Predictions:
    """The answers of one run, in the order of the sorted image paths."""

    images: str  # hex digest of the paths
    labels_I: np.ndarray
    predictions_I: np.ndarray

    @property
    def correct_I(self) -> np.ndarray:
        return self.labels_I == self.predictions_I

    def same_images(self, other: Predictions) -> bool:
        return self.images == other.images and (self.labels_I == other.labels_I).all()


def write_predictions(
    folder: str | Path,
    impaths: Sequence[str],
    labels: Sequence[int],
    predictions: Sequence[int],
) -> Path:
    """Write FOLDER/predictions.npz, whole or not at all; about a byte per image.

    Args:
        impaths: paths of the test images in any order. Only what follows their common folder
            counts, so that the data may lie elsewhere next time.
        labels, predictions: true and predicted class of each, from 0.
    Raises:
        ValueError: the three are of different lengths, or empty.
    """
    import numpy as np

    if not len(impaths) == len(labels) == len(predictions) > 0:
        raise ValueError(
            f"{folder}: {len(impaths)} images, {len(labels)} labels and {len(predictions)} "
            "predictions; there must be one of each per image, and an image."
        )
    order = sorted(range(len(impaths)), key=lambda index: impaths[index])
    common = os.path.commonpath([os.path.dirname(path) for path in impaths])
    digest = hashlib.sha256()
    for index in order:
        digest.update(os.path.relpath(impaths[index], common or ".").encode() + b"\n")
    largest = max(max(labels), max(predictions))
    kind = np.uint8 if largest < 256 else np.uint16 if largest < 65536 else np.uint32
    path = Path(folder, FILE_NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            images=np.frombuffer(digest.digest(), dtype=np.uint8),
            labels=np.asarray(labels, dtype=kind)[order],
            predictions=np.asarray(predictions, dtype=kind)[order],
        )
    return path


def read_predictions(folder: str | Path) -> Predictions:
    """Read FOLDER/predictions.npz; nothing in it is executed.

    Raises:
        ResultError: it is absent or damaged.
    """
    import numpy as np

    path = Path(folder, FILE_NAME)
    if not path.exists():
        raise ResultError(f"{path} is absent; test the run again to have it written.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels, predictions = (
                arrays[name] for name in ("images", "labels", "predictions")
            )
    except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
        raise ResultError(f"{path} cannot be read ({error}); test the run again.") from error
    return Predictions(bytes(images).hex(), labels, predictions)


@dataclass(frozen=True)
class Difference:
    """A method minus the baseline, in points; both on the same seeds and images."""

    mean: float
    error: float | None  # standard error over seeds and images
    seeds: int


def standard_error(parts: Sequence[np.ndarray]) -> float:
    """Standard error of a sum of means, each over seeds and over test images of its own.

    A part is (S, I): what one seed's prompts contribute on one image, for example 100 where the
    method is right and the baseline wrong, -100 the other way round, else 0. Seeds and images
    are both drawn: another seed moves all images of a row, another test set all seeds of a
    column, so neither number of repetitions alone makes the mean exact. The variances of a
    two-way layout with random rows and columns are estimated by their mean squares (Cornfield
    and Tukey, 1956): var(mean) = MS_seeds / SI + MS_images / SI - MS_rest / SI, and never less
    than one of the first two alone. With one seed only the images speak.
    """
    import numpy as np

    count = parts[0].shape[0]
    images = sum(part.mean(axis=0).var(ddof=1) / part.shape[1] for part in parts)
    if count == 1:
        return math.sqrt(images)
    seeds = np.sum([part.mean(axis=1) for part in parts], axis=0).var(ddof=1) / count
    rest = 0.0
    for part in parts:
        left = part - part.mean(axis=0) - part.mean(axis=1, keepdims=True) + part.mean()
        freedom = (part.shape[0] - 1) * (part.shape[1] - 1)
        rest += (left**2).sum() / freedom / part.size
    return math.sqrt(max(images + seeds - rest, images, seeds))


# --- of rows of a table


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
