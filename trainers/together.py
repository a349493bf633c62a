"""Several seeds in one process: their runs take turns, and their training steps share a pass.

A run is the same code as one on its own, inside a greenlet: it goes on until its next step needs
gradients; when all runs have come to that point, the gradients of all are computed at once. Random
numbers and standard output are each run's own. Runs whose prompts cannot share a pass do not wait:
one trains after the other.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TextIO

import numpy as np
import torch
from greenlet import greenlet

from trainers.gradients import Batch, StepLosses, make_gradients, not_text_only

Join = Callable[[Any], None]  # takes a trainer that is built, before it trains


def run_together(works: Sequence[Callable[[Join], Any]], names: Sequence[str]) -> list[Any]:
    """Run all of them; what each returned, or the exception that ended it while others went on.

    Args:
        works: each builds a trainer, hands it to the function it gets, and trains.
        names: what stands before each one's lines on the console.
    """
    mine = ProcessState.now()
    runs: list[_Run] = []
    for work, name in zip(works, names, strict=True):
        state = mine._replace(stdout=_Prefixed(mine.stdout, f"{name} | "))
        runs.append(_Run(work, state, runs))
    steps: dict[tuple[int, ...], Callable] = {}
    going = runs
    try:
        while going:
            for run in going:
                run.take_turn()
            going = [run for run in going if not run.dead]
            if going:
                _compute(going, steps)
    finally:
        mine.restore()
    return [run.outcome for run in runs]


def _compute(waiting: Sequence[_Run], steps: dict[tuple[int, ...], Callable]) -> None:
    """The gradients that these runs wait for."""
    start = time.perf_counter()
    together = tuple(id(run) for run in waiting)
    if together not in steps:
        steps[together] = _shared_step([run.trainer for run in waiting])
    found = steps[together]([run.batch for run in waiting])
    share = (time.perf_counter() - start) / len(waiting)
    for run, one in zip(waiting, found, strict=True):
        run.found, run.share = one, share


def _shared_step(trainers: Sequence[Any]) -> Callable[[Sequence[Batch]], list[StepLosses]]:
    if trainers[0].model.text_in_one_piece(len(trainers)):
        return make_gradients(trainers)
    # Too many classes to keep all that backward needs: one after the other costs less than twice.
    alone = [make_gradients([trainer]) for trainer in trainers]
    return lambda batches: [step([b])[0] for step, b in zip(alone, batches, strict=True)]


class _Run(greenlet):
    def __init__(
        self, work: Callable[[Join], Any], state: ProcessState, runs: Sequence[_Run]
    ) -> None:
        super().__init__()
        self.work, self.state, self.runs = work, state, runs
        self.trainer: Any = None
        self.batch: Batch = {}
        self.found: StepLosses | None = None
        self.share = 0.0  # seconds of the latest step that count as this run's
        self.outcome: Any = None

    def run(self) -> None:
        try:
            self.outcome = self.work(self.join)
        except Exception as error:  # the others are not to lose their work
            self.outcome = error

    def take_turn(self) -> None:
        self.state.restore()
        try:
            self.switch()
        finally:
            self.state = ProcessState.now()

    def join(self, trainer: Any) -> None:
        others = (run.trainer for run in self.runs if run.trainer is not None)
        why = not_text_only(trainer) or _unlike(trainer, next(others, trainer))
        if why:
            print(f"--seeds: {why}, so seeds train one after the other")
            return
        self.trainer = trainer
        trainer.gradients = self.wait

    def wait(self, batches: Sequence[Batch]) -> list[StepLosses]:
        """In the place of a trainer's own gradients()."""
        (self.batch,), start = batches, time.perf_counter()
        self.parent.switch()
        self.trainer.seconds_of_others += time.perf_counter() - start - self.share
        return [self.found]


def _unlike(trainer: Any, other: Any) -> str:
    mine, theirs = (one.model.text_encoder.layout for one in (trainer, other))
    same = mine.token_CL.shape == theirs.token_CL.shape and (
        torch.equal(mine.token_CL, theirs.token_CL) and torch.equal(mine.slot_CL, theirs.slot_CL)
    )
    return "" if same else "class names or prompts of the seeds differ"


class ProcessState(NamedTuple):
    """What a process has one of and every run needs its own."""

    stdout: TextIO
    python: Any
    numpy: Any
    torch: torch.Tensor
    cuda: list[torch.Tensor]

    @classmethod
    def now(cls) -> ProcessState:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        own = random.getstate(), np.random.get_state(), torch.get_rng_state()
        return cls(sys.stdout, *own, cuda)

    def restore(self) -> None:
        sys.stdout = self.stdout
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)


class _Prefixed:
    """A text stream whose lines start with a name."""

    def __init__(self, stream: TextIO, prefix: str) -> None:
        self._stream, self._prefix, self._at_start = stream, prefix, True

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            self._stream.write(self._prefix + line if self._at_start else line)
            self._at_start = line.endswith("\n")
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
