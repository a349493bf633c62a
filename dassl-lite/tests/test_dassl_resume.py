"""A run killed at any moment and started again ends with the bits of a run that was not killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch

from dassl.utils import load_checkpoint

from . import dassl_toy as toy

TWO = ("TRAINER.NAME", "TwoModels")
EVERY = ("TRAIN.CHECKPOINT_FREQ", 1)
BEST = ("TEST.FINAL_MODEL", "best_val")
A, B = "toy_model", "second_model"


def in_child(cfg, moment: str = "") -> int:
    """Run in a child process; return the signal that ended it, or 0."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if moment:
                toy.kill_at(moment)
            toy.run(cfg)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, "the child failed, see stderr"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def assert_same(found, expected, where: str = "") -> None:
    assert type(found) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{where}/{index}")
    else:
        assert found == expected, where


def story(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Last log line of every batch without its times, and the last result block."""
    text = (folder / "log.txt").read_text()
    progress = {}
    for place, rest in re.findall(r"(epoch \[.*\] batch \[.*\]) time .* (loss .*) eta", text):
        progress[place] = rest
    block = text[text.rindex("=> result") :].splitlines()[:6]
    assert "\nFinish training\n" in text[: text.rindex("=> result")]
    return progress, block


def assert_same_end(folder: Path, reference: Path) -> None:
    files = {path.relative_to(reference) for path in reference.glob("*/model*")}
    assert files <= {path.relative_to(folder) for path in folder.glob("*/model*")}
    assert not list(folder.glob("*/*.partial"))
    for file in files:
        assert_same(load_checkpoint(folder / file), load_checkpoint(reference / file), str(file))
    assert story(folder) == story(reference)


@pytest.mark.parametrize(
    ("opts", "moment", "epochs_kept"),
    [
        ((), "batch:12", 0),  # the default saves after the last epoch alone
        (EVERY, "batch:13", 2),
        (EVERY, f"while:{A}/model.pth.tar-2", 1),
        (EVERY, f"before:{A}/model.pth.tar-1", 0),
        (EVERY, f"after:{A}/model.pth.tar-4", 3),
        ((*EVERY, "DATALOADER.NUM_WORKERS", 2), "batch:13", 2),
        ((*EVERY, "OPTIM.NAME", "adam"), "batch:13", 2),
        ((*TWO, *EVERY), f"after:{A}/model.pth.tar-2", 1),  # A is ahead of B
        ((*TWO, *EVERY), f"after:{A}/checkpoint", 0),  # the first save; B has none
        ((*TWO, *EVERY), f"before:{B}/model.pth.tar-3", 2),
        ((*TWO, *EVERY), f"before:{B}/checkpoint", 1),
        ((*TWO, *EVERY), f"after:{B}/model.pth.tar-3", 3),  # whole, B's pointer is behind
        (BEST, "batch:7", 1),
        (BEST, f"after:{A}/model-best.pth.tar", 0),
        ((*BEST, *EVERY), f"before:{A}/model.pth.tar-2", None),
        ((*TWO, *BEST, *EVERY), f"after:{A}/model-best.pth.tar", 0),
        (BEST, f"before:{A}/model.pth.tar-4", None),
    ],
)
def test_killed_and_resumed_ends_with_the_same_bits(
    image_root, tmp_path, opts, moment, epochs_kept
):
    opts = [*opts, "TRAIN.PRINT_FREQ", 1]
    cfg = toy.make_cfg(image_root, tmp_path / "whole", opts)
    assert in_child(cfg) == 0
    cfg.OUTPUT_DIR = str(tmp_path / "killed")
    assert in_child(cfg, moment) == signal.SIGKILL
    assert in_child(cfg) == 0
    assert_same_end(tmp_path / "killed", tmp_path / "whole")
    log = (tmp_path / "killed" / "log.txt").read_text()
    found = re.findall(r"Previous epoch: (\d)", log)
    if epochs_kept is not None:
        assert set(found) == ({str(epochs_kept)} if epochs_kept else set())
    assert len(re.findall("^=== log continued on .* ===$", log, re.MULTILINE)) == 1


def test_killed_and_resumed_in_a_fresh_interpreter(image_root, tmp_path):
    opts = [*TWO, *BEST, *EVERY, "TRAIN.PRINT_FREQ", 1]
    cfg = toy.make_cfg(image_root, tmp_path / "whole", opts)
    assert in_child(cfg) == 0
    cfg.OUTPUT_DIR = str(tmp_path / "killed")
    assert in_child(cfg, f"after:{B}/model.pth.tar-2") == signal.SIGKILL
    script = Path(__file__).with_name("dassl_toy.py")
    command = [sys.executable, script, image_root, tmp_path / "killed", *map(str, opts)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert_same_end(tmp_path / "killed", tmp_path / "whole")
    assert done.stdout.splitlines()[0] == "imported at start: none of the slow modules"


def test_killed_twice(image_root, tmp_path):
    cfg = toy.make_cfg(image_root, tmp_path / "whole", (*EVERY, "TRAIN.PRINT_FREQ", 1))
    assert in_child(cfg) == 0
    cfg.OUTPUT_DIR = str(tmp_path / "killed")
    assert in_child(cfg, "batch:7") == in_child(cfg, "batch:7") == signal.SIGKILL
    assert in_child(cfg) == 0
    assert_same_end(tmp_path / "killed", tmp_path / "whole")


def test_a_finished_run_is_tested_again_and_its_log_ends_with_the_new_result(
    image_root, tmp_path, keep_stdout
):
    cfg = toy.make_cfg(image_root, tmp_path)
    toy.run(cfg)
    first = story(tmp_path)
    toy.run(cfg)
    assert story(tmp_path) == first
    text = (tmp_path / "log.txt").read_text()
    assert text.count("Finish training") == text.count("=> result") == 2
    assert text.count("epoch [4/4]") == 1  # not trained again


def test_resume_from_another_folder_with_its_best_result(image_root, tmp_path, keep_stdout):
    opts = (*BEST, *EVERY, "OPTIM.MAX_EPOCH", 2)
    cfg = toy.make_cfg(image_root, tmp_path / "first", opts)
    best = toy.run(cfg).best_result
    cfg.merge_from_list(["RESUME", str(tmp_path / "first"), "OUTPUT_DIR", str(tmp_path / "second")])
    cfg.merge_from_list(["OPTIM.MAX_EPOCH", 3])
    trainer = toy.run(cfg)
    assert trainer.start_epoch == 2 and trainer.best_result >= best
    log = (tmp_path / "second" / "log.txt").read_text()
    assert "epoch [3/3]" in log and "epoch [2/3]" not in log
    assert (tmp_path / "second" / A / "model-best.pth.tar").is_file()


def test_more_epochs_follow_the_new_schedule(image_root, tmp_path, keep_stdout):
    cfg = toy.make_cfg(image_root, tmp_path, (*EVERY, "OPTIM.MAX_EPOCH", 2))
    toy.run(cfg)
    cfg.OPTIM.MAX_EPOCH = 5
    toy.run(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "fresh")
    toy.run(cfg)
    for epoch in (3, 5):  # learning rates of epochs that both ran with five in mind
        line = rf"epoch \[{epoch}/5\] .* (lr \S+) eta"
        found = re.search(line, (tmp_path / "log.txt").read_text()).group(1)
        assert found == re.search(line, (tmp_path / "fresh" / "log.txt").read_text()).group(1)


def test_amp_scaler_is_resumed(image_root, tmp_path, keep_stdout):
    cfg = toy.make_cfg(image_root, tmp_path, ("OPTIM.MAX_EPOCH", 1))
    trainer = toy.OneModel(cfg)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer.save_model(0, str(tmp_path))
    other = toy.OneModel(cfg)
    other.scaler = torch.amp.GradScaler("cpu")
    assert other.resume_model_if_exist(str(tmp_path)) == 1
    assert other.scaler.state_dict()["scale"] == 8.0
    assert toy.OneModel(cfg).resume_model_if_exist(str(tmp_path)) == 1  # without a scaler


def test_checkpoints_of_different_epochs_are_not_loaded_together(image_root, tmp_path):
    trainer = toy.TwoModels(toy.make_cfg(image_root, tmp_path))
    trainer.save_model(1, str(tmp_path), model_name="model-best.pth.tar")
    del trainer._models[B]
    trainer.save_model(2, str(tmp_path), model_name="model-best.pth.tar")
    with pytest.raises(ValueError, match="Checkpoints of different epochs"):
        toy.TwoModels(trainer.cfg).load_model(str(tmp_path))
