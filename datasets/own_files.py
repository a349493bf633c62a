"""What users lay out for own data, read: folders of class folders, classnames.txt, tables.

Nothing is passed over in silence: what cannot be meant is refused with file and line, and what is
not read is told.
"""

from __future__ import annotations

import csv
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets.base import label_problems, told
from datasets.fewshot import SPLIT_SEED, divide
from datasets.listing import files, subfolders
from datasets.split import SPLITS, Entry, Split
from inputs import SUFFIXES, is_image, read_text
from wording import counted

NAMES_FILE = "classnames.txt"
JUNK = "__MACOSX"  # what macOS adds to archives
OTHER_SPLITS = ("validation", "valid", "dev", "training", "testing")  # what others call them


class Listing(NamedTuple):
    """What a folder or a table holds, before any draw."""

    place: Path  # the folder or table itself
    images: Path  # folder that the split's paths are relative to
    split: Split
    problems: list[str]  # that keep it from being used, unless DATASET.STRICT is False
    notes: list[str]  # what is passed over
    remedy: str

    def paths(self) -> list[str]:
        """Every image once, absolute."""
        paths = {entry.path for part in self.split for entry in part}
        return sorted(os.path.join(self.images, path) for path in paths)


def listed(names: Sequence[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


# Folders


def read_folder(folder: Path) -> Listing:
    """List the images of a folder as ImageFolder describes it.

    Raises:
        ValueError: the folders or classnames.txt cannot be meant as they are.
    """
    inside = subfolders(folder)
    parts = _parts(folder, inside)
    found = _Found(folder)
    for place in ("", *parts):
        found.beside(folder / place)
    if parts:
        classes = sorted({name for part in parts for name in subfolders(folder / part)} - {JUNK})
    else:
        classes = [name for name in inside if name != JUNK]
    names, notes = class_names(folder / NAMES_FILE, classes)

    def images(part: str) -> list[Entry]:
        return [
            Entry(f"{part}{name}/{image}", label, names[name])
            for label, name in enumerate(classes)
            for image in found.images(f"{part}{name}")
        ]

    if parts:
        split = Split(*(images(f"{part}/") for part in SPLITS))
        notes += _beside_parts([name for name in inside if name not in (*SPLITS, JUNK)])
    else:
        split = divide(images(""), random.Random(SPLIT_SEED))
        tell_split(split)
    problems = label_problems(split, [names[name] for name in classes])
    return Listing(folder, folder, split, problems, found.notes() + notes,
                   f"give these classes images in {folder}")  # fmt: skip


def _parts(folder: Path, inside: list[str]) -> list[str]:
    """Which of train, val and test a folder has: none, or at least train and test."""
    misspelt = [name for name in inside if name not in SPLITS and name.lower() in SPLITS]
    if misspelt and {"train", "test"} <= {name.lower() for name in inside}:
        raise ValueError(
            f"{folder} has {' and '.join(misspelt)}: the folders of a split are written in small "
            f"letters. Rename {misspelt[0]} to {misspelt[0].lower()}."
        )
    present = [name for name in SPLITS if name in inside]
    if present and not {"train", "test"} <= set(present):
        raise ValueError(
            f"{folder} has {' and '.join(present)}, but train and test are needed, val is not. "
            "Add the folder, or put the class folders into one folder for an automatic split. If "
            f"{present[0]} is a class, rename its folder and write its name into "
            f"{folder / NAMES_FILE}: my_{present[0]} {present[0]}."
        )
    return present


def _beside_parts(others: list[str]) -> list[str]:
    """What is said of folders beside train and test."""
    val = [name for name in others if name.lower() in OTHER_SPLITS]
    classes = [name for name in others if name not in val]
    notes = [f"the folder {name} is not read: splits are train, val and test" for name in val]
    if classes:
        notes.append(
            f"{counted(len(classes), 'folder')} beside train and test not read: {listed(classes)}. "
            "Class folders belong into train, val and test"
        )
    return notes


class _Found:
    """Images of class folders, and a count of what is passed over on the way."""

    def __init__(self, folder: Path):
        self.folder = folder
        kinds = ("nested", "hidden", "dangling", "beside", "lists")
        self.passed: dict[str, list[str]] = {kind: [] for kind in kinds}
        self.suffixes: Counter[str] = Counter()
        self.junk = False

    def images(self, place: str) -> list[str]:
        """Names of the images in a class folder; none where there is no such folder."""
        images = []
        if not (self.folder / place).is_dir():
            return images
        for item in sorted(os.scandir(self.folder / place), key=lambda item: item.name):
            name, path, is_hidden = item.name, f"{place}/{item.name}", item.name[0] == "."
            if item.is_dir():
                below = _images_below(self.folder, path)
                self.passed["hidden" if is_hidden else "nested"] += below
            elif is_hidden:
                self.passed["hidden"] += [path] * is_image(name.lstrip("._"))
            elif not is_image(name):
                self.suffixes[Path(name).suffix.lower() or name] += 1
            elif item.is_file():
                images.append(name)
            else:
                self.passed["dangling"].append(path)
        return images

    def beside(self, folder: Path) -> None:
        """Look at what lies beside class folders, or beside train and test."""
        where = os.path.relpath(folder, self.folder)
        names = files(folder)
        self.passed["beside"] += [os.path.normpath(f"{where}/{n}") for n in names if is_image(n)]
        if folder != self.folder and NAMES_FILE in names:
            self.passed["lists"].append(f"{where}/{NAMES_FILE}")
        self.junk |= JUNK in subfolders(folder)

    def notes(self) -> list[str]:
        said = {
            "nested": "in folders inside class folders not read: move {} up into its class folder",
            "hidden": "with a hidden name not read, such as {}",
            "dangling": "that link to no file not read, such as {}",
            "beside": "outside class folders not read, such as {}",
        }
        notes = [
            f"{counted(len(self.passed[kind]), 'image')} {text.format(self.passed[kind][0])}"
            for kind, text in said.items()
            if self.passed[kind]
        ]
        notes += [f"{path} is not read: it belongs into {self.folder}"
                  for path in self.passed["lists"]]  # fmt: skip
        if self.suffixes:
            kinds = listed([f"{suffix} {n:,}" for suffix, n in self.suffixes.most_common()])
            notes.append(
                f"{counted(self.suffixes.total(), 'other file')} in class folders not read "
                f"({kinds}); images end in {', '.join(SUFFIXES)}"
            )
        if self.junk:
            notes.append(f"the folder {JUNK}, which macOS adds to archives, is passed over")
        return notes


def _images_below(root: Path, place: str) -> list[str]:
    return sorted(
        os.path.relpath(os.path.join(folder, name), root)
        for folder, _, names in os.walk(root / place)
        for name in names
        if is_image(name)
    )


def class_names(path: Path, folders: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The class name of each folder, and what is to be told of it.

    A line of the file is a folder, a tab, comma or blank, and its name. A folder's name may have
    blanks and commas itself: of the folders that a line can begin with, the longest counts; before
    a tab it stands alone. A folder without a line is called as it is.

    Raises:
        ValueError: a line begins with no folder or has no name, a folder has two lines, or two
            folders have one name.
    """
    given: dict[str, tuple[int, str]] = {}  # folder -> line number, name
    wrong = []
    text = read_text(path) if path.is_file() else ""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        folder, name = _folder_and_name(line.strip(), set(folders))
        if not folder:
            wrong.append(f"line {number}: {line.strip()!r} begins with the name of no class folder")
        elif not name:
            wrong.append(f"line {number}: there is no class name behind the folder {folder!r}")
        elif folder in given:
            wrong.append(f"line {number}: line {given[folder][0]} names the folder {folder!r} too")
        else:
            given[folder] = number, name
    if wrong:
        raise ValueError(
            f"{path} is not as it should be. {told(wrong)} A line is a folder of images, a blank, "
            f"tab or comma, and the name of its class. Class folders: {listed(folders)}."
        )
    names = {folder: given[folder][1] if folder in given else folder for folder in folders}
    _refuse_same_names(
        path if given else path.parent,
        [
            (f"line {given[folder][0]}, folder {folder!r}" if folder in given
             else f"folder {folder!r}", name)
            for folder, name in names.items()
        ],
    )  # fmt: skip
    without = [folder for folder in folders if folder not in given]
    notes = []
    if given and without:
        notes.append(f"{path.name} has no line for {listed(without)}, called like the folder")
    return names, notes


def _folder_and_name(line: str, folders: set[str]) -> tuple[str, str]:
    """A line's folder, "" where there is none, and the name behind it."""
    ends = [i for i, sign in enumerate(line) if sign in " \t,"] + [len(line)]
    if "\t" in line:
        ends = [line.index("\t")]
    for end in reversed(ends):
        folder = line[:end].rstrip() if "\t" in line else line[:end]
        if folder in folders:
            return folder, line[end + 1 :].lstrip(" \t,")
    return "", ""


def _refuse_same_names(place: Path, names: Iterable[tuple[str, str]]) -> None:
    """
    Args:
        names: where a class stands, and its name.
    Raises:
        ValueError: two classes would have the same prompt.
    """
    seen: dict[str, str] = {}
    wrong = []
    for where, name in names:
        prompt = " ".join(name.replace("_", " ").split()).lower()  # as tokenizers read it
        if prompt in seen:
            wrong.append(f"{where}: the class {name!r} is called like that of {seen[prompt]}")
        seen.setdefault(prompt, where)
    if wrong:
        raise ValueError(
            f"{place}: classes of one name cannot be told apart. {told(wrong)} Name them apart, or "
            "make them one class."
        )


def tell_split(split: Split) -> None:
    print(
        f"Split automatically, alike for every seed: {len(split.train)} train, {len(split.val)} "
        f"val and {len(split.test)} test images."
    )


# Tables


def read_csv(path: Path) -> Listing:
    """
    Raises:
        ValueError: a column is missing; a row has no path, label or known split, or more cells than
            columns; an image is listed twice; labels are numbers without names, or two of them have
            one name.
    """
    columns, rows = _cells(path)
    for column in ("path", "label"):
        if column not in columns:
            raise ValueError(
                f"{path} has the columns {', '.join(columns) or 'none'}, but not {column}; its "
                "first line must be path,label or path,label,split, with an optional classname."
            )
    if not rows:
        raise ValueError(f"{path} has no line below its first: write one for each image.")
    number = _numbers_of_labels(path, columns, rows)
    entries: dict[str, list[tuple[Entry, int]]] = {part: [] for part in SPLITS}
    seen: dict[str, int] = {}
    first: dict[int, tuple[int, str]] = {}  # of a label: line, class name
    for line, cells in rows:
        part = cells.get("split", "train")
        if not (cells["path"] and cells["label"] and part in SPLITS):
            raise ValueError(
                f"{path}, line {line}: path {cells['path']!r}, label {cells['label']!r}, split "
                f"{part!r} found; path and label must not be empty, and split is one of "
                f"{', '.join(SPLITS)}."
            )
        same = os.path.normpath(path.parent / cells["path"])  # a/../b.jpg is b.jpg
        if same in seen:
            raise ValueError(
                f"{path}, line {line}: {cells['path']} is listed in line {seen[same]} already. "
                "Each image has one class and one split; delete one of the lines."
            )
        seen[same] = line
        entry = Entry(cells["path"], number[cells["label"]],
                      cells.get("classname") or cells["label"])  # fmt: skip
        first.setdefault(entry.label, (line, entry.classname))
        entries[part].append((entry, line))
    _refuse_same_names(path, ((f"line {line}", name) for line, name in first.values()))
    absent = [
        f"{path}, line {line}: there is no file {path.parent / entry.path}{_hint(path, entry)}"
        for part in entries.values()
        for entry, line in part
        if not (path.parent / entry.path).is_file()
    ]
    parts = {part: sorted(entry for entry, _ in entries[part]) for part in SPLITS}
    if "split" in columns:
        split = Split(*parts.values())
    else:
        order = sorted(parts["train"], key=lambda entry: entry[1:] + entry[:1])
        split = divide(order, random.Random(SPLIT_SEED))
        tell_split(split)
    problems = label_problems(split) + absent
    return Listing(path, path.parent, split, problems, [], f"correct {path}")


def _cells(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Columns, and the line number and cells of each row. Commas, tabs or semicolons part them."""
    lines = read_text(path).splitlines(keepends=True)
    parting = next((sign for sign in ",\t;" if lines and sign in lines[0]), ",")
    reader = csv.DictReader(lines, skipinitialspace=True, delimiter=parting)
    rows = []
    try:
        columns = [(name or "").strip() for name in reader.fieldnames or []]
        reader.fieldnames = columns
        for row in reader:
            if row.pop(None, None):
                raise ValueError(
                    f"{path}, line {reader.line_num}: more cells than the {len(columns)} columns "
                    f'{parting.join(columns)}; a name with a comma needs quotes: "hare, brown".'
                )
            cells = {name: (cell or "").strip() for name, cell in row.items()}
            rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.reader.line_num}: {error}.") from None
    return columns, rows


def _numbers_of_labels(
    path: Path, columns: Sequence[str], rows: Sequence[tuple[int, dict[str, str]]]
) -> dict[str, int]:
    """0, 1, ... for the labels of a table, in their order."""
    found = {cells["label"]: line for line, cells in reversed(rows) if cells["label"]}
    numbered = all(re.fullmatch(r"[-+]?[0-9]+(\.[0-9]*)?", label) for label in found)
    if numbered and found and "classname" not in columns:
        raise ValueError(
            f"{path}: all labels are numbers, which prompts cannot speak of. Write class names "
            "instead, or add a column classname."
        )
    if not numbered:
        return {label: i for i, label in enumerate(sorted(found))}
    meant: dict[int, str] = {}
    for label, line in sorted(found.items(), key=lambda pair: pair[1]):
        if not label.isdigit() or meant.setdefault(int(label), label) != label:
            raise ValueError(
                f"{path}, line {line}: label {label!r} found; numbers of classes are whole, from 0 "
                "up, and always written in one way: 1 and 01 are not two classes."
            )
    return {label: i for i, label in enumerate(sorted(found, key=int))}


def _hint(table: Path, entry: Entry) -> str:
    """What may be wrong with the path of an absent image."""
    slashes = entry.path.replace("\\", "/")
    if slashes != entry.path and (table.parent / slashes).is_file():
        return f" (write {slashes})"
    return ""


def read_own(place: str) -> Listing:
    """Own data by the path of their folder or table.

    Raises:
        ValueError: there is nothing there, or nothing that can be read as own data.
    """
    path = Path(place).expanduser().absolute()
    if not path.exists():
        raise ValueError(f"there is no folder or table {path}")
    return read_folder(path) if path.is_dir() else read_csv(path)
