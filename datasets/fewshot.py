"""Few-shot draws and class scopes, the same for every data set.

A draw depends on the order of the images, the shots and the seed alone, so nothing is cached. It
is made over all classes, and the scope is applied after it: a base run and an all-class run of one
seed share their images, as in CoOp's code.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from dassl.data.datasets import Datum

SCOPES = ("all", "base", "new")
MAX_VAL_SHOTS = 4  # CoOp's: validation never gets more images per class than this


def draw_few_shot(items: Sequence[Datum], shots: int, rng: random.Random) -> list[Datum]:
    """Draw images per class, classes in order of appearance; a small class gives all it has."""
    by_label: dict[int, list[Datum]] = {}
    for item in items:
        by_label.setdefault(item.label, []).append(item)
    return [
        item
        for members in by_label.values()
        for item in (rng.sample(members, shots) if len(members) >= shots else members)
    ]


def few_shot_split(
    train: Sequence[Datum], val: Sequence[Datum], shots: int, seed: int
) -> tuple[list[Datum], list[Datum]]:
    """Draw train, then val (at most 4 per class) from one random stream.

    Args:
        shots: images per class; below 1 keeps all.
        seed: a negative one draws differently every time.
    """
    if shots < 1:
        return list(train), list(val)
    rng = random.Random(seed if seed >= 0 else None)
    return draw_few_shot(train, shots, rng), draw_few_shot(val, min(shots, MAX_VAL_SHOTS), rng)


def subsample_classes(scope: str, *splits: Sequence[Datum]) -> list[list[Datum]]:
    """Keep the classes of a scope in every split, relabelled from 0 in order.

    Args:
        scope: all; base, the first half of the first split's sorted labels (the larger half of an
            odd number); or new, the others.
    Raises:
        ValueError: the scope is unknown.
    """
    if scope not in SCOPES:
        raise ValueError(
            f"DATASET.SUBSAMPLE_CLASSES is {scope!r}; set it to one of {', '.join(SCOPES)}."
        )
    if scope == "all":
        return [list(split) for split in splits]
    labels = sorted({item.label for item in splits[0]})
    middle = (len(labels) + 1) // 2
    kept = labels[:middle] if scope == "base" else labels[middle:]
    new_label = {label: i for i, label in enumerate(kept)}
    return [
        [
            Datum(item.impath, new_label[item.label], item.domain, item.classname)
            for item in split
            if item.label in new_label
        ]
        for split in splits
    ]
