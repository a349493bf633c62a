"""Runs of trainers on a small toy world, in this process: fixtures and helpers of several tests."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from dassl.engine import TRAINER_REGISTRY

import dump_teacher_logits
import train
from datasets import toy

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A data root where ToyShapes has few test images, so that a run takes a second."""
    patch = pytest.MonkeyPatch()
    small = replace(toy.TOY_SETS["ToyShapes"], counts={"train": 4, "val": 2, "test": 4})
    patch.setitem(toy.TOY_SETS, "ToyShapes", small)
    patch.chdir(REPO)
    yield tmp_path_factory.mktemp("world")
    patch.undo()


def flags(world: Path, trainer: str, *, seed: int = 1, scope: str = "base") -> list[str]:
    data = world / "data"
    data.mkdir(exist_ok=True)
    return [
        *("--root", str(data), "--seed", str(seed), "--trainer", trainer),
        *("--dataset-config-file", "configs/datasets/toy_shapes.yaml"),
        *("--config-file", f"configs/trainers/{trainer}/toy.yaml"),
    ]


def options(scope: str = "base", epochs: int = 3, **keys) -> list[str]:
    given = {
        "DATASET.NUM_SHOTS": 4,
        "DATASET.SUBSAMPLE_CLASSES": scope,
        "OPTIM.MAX_EPOCH": epochs,
        "TRAIN.CHECKPOINT_FREQ": 1,
        "TRAINER.FDBPL.NUM_REGIONS": 4,
        **keys,
    }
    return [str(item) for pair in given.items() for item in pair]


@pytest.fixture(scope="module")
def store(world) -> Path:
    path = world / "store"
    command = flags(world, "FDBPL")
    assert dump_teacher_logits.run(["--store", str(path), *command, *options()]) == 0
    return path


def run(world, store, trainer, out, *, seed=1, extra=(), **keys):
    """One in-process call of train.py; returns the trainer."""
    if trainer.endswith("FDBPL"):
        keys.setdefault("TRAINER.FDBPL.STORE", store)
    command = [*flags(world, trainer, seed=seed), "--output-dir", str(world / out), *extra]
    return train.main([*command, *options(**keys)])


@contextlib.contextmanager
def stopped_in(trainer: str, *, epoch: int):
    """Runs of a trainer inside it are interrupted at the second batch of an epoch, from 0."""
    cls = TRAINER_REGISTRY.get(trainer)
    original = cls.forward_backward

    def stop(self, batch):
        if self.epoch == epoch and self.batch_idx == 1:
            raise KeyboardInterrupt
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cls, "forward_backward", stop)
        yield
