"""Files that are whole or absent, one writer at a time, and sizes in words. No torch in here."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a Unix: two writers are then not noticed
    fcntl = None

MAX_OWNER = 4096  # bytes that are read of a lock file


# --- whole or absent ------------------------------------------------------------------------


@contextlib.contextmanager
def written_whole(path: Path, writer: str = "") -> Iterator[Path]:
    """Write beside, then rename: a killed process leaves no file that looks finished.

    Gives the path to write to. It takes the name of the file, in place of an earlier one, when the
    with statement ends without an error, and is removed otherwise.

    Args:
        writer: name of this process among those that may write the file; default: its number.
    """
    partial = path.with_name(f"{path.name}.{writer or os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk says which file it refused
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_whole(path: Path, content: bytes | str, writer: str = "") -> None:
    """Write a file whole or not at all; text as UTF-8. writer: as in written_whole."""
    with written_whole(path, writer) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


# --- one writer at a time -------------------------------------------------------------------


class Busy(ValueError):
    """Another process is at work there. The message says which."""


_held: dict[Path, int] = {}  # the lock of a process does not keep out the process itself


class Lock:
    """A file that this process alone holds, until close() or its end, however it ends.

    Advisory, of whole processes, and also across machines where the file system has locks; where
    it has none, or the folder cannot be written, nobody is kept out. The file is removed at the
    end; one that a killed process leaves behind keeps nobody out.
    """

    def __init__(
        self,
        path: Path,
        doing: str,
        way_out: str,
        wait: float = 0.0,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """
        Args:
            doing: what its holder does, for the message: "dumping into stores/pets".
            way_out: what a user may do about it, a sentence.
            wait: seconds to wait for another holder.
            tell: takes a line that says for whom this process waits.
        Raises:
            Busy: another process holds it.
        """
        self.path, self._file = Path(os.path.abspath(path)), None
        deadline = time.monotonic() + wait
        while not self._take():
            if time.monotonic() >= deadline:
                raise Busy(f"{_owner(self.path)} is {doing}. {way_out}")
            if tell is not None:
                tell(f"{_owner(self.path)} is {doing}: waiting for it")
                tell = None
            time.sleep(0.05)

    def _take(self) -> bool:
        """Whether there is nothing to wait for."""
        if fcntl is None:
            return True
        if _held.get(self.path) == os.getpid():
            return False
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # a read-only folder: its writer will say so
            return True
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(file)
            return False
        except OSError:  # a file system without locks
            os.close(file)
            return True
        try:
            same = os.path.samestat(os.fstat(file), os.stat(self.path))
        except FileNotFoundError:
            same = False
        if not same:  # its last holder removed it just now
            os.close(file)
            return self._take()
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        with contextlib.suppress(OSError):  # a full disk
            os.truncate(file, 0)
            os.write(file, json.dumps(owner).encode())
        self._file = file
        _held[self.path] = os.getpid()
        return True

    def close(self) -> None:
        """Let others in."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            self.path.unlink()
        os.close(self._file)
        self._file = None
        _held.pop(self.path, None)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _owner(path: Path) -> str:
    """Who holds a lock, in words."""
    if _held.get(path) == os.getpid():  # to close any file of it would lose the lock
        return "this process itself"
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(MAX_OWNER))
        return f"process {found['pid']} on {found['host']}, since {found['since']},"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"


# --- how large ------------------------------------------------------------------------------


def human(size: float) -> str:
    """Bytes in words: 12.3 MB."""
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB")) if size >= u), (1e3, "kB"))
    return f"{size / unit:.1f} {name}"
