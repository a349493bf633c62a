"""Checkpoints that the official code wrote evaluate here; files that do not fit are told apart.

tests/data/official_checkpoints holds runs of the official trainers on the toy student, with images
and the logits that the official models give for them. In whole-model files the table of word
embeddings is cut to one row, which nothing here reads.
"""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from dassl.engine import TRAINER_REGISTRY
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from toy_runs import run

from models.clip import load_clip
from trainers.checkpoint import find_checkpoint, load_prompts, read_checkpoint

RUNS = Path(__file__).parent / "data" / "official_checkpoints"
NAMES = sorted(path.name for path in RUNS.iterdir() if path.is_dir())
NODE = {"CoOp": "COOP", "CoCoOp": "COCOOP"}


@dataclass
class Expected:
    trainer: str
    keys: dict
    classnames: dict[str, list[str]]  # of base and new classes
    logits: dict[str, Tensor]

    @classmethod
    def of(cls, name: str) -> Expected:
        with safe_open(RUNS / name / "expected.safetensors", "pt") as file:
            about = json.loads(file.metadata()["json"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        names = {"logits": about["classnames"], "logits_new": about["classnames_new"]}
        logits = {key: tensors[key] for key in names if key in tensors}
        return cls(about["trainer"], about["config"], names, logits)


class _Data:
    """What a trainer asks of its data."""

    def __init__(self, classnames: list[str]):
        self.dataset = self
        self.classnames = classnames


class _Keys(dict):
    """A config node: items as attributes, and the keys that official configs do not have."""

    def __getattr__(self, name: str):
        return self[name]


def student(expected: Expected, classnames: list[str]):
    """The model that the trainer of this repository builds for an official run's config."""
    cls = TRAINER_REGISTRY.get(expected.trainer)
    trainer = cls.__new__(cls)
    trainer.cfg = _Keys(
        TRAINER=_Keys({cls.PROMPT: _Keys(expected.keys)}),
        MODEL=_Keys(BACKBONE=_Keys(NAME="toy-student")),
    )
    trainer.dm = _Data(classnames)
    return trainer.build_student(load_clip("toy-student"))


def load_official(name: str, model, epoch: int = 5) -> None:
    folder = next(path for path in (RUNS / name).iterdir() if path.is_dir())
    path = find_checkpoint(str(RUNS / name), folder.name, epoch)
    load_prompts(model.learner, read_checkpoint(path)["state_dict"], path)


@pytest.mark.parametrize("name", NAMES)
def test_official_run_gives_the_official_logits(name):
    expected = Expected.of(name)
    images = load_file(RUNS / "images.safetensors")["images"]
    assert expected.logits
    for key, wanted_BC in expected.logits.items():
        model = student(expected, expected.classnames[key])
        load_official(name, model)
        with torch.no_grad():
            logits_BC = model(images).logits
        torch.testing.assert_close(logits_BC, wanted_BC, atol=1e-4, rtol=0)


def test_an_official_folder_is_evaluated_by_the_command_line(world, store):
    """--model-dir of an official run, with its own epoch."""
    extra = ["--eval-only", "--model-dir", str(RUNS / "CoOp"), "--load-epoch", "5"]
    trainer = run(world, store, "CoOp", "official", extra=extra, scope="new")
    assert trainer.scores["accuracy"] > 8


@pytest.mark.parametrize(
    ("name", "other", "message"),
    [
        ("MaPLe", "VPT", r"holds prompts of MaPLe, depth 2.*this run has prompts of VPT"),
        ("CoOp", "CoCoOp", r"holds a text context.*this run has prompts of CoCoOp"),
        ("VPT", "IVLP", r"holds prompts of VPT, depth 3.*both towers"),
        ("CoOp-n16_middle", "CoOp", r"ctx has shape \(16, 64\), this run's \(4, 64\)"),
        ("CoOp-csc_front", "CoOp", r"ctx has shape \(12, \d+, 64\).*class-specific"),
    ],
)
def test_a_file_of_another_method_or_length_is_an_error(name, other, message):
    expected = Expected.of(other)
    model = student(expected, expected.classnames["logits"])
    with pytest.raises(ValueError, match=message):
        load_official(name, model)


def test_a_file_of_another_depth_is_an_error():
    expected = Expected.of("VPT")
    expected.keys["PROMPT_DEPTH_VISION"] = 2
    model = student(expected, expected.classnames["logits"])
    with pytest.raises(ValueError, match=r"VPT, depth 3; this run has prompts of VPT, depth 2"):
        load_official("VPT", model)


def leave_trace(path: Path) -> None:
    path.touch()


class _Runs:
    """Pickles as a call that leaves a trace."""

    def __init__(self, path: Path, call=leave_trace):
        self.path, self.call = path, call

    def __reduce__(self):
        return (self.call, (self.path,))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_nothing_in_a_file_is_executed(tmp_path, zipped):
    trace, path = tmp_path / "trace", tmp_path / "model.pth.tar-1"
    state = {"ctx": torch.ones(4, 64)}
    torch.save(
        {"state_dict": state, "epoch": 1, "scheduler": {"successor": _Runs(trace)}},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    assert torch.equal(read_checkpoint(path)["state_dict"]["ctx"], state["ctx"])
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the trap itself works
    assert trace.exists()


def test_calls_hidden_behind_other_calls_are_refused(tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "model.pth.tar-1"
    torch.save({"state_dict": {}, "scheduler": _Runs(trace, Path.touch)}, path)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        read_checkpoint(path)
    assert not trace.exists()


def test_a_pickle_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "model.pth.tar-1"
    path.write_bytes(pickle.dumps(_Runs(tmp_path / "trace")))
    with pytest.raises(ValueError, match="cannot be read as a checkpoint|holds no state_dict"):
        read_checkpoint(path)
    assert not (tmp_path / "trace").exists()


def test_cut_files_are_refused(tmp_path):
    source = RUNS / "CoOp" / "prompt_learner" / "model.pth.tar-5"
    path = tmp_path / "model.pth.tar-5"
    shutil.copy(source, path)
    path.write_bytes(source.read_bytes()[:2000])
    with pytest.raises(ValueError, match="cut off"):
        read_checkpoint(path)
    torch.save({"epoch": 1}, path)
    with pytest.raises(ValueError, match="holds no state_dict"):
        read_checkpoint(path)
