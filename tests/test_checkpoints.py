"""Saved prompts are what was written, or an error: flips, cuts, NaN, and two commands at once."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_runs import REPO, flags, options, run, stopped_in

import export
import predict
from files import Lock
from models.clip import TOY_FILES, load_clip
from trained import open_run
from trainers.checkpoint import find_checkpoint, load_prompts, read_checkpoint
from trainers.evaluation import Evaluation

KINDS = ("model.pth.tar-3", "prompts-3.safetensors")


@pytest.fixture(scope="module")
def trained(world):
    run(world, "", "CoOp", "kept")
    return world / "kept"


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of the run that a test may damage."""
    copied = tmp_path / "run"
    subprocess.run(["cp", "-r", str(trained), str(copied)], check=True)
    return copied


def evaluated(world, folder, *extra):
    command = ["--eval-only", "--model-dir", str(folder), *extra]
    return run(world, "", "CoOp", f"e/{folder.parent.name}", extra=command)


# Damage is noticed


def is_noticed(path, wanted) -> bool:
    """Whether a damaged file is refused; one that loads must be what was saved."""
    try:
        found = read_checkpoint(path)
    except ValueError as error:
        assert str(path) in str(error)
        return True
    assert found["state_dict"].keys() == wanted["state_dict"].keys()
    for key, value in wanted["state_dict"].items():
        assert torch.equal(found["state_dict"][key], value), "loads as other numbers"
    assert found["epoch"] == wanted["epoch"]
    return False


@pytest.mark.parametrize("name", KINDS)
def test_a_flipped_bit_is_noticed_wherever_it_matters(trained, tmp_path, name):
    source = trained / "prompt_learner" / name
    content, wanted = source.read_bytes(), read_checkpoint(source)
    path, draw = tmp_path / name, random.Random(0)
    places = sorted(draw.sample(range(len(content)), min(len(content), 600)))
    noticed = 0
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        noticed += is_noticed(path, wanted)
    print(f"{name}: {len(places)} flips tried, {noticed} noticed, the others change nothing")
    # Those of a zip archive that are not noticed are in padding and times, which nobody reads.
    assert noticed == len(places) if name.endswith("safetensors") else noticed > 0.5 * len(places)


@pytest.mark.parametrize("name", KINDS)
def test_two_flipped_bits_of_a_context_are_noticed(trained, tmp_path, name):
    source = trained / "prompt_learner" / name
    content = source.read_bytes()
    ctx = read_checkpoint(source)["state_dict"]["ctx"].numpy().tobytes()
    start, path, draw = content.index(ctx), tmp_path / name, random.Random(1)
    for _ in range(300):
        damaged = bytearray(content)
        for place in draw.sample(range(start, start + len(ctx)), 2):
            damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            read_checkpoint(path)


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_is_cut_off_is_refused(trained, tmp_path, name):
    content = (trained / "prompt_learner" / name).read_bytes()
    path, draw = tmp_path / name, random.Random(2)
    for length in {0, 1, 7, 8, len(content) - 1, *draw.sample(range(len(content)), 200)}:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=re.escape(str(path))):
            read_checkpoint(path)


def test_prompts_without_a_checksum_are_read_as_before(trained, tmp_path):
    source = trained / "prompt_learner" / "prompts-3.safetensors"
    for number, about in enumerate(({"learner": "ContextLearner"}, None)):
        path = tmp_path / f"prompts-{number}.safetensors"
        save_file(load_file(source), path, about)
        assert torch.equal(read_checkpoint(path)["state_dict"]["ctx"], load_file(source)["ctx"])


def flip(path) -> None:
    """Two bits of the context."""
    ctx = read_checkpoint(path)["state_dict"]["ctx"].numpy().tobytes()
    content = bytearray(path.read_bytes())
    start = content.index(ctx) + 40
    content[start] ^= 0x10
    content[start + 1] ^= 0x02
    path.write_bytes(content)


@pytest.mark.parametrize("load", ["eval-only", "predict", "export", "INIT_WEIGHTS"])
def test_every_load_verifies(world, folder, tmp_path, load):
    path = folder / "prompt_learner" / "model.pth.tar-3"
    flip(path)
    with pytest.raises(ValueError, match=r"model.pth.tar-3 .*checksum.*Whole .*tar-2, prompts-2"):
        if load == "eval-only":
            evaluated(world, folder)
        elif load == "INIT_WEIGHTS":
            run(world, "", "CoOp", "init", epochs=1, **{"MODEL.INIT_WEIGHTS": path})
        elif load == "predict":
            predict.main(["--model-dir", str(folder), __file__])
        else:
            export.main(["--model-dir", str(folder), "--out", str(tmp_path / "x.safetensors")])
    assert not (tmp_path / "x.safetensors").exists()


def test_a_damaged_pointer_is_told_with_the_epochs_there_are(world, folder):
    (folder / "prompt_learner" / "checkpoint").write_bytes(b"\xff\x00model")
    with pytest.raises(ValueError, match="holds epochs 1, 2, 3. Check --model-dir and"):
        evaluated(world, folder)
    assert evaluated(world, folder, "--load-epoch", "2").scores["accuracy"] > 8


# A run goes on from its newest whole checkpoint

DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:2000]),
    "flipped": flip,
    "text": lambda path: path.write_text("no checkpoint"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_goes_on_from_the_newest_whole_checkpoint(world, trained, damage, capsys):
    out = f"cut/{damage}"
    with stopped_in("CoOp", epoch=2):
        run(world, "", "CoOp", out)
    DAMAGES[damage](world / out / "prompt_learner" / "model.pth.tar-2")
    capsys.readouterr()
    trainer = run(world, "", "CoOp", out)
    told = capsys.readouterr().out
    assert trainer.start_epoch == 1
    assert re.search(r"An older checkpoint is looked for: \S+model.pth.tar-2 ", told)
    wanted = load_file(trained / "prompt_learner" / "prompts-3.safetensors")["ctx"]
    assert torch.equal(trainer.model.learner.ctx, wanted)


POINTERS = {
    "empty": b"",
    "bytes": b"\xff\xfe\x00",
    "gone": b"model.pth.tar-9\n",
    "path": b"../../x",
}


@pytest.mark.parametrize("kind", POINTERS)
def test_a_damaged_pointer_does_not_stop_a_run(world, kind, capsys):
    out = f"pointer/{kind}"
    with stopped_in("CoOp", epoch=2):
        run(world, "", "CoOp", out)
    (world / out / "prompt_learner" / "checkpoint").write_bytes(POINTERS[kind])
    assert run(world, "", "CoOp", out).start_epoch == 2
    assert ("which is not there" in capsys.readouterr().out) == (kind != "empty")


def test_with_none_whole_nothing_is_overwritten(world):
    with stopped_in("CoOp", epoch=2):
        run(world, "", "CoOp", "none")
    files = sorted((world / "none" / "prompt_learner").glob("model.pth.tar-*"))
    for path in files:
        path.write_bytes(b"cut")
    with pytest.raises(ValueError, match="Not one checkpoint of .*give another --output-dir"):
        run(world, "", "CoOp", "none")
    assert len(files) == 2 and all(path.read_bytes() == b"cut" for path in files)


def test_a_checkpoint_of_another_shape_is_told(world, trained, monkeypatch):
    monkeypatch.setattr("train.require_own", lambda *_: False)  # it would refuse before
    words = {"TRAINER.COOP.CTX_INIT": "a photo"}
    with pytest.raises(ValueError, match=r"(?s)model.pth.tar-3 is of another model: .*ctx"):
        run(world, "", "CoOp", "shape", extra=["--resume", str(trained)], **words)


# NaN is no result


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_prompts_that_are_not_finite_are_refused(world, folder, value):
    path = folder / "prompt_learner" / "model.pth.tar-3"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["ctx"][0, 5] = value
    torch.save(checkpoint, path)
    for load in (lambda: evaluated(world, folder), lambda: open_run(folder)):
        with pytest.raises(ValueError, match="model.pth.tar-3: ctx holds NaN or infinity.*earlier"):
            load()
    assert not (world / "e" / folder.parent.name / "results.json").exists()


def test_weights_that_are_not_finite_are_refused(tmp_path):
    state = load_clip("toy-student").model.state_dict()
    state["visual.proj"] = state["visual.proj"].clone()
    state["visual.proj"][3, 4] = float("nan")
    torch.save(state, tmp_path / "student.pt")
    with pytest.raises(ValueError, match=r"student.pt: the weight visual.proj holds NaN"):
        load_clip(str(tmp_path / "student.pt"))
    assert TOY_FILES["toy-student"].is_file()


def test_logits_that_are_not_finite_are_no_result(world, trained):
    trainer = open_run(trained)
    with torch.no_grad():
        trainer.model.learner.ctx[0, 0] = float("nan")
    size = trainer.model.clip.image_size
    with pytest.raises(ValueError, match="logits hold NaN or infinity, and are no result"):
        trainer.model_inference(torch.zeros(1, 3, size, size))
    with pytest.raises(ValueError, match="class features hold NaN"):
        trainer.evaluation().class_features()
    tested = Evaluation(open_run(trained).model, [], "a photo of a {}.")
    with pytest.raises(ValueError, match="logits hold NaN"):
        tested.add(torch.full((1, 64), float("nan")), torch.zeros(1, dtype=torch.long), ["x.png"])
    assert tested.predictions == []


def test_a_damaged_teacher_of_promptkd_is_refused(world, tmp_path):
    trainer = run(world, "", "IVLP", "teacher", epochs=1)
    path = find_checkpoint(str(world / "teacher"), "VLPromptLearner", None)
    state = {**read_checkpoint(path)["state_dict"]}
    state["ctx"] = state["ctx"] * float("nan")
    with pytest.raises(ValueError, match="ctx holds NaN"):
        load_prompts(trainer.model.learner, state, path)


# Two commands, one folder


def test_a_second_command_says_who_is_at_work(world):
    held = world / "busy"
    held.mkdir()
    with Lock(held.with_name("busy.lock"), "at work", "Wait."):
        command = [sys.executable, "train.py", *flags(world, "CoOp"), "--output-dir", str(held)]
        done = subprocess.run(
            [*command, *options(epochs=1)], cwd=REPO, capture_output=True, text=True
        )
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    said = rf"error: process {os.getpid()} on \S+, since \S+, is at work in {held}. Wait until"
    assert re.match(said, done.stderr)
    assert list(held.iterdir()) == []  # its log is not written into either


def test_the_lock_of_a_dead_process_is_taken_over(world):
    code = "import os, sys, files; files.Lock(sys.argv[1], 'x', 'y'); os._exit(9)"
    lock = world / "dead.lock"
    assert subprocess.run([sys.executable, "-c", code, str(lock)], cwd=REPO).returncode == 9
    assert lock.exists()
    assert run(world, "", "CoOp", "dead", epochs=1).scores and not lock.exists()
