"""Images inside tar files: <folder>/train-00.tar/n01440764/1.jpg is a member of train-00.tar."""

from __future__ import annotations

import io
import os
import tarfile
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO


def open_image(path: str | os.PathLike) -> BinaryIO:
    """Open an image file, or a member of an uncompressed tar file that the path leads through.

    Raises FileNotFoundError when there is neither, and OSError or tarfile.TarError otherwise.
    """
    path = Path(path)
    tar = next((part for part in path.parents if part.suffix == ".tar" and part.is_file()), None)
    if tar is None:
        return path.open("rb")
    about = tar.stat()
    members = _members(tar, about.st_mtime_ns, about.st_size)
    name = path.relative_to(tar).as_posix()
    if name not in members:
        raise FileNotFoundError(f"{tar} has no {name}")
    start, size = members[name]
    with tar.open("rb") as file:
        file.seek(start)
        return io.BytesIO(file.read(size))


@lru_cache(maxsize=8)  # a dump goes through its tar files one after the other
def _members(tar: Path, _changed: int, _size: int) -> dict[str, tuple[int, int]]:
    """Where each member lies: name -> first byte, number of bytes."""
    with tarfile.open(tar, "r:") as file:
        return {
            member.name.removeprefix("./"): (member.offset_data, member.size)
            for member in file
            if member.isreg()
        }
