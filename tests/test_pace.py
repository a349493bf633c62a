"""A dump's threads and workers follow from what was measured, and never change its bytes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import region_world
import torch
from toy_runs import flags, options

import dump_teacher_logits
from regions import pace
from regions.dump import dump_record_path, threads_of_dump
from regions.pace import Pace, Times, choose


@pytest.mark.parametrize(
    ("teacher", "image", "cores", "wanted"),
    [
        ({1: 8.0, 2: 4.5, 4: 2.5}, 0.01, 4, Pace(4, 0)),  # cutting is negligible
        ({1: 4.0, 2: 9.0}, 0.01, 2, Pace(1, 0)),  # busy neighbours: two threads are slower
        ({1: 4.0, 2: 3.9}, 0.01, 2, Pace(1, 0)),  # not worth a second core
        ({1: 4.0}, 4.0, 2, Pace(1, 1)),  # one worker keeps up
        ({1: 4.0}, 10.0, 8, Pace(1, 3)),
        ({1: 4.0}, 10.0, 3, Pace(1, 2)),  # no more cores
        ({1: 4.0}, 10.0, 1, Pace(1, 0)),
        ({1: 8.0, 2: 4.0, 4: 2.1}, 4.0, 4, Pace(2, 1)),  # threads and workers share the cores
        ({1: 8.0, 2: 4.0, 4: 2.1}, 4.0, 8, Pace(4, 2)),
        ({8: 2.0}, 2.0, 4, Pace(8, 0)),  # more threads than cores, as asked for
    ],
)
def test_the_pace_that_ends_first_is_chosen(teacher, image, cores, wanted):
    assert choose(Times(teacher, image), 1000, cores) == wanted


def test_a_gpu_leaves_all_cores_but_one_to_workers():
    times = Times({16: 1.0}, 6.5)
    assert choose(times, 1000, 16, threads_busy=False) == Pace(16, 7)
    assert choose(times, 1000, 4, threads_busy=False) == Pace(16, 3)


def test_workers_are_not_started_for_less_than_they_cost():
    times = Times({1: 0.01}, 0.01)
    assert choose(times, 50, 2) == Pace(1, 0) and choose(times, 5000, 2) == Pace(1, 1)


@pytest.mark.parametrize("workers", [0, 5])
def test_workers_that_were_asked_for_stay(workers):
    assert choose(Times({1: 4.0, 2: 2.0}, 9.0), 1000, 2, workers=workers) == Pace(2, workers)


def test_threads_to_choose_from(monkeypatch):
    for name in pace.PINNED:
        monkeypatch.delenv(name, raising=False)
    for usual, counts in ((1, [1]), (2, [1, 2]), (3, [1, 3]), (16, [1, 8, 16])):
        monkeypatch.setattr(torch, "get_num_threads", lambda usual=usual: usual)
        assert pace.thread_counts(None, None, on_cpu=True) == counts
    assert pace.thread_counts(3, 2, on_cpu=True) == [3]  # --threads
    assert pace.thread_counts(None, 2, on_cpu=True) == [2]  # a dump that is continued
    assert pace.thread_counts(None, None, on_cpu=False) == [16]
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    assert pace.thread_counts(None, 2, on_cpu=True) == [16]


def test_the_cores_of_torchruns_processes_are_shared_out(monkeypatch):
    whole = pace.cores_of_process()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(whole))
    assert pace.cores_of_process() == 1


@pytest.mark.parametrize("regions_left", [20_000, 1000, 200])
@pytest.mark.parametrize("quick", [True, False])
def test_measuring_is_a_small_part_of_the_dump(tmp_path, monkeypatch, regions_left, quick):
    """3 % of it at most; of a slow teacher less than two passes for each number of threads."""
    monkeypatch.setattr(pace, "QUICK_SECONDS", 0.02 if quick else 0)
    spec, sizes = region_world.make_spec(tmp_path, region_world.draw_images(tmp_path)), []

    def run(regions_BHW3: np.ndarray) -> None:
        assert regions_BHW3.shape[1:] == (region_world.SIZE, region_world.SIZE, 3)
        sizes.append((len(regions_BHW3), torch.get_num_threads()))

    before = torch.get_num_threads()
    times = pace.measure(spec, tmp_path, run, [1, 2], int(pace.SHARE * regions_left))
    assert torch.get_num_threads() == before and set(times.teacher) == {1, 2} and times.image > 0
    batch = sizes[1][0]
    once = [(1, 1), (batch, 1), (1, 2), (batch, 2)]
    assert sizes[:4] == once and batch <= pace.MOST_REGIONS
    again = sizes[4:]
    assert again == [(batch, 1), (batch, 2)] * (len(again) // 2)
    assert bool(again) == (quick and regions_left > 1000)
    assert sum(size for size, _ in sizes) <= pace.SHARE * regions_left


def test_a_tiny_dump_is_not_measured(tmp_path):
    spec = region_world.make_spec(tmp_path, region_world.draw_images(tmp_path))

    def run(_):
        raise AssertionError("the teacher was called")

    options = {"on_cpu": True, "threads": 3}
    assert pace.find_pace(spec, tmp_path, run, 30, **options) == (
        Pace(3, 0),
        "3 threads, 0 workers (not measured)",
    )
    found, _ = pace.find_pace(spec, tmp_path, run, 30_000, workers=2, **options)
    assert found == Pace(3, 2)  # both asked for: nothing is left to measure


def test_what_was_measured_and_chosen_is_told():
    times = Times({1: 0.5, 2: 0.25}, 0.01)
    assert pace.describe(times, Pace(2, 1), 10) == (
        "2 threads, 1 worker. A region takes the teacher 50 ms on 1 thread, 25 ms on 2 threads, "
        "and 1 ms to decode and cut"
    )


def test_flags_set_the_pace_and_the_bytes_stay(world, store, tmp_path, capsys):
    """The dump of the fixture ran at its own pace."""
    other = tmp_path / "other"
    command = ["--store", str(other), "--threads", "2", "--workers", "1", *flags(world, "FDBPL")]
    before = torch.get_num_threads()
    assert dump_teacher_logits.run([*command, *options()]) == 0
    assert torch.get_num_threads() == before
    assert "Pace            2 threads, 1 worker (not measured)" in capsys.readouterr().out
    assert {file.name: file.read_bytes() for file in other.iterdir()} == {
        file.name: file.read_bytes() for file in store.iterdir()
    }
    record = json.loads(dump_record_path(other).read_text())
    assert record["sessions"][-1]["threads"] == 2 == threads_of_dump(other)
    assert threads_of_dump(tmp_path / "none") is None


@pytest.mark.parametrize("flag", [("--threads", "0"), ("--workers", "-1")])
def test_impossible_paces_are_refused(world, tmp_path, capsys, flag):
    command = ["--store", str(tmp_path / "s"), *flag, *flags(world, "FDBPL")]
    assert dump_teacher_logits.run([*command, *options()]) == 2
    assert "--threads needs 1 or more, --workers 0 or more" in capsys.readouterr().err
