"""ImageNet's own archives: unpack them, and sort the validation images into class folders."""

from __future__ import annotations

import csv
import os
import re
import shutil
from pathlib import Path

from datasets.base import load_mat
from datasets.download import what_is_wrong
from datasets.listing import files, subfolders
from datasets.sources import GB, IMAGENET_FILES
from datasets.unpack import UnpackError, unpack, unpack_nested

TRAIN, VAL, DEVKIT = IMAGENET_FILES
IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
NUM_VAL = 50_000


def lay_out(folder: Path) -> list[str]:
    """Make images/train and images/val of what lies in the folder; return what went wrong."""
    images, failures = folder / "images", []
    try:
        if not (images / "train").exists() and _is_right(folder / TRAIN):
            staging = images / ".unpacking-train"
            unpack_nested(folder / TRAIN, staging, 200 * GB)
            os.replace(staging, images / "train")
        if not (images / "val").exists() and _is_right(folder / VAL):
            staging = images / ".unpacking-val"
            unpack(folder / VAL, staging, 20 * GB)
            os.replace(staging, images / "val")
        flat = [name for name in files(images / "val") if IMAGE.fullmatch(name)]
        if flat:
            sort_val(images / "val", flat, val_classes(folder))
    except UnpackError as error:
        failures.append(str(error))
    return failures


def _is_right(archive: Path) -> bool:
    if not archive.is_file():
        return False
    wrong = what_is_wrong(archive, archive.name, IMAGENET_FILES[archive.name])
    if wrong:
        raise UnpackError(f"{archive} is refused: {wrong}. Download it again.")
    return True


def sort_val(val: Path, names: list[str], classes: list[str]) -> None:
    """Move ILSVRC2012_val_<number>.JPEG to the folder of its class. Killed, it continues."""
    for name in names:
        target = val / classes[int(IMAGE.fullmatch(name)[1]) - 1]
        target.mkdir(exist_ok=True)
        os.replace(val / name, target / name)
    print(f"Sorted {len(names):,} images of {val} into {len(subfolders(val))} class folders.")


def val_classes(folder: Path) -> list[str]:
    """WordNet id of each validation image, by number.

    Read from the development kit, or where that is not there from Kaggle's LOC_val_solution.csv or
    the widely used valprep.sh (read as text, never run).

    Raises:
        UnpackError: none of the three is there, or it does not name every image.
    """
    if (folder / DEVKIT).is_file():
        _is_right(folder / DEVKIT)
        staging = folder / ".unpacking-devkit"
        try:
            unpack(folder / DEVKIT, staging, GB)
            return _of_devkit(staging / "ILSVRC2012_devkit_t12" / "data")
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    if (folder / "ILSVRC2012_devkit_t12" / "data").is_dir():
        return _of_devkit(folder / "ILSVRC2012_devkit_t12" / "data")
    pairs: dict[int, str] = {}
    if (folder / "LOC_val_solution.csv").is_file():
        with (folder / "LOC_val_solution.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                pairs[int(row["ImageId"][-8:])] = row["PredictionString"].split()[0]
    elif (folder / "valprep.sh").is_file():
        moves = r"ILSVRC2012_val_(\d{8})\.JPEG\s+(n\d{8})"
        pairs = {int(i): w for i, w in re.findall(moves, (folder / "valprep.sh").read_text())}
    else:
        raise UnpackError(
            f"{folder / 'images' / 'val'} is not sorted into class folders, and nothing says which "
            f"class an image has. Put {DEVKIT} (image-net.org, Development kit), "
            f"LOC_val_solution.csv (Kaggle) or valprep.sh into {folder} and run the command again"
        )
    if set(pairs) != set(range(1, NUM_VAL + 1)):
        raise UnpackError(
            f"The validation list in {folder} names {len(pairs):,} images found, "
            f"{NUM_VAL:,} expected; fetch it again."
        )
    return [pairs[i] for i in range(1, NUM_VAL + 1)]


def _of_devkit(data: Path) -> list[str]:
    wnid = {}
    for synset in load_mat(data / "meta.mat")["synsets"]:
        if int(synset["num_children"]) == 0:  # the 1000 classes; the others are above them
            wnid[int(synset["ILSVRC2012_ID"])] = str(synset["WNID"])
    numbers = (data / "ILSVRC2012_validation_ground_truth.txt").read_text().split()
    if len(numbers) != NUM_VAL:
        raise UnpackError(
            f"{data} names the classes of {len(numbers):,} images, {NUM_VAL:,} expected."
        )
    return [wnid[int(number)] for number in numbers]
