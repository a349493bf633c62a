"""The toy world's data sets: drawn on first use into DATASET.ROOT, then read like any other.

ToyShapes is the main one; ToyShapesNone and ToyShapesStrong show the same scenes with no and with
a strong colour cast. ToyShapesNoise, -Blur, -Dark and -Pixelate are its test images damaged, for
domain generalisation; ToyDrawings has other classes and another domain, for cross-data-set
transfer. No class of any of them was ever shown to the toy CLIPs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase
from PIL import Image
from tqdm import tqdm

from datasets.base import TOY, data_root, datums
from datasets.fewshot import few_shot_split, subsample_classes
from datasets.split import SPLITS, Entry, Split
from datasets.toy_images import VERSION, Look, Thing, draw, pick_held_out

STAMP = "drawn.json"  # written last: a folder without a fitting one is drawn again
ABANDONED = 3600  # seconds after which another process's unfinished folder is swept away


def _mix(things: list[Thing]) -> list[Thing]:
    """A fixed order in which neighbours differ: 7 has no factor in common with 24 and 36."""
    return [things[7 * i % len(things)] for i in range(len(things))]


# Both halves use each attribute about equally often; the first is base, the second new.
SHAPES_CLASSES = tuple(_mix(pick_held_out((0, 2))) + _mix(pick_held_out((1, 3))))
DRAWINGS_CLASSES = tuple(_mix(pick_held_out((4, 5, 6))))


@dataclass(frozen=True)
class ToySet:
    """What a data set shows, and how often."""

    folder: str  # under DATASET.ROOT
    classes: tuple[Thing, ...]
    look: Look
    stream: int  # first number of every image's seed; sets that share it share their scenes
    counts: dict[str, int] = field(default_factory=lambda: {"train": 20, "val": 4, "test": 200})

    def picture(self, split: str, label: int, index: int) -> Image.Image:
        """One image, before it is written to any disk."""
        seed = (self.stream, SPLITS.index(split), label, index)
        return draw(self.classes[label], self.look, seed)

    def path(self, split: str, label: int, index: int) -> Path:
        """Where that image lies in the data set's folder. BMP: lossless, and fast to write."""
        return Path(split, self.classes[label].name.replace(" ", "_"), f"{index:04d}.bmp")

    def stamp(self) -> dict:
        """Everything the pixels depend on: a folder drawn for another stamp does not serve."""
        plain = json.dumps({"version": VERSION, **asdict(self)})
        return json.loads(plain)


def _shapes(folder: str, cast: float, damage: str = "") -> ToySet:
    counts = {"counts": {"test": 200}} if damage else {}
    return ToySet(folder, SHAPES_CLASSES, Look(cast=cast, damage=damage), stream=1, **counts)


HALF = 0.5  # ToyShapes' colour cast
TOY_SETS = {
    "ToyShapes": _shapes("toy_shapes", HALF),
    "ToyShapesNone": _shapes("toy_shapes_none", 0.0),
    "ToyShapesStrong": _shapes("toy_shapes_strong", 1.0),
    "ToyShapesNoise": _shapes("toy_shapes_noise", HALF, "noise"),
    "ToyShapesBlur": _shapes("toy_shapes_blur", HALF, "blur"),
    "ToyShapesDark": _shapes("toy_shapes_dark", HALF, "dark"),
    "ToyShapesPixelate": _shapes("toy_shapes_pixelate", HALF, "pixelate"),
    "ToyDrawings": ToySet("toy_drawings", DRAWINGS_CLASSES, Look(domain="drawing"), stream=2),
}


def ensure_drawn(root: Path, toy_set: ToySet) -> Path:
    """Return the data set's folder, drawing it first where it is missing or of another version.

    It is drawn beside and renamed: a folder under its own name is always whole. Of two processes
    that draw at once the second to finish drops its copy and uses the first one's.

    Raises:
        ValueError: the folder cannot be written.
    """
    target = root / toy_set.folder
    if _is_drawn(target, toy_set):
        return target
    draft = root / f".{toy_set.folder}.drawing-{uuid.uuid4().hex[:12]}"
    try:
        _sweep(root, toy_set.folder)
        _draw_into(draft, toy_set)
        _put_in_place(draft, target, toy_set)
    except OSError as error:
        raise ValueError(
            f"DATASET.ROOT is {root}, where {toy_set.folder} cannot be drawn "
            f"({error.strerror or error}). Make it writable with 150 MB free, or pass another "
            "folder with --root."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _is_drawn(folder: Path, toy_set: ToySet) -> bool:
    try:
        return json.loads((folder / STAMP).read_text()) == toy_set.stamp()
    except (OSError, ValueError):
        return False


def _draw_into(draft: Path, toy_set: ToySet) -> None:
    todo = [
        (split, label, index)
        for split, count in toy_set.counts.items()
        for label in range(len(toy_set.classes))
        for index in range(count)
    ]
    for split, label, index in tqdm(todo, desc=f"Drawing {toy_set.folder}", unit="img"):
        path = draft / toy_set.path(split, label, index)
        if index == 0:
            path.parent.mkdir(parents=True)
        toy_set.picture(split, label, index).save(path)
    (draft / STAMP).write_text(json.dumps(toy_set.stamp(), indent=1))


def _put_in_place(draft: Path, target: Path, toy_set: ToySet) -> None:
    if target.exists() and not _is_drawn(target, toy_set):
        outdated = draft.with_name(draft.name + ".old")
        with contextlib.suppress(FileNotFoundError):  # another process was first
            os.rename(target, outdated)
        shutil.rmtree(outdated, ignore_errors=True)
    try:
        os.rename(draft, target)
    except OSError:
        if not _is_drawn(target, toy_set):  # else another process was first
            raise


def _sweep(root: Path, folder: str) -> None:
    """Remove what killed processes left half drawn."""
    for draft in root.glob(f".{folder}.drawing-*"):
        with contextlib.suppress(FileNotFoundError):  # another process swept it
            if time.time() - draft.stat().st_mtime > ABANDONED:
                shutil.rmtree(draft, ignore_errors=True)


class _ToyDataset(DatasetBase):
    """Paths, labels and names of one of TOY_SETS, found by the class's own name."""

    def __init__(self, cfg):
        toy_set = TOY_SETS[type(self).__name__]
        folder = ensure_drawn(data_root(cfg), toy_set)
        split = Split(*(_entries(toy_set, part) for part in SPLITS))
        self.split_source, self.split_digest = TOY, split.digest()
        if split.train:
            train, val = few_shot_split(*split[:2], cfg.DATASET.NUM_SHOTS, cfg.SEED)
        else:  # for evaluation only; Dassl takes the class names from train_x
            train, val = split.test, []
        parts = subsample_classes(cfg.DATASET.SUBSAMPLE_CLASSES, train, val, split.test)
        train, val, test = (datums(folder, part) for part in parts)
        super().__init__(train_x=train, val=val or None, test=test)


def _entries(toy_set: ToySet, part: str) -> list[Entry]:
    return [
        Entry(toy_set.path(part, label, index).as_posix(), label, thing.name)
        for label, thing in enumerate(toy_set.classes)
        for index in range(toy_set.counts.get(part, 0))
    ]


@DATASET_REGISTRY.register()
class ToyShapes(_ToyDataset):
    """48 classes under a mild warm colour cast."""


@DATASET_REGISTRY.register()
class ToyShapesNone(_ToyDataset):
    """The same scenes in the light that the toy CLIPs know."""


@DATASET_REGISTRY.register()
class ToyShapesStrong(_ToyDataset):
    """The same scenes under a strong warm colour cast."""


@DATASET_REGISTRY.register()
class ToyShapesNoise(_ToyDataset):
    """ToyShapes' test images with noise; no training images."""


@DATASET_REGISTRY.register()
class ToyShapesBlur(_ToyDataset):
    """ToyShapes' test images out of focus; no training images."""


@DATASET_REGISTRY.register()
class ToyShapesDark(_ToyDataset):
    """ToyShapes' test images in little light; no training images."""


@DATASET_REGISTRY.register()
class ToyShapesPixelate(_ToyDataset):
    """ToyShapes' test images at half the resolution; no training images."""


@DATASET_REGISTRY.register()
class ToyDrawings(_ToyDataset):
    """36 other classes, drawn with ink on paper."""
