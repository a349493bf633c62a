"""The log: everything printed also goes to a file."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, TextIO

from .tools import mkdir_if_missing

CONTINUED = "=== log continued on"  # starts the line between two runs in one file


class Logger:
    """A stdout that writes to the console and, line by line, to the end of a file."""

    def __init__(self, fpath: str | os.PathLike | None = None) -> None:
        self.console: TextIO = sys.stdout
        self.file: TextIO | None = None
        if fpath is not None:
            mkdir_if_missing(os.path.dirname(fpath))
            # Line-buffered: a killed run keeps every line it printed.
            self.file = open(fpath, "a", encoding="utf-8", buffering=1, errors="backslashreplace")

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:  # isatty, encoding, fileno, ...
        if name == "console":  # not set yet
            raise AttributeError(name)
        return getattr(self.console, name)

    def write(self, msg: str) -> int:
        if self.file is not None:
            self.file.write(msg)
        return self.console.write(msg)

    def flush(self) -> None:
        self.console.flush()
        if self.file is not None:
            self.file.flush()

    def close(self) -> None:
        """Close the file; the console belongs to the process and stays open."""
        if self.file is not None:
            self.file.close()
            self.file = None


def setup_logger(output: str | os.PathLike | None = None) -> None:
    """Copy stdout to ``output/log.txt``, or to ``output`` itself if it ends in .txt or .log.

    An existing log is continued after a marked line, so that log.txt holds the newest result.
    Called again, it switches to the new file. None changes nothing.
    """
    if output is None:
        return
    fpath = os.fspath(output)
    if not fpath.endswith((".txt", ".log")):
        fpath = os.path.join(fpath, "log.txt")
    if isinstance(sys.stdout, Logger):
        sys.stdout.close()
        sys.stdout = sys.stdout.console
    last_byte = _last_byte(fpath)
    logger = Logger(fpath)
    if last_byte is not None:
        broken_line = "" if last_byte == b"\n" else "\n"  # the earlier run was killed in a line
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        logger.file.write(f"{broken_line}{CONTINUED} {now} ===\n")
    sys.stdout = logger


def _last_byte(fpath: str) -> bytes | None:
    if not os.path.isfile(fpath) or os.path.getsize(fpath) == 0:
        return None
    with open(fpath, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)
