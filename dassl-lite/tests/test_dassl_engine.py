"""The loop: log lines, checkpoint files, hooks, devices, and trainers that do not train."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dassl.engine import TrainerBase, TrainerX, TrainerXU, build_trainer
from dassl.utils import load_checkpoint

from . import dassl_toy as toy

NUMBER = r"\d+\.\d"
PROGRESS = (
    rf"epoch \[{{e}}/2\] batch \[5/5\] time {NUMBER}\d\d \({NUMBER}\d\d\) "
    rf"data {NUMBER}\d\d \({NUMBER}\d\d\) loss {NUMBER}\d{{{{3}}}} \({NUMBER}\d{{{{3}}}}\) "
    rf"acc {NUMBER}\d{{{{3}}}} \({NUMBER}\d{{{{3}}}}\) lr {{lr}} eta 0:00:\d\d"
)
RESULT = [
    "=> result",
    r"\* total: 22",
    r"\* correct: \d+",
    rf"\* accuracy: {NUMBER}%",
    rf"\* error: {NUMBER}%",
    rf"\* macro_f1: {NUMBER}%",
]


def lines_of(cfg) -> list[str]:
    with open(f"{cfg.OUTPUT_DIR}/log.txt", encoding="utf-8") as file:
        return file.read().splitlines()


def test_log_contract_and_checkpoint_layout(cfg, tmp_path, keep_stdout):
    cfg.OPTIM.MAX_EPOCH = 2
    toy.run(cfg)
    folder = tmp_path / "out" / "toy_model"
    expected = [
        "Loading trainer: OneModel",
        "Loading dataset: Toy",
        "No checkpoint found, train from scratch",
        rf"Initialize tensorboard \(log_dir={tmp_path}/out/tensorboard\)",
        PROGRESS.format(e=1, lr="2.0000e-02"),  # already the next epoch's
        PROGRESS.format(e=2, lr="1.0000e-02"),
        f"Checkpoint saved to {folder}/model.pth.tar-2",
        "Finish training",
        "Deploy the last-epoch model",
        r"Evaluate on the \*test\* set",
        *RESULT,
        r"Elapsed: 0:00:\d\d",
    ]
    lines = lines_of(cfg)
    at = -1
    for pattern in expected:  # in this order, others between them
        hits = [i for i, line in enumerate(lines) if i > at and re.fullmatch(pattern, line)]
        assert hits, f"{pattern} does not come after line {at} of\n" + "\n".join(lines)
        at = hits[0]
    assert lines[-7:-1] == [line for line in lines if re.fullmatch("|".join(RESULT), line)]

    assert {path.name for path in folder.iterdir()} == {"checkpoint", "model.pth.tar-2"}
    assert (folder / "checkpoint").read_text() == "model.pth.tar-2\n"
    assert any((tmp_path / "out" / "tensorboard").iterdir())
    checkpoint = torch.load(folder / "model.pth.tar-2", weights_only=True)
    assert set(checkpoint) >= {"state_dict", "epoch", "optimizer", "scheduler", "val_result"}
    assert checkpoint["epoch"] == 2 and checkpoint["val_result"] is None


def test_checkpoint_frequency_and_best_val(cfg, tmp_path, keep_stdout):
    cfg.merge_from_list(["TRAIN.CHECKPOINT_FREQ", 2, "OPTIM.MAX_EPOCH", 3])
    cfg.TEST.FINAL_MODEL = "best_val"
    trainer = toy.run(cfg)
    folder = tmp_path / "out" / "toy_model"
    names = {path.name for path in folder.iterdir()}
    assert names == {"checkpoint", "model.pth.tar-2", "model.pth.tar-3", "model-best.pth.tar"}
    best = load_checkpoint(folder / "model-best.pth.tar")
    assert best["val_result"] == best["best_result"] == trainer.best_result
    assert torch.equal(best["state_dict"]["2.weight"], trainer.model[2].weight)  # deployed
    text = "\n".join(lines_of(cfg))
    assert text.count("Evaluate on the *val* set") == 3
    assert re.search(
        "Finish training\nDeploy the model with the best val performance\n"
        r"Load .*model-best.pth.tar to toy_model \(epoch=\d, val_result=\d+\.\d\)" + "\n"
        r"Evaluate on the \*test\* set",
        text,
    )


@pytest.mark.parametrize("final_model", ["last_step", "best_val"])
def test_zero_shot_trains_nothing_and_is_tested(cfg, tmp_path, keep_stdout, final_model):
    cfg.merge_from_list(["TRAINER.NAME", "NoTraining", "TEST.FINAL_MODEL", final_model])
    toy.run(cfg)
    lines = lines_of(cfg)
    assert lines.index("Finish training") < lines.index("=> result")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"log.txt"}


def test_frozen_model_without_a_training_step(cfg, keep_stdout):
    class Frozen(TrainerX):
        def build_model(self):
            self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, self.num_classes))
            self.register_model("frozen", self.model)

    Frozen(cfg).train()


def test_no_test(cfg, keep_stdout):
    cfg.merge_from_list(["TEST.NO_TEST", True, "OPTIM.MAX_EPOCH", 1])
    toy.run(cfg)
    assert "Finish training" in lines_of(cfg) and "=> result" not in lines_of(cfg)


def test_load_model_and_eval_only(cfg, tmp_path, keep_stdout, capsys):
    cfg.OPTIM.MAX_EPOCH = 1
    trained = toy.run(cfg)
    other = build_trainer(cfg)
    other.load_model(cfg.OUTPUT_DIR, epoch=1)
    assert torch.equal(other.model[2].weight, trained.model[2].weight)
    assert 0 <= other.test() <= 100
    assert other.test(split="val") == trained.test(split="val")
    other.load_model("")
    assert "Note: load_model() loads nothing" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="No model at .*model-best.pth.tar"):
        other.load_model(cfg.OUTPUT_DIR)


def test_no_val_set_means_the_test_set(cfg, capsys):
    trainer = build_trainer(cfg)
    trainer.val_loader = None
    trainer.test(split="val")
    assert "Evaluate on the *test* set" in capsys.readouterr().out


def test_seed_0_repeats_a_run(cfg, tmp_path, keep_stdout):
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path / name), "SEED", seed])
        cfg.OPTIM.MAX_EPOCH = 2
        weights.append(toy.run(cfg).model[2].weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_nan_stops_the_run(cfg, keep_stdout):
    cfg.OPTIM.LR = 1e38
    cfg.OPTIM.WARMUP_EPOCH = -1
    with pytest.raises(FloatingPointError, match=r"Loss is infinite or NaN! \(epoch 1, batch \d"):
        toy.run(cfg)


def test_registering_models(cfg):
    trainer = build_trainer(cfg)
    with pytest.raises(ValueError, match="'toy_model' is registered already"):
        trainer.register_model("toy_model", nn.Linear(1, 1))
    with pytest.raises(ValueError, match="No model 'x'; registered: toy_model"):
        trainer.update_lr("x")
    with pytest.raises(KeyError, match="train, test or eval"):
        trainer.set_model_mode("learn")
    trainer.register_model("frozen", nn.Linear(1, 1))
    trainer.set_model_mode("test", "toy_model")
    assert not trainer.model.training and trainer._models["frozen"].training
    assert trainer.get_model_names() == ["toy_model", "frozen"]
    assert trainer.get_current_lr() == trainer.get_current_lr("toy_model") == 1e-5
    with pytest.raises(ValueError, match="has no optimizer"):
        trainer.get_current_lr("frozen")

    class Early(TrainerBase):
        def __init__(self):
            self.register_model("x")

    with pytest.raises(AttributeError, match="before register_model"):
        Early()


def test_bad_choices_are_refused_at_the_start(cfg):
    cfg.TEST.FINAL_MODEL = "best"
    with pytest.raises(ValueError, match="FINAL_MODEL is 'best'. Known: last_step, best_val"):
        build_trainer(cfg)
    cfg.TRAINER.NAME = "OneModle"
    with pytest.raises(ValueError, match="Do you mean 'OneModel'. Known: .*TwoModels"):
        build_trainer(cfg)
    with pytest.raises(NotImplementedError, match="TrainerX needs a build_model"):
        cfg.TEST.FINAL_MODEL = "last_step"
        TrainerX(cfg)


def test_two_loaders_side_by_side(cfg):
    class Both(TrainerXU, toy.OneModel):
        def forward_backward(self, batch_x, batch_u):
            seen.append((batch_x, batch_u))

    trainer = Both(cfg)
    trainer.train_loader_x, trainer.train_loader_u = [1, 2, 3], [7, 8]
    for count, expected in (
        ("train_x", [(1, 7), (2, 8), (3, 7)]),
        ("train_u", [(1, 7), (2, 8)]),
        ("smaller_one", [(1, 7), (2, 8)]),
    ):
        seen = []
        cfg.TRAIN.COUNT_ITER = count
        trainer.run_epoch()
        assert seen == expected and trainer.num_batches == len(expected)
    cfg.TRAIN.COUNT_ITER = "all"
    with pytest.raises(ValueError, match="COUNT_ITER is 'all'. Known: train_x"):
        trainer.run_epoch()
    batch = {"img": torch.ones(1), "label": torch.zeros(1)}
    assert len(trainer.parse_batch_train(batch, batch)) == 3


def test_cuda_is_used_where_it_is(cfg, monkeypatch):
    seen = SimpleNamespace()

    class Stop(TrainerX):
        def build_data_loader(self):
            seen.device = self.device
            raise KeyboardInterrupt

    for available, wanted, device in (
        (True, True, "cuda"),
        (True, False, "cpu"),
        (False, 1, "cpu"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda value=available: value)
        cfg.USE_CUDA = bool(wanted)
        with pytest.raises(KeyboardInterrupt):
            Stop(cfg)
        assert seen.device.type == device
