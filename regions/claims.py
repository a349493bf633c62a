"""Claims: which process works at which shard, on one machine or on several that share a folder.

A claim is a file that is made exclusively and that its owner touches every few seconds. The claim
of a dead owner falls to the next process that asks: at once when the owner ran here, and after
STALE seconds without a touch when it ran elsewhere or hangs. The asking process measures that with
its own clock, so machines need not agree on the time.

Claims save work and guard nothing: processes that make the same shard nevertheless (a hung one
wakes up, a network file system shows old news) cost only time, see regions.shared.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

BEAT = 5.0  # seconds between two touches of a claim
STALE = 60.0  # seconds without a touch after which its owner counts as dead
MAX_CLAIM = 4096  # bytes that are read of a claim


class Claims:
    """The claims of this process in a folder that all processes see. Use it in a with statement."""

    def __init__(self, folder: Path, beat: float = BEAT, stale: float = STALE) -> None:
        self.folder, self.beat, self.stale = folder, beat, stale
        self.token = uuid.uuid4().hex
        self._home = _home()
        self._owner = {**self._home, "pid": os.getpid(), "started": _started(os.getpid())}
        self._held: set[str] = set()
        self._seen: dict[str, tuple[Any, float, bool]] = {}  # touch, seen since, touched before
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, name: str) -> bool:
        """Claim a piece of work. False: another process has it.

        Raises OSError when the folder cannot be made or written to.
        """
        if name in self._held:
            return True
        path = self._path(name)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            if path.exists():
                if self.is_alive(name) is not False:
                    return False
                self._remove_dead(path)
            self._make(path)
        except (FileExistsError, FileNotFoundError):  # another was faster, or swept the folder
            return False
        self._held.add(name)
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_beating, daemon=True)
            self._thread.start()
        return True

    def is_alive(self, name: str) -> bool | None:
        """Whether the owner of a claim is at work; None when that is not known yet: ask again.

        A claim that does not exist has no living owner: False.
        """
        if name in self._held:
            return True
        found = _read(self._path(name))
        if found is None:
            self._seen.pop(name, None)
            return False
        owner, touched = found
        sign, now = (owner.get("token"), touched), time.monotonic()
        before, since, beats = self._seen.get(name, (sign, now, False))
        if before != sign:
            since, beats = now, True
        self._seen[name] = (sign, since, beats)
        if now - since >= self.stale:
            return False
        if owner.get("started") and {key: owner.get(key) for key in self._home} == self._home:
            return _started(owner.get("pid")) == owner["started"]
        return beats or None

    def release(self, name: str) -> None:
        """Give a claim back."""
        self._held.discard(name)
        path = self._path(name)
        found = _read(path)
        if found and found[0].get("token") == self.token:  # else it fell to another meanwhile
            with contextlib.suppress(OSError):
                path.unlink()

    def close(self) -> None:
        """Give all claims back."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for name in list(self._held):
            self.release(name)
        with contextlib.suppress(OSError):  # others have theirs in it
            self.folder.rmdir()

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.claim"

    def _make(self, path: Path) -> None:
        """Make a claim with all that it says at once: a killed process leaves none half written.

        Raises FileExistsError when there is one.
        """
        text = json.dumps({**self._owner, "token": self.token})
        new = path.with_name(f"{path.name}.{self.token}.new")
        try:
            new.write_text(text, encoding="utf-8")
            try:
                os.link(new, path)
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links
                with path.open("x", encoding="utf-8") as file:
                    file.write(text)
        except OSError as error:
            if error.filename is None:
                error.filename = str(path)  # a full disk says which file it refused
            raise
        finally:
            with contextlib.suppress(OSError):
                new.unlink()

    def _remove_dead(self, path: Path) -> None:
        """Take a dead owner's claim out of the way; of several who try, one moves it."""
        dead = path.with_name(f"{path.name}.{self.token}.dead")
        before = _read(path)
        os.rename(path, dead)
        after = _read(dead)
        if before and after and before[0].get("token") != after[0].get("token"):
            with contextlib.suppress(OSError):  # another was faster, and it is alive: put it back
                os.link(dead, path)
        dead.unlink()
        self._seen.pop(path.name[: -len(".claim")], None)

    def _keep_beating(self) -> None:
        while not self._stop.wait(self.beat):
            for name in list(self._held):
                with contextlib.suppress(OSError):
                    os.utime(self._path(name))


def _read(path: Path) -> tuple[dict[str, Any], int] | None:
    """What a claim says, and when it was last touched; None when it does not exist."""
    try:
        with path.open("rb") as file:  # open first: only that asks a network file system anew
            text, touched = file.read(MAX_CLAIM), os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None
    try:
        owner = json.loads(text.decode())
    except (ValueError, RecursionError):
        owner = {}  # being written, or its writer died there
    return (owner if isinstance(owner, dict) else {}), touched


def _home() -> dict[str, str]:
    """Within what two processes can look each other up by number."""
    host = socket.gethostname()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"host": host, "boot": boot, "space": os.readlink("/proc/self/ns/pid")}
    except OSError:  # not Linux: only touches tell
        return {"host": host, "boot": "", "space": uuid.uuid4().hex}


def _started(pid: Any) -> int | None:
    """When a process of this machine began, in clock ticks since boot; None: there is none."""
    try:
        # After the name, which may hold anything; a zombie (Z) or dead (X) process is none.
        fields = Path(f"/proc/{int(pid)}/stat").read_text().rsplit(")", 1)[1].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, TypeError, IndexError):
        return None
