"""What a run on own data tells before it trains: class counts, zero-shot accuracy, the teacher's.

Wrong class names, mixed-up labels or a teacher that knows less than the student show up here, and
not as a low accuracy hours later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from models.prompted_clip import HandwrittenCLIP
from models.teacher import Teacher, convert_pixels
from models.templates import template_for
from trainers.feature_cache import with_kept_features
from wording import counted

MAX_IMAGES = 2000  # training images that the accuracies are measured on, evenly picked
MAX_ROWS = 40  # classes that are listed


class OwnDataReport(NamedTuple):
    """Accuracies in percent of the run's training images, seen without augmentation."""

    class_counts: list[tuple[str, int, int, int]]  # name; images in train, val, test
    student: float  # zero-shot
    teacher: float | None  # None: the run has none, or one for other classes
    warnings: list[str]


def report_own_data(trainer) -> OwnDataReport | None:
    """Print what a run on own data starts from; nothing for the known data sets.

    To be called in before_train(), once teacher or store are there. Random numbers are not used,
    so that a run trains alike with and without it.
    """
    dataset, cfg = trainer.dm.dataset, trainer.cfg
    if not getattr(dataset, "own_data", False):
        return None
    counts, template = dataset.class_counts(), template_for(cfg.DATASET.NAME, cfg.DATASET.TEMPLATE)
    images = dataset.train_x[:: -(-len(dataset.train_x) // MAX_IMAGES)]
    student = HandwrittenCLIP(trainer.model.clip, dataset.classnames, template)
    text_CD = student.text_features()

    def zero_shot(batch: Tensor) -> Tensor:
        return student.logits(student.image_features(batch), text_CD)

    accuracy = _accuracy(trainer, images, zero_shot, kept=True)
    teacher = _teacher_accuracy(trainer, images)
    warnings = _warnings(len(counts), accuracy, teacher, of_regions=trainer.store is not None)
    print(f'Own data: {counted(len(counts), "class")}, prompt "{template}"\n{_table(counts)}')
    print(f"Zero-shot accuracy of the student on {len(images)} training images: {accuracy:.1f} %")
    if teacher is not None:
        where = "on them" if trainer.store is None else "on the regions of the store"
        print(f"Accuracy of the teacher ({trainer.teacher_name()}) {where}: {teacher:.1f} %")
    for warning in warnings:
        print(f"Warning: {warning}")
    return OwnDataReport(counts, accuracy, teacher, warnings)


def _warnings(
    num_classes: int, student: float, teacher: float | None, of_regions: bool = False
) -> list[str]:
    told, chance = [], 100 / num_classes
    if teacher is not None and teacher <= student:
        told.append(
            f"the teacher ({teacher:.1f} %) is not better than the student ({student:.1f} %): "
            + ("regions show less than whole images, so it may still be; if not, " * of_regions)
            + "distillation has nothing to give. Choose another teacher, a better "
            "DATASET.TEMPLATE, or a method that learns from labels."
        )
    if student < 1.5 * chance:
        told.append(
            f"zero-shot accuracy ({student:.1f} %) is about chance ({chance:.1f} %): are the class "
            "names words that CLIP knows, and do they belong to these images?"
        )
    return told


def _table(counts: Sequence[tuple[str, int, int, int]]) -> str:
    rows = [("class", "train", "val", "test"), *counts[:MAX_ROWS]]
    width = max(len(str(row[0])) for row in rows)
    lines = [f"  {row[0]:{width}}" + "".join(f"{cell:>7}" for cell in row[1:]) for row in rows]
    if len(counts) > MAX_ROWS:
        lines.append(f"  ... and {counted(len(counts) - MAX_ROWS, 'class')} more")
    return "\n".join(lines)


@torch.no_grad()
def _accuracy(
    trainer, images: list, logits_of: Callable[[Tensor], Tensor], kept: bool = False
) -> float:
    """Top-1 in percent of images as the test loader prepares them.

    Args:
        kept: the student's features may stand for images, computed once for all runs and seeds.
    """
    tested = trainer.test_loader
    wrapped = type(tested.dataset)(trainer.cfg, images, transform=tested.dataset.transform)
    loader = DataLoader(
        wrapped,
        batch_size=tested.batch_size,
        num_workers=tested.num_workers,
        generator=torch.Generator(),  # else the loader takes a number of the run's
    )
    right = 0
    for batch in with_kept_features(trainer.model, trainer.cfg, loader) if kept else loader:
        guessed_B = logits_of(batch["img"].to(trainer.device)).argmax(dim=-1)
        right += int((guessed_B.cpu() == batch["label"]).sum())
    return 100 * right / len(images)


def _teacher_accuracy(trainer, images: list) -> float | None:
    """Of the teacher that is loaded, or of the logits in the store."""
    names, teacher = list(trainer.dm.dataset.classnames), getattr(trainer, "teacher", None)
    if teacher is not None:
        if isinstance(teacher, Teacher):
            if list(teacher.classnames) != names:  # a class-agnostic one
                return None
            text_CD = teacher.text_features()
        else:  # a tuned one
            with torch.no_grad():
                text_CD = teacher.for_classes(names).text_features()
        pixels = trainer.cfg.INPUT

        def logits(batch: Tensor) -> Tensor:
            seen = convert_pixels(batch, pixels.PIXEL_MEAN, pixels.PIXEL_STD, teacher.clip)
            return teacher.logits(teacher.image_features(seen), text_CD)

        return _accuracy(trainer, images, logits)
    if trainer.store is None or list(trainer.store.spec.classnames) != names:
        return None
    return trainer.store.teacher_accuracy()
