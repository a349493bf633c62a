"""What every command does with signals, errors, closed pipes, full disks and poor terminals.

Commands import this module first, and it imports little: a signal that comes while torch is being
imported ends in one line, too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from wording import POOR, printable

AGAIN = "run the same line again, it continues."  # what work that keeps its place says
PIPE_CLOSED = 141  # as of a command that SIGPIPE ends
SECONDS_TO_END = 10.0  # of a child that was asked to
SECONDS_TO_HEAR = 2.0  # of a signal
_SIGNALS = [  # Windows has no SIGHUP, and no alarm
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
_ALARM = getattr(signal, "SIGALRM", None)


class UsageError(ValueError):
    """The command line lacks something."""


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end. `told`: a child has said so already."""

    def __init__(self, number: int = signal.SIGINT):
        super().__init__(number)
        self.number, self.told = number, False


def run_script(main: Callable[[], object], again: str = AGAIN) -> int:
    """Run a command's main; end in one line on stderr whatever comes.

    Set FDBPL_TRACEBACK=1 to see where an error comes from.

    Args:
        main: what it returns is the exit code where that is an int.
        again: what to do after a stop; "" for a command that only shows something.
    Returns:
        The exit code: 0 finished, 1 error, 2 wrong usage, 128 + the number of a signal (Ctrl-C 130,
        SIGTERM 143, SIGHUP 129), 141 where the reader of the output has gone.
    """
    with _poor_streams(), _signals_raise() as came:
        try:
            code = main()
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where it is told when that cannot be
            return code if type(code) is int else 0
        except BaseException as error:
            if came or isinstance(error, KeyboardInterrupt):
                heard()
                end_workers()
                if not getattr(error, "told", False):
                    say("\nstopped" + (f": {again}" if again else "."))
                _drop_output()  # of a terminal that was closed
                return 128 + (came[0] if came else getattr(error, "number", signal.SIGINT))
            if isinstance(error, BrokenPipeError):
                _drop_output()
                end_workers()
                if again:
                    say(f"stopped, since nobody reads the output any more: {again}")
                return PIPE_CLOSED
            if isinstance(error, OSError) and error.filename == STDOUT:
                _drop_output()
            shown = os.environ.get("FDBPL_TRACEBACK")
            if shown or not isinstance(error, Exception) or not is_told(error):
                raise
            say(f"error: {explain(error)}")
            return 2 if isinstance(error, UsageError) else 1


def say(line: str) -> None:
    """A line on stderr, where that is open."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(line, file=sys.stderr, flush=True)


# --- signals


@contextlib.contextmanager
def _signals_raise() -> Iterator[list[int]]:
    """Signals raise Stopped inside; what is yielded then holds the first one's number.

    An exception that falls into a callback is lost: it is raised again until heard() is called.
    """
    own, came, lost = os.getpid(), [], sys.unraisablehook

    def stop(number: int, _frame: object) -> None:
        if os.getpid() != own:  # a forked worker, whose parent is asked, too
            os._exit(0)
        if not came:  # a closed terminal sends several
            came.append(number)
            end_workers()  # before who waits for them is gone, which they would tell
            if _ALARM in found:
                signal.setitimer(signal.ITIMER_REAL, SECONDS_TO_HEAR, SECONDS_TO_HEAR)
        elif number != _ALARM:
            return
        if not _unbroken:
            raise Stopped(came[0])
        _unbroken[0] = came[0]

    found = {}
    for number in [*_SIGNALS, _ALARM] if _ALARM else _SIGNALS:
        handler = signal.getsignal(number)
        if handler in (signal.SIG_DFL, signal.default_int_handler, _end_at_once):  # nohup ignores
            with contextlib.suppress(ValueError):  # not the main thread
                found[number] = signal.signal(number, stop)
    sys.unraisablehook = lambda it: issubclass(it.exc_type, Stopped) or lost(it)
    try:
        yield came
    finally:
        heard()
        sys.unraisablehook = lost
        for number, handler in found.items():
            if came and handler is _end_at_once:  # the line is said; workers are ended on exit
                handler = signal.SIG_IGN
            signal.signal(number, handler)


_unbroken: list[int] = []  # in unbroken(): the signal that came meanwhile, or 0


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """A signal raises at the end only: what is started inside is known to who has to end it."""
    _unbroken.append(0)
    try:
        yield
    finally:
        number = _unbroken.pop()
        if number:
            raise Stopped(number)


def heard() -> None:
    """Said where a stop is being dealt with in more than SECONDS_TO_HEAR."""
    if _ALARM:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _end_at_once(number: int, _frame: object) -> None:
    """While modules are imported: nothing is to be kept yet."""
    with contextlib.suppress(OSError):
        os.write(2, b"\nstopped before it started.\n")
    os._exit(128 + number)


def _watch_imports() -> None:
    """Only in a command of this repository: not in pytest, or in who imports one."""
    main, here = getattr(sys.modules["__main__"], "__file__", ""), Path(__file__).resolve().parent
    if not main:  # python -m datasets.prepare imports datasets first
        _, _, module = "\n".join(sys.orig_argv).partition("\n-m\n")
        main = here.joinpath(*module.partition("\n")[0].split(".")).with_suffix(".py")
    path = Path(main).resolve()
    if path.is_file() and here in path.parents and here / "tests" not in path.parents:
        for number in _SIGNALS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                with contextlib.suppress(ValueError):
                    signal.signal(number, _end_at_once)


def end_workers() -> None:
    """Processes of multiprocessing, which DataLoader starts too; at once, as they keep nothing.

    Killed, since one that is asked to end may complain; and torch, of one that was killed.
    """
    if "multiprocessing" not in sys.modules or not hasattr(signal, "SIGCHLD"):
        return
    from multiprocessing import active_children

    with contextlib.suppress(ValueError):  # not the main thread
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for child in (children := active_children()):
            child.kill()
        for child in children:
            child.join()
        signal.signal(signal.SIGCHLD, before)


def call(command: Sequence[str], cwd: str | Path | None = None) -> int:
    """A child's exit code; it ends with us, and tells so itself."""
    process = None
    try:
        with unbroken():
            process = subprocess.Popen(command, cwd=cwd)
        return process.wait()
    except KeyboardInterrupt as stop:
        heard()
        number = getattr(stop, "number", signal.SIGINT)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)  # once more after Ctrl-C, which does no harm
        stop = Stopped(number)
        stop.told = True
        raise stop from None
    finally:
        if process is not None:
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


# --- streams

STDOUT = "standard output"


class _PlainStream:
    """A stdout without control characters: names of classes and files may hold any."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def __iter__(self):
        return iter(self._stream)

    def write(self, text: str) -> int:
        with _named():
            return self._stream.write(printable(text, keep="\n\r\t"))

    def flush(self) -> None:
        with _named():
            self._stream.flush()


@contextlib.contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, STDOUT) from error


@contextlib.contextmanager
def _poor_streams() -> Iterator[None]:
    """Whatever the terminal's encoding, no name and no sign stops the work."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=POOR)
    before = sys.stdout
    if before is not None:
        sys.stdout = _PlainStream(before)
    try:
        yield
    finally:
        sys.stdout = before


def _drop_output() -> None:
    """What is still buffered has no place to go; on exit it must not be tried again."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)


# --- errors


def is_told(error: Exception) -> bool:
    """Whether a line says enough of an error; others are bugs, whose traceback is wanted."""
    known = (ValueError, FloatingPointError, OSError)
    return isinstance(error, known) or _memory_is_full(error) or disk_is_full(error)


def explain(error: Exception) -> str:
    """One line that says what happened and what to do."""
    if _memory_is_full(error):
        return (
            "the GPU's memory is full. Run again with a smaller batch: "
            "DATALOADER.TRAIN_X.BATCH_SIZE, or --batch-size of a dump."
        )
    if disk_is_full(error) and getattr(error, "filename", None) != STDOUT:
        where = getattr(error, "filename", None) or fullest(sys.argv[1:])
        said = getattr(error, "strerror", None) or os.strerror(errno.ENOSPC)
        return printable(f"{said} ({where}). What is finished is kept: free some space and {AGAIN}")
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return printable(f"{error.strerror}{where}.")
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        name = error.object[max(0, error.start - 20) : error.end + 20]
        return printable(f"{name!r} is no text in this locale. Set PYTHONUTF8=1 and run again.")
    return printable(" ".join(str(error).split()) or type(error).__name__)


def disk_is_full(error: Exception) -> bool:
    """As Python says it, or torch and safetensors in their own errors."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    told = "os error 28", "No space left on device", "PytorchStreamWriter failed writing"
    return isinstance(error, Exception) and any(text in str(error) for text in told)


def fullest(words: Sequence[str]) -> str:
    """Of the folders that a command line names, and this one: that on the fullest disk."""
    free = {}
    for word in (*words, "."):
        path = Path(word).expanduser().absolute()
        with contextlib.suppress(OSError, ValueError):
            there = next(place for place in (path, *path.parents) if place.exists())
            if "/" in word or path.exists():
                free[word] = shutil.disk_usage(there).free
    word = min(free, key=free.get, default=".")
    place = "the folder this was started in" if word == "." else word
    return f"{place}, {free.get(word, 0) / 1e6:.1f} MB free on its disk"


def _memory_is_full(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError"  # torch's, without importing torch here


_watch_imports()
