"""Own images, chosen by config alone: ImageFolder and CSV. docs/OWN_DATA.md walks through both."""

from __future__ import annotations

import csv
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY, Datum

from datasets.base import CheckedDataset, data_root, label_problems, missing_files
from datasets.fewshot import SPLIT_SEED, divide
from datasets.listing import files, subfolders
from datasets.split import SPLITS, Entry, Split

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp")


class OwnDataset(CheckedDataset):
    """Images of the user, one class each."""

    own_data = True  # trainers then report on the data before they train

    def class_counts(self) -> list[tuple[str, int, int, int]]:
        """Class name and its images in train, val and test, as this run uses them."""
        return class_counts(self.classnames, self.train_x, self.val, self.test)


def class_counts(
    classnames: Iterable[str], *splits: list[Datum] | None
) -> list[tuple[str, int, int, int]]:
    """Class name and its number of images in each split."""
    counts = [Counter(item.label for item in split or []) for split in splits]
    return [(name, *(count[i] for count in counts)) for i, name in enumerate(classnames)]


@DATASET_REGISTRY.register()
class ImageFolder(OwnDataset):
    """DATASET.FOLDER/<class>/*.jpg, split automatically; or train, val, test with class folders.

    A class is called like its folder, or as FOLDER/classnames.txt says: lines of "folder name".
    """

    def __init__(self, cfg):
        root = data_root(cfg)
        folder = (root / Path(cfg.DATASET.FOLDER).expanduser()) if cfg.DATASET.FOLDER else root
        if not folder.is_dir():
            raise ValueError(
                f"DATASET.FOLDER is {cfg.DATASET.FOLDER!r}: there is no folder {folder}. Set it to "
                "the folder of the images, absolute or under --root."
            )
        present = [name for name in subfolders(folder) if name in SPLITS]
        if not present:
            classes = subfolders(folder)
            split = divide(_images(folder, "", classes), random.Random(SPLIT_SEED))
            tell_split(split)
        elif {"train", "test"} <= set(present):
            classes = sorted({name for part in present for name in subfolders(folder / part)})
            split = Split(*(_images(folder, f"{part}/", classes) for part in SPLITS))
        else:
            raise ValueError(
                f"{folder} has {' and '.join(present)}, but train and test are needed, val is not. "
                "Add the folder, or put the class folders into one folder for an automatic split."
            )
        names = folder_names(folder / "classnames.txt")
        problems = label_problems(split, [names.get(name, name) for name in classes])
        super().__init__(cfg, folder, split, problems, f"give these classes images in {folder}")


def _images(folder: Path, part: str, classes: list[str]) -> list[Entry]:
    names = folder_names(folder / "classnames.txt")
    return [
        Entry(f"{part}{name}/{image}", label, names.get(name, name))
        for label, name in enumerate(classes)
        for image in files(folder / f"{part}{name}")
        if image.lower().endswith(IMAGES)
    ]


def folder_names(path: Path) -> Mapping[str, str]:
    """Class names by folder name, from lines of "folder name"; none where there is no file."""
    if not path.is_file():
        return {}
    lines = (line.strip().partition(" ") for line in path.read_text(encoding="utf-8").splitlines())
    return {folder: name.strip() for folder, _, name in lines if name.strip()}


def tell_split(split: Split) -> None:
    print(
        f"Split automatically, alike for every seed: {len(split.train)} train, {len(split.val)} "
        f"val and {len(split.test)} test images."
    )


@DATASET_REGISTRY.register()
class CSV(OwnDataset):
    """DATASET.CSV with the columns path, label and, if wanted, split and classname.

    Paths are absolute or relative to the CSV file. Without split the images are split
    automatically. A label is a class name, or a number with the name in classname.
    """

    def __init__(self, cfg):
        path = data_root(cfg) / Path(cfg.DATASET.CSV).expanduser()
        if not path.is_file():
            raise ValueError(
                f"DATASET.CSV is {cfg.DATASET.CSV!r}: there is no file {path}. Set it to a file "
                "with the columns path,label, absolute or under --root."
            )
        split = read_csv(path)
        problems = label_problems(split) + missing_files(path.parent, split)
        super().__init__(cfg, path.parent, split, problems, f"correct {path}")


def read_csv(path: Path) -> Split:
    """
    Raises:
        ValueError: a column is missing, a row has no path, label or known split, an image is listed
            twice, or labels are numbers without names.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        columns = reader.fieldnames or []
        rows = [(reader.line_num, row) for row in reader]
    for column in ("path", "label"):
        if column not in columns:
            raise ValueError(
                f"{path} has the columns {', '.join(columns) or 'none'}, but not {column}; its "
                "first line must be path,label or path,label,split, with an optional classname."
            )
    numbered = all((row["label"] or "").strip().isdigit() for _, row in rows)
    if numbered and "classname" not in columns:
        raise ValueError(
            f"{path}: all labels are numbers, which prompts cannot speak of. Write class names "
            "instead, or add a column classname."
        )
    labels = sorted({(row["label"] or "").strip() for _, row in rows}, key=int if numbered else str)
    number = {label: i for i, label in enumerate(labels)}
    parts: dict[str, list[Entry]] = {part: [] for part in SPLITS}
    seen: dict[str, int] = {}
    for line, row in rows:
        cells = {name: (row[name] or "").strip() for name in columns if name}
        part = cells.get("split", "train")
        if not (cells["path"] and cells["label"] and part in SPLITS):
            raise ValueError(
                f"{path}, line {line}: path {cells['path']!r}, label {cells['label']!r}, split "
                f"{part!r} found; path and label must not be empty, and split is one of "
                f"{', '.join(SPLITS)}."
            )
        if cells["path"] in seen:
            raise ValueError(
                f"{path}, line {line}: {cells['path']} is listed in line {seen[cells['path']]} "
                "already. Each image has one class and one split; delete one of the lines."
            )
        seen[cells["path"]] = line
        name = cells.get("classname") or cells["label"]
        parts[part].append(Entry(cells["path"], number[cells["label"]], name))
    if "split" in columns:
        return Split(*(sorted(parts[part]) for part in SPLITS))
    split = divide(sorted(parts["train"], key=lambda entry: entry[1:] + entry[:1]),
                   random.Random(SPLIT_SEED))  # fmt: skip
    tell_split(split)
    return split
