"""The real layout of every data set with few tiny images: same names, same kinds of files.

Each build_*() writes images and the official lists into a folder, but no split file. All images are
one file under many names (hard links), so that even full-size lists are made in a second.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

PER_CLASS = 10
IMAGENET_CLASSES = 1000  # tests may set fewer


def jpeg_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (90, 120, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def make_images(folder: Path, paths: Iterable[str]) -> None:
    """Valid JPEG files at these relative paths; all share one file's bytes on disk."""
    original, made = None, set()
    for path in paths:
        target = folder / path
        if target.parent not in made:
            target.parent.mkdir(parents=True, exist_ok=True)
            made.add(target.parent)
        if original is None:
            target.write_bytes(jpeg_bytes())
            original = target
        else:
            os.link(original, target)


def _class_folders(folder: Path, classes: Iterable[str], pattern: str = "image_{:04d}.jpg"):
    make_images(
        folder, (f"{name}/{pattern.format(i + 1)}" for name in classes for i in range(PER_CLASS))
    )


def build_caltech101(folder: Path) -> None:
    names = ("BACKGROUND_Google", "Faces", "Faces_easy", "Leopards", "Motorbikes", "accordion",
             "airplanes", "yin_yang")  # fmt: skip
    _class_folders(folder / "101_ObjectCategories", names)
    make_images(folder / "101_ObjectCategories/accordion", [".hidden.jpg"])


def build_dtd(folder: Path) -> None:
    for name in ("banded", "blotchy", "braided", "zigzagged"):
        make_images(folder / "images", (f"{name}/{name}_{i:04d}.jpg" for i in range(7, 17)))


def build_eurosat(folder: Path) -> None:
    for name in ("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial",
                 "Pasture", "PermanentCrop", "Residential", "River", "SeaLake"):  # fmt: skip
        make_images(folder / "2750", (f"{name}/{name}_{i}.jpg" for i in range(1, 11)))


def build_food101(folder: Path) -> None:
    _class_folders(folder / "images", ("apple_pie", "baby_back_ribs", "waffles"), "{:06d}.jpg")


def build_oxford_pets(folder: Path) -> None:
    breeds = ("Abyssinian", "american_bulldog", "Bengal", "saint_bernard", "yorkshire_terrier")
    make_images(
        folder / "images",
        (f"{b}_{i}.jpg" for b in breeds for i in range(1, 2 * PER_CLASS + 1)),
    )
    (folder / "annotations").mkdir()
    for part, first in (("trainval", 1), ("test", PER_CLASS + 1)):
        lines = [
            f"{breed}_{i} {label} {1 + breed[0].islower()} 1"
            for label, breed in enumerate(breeds, start=1)
            for i in reversed(range(first, first + PER_CLASS))
        ]
        (folder / "annotations" / f"{part}.txt").write_text("\n".join(lines) + "\n")


def build_stanford_cars(folder: Path) -> None:
    from scipy.io import savemat

    names = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "smart fortwo Convertible 2012")
    (folder / "devkit").mkdir(parents=True)
    cells = np.empty((1, len(names)), dtype=object)
    cells[0, :] = names
    savemat(folder / "devkit/cars_meta.mat", {"class_names": cells})
    kinds = [(key, object) for key in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class")]
    for part, path in (
        ("train", "devkit/cars_train_annos.mat"),
        ("test", "cars_test_annos_withlabels.mat"),
    ):
        count = len(names) * PER_CLASS
        files = [f"{i + 1:05d}.jpg" for i in range(count)]
        make_images(folder / f"cars_{part}", files)
        rows = np.empty((1, count), dtype=[*kinds, ("fname", object)])
        for i, name in enumerate(files):
            rows[0, i] = (1, 1, 8, 8, 1 + (i * 2) % len(names), name)
        savemat(folder / path, {"annotations": rows})


def build_oxford_flowers(folder: Path) -> None:
    from scipy.io import savemat

    names = {"1": "pink primrose", "2": "hard-leaved pocket orchid", "3": "canterbury bells"}
    labels = [1 + (i * i) % 3 for i in range(30)]
    labels += [1 + i % 3 for i in range(15)]
    make_images(folder / "jpg", (f"image_{i + 1:05d}.jpg" for i in range(len(labels))))
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    (folder / "cat_to_name.json").write_text(json.dumps(names))


def build_fgvc_aircraft(folder: Path) -> None:
    variants = ("707-320", "737-200", "A300B4", "F/A-18", "Spitfire Mk V")
    count = len(variants) * PER_CLASS
    make_images(folder / "images", (f"{1000000 + i:07d}.jpg" for i in range(3 * count)))
    (folder / "variants.txt").write_text("\n".join(variants) + "\n")
    for k, part in enumerate(("train", "val", "test")):
        lines = [
            f"{1000000 + k * count + i:07d} {variants[i % len(variants)]}" for i in range(count)
        ]
        (folder / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")


def build_sun397(folder: Path) -> None:
    classes = ("/a/abbey", "/a/apartment_building/outdoor", "/a/apse/indoor", "/y/youth_hostel")
    (folder / "SUN397").mkdir(parents=True)
    (folder / "ClassName.txt").write_text("\n".join(classes) + "\n")
    for part, first in (("Training", 0), ("Testing", PER_CLASS)):
        paths = [
            f"{name}/sun_{chr(97 + i)}{label}.jpg"
            for label, name in enumerate(classes)
            for i in range(first, first + PER_CLASS)
        ]
        make_images(folder / "SUN397", (path[1:] for path in paths))
        (folder / f"{part}_01.txt").write_text("\n".join(paths) + "\n")


def build_ucf101(folder: Path) -> None:
    actions = ("ApplyEyeMakeup", "BoxingPunchingBag", "YoYo")
    renamed = ("Apply_Eye_Makeup", "Boxing_Punching_Bag", "Yo_Yo")
    lists = folder / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    numbered = "".join(f"{i} {name}\n" for i, name in enumerate(actions, start=1))
    (lists / "classInd.txt").write_text(numbered)
    train, test = [], []
    for label, (action, words) in enumerate(zip(actions, renamed, strict=True), start=1):
        videos = [f"v_{action}_g{i:02d}_c01" for i in range(1, 2 * PER_CLASS + 1)]
        make_images(folder / "UCF-101-midframes", (f"{words}/{video}.jpg" for video in videos))
        train += [f"{action}/{video}.avi {label}\n" for video in videos[PER_CLASS:]]
        test += [f"{action}/{video}.avi\n" for video in videos[:PER_CLASS]]
    (lists / "trainlist01.txt").write_text("".join(train))
    (lists / "testlist01.txt").write_text("".join(test))


def wnids() -> list[str]:
    """Ids in sorted order, shaped like WordNet's."""
    return [f"n{1440000 + 764 * i:08d}" for i in range(IMAGENET_CLASSES)]


def write_classnames(folder: Path) -> None:
    """As many lines, and the same two names twice at the same places, as CLIP's list."""
    names = [f"thing {i}" for i in range(IMAGENET_CLASSES)]
    names[0], names[1] = "tench", "great white shark"
    twice = (657, 744, 836, 837) if IMAGENET_CLASSES == 1000 else (3, 5, 6, 7)
    for place, name in zip(twice, ("missile", "missile", "sunglasses", "sunglasses"), strict=True):
        names[place] = name
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{wnid} {name}" for wnid, name in zip(wnids(), names, strict=True)]
    (folder / "classnames.txt").write_text("\n".join(lines) + "\n")


def build_imagenet(folder: Path, train: int = 2, val: int = 1) -> None:
    write_classnames(folder)
    make_images(
        folder / "images/train",
        (f"{wnid}/{wnid}_{i}.JPEG" for wnid in wnids() for i in range(train)),
    )
    make_images(
        folder / "images/val",
        (
            f"{wnid}/ILSVRC2012_val_{1 + k + 1000 * i:08d}.JPEG"
            for k, wnid in enumerate(wnids())
            for i in range(val)
        ),
    )


def build_imagenetv2(folder: Path) -> None:
    write_classnames(folder)
    make_images(
        folder / "imagenetv2-matched-frequency-format-val",
        (f"{label}/{label}_{i}.jpeg" for label in range(IMAGENET_CLASSES) for i in range(1)),
    )


def build_imagenet_sketch(folder: Path) -> None:
    write_classnames(folder)
    make_images(folder / "images", (f"{wnid}/sketch_{i}.JPEG" for wnid in wnids() for i in (0,)))


def build_imagenet_a(folder: Path) -> None:
    write_classnames(folder)
    make_images(
        folder / "imagenet-a", (f"{wnid}/0.00_{i}.jpg" for wnid in wnids()[3::5] for i in (0, 1))
    )
    (folder / "imagenet-a/README.txt").write_text("about\n")


def build_imagenet_r(folder: Path) -> None:
    write_classnames(folder)
    make_images(
        folder / "imagenet-r", (f"{wnid}/art_{i}.jpg" for wnid in wnids()[1::5] for i in (0, 1))
    )
    (folder / "imagenet-r/README.txt").write_text("about\n")


# registry name: (yaml of configs/datasets, folder, builder)
WORLDS = {
    "ImageNet": ("imagenet", "imagenet", build_imagenet),
    "Caltech101": ("caltech101", "caltech-101", build_caltech101),
    "OxfordPets": ("oxford_pets", "oxford_pets", build_oxford_pets),
    "StanfordCars": ("stanford_cars", "stanford_cars", build_stanford_cars),
    "OxfordFlowers": ("oxford_flowers", "oxford_flowers", build_oxford_flowers),
    "Food101": ("food101", "food-101", build_food101),
    "FGVCAircraft": ("fgvc_aircraft", "fgvc_aircraft", build_fgvc_aircraft),
    "SUN397": ("sun397", "sun397", build_sun397),
    "DescribableTextures": ("dtd", "dtd", build_dtd),
    "EuroSAT": ("eurosat", "eurosat", build_eurosat),
    "UCF101": ("ucf101", "ucf101", build_ucf101),
    "ImageNetV2": ("imagenetv2", "imagenetv2", build_imagenetv2),
    "ImageNetSketch": ("imagenet_sketch", "imagenet-sketch", build_imagenet_sketch),
    "ImageNetA": ("imagenet_a", "imagenet-adversarial", build_imagenet_a),
    "ImageNetR": ("imagenet_r", "imagenet-rendition", build_imagenet_r),
}


def build(name: str, root: Path) -> Path:
    """Build a data set's folder under the root."""
    folder = root / WORLDS[name][1]
    folder.mkdir(parents=True, exist_ok=True)
    WORLDS[name][2](folder)
    return folder
