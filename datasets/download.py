"""Fetch a file once: mirrors in order, continued after a cut, and kept aside if it is wrong.

A file grows under <name>.part and gets its name only when it is whole and its checksum is right.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import inspect
import io
import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

DRIVE = "drive:"  # and a file's id: Google Drive, through gdown
DRIVE_ADDRESS = "https://drive.google.com/uc?id="
TIMEOUT = 60  # seconds without a byte
TRIES = 5  # in a row without a new byte, before the next mirror
TRIES_TO_CONNECT = 2  # of a server that cannot be reached at all
PAUSE = 1.0  # seconds before the second try; doubles with every one
CHUNK = 1 << 20
HEADERS = {"User-Agent": "Mozilla/5.0 (datasets.prepare)", "Accept-Encoding": "identity"}
FULL = (errno.ENOSPC, errno.EDQUOT)
CUT = (urllib.error.URLError, http.client.HTTPException, OSError)
STARTS = {  # first bytes of a file by its suffix
    ".zip": (b"PK",),
    ".gz": (b"\x1f\x8b",),
    ".tgz": (b"\x1f\x8b",),
    ".json": (b"{", b"["),
    ".mat": (b"MATLAB",),
}


class DownloadError(ValueError):
    """A file cannot be had. The message tells of every address that was tried."""


def fetch(urls: Sequence[str], target: Path, md5: str = "") -> Path:
    """Return the file, downloading it where it is missing.

    Args:
        urls: tried in order; "drive:<id>" is a file on Google Drive.
        md5: checksum; "" where none is published.
    Raises:
        DownloadError: no address gives the file; what came with a wrong checksum is kept aside.
    """
    told = []
    if target.exists():
        wrong = what_is_wrong(target, target.name, md5)
        if not wrong:
            return target
        told.append(f"the file there: {wrong}; kept as {set_aside(target, target)}")
    part = target.with_name(target.name + ".part")
    for url in urls:
        try:
            if url.startswith(DRIVE):
                url = DRIVE_ADDRESS + url[len(DRIVE) :]
                _fetch_from_drive(url, part)
            else:
                _fetch_over_http(url, part)
            wrong = what_is_wrong(part, target.name, md5)
            if wrong:
                raise DownloadError(f"{wrong}; kept as {set_aside(part, target)}")
        except DownloadError as error:
            told.append(f"{url}: {error}")
            continue
        os.replace(part, target)
        return target
    raise DownloadError(f"{target.name} cannot be had. " + " | ".join(told))


def what_is_wrong(path: Path, name: str, md5: str = "") -> str:
    """Why this is not the wanted file; "" if nothing tells against it."""
    with path.open("rb") as file:
        start = file.read(512).lstrip()
    starts = STARTS.get(Path(name).suffix)
    if start[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "a web page came instead of the file (a login, a quota or a moved address)"
    if starts and not start.startswith(starts):
        return f"it is no {Path(name).suffix} file (starts with {start[:8]!r})"
    if name.endswith(".json"):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            return f"it is not valid JSON ({error})"
    if md5 and (found := md5_of(path)) != md5:
        return f"MD5 {found} found, {md5} expected"
    return ""


def md5_of(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with (
        path.open("rb") as file,
        tqdm(
            total=path.stat().st_size, unit="B", unit_scale=True, desc=f"MD5 of {path.name}",
            disable=None, leave=False,
        ) as bar,
    ):  # fmt: skip
        while block := file.read(CHUNK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def set_aside(path: Path, target: Path) -> Path:
    """Rename a wrong file to the first free <name>.wrong-1, -2, ..."""
    number = 1
    while (aside := target.with_name(f"{target.name}.wrong-{number}")).exists():
        number += 1
    os.replace(path, aside)
    _note(path).unlink(missing_ok=True)
    return aside


# HTTP


def _note(part: Path) -> Path:
    """What the begun file is: its address, and the server's mark of that version."""
    return part.with_name(part.name + ".json")


def _fetch_over_http(url: str, part: Path) -> None:
    """Download to `part`, continuing what is there if it is of the same address and version."""
    part.parent.mkdir(parents=True, exist_ok=True)
    note, failed, tries = _read_note(part), 0, TRIES
    if note.get("url") != url:
        part.unlink(missing_ok=True)
    while True:
        before = _size(part)
        try:
            if _receive(url, part):
                _note(part).unlink(missing_ok=True)
                return
            told = f"the connection was cut after {_size(part):,} bytes"
        except urllib.error.HTTPError as error:
            told = f"HTTP {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                raise DownloadError(told) from error
        except CUT as error:
            if getattr(error, "filename", None) or getattr(error, "errno", None) in FULL:
                raise  # the disk's, not the network's
            told = str(getattr(error, "reason", error)) or type(error).__name__
            tries = TRIES_TO_CONNECT if isinstance(error, urllib.error.URLError) else TRIES
        failed = 0 if _size(part) > before else failed + 1
        if failed >= tries:
            raise DownloadError(f"{told}; {failed} tries")
        time.sleep(PAUSE * 2**failed)


def _read_note(part: Path) -> dict:
    try:
        return json.loads(_note(part).read_text())
    except (OSError, ValueError):
        return {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _receive(url: str, part: Path) -> bool:
    """One request; True when the file is whole."""
    have, mark = _size(part), _read_note(part).get("mark", "")
    headers = dict(HEADERS)
    if have:
        headers["Range"] = f"bytes={have}-"
        if mark:  # another version is sent from its start
            headers["If-Range"] = mark
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT
        )
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        total = error.headers.get("Content-Range", "").rpartition("/")[2]
        if total == str(have):
            return True
        part.unlink()  # longer than the file: begin anew
        return False
    with response:
        if response.headers.get_content_type() == "text/html":
            raise DownloadError("a web page came instead of the file")
        start = 0
        if response.status == 206:
            start = int(response.headers["Content-Range"].split()[1].partition("-")[0])
            if start > have:
                raise DownloadError(f"bytes from {have} on were asked for, from {start} on came")
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        _require_space(part, total)
        mark = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if mark.startswith("W/"):
            mark = ""  # a weak mark does not promise the same bytes
        if not start:  # before the note: killed in between, no old bytes pass for the new version's
            part.write_bytes(b"")
        _note(part).write_text(json.dumps({"url": url, "mark": mark}))
        with part.open("r+b" if start else "wb") as file, _bar(part, total, start) as bar:
            file.seek(start)
            file.truncate()
            while block := response.read(CHUNK):
                file.write(block)
                bar.update(len(block))
            return total is None or file.tell() == total


def _bar(part: Path, total: int | None, start: int) -> tqdm:
    name = part.name.removesuffix(".part")
    print(f"Downloading {name}" + (f", from byte {start:,} on" if start else ""), flush=True)
    return tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=name, disable=None)


def _require_space(part: Path, total: int | None) -> None:
    free = shutil.disk_usage(part.parent).free + _size(part)
    if total and total > free:
        raise DownloadError(
            f"{total / 1e9:.1f} GB are needed, but {part.parent} has {free / 1e9:.1f} GB free"
        )


# Google Drive


def _fetch_from_drive(url: str, part: Path) -> None:
    try:
        import gdown  # slow to import
    except ImportError as error:
        raise DownloadError("gdown is not installed: pip install gdown") from error
    part.parent.mkdir(parents=True, exist_ok=True)
    part.unlink(missing_ok=True)  # gdown's own begun file has another name, and is continued
    print(f"Downloading {part.name.removesuffix('.part')} from Google Drive", flush=True)
    known = inspect.signature(gdown.download).parameters
    timeout = {"timeout": TIMEOUT} if "timeout" in known else {}  # gdown 6
    last = None
    for attempt in range(TRIES):
        try:
            if gdown.download(
                url,
                str(part),
                resume=True,
                use_cookies=False,
                quiet=not sys.stderr.isatty(),
                **timeout,
            ):
                return
            raise DownloadError("Google Drive does not hand the file out")
        except (DownloadError, KeyboardInterrupt):
            raise
        except Exception as error:  # gdown's versions raise different ones
            last = error
            told = type(error).__name__
            if told == "FileURLRetrievalError":  # quota, permission: not a cut
                break
            if told == "ConnectionError" and attempt + 1 >= TRIES_TO_CONNECT:
                break
            time.sleep(PAUSE * 2**attempt)
    plain = " ".join(str(last).split())
    raise DownloadError(f"Google Drive does not hand the file out ({plain[:200]})")


# One file out of a remote archive


class _RemoteFile(io.RawIOBase):
    """A file on a server that knows Range, read where it is."""

    def __init__(self, url: str):
        self.url, self.position = url, 0
        with self._open("bytes=0-0") as response:
            if response.status != 206:
                raise DownloadError("the server cannot send a part of the file")
            self.size = int(response.headers["Content-Range"].rpartition("/")[2])

    def _open(self, wanted: str):
        request = urllib.request.Request(self.url, headers={**HEADERS, "Range": wanted})
        return urllib.request.urlopen(request, timeout=TIMEOUT)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = origin + offset
        return self.position

    def readinto(self, buffer) -> int:
        end = min(self.position + len(buffer), self.size)
        if end <= self.position:
            return 0
        with self._open(f"bytes={self.position}-{end - 1}") as response:
            data = response.read()
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def fetch_member(url: str, name: str, target: Path, limit: int = 100_000_000) -> Path:
    """Take one small file out of a zip archive on a server, without downloading the archive.

    Raises:
        DownloadError: the archive or the file in it cannot be had.
    """
    draft = target.with_name(target.name + ".part")
    try:
        remote = io.BufferedReader(_RemoteFile(url), CHUNK)
        with contextlib.closing(remote), zipfile.ZipFile(remote) as archive:
            found = [info for info in archive.infolist() if Path(info.filename).name == name]
            if not found or found[0].file_size > limit:
                raise DownloadError(f"{url}: no {name} in it")
            draft.write_bytes(archive.read(found[0]))
    except (*CUT, zipfile.BadZipFile, KeyError, ValueError) as error:
        if isinstance(error, DownloadError):
            raise
        raise DownloadError(f"{url}: {error}") from error
    wrong = what_is_wrong(draft, name)
    if wrong:
        raise DownloadError(f"{url}: {name}: {wrong}; kept as {set_aside(draft, target)}")
    os.replace(draft, target)
    return target
