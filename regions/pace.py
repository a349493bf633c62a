"""How many threads and worker processes a dump takes: measured on this machine, then chosen.

The teacher runs here, on some threads; workers decode and cut beside it, each on a core of its own.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from regions.boxes import cut_all, sample_boxes
from regions.dataset import read_image
from regions.spec import RegionSpec

SHARE = 0.03  # of a dump's teacher passes: what measuring may take
MOST_REGIONS = 16  # in a measured batch
QUICK_SECONDS = 0.5  # until then a quick teacher is timed again, and its median counts
IMAGES = 3  # decoded and cut for the time of one
START_SECONDS = 1.0  # what workers have to save before they are started
NEAR = 1.05  # as good as the best: then fewer cores are taken
PINNED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Pace(NamedTuple):
    """What a dump runs with."""

    threads: int
    workers: int


class Times(NamedTuple):
    """What was measured, in seconds of wall time."""

    teacher: dict[int, float]  # threads -> all regions of one image
    image: float  # decoding it and cutting its regions, in one process


def choose(
    times: Times, images: int, cores: int, *, threads_busy: bool = True, workers: int | None = None
) -> Pace:
    """The pace at which a dump ends first; of paces within 5 %, the one that takes fewest cores.

    With workers an image takes as long as the slower of teacher and workers, without them as long
    as both together.

    Args:
        images: that are left to do.
        cores: that this process and its workers may use.
        threads_busy: each thread takes a core; False where the teacher runs on a GPU: one does.
        workers: as asked for; None lets them be chosen among the cores that are left.
    """

    def seconds(pace: Pace) -> float:
        busy = times.teacher[pace.threads]
        if not pace.workers:
            return images * (busy + times.image)
        return images * max(busy, times.image / pace.workers) + START_SECONDS

    paces = []
    for threads in times.teacher:
        left = max(0, cores - (threads if threads_busy else 1))
        counts = range(left + 1) if workers is None else [workers]
        paces += [Pace(threads, count) for count in counts]
    best = min(map(seconds, paces))
    near = [pace for pace in paces if seconds(pace) <= NEAR * best]
    return min(near, key=lambda pace: (sum(pace), seconds(pace)))


def thread_counts(asked: int | None, before: int | None, on_cpu: bool) -> list[int]:
    """Numbers of threads to choose from: one, half of torch's own number, and all of it.

    Only one where they were asked for, pinned by the environment, used by the dump that is
    continued, or of little use because the teacher runs on a GPU.
    """
    usual = torch.get_num_threads()
    if asked is not None:
        return [asked]
    if not on_cpu or any(name in os.environ for name in PINNED):
        return [usual]
    if before is not None:
        return [before]
    return sorted({1, max(1, usual // 2), usual})


def cores_of_process() -> int:
    """Cores that this process may use; under torchrun its part of the machine's."""
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


@contextlib.contextmanager
def using_threads(count: int) -> Iterator[None]:
    """torch computes on so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(
    spec: RegionSpec,
    root: Path,
    run: Callable[[np.ndarray], object],
    counts: Sequence[int],
    most_regions: int,
) -> Times | None:
    """Time a teacher on a small batch for each number of threads, and the cutting of images.

    Args:
        run: teacher on uint8 regions (B, H, W, 3); returns when it is done.
        most_regions: that measuring may run through the teacher, in all.
    Returns:
        None where these are too few: one for warming up and one to time, for each number.
    Raises:
        RegionStoreError: an image cannot be read.
    """
    batch = min(MOST_REGIONS, most_regions // len(counts) - 1)
    if batch < 1:
        return None
    cutting, regions = [], []
    for stored in (spec.images[index] for index in range(min(IMAGES, len(spec.images)))):
        started = time.perf_counter()
        image = read_image(str(root / stored.path), stored.height, stored.width)
        regions.append(cut_all(image, *sample_boxes(spec, stored), spec.image_size))
        cutting.append(time.perf_counter() - started)
    pixels = np.concatenate(regions)
    pixels = np.resize(pixels, (batch, *pixels.shape[1:]))  # repeated where there are fewer
    taken: dict[int, list[float]] = {count: [] for count in counts}
    begun, used = time.perf_counter(), 0
    while not used or (
        time.perf_counter() - begun < QUICK_SECONDS and used + len(counts) * batch <= most_regions
    ):
        for count, seconds in taken.items():  # in turn: neighbours come and go
            with using_threads(count):
                if not seconds:
                    run(pixels[:1])  # threads start, memory is taken
                    used += 1
                started = time.perf_counter()
                run(pixels)
                seconds.append((time.perf_counter() - started) / batch)
                used += batch
    teacher = {count: float(np.median(taken[count])) * spec.num_regions for count in counts}
    return Times(teacher, float(np.median(cutting)))


def describe(times: Times | None, pace: Pace, num_regions: int) -> str:
    """One line: what was measured, and what was chosen."""
    chosen = f"{_many(pace.threads, 'thread')}, {_many(pace.workers, 'worker')}"
    if times is None:
        return f"{chosen} (not measured)"
    teacher = ", ".join(
        f"{1000 * seconds / num_regions:.3g} ms on {_many(threads, 'thread')}"
        for threads, seconds in times.teacher.items()
    )
    cutting = f"{1000 * times.image / num_regions:.3g} ms to decode and cut"
    return f"{chosen}. A region takes the teacher {teacher}, and {cutting}"


def _many(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def find_pace(
    spec: RegionSpec,
    root: Path,
    run: Callable[[np.ndarray], object],
    regions_left: int,
    *,
    on_cpu: bool,
    threads: int | None = None,
    workers: int | None = None,
    before: int | None = None,
) -> tuple[Pace, str]:
    """The pace of a dump and the line that tells it.

    Nothing is measured where nothing is left to choose, or the dump is so small that measuring
    would take more than a thirtieth of it: then torch's threads and no workers.

    Args:
        regions_left: that the dump has to do.
        threads, workers: as asked for; None to choose.
        before: threads of the dump that is continued, whose logits these are to equal.
    """
    counts = thread_counts(threads, before, on_cpu)
    times = None
    if len(counts) > 1 or workers is None:
        times = measure(spec, root, run, counts, int(SHARE * regions_left))
    if times is None:
        pace = Pace(counts[-1], workers or 0)
    else:
        images = regions_left // spec.num_regions
        cores = cores_of_process()
        pace = choose(times, images, cores, threads_busy=on_cpu, workers=workers)
    return pace, describe(times, pace, spec.num_regions)
