"""Threads, workers and regions per pass of a dump: fixed or as flags say, never in its bytes."""

from __future__ import annotations

import json
import os

import pytest
import torch
from toy_runs import flags, options

import dump_teacher_logits
from dump_teacher_logits import usual_workers
from regions.dataset import regions_per_pass
from regions.store.record import dump_record_path


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_flags_set_the_pace_and_the_bytes_stay(world, store, tmp_path, threads):
    """The dump of the fixture ran with the defaults: passes of 8 and no workers."""
    other = tmp_path / "other"
    command = ["--store", str(other), "--threads", "2", "--workers", "1", "--batch-size", "256"]
    assert dump_teacher_logits.run([*command, *flags(world, "FDBPL"), *options()]) == 0
    assert {file.name: file.read_bytes() for file in other.iterdir()} == {
        file.name: file.read_bytes() for file in store.iterdir()
    }
    assert json.loads(dump_record_path(other).read_text())["sessions"][-1]["threads"] == 2


def test_a_cpu_takes_few_regions_at_once_and_no_workers_and_a_gpu_many_of_both(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert (regions_per_pass(cpu), regions_per_pass(gpu)) == (8, 256)
    assert (usual_workers(cpu), usual_workers(gpu)) == (0, 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")  # torchrun's processes share the cores
    assert usual_workers(gpu) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert usual_workers(gpu) == 0


@pytest.mark.parametrize(
    ("flag", "least"),
    [("--threads", 1), ("--workers", 0), ("--batch-size", 1), ("--shard-images", 1)],
)
def test_impossible_paces_are_refused(world, tmp_path, capsys, flag, least):
    command = ["--store", str(tmp_path / "s"), flag, str(least - 1), *flags(world, "FDBPL")]
    assert dump_teacher_logits.run([*command, *options()]) == 2
    assert f"{flag} is {least - 1}; it needs {least} or more" in capsys.readouterr().err
