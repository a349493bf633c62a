"""Images that no data set of Dassl lists, taken one by one: there may be too many for a list.

A source is a folder with one subfolder per class, or a tar file as webdataset writes them: every
sample is two members, such as 000123.jpg and 000123.cls, a number that counts the classes from 0.
"""

from __future__ import annotations

import glob
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from regions.dataset import reading
from regions.files import RegionStoreError
from regions.images import RegionImage
from regions.spec import relative_path

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")


def expand(patterns: Sequence[str]) -> list[Path]:
    """The folders and files of patterns such as train-*.tar, each pattern's in sorted order.

    Raises RegionStoreError when a pattern fits nothing.
    """
    found = []
    for pattern in patterns:
        paths = sorted(glob.glob(os.path.expanduser(pattern)))
        if not paths:
            raise RegionStoreError(
                f"--source {pattern} is missing: no folder or file is of that name."
            )
        found += map(Path, paths)
    return found


def read_classnames(sources: Sequence[Path], file: Path | None) -> list[str]:
    """The class names of sources in the order of their labels.

    Args:
        file: one name a line; None takes the names of the subfolders, _ being a space.
    Raises:
        RegionStoreError: tar files have no class names, or a folder has another number of them.
    """
    folders = [_subfolders(source) for source in sources if source.is_dir()]
    if file is None:
        if len(folders) < len(sources):
            raise RegionStoreError(
                "tar files do not name their classes. Give --classnames FILE with a name a line, "
                "in the order of the numbers in the .cls members."
            )
        names = folders[0]
        if any(other != names for other in folders):
            raise RegionStoreError(f"{sources[0]} and the other folders have other subfolders.")
        return [name.replace("_", " ") for name in names]
    names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    for source, subfolders in zip((s for s in sources if s.is_dir()), folders, strict=True):
        if len(subfolders) != len(names):
            raise RegionStoreError(
                f"{source} has {len(subfolders)} subfolders, but {file} names {len(names)} "
                "classes. It needs a line for each subfolder, in their sorted order."
            )
    return names


def images_of(sources: Iterable[Path], root: str | Path) -> Iterator[RegionImage]:
    """The images of folders and tar files one after the other, with their sizes in pixels.

    The order is that of the sorted names in a folder, and that of the members in a tar file.

    Raises:
        RegionStoreError: an image is unreadable or has no label, a source is missing.
        ValueError: a source does not lie under root.
    """
    for source in sources:
        if source.is_dir():
            yield from _of_folder(source, root)
        else:
            yield from _of_tar(source, root)


def _subfolders(source: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(source) if entry.is_dir())


def _of_folder(source: Path, root: str | Path) -> Iterator[RegionImage]:
    for label, name in enumerate(_subfolders(source)):
        for path in _files(source / name):
            with reading(str(path)), Image.open(path) as image:
                width, height = image.size
            yield RegionImage(relative_path(path, root), label, height, width)


def _files(folder: Path) -> Iterator[Path]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _files(folder / entry.name)
        elif entry.name.lower().endswith(SUFFIXES):
            yield folder / entry.name


def _of_tar(source: Path, root: str | Path) -> Iterator[RegionImage]:
    place = relative_path(source, root)
    key, size, label = "", None, None  # of the sample at hand, whose members lie side by side
    with _opened(source) as tar:
        for member in tar:
            tar.members = []  # tarfile keeps all of them otherwise
            if not member.isreg():
                continue
            inner = member.name.removeprefix("./")
            folder, name = os.path.split(inner)
            stem, _, kind = name.partition(".")  # webdataset: a key ends at the first dot
            if (folder, stem) != key:
                _require_paired(source, key, size, label)
                key, size, label = (folder, stem), None, None
            if kind == "cls":
                with reading(f"{source}/{member.name}"):
                    label = int(tar.extractfile(member).read(32))
            elif f".{kind}".lower().endswith(SUFFIXES):
                content = tar.extractfile(member)
                with reading(f"{source}/{inner}"), Image.open(content) as image:
                    size = (f"{place}/{inner}", *image.size)
            if size is not None and label is not None:
                path, width, height = size
                yield RegionImage(path, label, height, width)
                size, label = None, None
        _require_paired(source, key, size, label)


def _require_paired(source: Path, key: object, size: object, label: object) -> None:
    if size is not None and label is None:
        raise RegionStoreError(
            f"{source} has no label beside {size[0]}: a member of that name that ends in .cls, "
            "right before or after it, has to hold the number of its class."
        )


def _opened(source: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(source, "r:")
    except FileNotFoundError as error:
        raise RegionStoreError(f"{source} is missing. Check --source.") from error
    except (tarfile.TarError, OSError) as error:
        raise RegionStoreError(
            f"{source} is no tar file ({error}). A compressed one has to be unpacked first: "
            "images are read from it in any order."
        ) from error
