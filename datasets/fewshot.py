"""Splits, few-shot draws, their cache and class scopes: the same for every data set.

A split is three lists of (path, label, class name). A draw depends on the split, the shots and the
seed alone. It is made over all classes, and the scope is applied after it: a base run and an
all-class run of one seed share their images, as in CoOp's code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from dassl.data.datasets import Datum

from files import write_whole
from wording import counted

SCOPES = ("all", "base", "new")
MAX_VAL_SHOTS = 4  # CoOp's: validation never gets more images per class than this
SPLITS = ("train", "val", "test")


class Entry(NamedTuple):
    """One image of a split."""

    path: str  # with / and relative to the data set's image folder, so that it survives a move
    label: int
    classname: str


class Split(NamedTuple):
    """The images of a data set, before any draw."""

    train: list[Entry]
    val: list[Entry]
    test: list[Entry]

    def digest(self) -> str:
        """16 hexadecimal digits that another list, order, label or class name would change."""
        text = json.dumps(self, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


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


def by_label(items: Iterable[Item]) -> dict[int, list[Item]]:
    """Images by label, labels in order of appearance."""
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    return groups


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


def subfolders(folder: Path) -> list[str]:
    """Names of folders that are not hidden, sorted; none where there is no such folder."""
    return _names(folder, os.DirEntry.is_dir)


def files(folder: Path) -> list[str]:
    """Names of files that are not hidden, sorted; none where there is no such folder."""
    return _names(folder, os.DirEntry.is_file)


def _names(folder: Path, kind) -> list[str]:
    try:
        with os.scandir(folder) as found:
            return sorted(item.name for item in found if item.name[0] != "." and kind(item))
    except (FileNotFoundError, NotADirectoryError):
        return []


# Few-shot draws


def draw_few_shot(items: Sequence[Item], shots: int, rng: random.Random) -> list[Item]:
    """Draw images per class, classes in order of appearance; a small class gives all it has."""
    return [
        item
        for members in by_label(items).values()
        for item in (rng.sample(members, shots) if len(members) >= shots else members)
    ]


def few_shot_split(
    train: Sequence[Item], val: Sequence[Item], shots: int, seed: int
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
    folder: Path, split: Split, shots: int, seed: int
) -> tuple[list[Entry], list[Entry]]:
    """few_shot_split() of a split, kept in folder/split_fewshot as JSON with relative paths.

    A file is used only for the same shots, seed and split. The pickles that CoOp's code leaves in
    that folder are never opened. Unseeded draws are not kept.
    """
    if shots < 1 or seed < 0:
        return few_shot_split(split.train, split.val, shots, seed)
    digest = split.digest()
    path = folder / "split_fewshot" / f"shot_{shots}-seed_{seed}-{digest}.json"
    kept = _read_draw(path, split, digest)
    if kept is not None:
        return kept
    train, val = few_shot_split(split.train, split.val, shots, seed)
    content = {"shots": shots, "seed": seed, "split": digest, "train": train, "val": val}
    with contextlib.suppress(OSError):  # a read-only data folder: the same draw without a cache
        path.parent.mkdir(exist_ok=True)
        write_whole(path, json.dumps(content))
    return train, val


def _read_draw(path: Path, split: Split, digest: str) -> tuple[list[Entry], list[Entry]] | None:
    """A kept draw, or None where there is none, or one that is no part of the split."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        drawn = [[Entry(*entry) for entry in content[part]] for part in ("train", "val")]
        fits = content["split"] == digest and drawn[0]
        if fits and set(drawn[0]) <= set(split.train) and set(drawn[1]) <= set(split.val):
            return drawn[0], drawn[1]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    print(f"{path} does not fit the split; it is drawn anew.")
    return None


# Class scopes


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
