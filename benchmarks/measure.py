"""Time, FLOP and memory of pieces of work, and the rows of a table that are composed of them.

A Part is measured in turn with all others in one process, and its median counts. A Row is a sum of
parts, some of them several times: 32 images as 16 times 2, 500 classes as 10 times 50. On a GPU
every part is whole.
"""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten
CPU_ATTENTION = {  # torch counts the kernels of GPUs alone
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q, k, v
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_, **__: (
        sdpa_backward_flop_count(grad, q, k, v)
    ),
}


@dataclass
class Part:
    """A piece of work and what it takes."""

    name: str
    run: Callable[[], Any]
    cpu: list[float] = field(default_factory=list)  # seconds of CPU time, of all threads
    wall: list[float] = field(default_factory=list)  # seconds
    gpu: list[float] = field(default_factory=list)  # seconds between events on the device
    flop: int = 0
    peak_bytes: int = 0  # above what was there before
    saved_bytes: int = 0  # kept for the backward pass

    @property
    def seconds(self) -> float:
        """What counts: GPU time where there is a GPU, else CPU time."""
        return statistics.median(self.gpu or self.cpu)

    @property
    def total(self) -> float:
        """Seconds that all runs so far took."""
        return sum(self.gpu or self.cpu)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "repeats": len(self.cpu),
            "seconds": {
                clock: spread(found)
                for clock in ("cpu", "wall", "gpu")
                if (found := getattr(self, clock))
            },
            "flop": self.flop,
            "peak_bytes": self.peak_bytes,
            "saved_bytes": self.saved_bytes,
        }


def spread(seconds: Sequence[float]) -> list[float]:
    """Shortest, median and longest."""
    return [round(x, 5) for x in (min(seconds), statistics.median(seconds), max(seconds))]


@dataclass
class Row:
    """A line of the table: parts, each with how many times it counts; none where it cannot run."""

    name: str
    parts: Sequence[tuple[Part, float]] = ()
    images: int = 0  # files that a step opens
    note: str = ""

    def as_json(self, student: str, classes: int, image_seconds: float) -> dict[str, Any]:
        def total(value: Callable[[Part], float]) -> float:
            return sum(value(part) * times for part, times in self.parts)

        def largest(value: Callable[[Part], float]) -> int:
            return round(max((value(part) * times for part, times in self.parts), default=0))

        head = {"name": self.name, "student": student, "classes": classes, "note": self.note}
        if not self.parts:
            return {**head, "ms": None, "flop": None, "peak_bytes": None}
        return {
            **head,
            "ms": round(1000 * total(lambda part: part.seconds), 3),
            "wall_ms": round(1000 * total(lambda part: statistics.median(part.wall)), 3),
            "data_ms": round(1000 * self.images * image_seconds, 3),
            "flop": round(total(lambda part: part.flop)),
            "peak_bytes": largest(lambda part: part.peak_bytes),
            "saved_bytes": round(total(lambda part: part.saved_bytes)),
            "repeats": min(len(part.cpu) for part, _ in self.parts),
            "parts": [[part.name, times] for part, times in self.parts],
        }


def measure(parts: Iterable[Part], rounds: int, budget: float, device: torch.device) -> None:
    """Run every part once to count, then in rounds, in each of them every part in turn.

    A turn is a second or five runs, as steps of a training follow each other. A part that has
    taken `budget` seconds takes no further turn.
    """
    parts = list(parts)
    for part in parts:
        count(part, device)
    for _ in range(rounds):
        for part in parts:
            if part.total <= budget:
                turn = part.total + 1
                for _ in range(5):
                    clock(part, device)
                    if part.total > turn:
                        break


def clock(part: Part, device: torch.device) -> None:
    on_gpu = device.type == "cuda"
    if on_gpu:
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        started.record()
    wall, cpu = time.perf_counter(), time.process_time()
    part.run()
    if on_gpu:
        ended.record()
        torch.cuda.synchronize(device)
        part.gpu.append(started.elapsed_time(ended) / 1000)
    part.cpu.append(time.process_time() - cpu)
    part.wall.append(time.perf_counter() - wall)


def count(part: Part, device: torch.device) -> None:
    """One run for FLOP and memory, which warms up as well."""
    flops = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    memory = LiveMemory()
    saved = SavedTensors(memory)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    with saved, flops, memory:
        part.run()
    part.peak_bytes = memory.peak
    if device.type == "cuda":
        part.peak_bytes = torch.cuda.max_memory_allocated(device) - before
    part.flop, part.saved_bytes = flops.get_total_flops(), saved.bytes


class SavedTensors(torch.autograd.graph.saved_tensors_hooks):
    """Bytes that autograd keeps for the backward pass, of what the step itself makes."""

    def __init__(self, memory: LiveMemory) -> None:
        self.bytes = 0
        self._memory = memory
        self._seen: set[int] = set()
        super().__init__(self._pack, lambda x: x)

    def _pack(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage in self._memory.made and storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return x


class LiveMemory(TorchDispatchMode):
    """Peak of the bytes of all tensors that were made while it was on and are still referred to.

    What a kernel takes for itself while it runs is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.made: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor):  # weights, inputs: there before
                self._known.add(x.untyped_storage())
        made = func(*args, **kwargs)
        for x in tree_leaves(made):
            if isinstance(x, Tensor) and x.untyped_storage() not in self._known:
                self._add(x.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        self._known.add(storage)
        self.made.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, size).atexit = False

    def _drop(self, size: int) -> None:
        self.now -= size
