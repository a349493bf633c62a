"""Jobs of a plan, side by side: on this machine, one per GPU, or through submitit on a cluster.

A job starts when those it needs are done; one that fails takes only its followers with it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from entry import SECONDS_TO_END, heard, unbroken
from protocols.plan import REFUSE, RUN, SKIP, Job
from protocols.seeds import SeedsJob
from reporting.results import FILE_NAME, ResultError
from wording import printable

AnyJob = Job | SeedsJob
SHOWN_LINES = 15  # of the log of a failed job


class Running(Protocol):
    """A job under way."""

    def poll(self) -> int | None: ...  # exit code, None while it runs

    def stop(self) -> None: ...


class Backend(Protocol):
    """Where jobs run."""

    seconds_between_looks: float

    def free(self) -> bool: ...

    def start(self, command: Sequence[str], log: Path, cwd: Path, name: str) -> Running: ...


@dataclass
class Local:
    """Processes of this machine: `jobs` at a time, or one per slot of the GPUs given."""

    jobs: int = 1
    gpus: Sequence[str] = ()  # each slot sees one of them; jobs per GPU = jobs // len(gpus)
    seconds_between_looks: float = 0.1
    _slots: list[str | None] = field(init=False)

    def __post_init__(self):
        self._slots = [self.gpus[i % len(self.gpus)] if self.gpus else None
                       for i in range(max(self.jobs, len(self.gpus)))]  # fmt: skip

    def free(self) -> bool:
        return bool(self._slots)

    def start(self, command: Sequence[str], log: Path, cwd: Path, name: str) -> Running:
        slot = self._slots.pop(0)
        env = dict(os.environ, PYTHONIOENCODING="utf-8")  # as the log is
        if slot is not None:
            env["CUDA_VISIBLE_DEVICES"] = slot
        elif self.jobs > 1:  # threads of several jobs on the same cores stand in each other's way
            env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.jobs)))
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as file:
            file.write(f"$ {shlex.join(command)}\n")
            file.flush()
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                cwd=cwd, env=env, start_new_session=True,
            )  # fmt: skip
        return _Process(process, lambda: self._slots.append(slot))


class _Process:
    def __init__(self, process: subprocess.Popen, release: Callable[[], None]):
        self.process, self.release, self.asked = process, release, False

    def poll(self) -> int | None:
        code = self.process.poll()
        if code is not None:
            self.release()
        return code

    def stop(self) -> None:
        """Asked once, it ends with its workers; asked again, they are ended: one process group."""
        number = signal.SIGKILL if self.asked else signal.SIGTERM
        self.asked = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class Cluster:
    """Jobs of a cluster's queue, through submitit."""

    seconds_between_looks = 2.0

    def __init__(self, folder: Path, options: dict[str, str], jobs: int):
        """`options`: cluster=slurm or local, and what submitit's AutoExecutor or sbatch takes.

        Raises:
            ValueError: submitit is absent, or does not know an option.
        """
        try:
            import submitit
        except ImportError:
            raise ValueError("--slurm needs submitit: pip install submitit") from None
        kind = options.pop("cluster", "slurm")
        known = set(submitit.AutoExecutor._typed_parameters())
        given = {key if key in known else f"slurm_{key}": _number(value)
                 for key, value in options.items()}  # fmt: skip
        try:
            self.executor = submitit.AutoExecutor(folder=folder, cluster=kind)
            self.executor.update_parameters(**given)
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            raise ValueError(
                f"--slurm {' '.join(f'{k}={v}' for k, v in options.items())}: {error}"
            ) from error
        self.jobs, self.under_way = jobs, 0
        if kind == "local":
            self.seconds_between_looks = 0.2

    def free(self) -> bool:
        return self.under_way < self.jobs

    def start(self, command: Sequence[str], log: Path, cwd: Path, name: str) -> Running:
        from submitit.helpers import CommandFunction

        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"$ {shlex.join(command)}\n", encoding="utf-8")
        line = f"{shlex.join(command)} >>{shlex.quote(str(log.absolute()))} 2>&1"
        self.executor.update_parameters(name=name)
        job = self.executor.submit(CommandFunction(["bash", "-c", line], verbose=False, cwd=cwd))
        self.under_way += 1
        return _Queued(job, self)


class _Queued:
    def __init__(self, job, cluster: Cluster):
        self.job, self.cluster = job, cluster

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        self.cluster.under_way -= 1
        try:
            self.job.result()
        except Exception as error:  # submitit tells a failed command and a lost job in many ways
            self.error = error
            return 1
        return 0

    def stop(self) -> None:
        self.job.cancel()


def _number(value: str) -> str | int | float:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(value)
    return value


# --- running a plan


@dataclass
class Outcome:
    """What came of a plan."""

    done: list[AnyJob] = field(default_factory=list)
    skipped: list[AnyJob] = field(default_factory=list)
    failed: list[tuple[AnyJob, str]] = field(default_factory=list)  # and why


def execute(jobs: Sequence[AnyJob], backend: Backend, python: str, logs: Path) -> Outcome:
    """Run every job that is not finished; a progress bar tells how long the rest may take.

    Ctrl-C stops the running ones; the same command then continues.
    """
    outcome = Outcome()
    waiting: dict[Path, AnyJob] = {job.folder: job for job in jobs}
    running: dict[Path, tuple[AnyJob, Running, float]] = {}  # folders: a dump serves many methods
    bad: set[Path] = set()
    clock = _Clock()
    form = "{l_bar}{bar}| {n_fmt}/{total_fmt} jobs, {elapsed} passed{postfix}"
    with tqdm(total=len(jobs), bar_format=form, desc="runs", disable=None) as bar:

        def fail(job: AnyJob, why: str) -> None:
            outcome.failed.append((job, why))
            bad.add(job.folder)
            bar.write(f"{job}: FAILED\n{why}")
            bar.update()

        def settle() -> bool:
            """Start or dismiss what can be; True when something changed."""
            for job in list(waiting.values()):
                lost = [need for need in job.needs if need.folder in bad]
                if lost:
                    del waiting[job.folder]
                    fail(job, f"    not run: it needs {lost[0]}")
                    return True
                if any(need.folder in waiting or need.folder in running for need in job.needs):
                    continue
                verdict, why = job.decide()
                if verdict == RUN and not backend.free():
                    return False
                del waiting[job.folder]
                if verdict == SKIP:
                    outcome.skipped.append(job)
                    bar.update()
                elif verdict == REFUSE:
                    fail(job, f"    {why}")
                else:
                    try:
                        command = [python, *job.command()]
                    except ResultError as error:
                        fail(job, f"    {error}")
                        return True
                    log = logs / f"{job.name}.txt"
                    with unbroken():
                        process = backend.start(command, log, job.root, job.name)
                        running[job.folder] = job, process, time.perf_counter()
                return True
            return False

        try:
            while waiting or running:
                while settle():
                    pass
                bar.set_postfix_str(clock.left(waiting.values(), running.values()), refresh=False)
                bar.update(0)
                if running:
                    time.sleep(backend.seconds_between_looks)
                for job, process, started in list(running.values()):
                    code = process.poll()
                    if code is None:
                        continue
                    del running[job.folder]
                    seconds = time.perf_counter() - started
                    if code or not job.is_finished():
                        fail(job, _why(job, code, logs / f"{job.name}.txt"))
                        continue
                    clock.note(job, seconds)
                    outcome.done.append(job)
                    bar.write(f"{job}: {seconds:.0f} s{job.reached()}")
                    bar.update()
        except BaseException:  # a signal, or a full disk: no run is left behind
            stop_all([process for _, process, _ in running.values()])
            raise
    return outcome


def stop_all(running: Sequence[Running]) -> None:
    """All are asked at once, and waited for; who does not end in time is ended."""
    heard()
    for process in running:
        process.stop()
    late = time.monotonic() + SECONDS_TO_END
    while (left := [each for each in running if _lives(each)]) and time.monotonic() < late:
        time.sleep(0.05)
    for process in left:
        process.stop()


def _lives(process: Running) -> bool:
    try:
        return process.poll() is None
    except Exception:  # what came of it is of no interest any more
        return False


def _why(job: AnyJob, code: int, log: Path) -> str:
    """The cause in a line, where the whole log is, and its end."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    lines = [printable(line, keep="\t") for line in lines[1:]]  # the first is the command
    said = f"exit code {code}" if code else f"it ended without {job.folder / FILE_NAME}"
    if code < 0:
        name = signal.Signals(-code).name
        said = f"ended by {name}" + ", perhaps as the memory is full" * (name == "SIGKILL")
    cause = cause_of(lines) if code >= 0 else ""
    told = [f"{cause} ({said})" if cause else said, f"the whole log: {log}", *lines[-SHOWN_LINES:]]
    return "\n".join(f"    {line}" for line in told)


def cause_of(lines: Sequence[str]) -> str:
    """The line of a log that says why the run ended: ours, a traceback's, or the last."""
    for pattern in (r"error: ", r"[\w.]*(Error|Exception|Interrupt|Exit)\b"):
        for line in reversed(lines):
            if re.match(pattern, line):
                return line
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


class _Clock:
    """How long the rest may take, from the jobs of this plan that are done."""

    def __init__(self):
        self.seconds: dict[tuple, list[float]] = defaultdict(list)

    def note(self, job: AnyJob, seconds: float) -> None:
        for key in self._keys(job):
            self.seconds[key].append(seconds)

    def left(
        self, waiting: Iterable[AnyJob], running: Collection[tuple[AnyJob, Running, float]]
    ) -> str:
        """Work left over what runs side by side; empty before the first job is done."""
        if not self.seconds:
            return ""
        now = time.perf_counter()
        rest = sum(self._guess(job) for job in waiting)
        rest += sum(max(0.0, self._guess(job) - (now - at)) for job, _, at in running)
        return f"about {tqdm.format_interval(rest / max(1, len(running)))} left"

    def _keys(self, job: AnyJob) -> list[tuple]:
        """From alike to everything."""
        alike = job.method.folder, job.dataset, job.shots
        return [(job.kind, *alike), (job.kind, *alike[:2]), (job.kind, alike[0]), (job.kind,), ()]

    def _guess(self, job: AnyJob) -> float:
        for key in self._keys(job):
            if self.seconds[key]:
                return sum(self.seconds[key]) / len(self.seconds[key])
        return 0.0
