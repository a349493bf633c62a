"""One dump at a time in a folder: an advisory lock, which ends with the process that holds it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from regions.files import RegionStoreError

try:
    import fcntl
except ImportError:  # not a Unix: two dumps into one folder are then not noticed
    fcntl = None


def lock_folder(path: Path, shared: bool = False) -> int | None:
    """Lock the folder against a second dump, until the process ends or close() is called.

    shared: only against one that is not shared, see regions.shared.
    """
    if fcntl is None:
        return None
    folder = os.open(path, os.O_RDONLY)
    try:
        if relock(folder, shared):
            return folder
    except OSError:  # network file systems without locks
        os.close(folder)
        return None
    os.close(folder)
    raise busy(path)


def busy(path: Path) -> RegionStoreError:
    return RegionStoreError(
        f"another dump is writing to {path}. Wait for it, or give another --store. "
        "(Processes that are to share one dump all need --shared, or torchrun.)"
    )


def relock(folder: int, shared: bool) -> bool:
    """Change a lock between shared and exclusive; False: another process does not let us."""
    try:
        fcntl.flock(folder, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def leave_lock(path: Path, lock: int | None, _worker: int = 0) -> None:
    """Drop a forked worker's share of the lock, so that the lock ends with the dump itself."""
    if lock is not None:
        with contextlib.suppress(OSError):  # a spawned worker never had it
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                os.close(lock)
