"""Splits, few-shot draws, their cache and class scopes: the same for every data set.

A split is three lists of (path, label, class name). A draw depends on the split, the shots and the
seed alone. It is made over all classes, and the scope is applied after it: a base run and an
all-class run of one seed share their images, as in CoOp's code.
"""

from __future__ import annotations

import json
import os
import random
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from dassl.data.datasets import Datum

from datasets.listing import files, subfolders, write_if_possible
from datasets.split import SPLITS, ClassFolder, Entry, Split, by_label
from wording import counted

SCOPES = ("all", "base", "new")
MAX_VAL_SHOTS = 4  # CoOp's: validation never gets more images per class than this
SPLIT_SEED = 1  # of splits made here, whatever the run's: CoOp's authors made theirs with it

Item = TypeVar("Item", Entry, Datum)


# Split files


def read_split(path: Path) -> Split:
    """Read a split_zhou_*.json: {"train": [[path, label, class name], ...], "val":, "test":}.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Split(
            *([Entry(str(p), int(label), str(name)) for p, label, name in content[part]]
              for part in SPLITS)
        )  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no split file ({type(error).__name__}: {error}). Delete it and fetch it "
            "again: python -m datasets.prepare, or docs/DATASETS.md."
        ) from error


def keep_split(path: Path, split: Split) -> Split:
    """Write a split unless the file is there, and return what the file then holds.

    Of two processes that write at once, the second uses the first one's split.
    """
    text = json.dumps(dict(zip(SPLITS, split, strict=True)), indent=4)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        draft.write_text(text, encoding="utf-8")
        try:
            os.link(draft, path)  # unlike a rename, this never replaces a file
        except OSError:
            if not path.exists():  # a file system without links
                os.replace(draft, path)
    except OSError as error:
        print(f"{path} cannot be written ({error.strerror}); its split is made anew each time.")
        return split
    finally:
        draft.unlink(missing_ok=True)
    return read_split(path)


# Splits where none is published. The shares, the order of the random numbers and the rounding are
# those of CoOp's code; the lists are sorted first, which its code leaves to the file system.


def divide(items: Iterable[Entry], rng: random.Random) -> Split:
    """Per class, shuffled: 50 % train, 20 % val, 30 % test.

    Raises:
        ValueError: a class has too few images to be in all three.
    """
    split = Split([], [], [])
    for members in by_label(items).values():
        rng.shuffle(members)
        train, val = round(0.5 * len(members)), round(0.2 * len(members))
        if not (train and val and len(members) > train + val):
            raise ValueError(
                f"Class {members[0].classname!r} has {counted(len(members), 'image')}, too few for "
                "an automatic split into 50 % train, 20 % val and 30 % test; 4 is the least."
            )
        split.train.extend(members[:train])
        split.val.extend(members[train : train + val])
        split.test.extend(members[train + val :])
    return split


def hold_out(items: Iterable[Entry], rng: random.Random) -> tuple[list[Entry], list[Entry]]:
    """Per class, shuffled: 20 % to val, the rest to train. Returns train, val."""
    train, val = [], []
    for members in by_label(items).values():
        rng.shuffle(members)
        count = round(0.2 * len(members))
        val.extend(members[:count])
        train.extend(members[count:])
    return train, val


def class_folders(
    folder: Path, ignored: Sequence[str] = (), renamed: Mapping[str, str] | None = None
) -> list[Entry]:
    """All images of folder/<class>/; the label is the class folder's place in sorted order."""
    return [
        Entry(f"{name}/{image}", label, (renamed or {}).get(name, name))
        for label, name in enumerate(name for name in subfolders(folder) if name not in ignored)
        for image in files(folder / name)
    ]


# Few-shot draws


def draw_few_shot(items: Collection[Item], shots: int, rng: random.Random) -> list[Item]:
    """Draw images per class, classes in order of appearance; a small class gives all it has."""
    drawn: list[Item] = []
    for members in by_label(items).values():
        if len(members) < shots:
            drawn += members
            continue
        places = rng.sample(range(len(members)), shots)  # those that sampling the images draws
        many = isinstance(members, ClassFolder)
        drawn += members.at(places) if many else [members[i] for i in places]
    return drawn


def few_shot_split(
    train: Collection[Item], val: Collection[Item], shots: int, seed: int
) -> tuple[list[Item], list[Item]]:
    """Draw train, then val (at most 4 per class) from one random stream.

    Args:
        shots: images per class; below 1 keeps all.
        seed: a negative one draws differently every time.
    """
    if shots < 1:
        return list(train), list(val)
    rng = random.Random(seed if seed >= 0 else None)
    return draw_few_shot(train, shots, rng), draw_few_shot(val, min(shots, MAX_VAL_SHOTS), rng)


def cached_few_shot(
    folder: Path, split: Split, shots: int, seed: int, digest: str = ""
) -> tuple[list[Entry], list[Entry]]:
    """few_shot_split() of a split, kept in folder/split_fewshot as JSON with relative paths.

    The draw is cheap and made every time; a file that differs from it is told and replaced. The
    pickles that CoOp's code leaves in that folder are never opened. Unseeded draws are not kept.

    Args:
        digest: the split's, where it is known already.
    """
    train, val = few_shot_split(split.train, split.val, shots, seed)
    if shots < 1 or seed < 0:
        return train, val
    digest = digest or split.digest()
    path = folder / "split_fewshot" / f"shot_{shots}-seed_{seed}-{digest}.json"
    content = {"shots": shots, "seed": seed, "split": digest, "train": train, "val": val}
    text = json.dumps(content)
    try:
        if json.loads(path.read_text(encoding="utf-8")) == json.loads(text):
            return train, val
        fits = False
    except (OSError, ValueError) as error:
        fits = isinstance(error, FileNotFoundError)  # none was kept
    if not fits:
        print(f"{path} does not fit the split; it is drawn anew.")
    write_if_possible(path, text)
    return train, val


# Class scopes


def subsample_classes(scope: str, *splits: Collection[Item]) -> list[list[Item]]:
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
        [_relabelled(item, new_label[item.label]) for item in split if item.label in new_label]
        for split in splits
    ]


def _relabelled(item: Item, label: int) -> Item:
    if isinstance(item, Entry):
        return item._replace(label=label)
    return Datum(item.impath, label, item.domain, item.classname)
