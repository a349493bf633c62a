"""The files of class folders, kept beside the data: listing ImageNet's takes seconds."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from files import write_whole

SETTLED = 2 * 10**9  # ns; a folder changed just now may change again within its clock's tick


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


def class_files(root: Path, parents: Sequence[str], kept: Path | None = None) -> dict[str, str]:
    """Files of the folders in root/<parent>, as lines of text by "<parent>/<folder>", both sorted.

    Args:
        parents: folders of class folders; "" is the root itself, and then keys are folder names.
        kept: a file that the listing is read from if every folder has the time of change and the
            number of entries that it had, and else written to. None: list, and write nothing.
    Raises:
        ValueError: a file's name has a line break.
    """
    state = _read(kept, root, parents) if kept else None
    if state is None:
        now = time.time_ns()
        state = {name: _listed(root / name, subfolders) for name in parents}
        for parent in parents:
            for name in _lines(state[parent]):
                state[_join(parent, name)] = _listed(root / parent / name, files)
        if kept and all(0 < changed < now - SETTLED for changed, _, _ in state.values()):
            text = json.dumps(state)
            write_if_possible(kept, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
    return {name: state[name][2] for name in _folders(state, parents)}


State = dict[str, list]  # of each folder: time of change in ns, number of entries, names as lines


def _listed(folder: Path, kind) -> list:
    changed, entries = _stamp(folder)  # first, so that what changes meanwhile does not fit
    names = kind(folder)
    if any("\n" in name for name in names):
        raise ValueError(f"A name in {folder} has a line break in it; rename that file.")
    return [changed, entries, "\n".join(names)]


def _stamp(folder: Path | str) -> list[int]:
    try:
        return [os.stat(folder).st_mtime_ns, len(os.listdir(folder))]
    except OSError:
        return [0, 0]


def _read(kept: Path, root: Path, parents: Sequence[str]) -> State | None:
    try:
        checksum, _, text = kept.read_bytes().partition(b"\n")
        if hashlib.sha256(text).hexdigest().encode() != checksum:
            raise ValueError("its checksum does not fit")
        state = json.loads(text)
        fits = state.keys() == {*parents, *_folders(state, parents)}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"{kept} is damaged ({error}); the folders are listed anew.")
        return None
    if fits and all(_stamp(os.path.join(root, name)) == state[name][:2] for name in state):
        return state
    return None


def _folders(state: State, parents: Sequence[str]) -> list[str]:
    return [_join(parent, name) for parent in parents for name in _lines(state[parent])]


def _lines(one: list) -> list[str]:
    return one[2].split("\n") if one[2] else []


def _join(parent: str, name: str) -> str:
    return f"{parent}/{name}" if parent else name


def write_if_possible(path: Path, text: str) -> bool:
    """Write a file, whole or not at all; a read-only data folder goes without it."""
    try:
        path.parent.mkdir(exist_ok=True)
        write_whole(path, text)
    except OSError:
        return False
    return True
