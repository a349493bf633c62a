"""Images reach a step as configured, and the log tells what reading them takes beside the step."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
import torch
from toy_runs import run

import inputs
import trainers.images

LINE = re.compile(
    r"epoch \[1/1\] batch \[(\d)/3\] time (\d+\.\d{3}) \((\d+\.\d{3})\) "
    r"data (\d+\.\d{3}) \((\d+\.\d{3})\) loss "
)
READERS = {  # host with image prompts -> what reads an image of its training
    "VPT": (trainers.images, "read_image"),
    "MaPLe": (trainers.images, "read_image"),
    "VPT_FDBPL": (inputs, "decode"),
    "MaPLe_FDBPL": (inputs, "decode"),
}


@pytest.mark.parametrize("trainer", ["CoOp", "VPT_FDBPL"])
def test_the_log_tells_data_time_within_the_time_of_a_step(
    world, store, trainer, monkeypatch, capsys
):
    """Reading is delayed by 3 ms an image and the step by 40 ms: each shows where it belongs."""
    module, name = READERS.get(trainer, READERS["VPT"])
    real, backward = getattr(module, name), torch.Tensor.backward

    def slow_read(*arguments):
        time.sleep(0.003)
        return real(*arguments)

    def slow_backward(*arguments, **options):
        time.sleep(0.04)
        return backward(*arguments, **options)

    monkeypatch.setattr(module, name, slow_read)
    monkeypatch.setattr(torch.Tensor, "backward", slow_backward)
    keys = {"epochs": 1, "TRAIN.PRINT_FREQ": 1, "TEST.NO_TEST": True}
    run(world, store, trainer, f"times_{trainer}", **keys)
    steps = [[float(x) for x in found] for found in LINE.findall(capsys.readouterr().out)]
    assert [step[0] for step in steps] == [1, 2, 3]
    for number, whole, whole_mean, data, data_mean in steps:
        assert data >= 32 * 0.003 and whole - data >= 0.04 - 0.001  # as printed, to a millisecond
        so_far = steps[: int(number)]
        for mean, column in ((whole_mean, 1), (data_mean, 3)):
            expected = sum(step[column] for step in so_far) / len(so_far)
            assert mean == pytest.approx(expected, abs=0.0015)


@pytest.mark.parametrize("trainer", READERS)
@pytest.mark.parametrize("workers", [0, 2])
def test_hosts_with_image_prompts_read_in_the_workers(
    world, store, tmp_path, trainer, workers, monkeypatch
):
    module, name = READERS[trainer]
    real = getattr(module, name)

    def telling_read(*arguments):
        Path(tmp_path, str(os.getpid())).touch()
        return real(*arguments)

    monkeypatch.setattr(module, name, telling_read)
    keys = {"epochs": 1, "TEST.NO_TEST": True, "DATALOADER.NUM_WORKERS": workers}
    trained = run(world, store, trainer, f"workers_{trainer}_{workers}", **keys)
    assert trained.train_loader_x.num_workers == workers
    readers, here = {path.name for path in tmp_path.iterdir()}, str(os.getpid())
    assert len(readers) == (workers or 1) and (here in readers) == (workers == 0)
