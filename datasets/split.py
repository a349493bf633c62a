"""What a split is: three lists of images, each with its label and class name.

ImageNet has 1.3 million images, and an object for each takes 0.6 GB: a Listing holds their names as
text, a class folder at a time, and makes an Entry where one is asked for.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

SPLITS = ("train", "val", "test")


class Entry(NamedTuple):
    """One image of a split."""

    path: str  # with / and relative to the data set's image folder, so that it survives a move
    label: int
    classname: str


@dataclass(frozen=True)
class ClassFolder:
    """The images of one class in one folder."""

    path: str  # as in Entry, without a / at its end
    label: int
    classname: str
    names: str  # of the files, one a line

    @cached_property
    def _count(self) -> int:
        return self.names.count("\n") + 1 if self.names else 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.at(range(len(self))))

    def at(self, places: Iterable[int]) -> list[Entry]:
        names = self.names.split("\n")
        return [Entry(f"{self.path}/{names[i]}", self.label, self.classname) for i in places]

    def json(self) -> str:
        """What json.dumps makes of the entries, without the outer brackets."""
        if "\\" in self.names:
            return _dumps(list(self))[1:-1]
        before, after = f'["{_dumps(self.path)[1:-1]}/', f'",{self.label},{_dumps(self.classname)}]'
        return before + _dumps(self.names)[1:-1].replace("\\n", f"{after},{before}") + after


class Listing(Collection[Entry]):
    """The images of class folders, one folder for each label."""

    def __init__(self, folders: Iterable[ClassFolder]):
        self.folders = [folder for folder in folders if folder.names]

    def __len__(self) -> int:
        return sum(map(len, self.folders))

    def __iter__(self) -> Iterator[Entry]:
        return (entry for folder in self.folders for entry in folder)

    def __contains__(self, entry: object) -> bool:
        return any(entry in folder for folder in self.folders)


class Split(NamedTuple):
    """The images of a data set, before any draw."""

    train: Collection[Entry]  # a list, or of large data sets a Listing
    val: Collection[Entry]
    test: Collection[Entry]

    def digest(self) -> str:
        """16 hexadecimal digits that another list, order, label or class name would change."""
        whole = hashlib.sha256(b"[")
        for number, part in enumerate(self):
            whole.update(b",[" if number else b"[")
            if isinstance(part, Listing):
                for i, folder in enumerate(part.folders):
                    whole.update(f"{',' * (i > 0)}{folder.json()}".encode())
            else:
                whole.update(_dumps(part)[1:-1].encode())
            whole.update(b"]")
        whole.update(b"]")
        return whole.hexdigest()[:16]


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection: 100,000 entries hold no cycles, and searching them takes longer than
    making them, the more so the more modules are loaded.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _dumps(content) -> str:
    return json.dumps(content, ensure_ascii=True, separators=(",", ":"))


def class_sizes(part: Collection[Entry]) -> Counter[tuple[int, str]]:
    """Images of each label and class name, in order of appearance."""
    if isinstance(part, Listing):
        return Counter({(one.label, one.classname): len(one) for one in part.folders})
    return Counter((entry.label, entry.classname) for entry in part)


def by_label(items: Collection) -> dict[int, Sequence | ClassFolder]:
    """Images (Entry or Datum) by label, labels in order of appearance."""
    if isinstance(items, Listing):
        return {folder.label: folder for folder in items.folders}
    groups: dict[int, list] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    return groups
