"""Unpack archives of strangers: nothing outside the target, no links, no devices, bounded size.

Files and folders are written by this module alone; modes, owners and times of the archive are not
taken over. A link becomes a second name of a file of the same archive, or is refused.
"""

from __future__ import annotations

import os
import posixpath
import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import IO

from tqdm import tqdm

CHUNK = 1 << 20
MAX_MEMBERS = 5_000_000  # ImageNet has 1.3 million


class UnpackError(ValueError):
    """An archive is damaged, or would write what it must not."""


class _Writer:
    """Writes members under one folder and counts their bytes."""

    def __init__(self, archive: str, into: Path, limit: int):
        self.archive, self.into, self.left, self.limit = archive, into, limit, limit
        self.members = 0
        into.mkdir(parents=True, exist_ok=True)

    def place(self, name: str) -> Path | None:
        """Where a member goes; None for what some systems add to archives."""
        self.members += 1
        if self.members > MAX_MEMBERS:
            raise self.refusal(f"more than {MAX_MEMBERS:,} members")
        parts = inside(name)
        if parts is None:
            raise self.refusal(f"member {name!r} lies outside the target")
        if "__MACOSX" in parts or (parts and parts[-1].startswith("._")):
            return None
        return self.into.joinpath(*parts)

    def folder(self, name: str) -> None:
        path = self.place(name)
        if path is not None:
            path.mkdir(parents=True, exist_ok=True)

    def file(self, name: str, source: IO[bytes]) -> None:
        path = self.place(name)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # a name that occurs twice must not write into a link
        with path.open("xb") as file:
            while block := source.read(CHUNK):
                self.left -= len(block)
                if self.left < 0:
                    raise self.refusal(f"it unpacks to more than {self.limit:,} bytes")
                file.write(block)

    def link(self, name: str, points_to: str) -> None:
        path, parts = self.place(name), inside(points_to)
        if parts is None:
            raise self.refusal(f"link {name!r} leads outside the target, to {points_to!r}")
        target = self.into.joinpath(*parts)
        if path is None:
            return
        if not target.is_file():
            raise self.refusal(f"link {name!r} leads to {points_to!r}, which is no file of it")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        os.link(target, path)

    def refusal(self, why: str) -> UnpackError:
        return UnpackError(f"{self.archive} is refused: {why}. Nothing of it is used.")


def inside(name: str) -> list[str] | None:
    """The parts of a relative path, or None if it is absolute, climbs out or holds odd signs."""
    if name.startswith("/") or "\\" in name or "\0" in name or ":" in name.split("/")[0]:
        return None
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if ".." in parts else parts


def unpack(archive: Path, into: Path, limit: int) -> None:
    """Unpack .zip, .tar, .tar.gz, .tgz into a new folder; on an error the folder is removed.

    Args:
        limit: bytes that may be written.
    Raises:
        UnpackError: see the class.
    """
    shutil.rmtree(into, ignore_errors=True)
    writer = _Writer(archive.name, into, limit)
    try:
        if archive.name.endswith(".zip"):
            _unzip(archive, writer)
        else:
            with tarfile.open(archive, "r|*") as tar:
                _untar(tar, writer, archive.name)
    except BaseException as error:
        shutil.rmtree(into, ignore_errors=True)
        damaged = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)
        odd = isinstance(error, OSError) and error.errno is None  # gzip's
        if isinstance(error, damaged) or odd:
            raise UnpackError(
                f"{archive} is damaged ({error}). Delete it and run the command again."
            ) from error
        raise


def unpack_nested(archive: Path, into: Path, limit: int) -> None:
    """Unpack a tar of tars, each into a folder of its name: ImageNet's training images."""
    shutil.rmtree(into, ignore_errors=True)
    writer = _Writer(archive.name, into, limit)
    try:
        with tarfile.open(archive, "r|*") as outer:
            for member in tqdm(outer, desc=archive.name, unit="class", disable=None):
                if not (member.isreg() and member.name.endswith(".tar")):
                    raise writer.refusal(f"member {member.name!r} is no .tar file")
                class_writer = _Writer(archive.name, into / Path(member.name).stem, writer.left)
                with tarfile.open(fileobj=outer.extractfile(member), mode="r|") as inner:
                    _untar(inner, class_writer, None)
                writer.left = class_writer.left
    except BaseException as error:
        shutil.rmtree(into, ignore_errors=True)
        if isinstance(error, tarfile.TarError | EOFError):
            raise UnpackError(f"{archive} is damaged ({error}). Fetch it again.") from error
        raise


def _untar(tar: tarfile.TarFile, writer: _Writer, shown: str | None) -> None:
    links = []
    bar = tqdm(tar, desc=f"Unpacking {shown}", unit="file", disable=None if shown else True)
    for member in bar:
        if member.isdir():
            writer.folder(member.name)
        elif member.isreg():
            writer.file(member.name, tar.extractfile(member))
        elif member.islnk():
            links.append((member.name, member.linkname))
        elif member.issym():
            target = posixpath.join(posixpath.dirname(member.name), member.linkname)
            links.append((member.name, _without_climbs(target)))
        else:
            raise writer.refusal(f"member {member.name!r} is a device or a pipe")
        tar.members = []  # what is read is done with; ImageNet's list would fill the memory
    for name, target in links:
        writer.link(name, target)


def _without_climbs(path: str) -> str:
    """a/b/../c as a/c. A path that climbs out keeps its leading .. and is refused later."""
    return posixpath.normpath(path)


def _unzip(archive: Path, writer: _Writer) -> None:
    with zipfile.ZipFile(archive) as file:
        infos = file.infolist()
        for info in tqdm(infos, desc=f"Unpacking {archive.name}", unit="file", disable=None):
            mode = info.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise writer.refusal(f"member {info.filename!r} is a link or a device")
            if info.is_dir():
                writer.folder(info.filename)
            else:
                with file.open(info) as source:
                    writer.file(info.filename, source)
