"""Objectives with a teacher: class-agnostic words, refined targets, controls, a tuned teacher."""

from __future__ import annotations

import pytest
import torch
import yaml
from dassl.engine import TRAINER_REGISTRY
from toy_runs import flags, options, run

import dump_teacher_logits
import losses
from configs.defaults import RENAMED
from regions.store import RegionStore
from reporting.results import RunResult
from trained import open_run
from trainers.distillation import likely_classes, read_vocabulary

WORDS = ["red circle", "blue star", "green moon", "yellow house", "purple cross", "black heart"]


@pytest.fixture(scope="module")
def feature_store(world):
    path = world / "features"
    keys = options(**{"TRAINER.FDBPL.STORE_KIND": "features"})
    assert dump_teacher_logits.run(["--store", str(path), *flags(world, "FDBPL"), *keys]) == 0
    return path


@pytest.fixture(scope="module")
def vocabulary(world):
    path = world / "words.txt"
    path.write_text("\n".join([*WORDS, "", WORDS[0]]))
    return path


def agnostic(vocabulary, k_max=4, **keys):
    return {
        "TRAINER.DISTILL.CLASS_AGNOSTIC": True,
        "TRAINER.DISTILL.VOCABULARY": vocabulary,
        "TRAINER.DISTILL.K_MAX": k_max,
        **keys,
    }


# Class-agnostic


def test_the_likeliest_words_of_a_batch_are_taken_in_order():
    teacher_BV = torch.tensor([[0.0, 5, 0, 4, -9], [0.0, 0, 0, 4, -9]])
    assert likely_classes(teacher_BV, 2).tolist() == [1, 3]
    assert likely_classes(teacher_BV, 99).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "name", ["CoOp_KDPL", "MaPLe_KDPL", "CoCoOp_KDPL", "PromptSRC_KDPL", "VPT_KDPL"]
)
def test_online_teacher_and_vocabulary_equal_the_loss_written_out(world, store, vocabulary, name):
    trainer = run(world, store, name, f"ca/{name}", epochs=1, **agnostic(vocabulary))
    batch = next(iter(trainer.train_loader_x))
    terms, logits = trainer.losses(batch)
    assert logits is None  # words have no labels, so there is no accuracy to log
    with torch.no_grad():
        teacher_BV = trainer.teacher(batch["img"])
        chosen = teacher_BV.softmax(-1).mean(0).topk(4).indices
        student_BV = trainer.model.for_classes(WORDS)(batch["img"]).logits
    assert teacher_BV.shape[1] == len(WORDS)
    wanted = losses.symmetric_kl(student_BV[:, chosen], teacher_BV[:, chosen]).mean()
    torch.testing.assert_close(terms["distill"].detach(), wanted, atol=1e-5, rtol=1e-4)
    result = RunResult.read(world / "ca" / name)
    assert result.knobs == ["CLASS_AGNOSTIC"]
    assert result.num_classes == 24 and result.accuracy > 8  # tested on the real names


def test_stored_features_teach_words_without_the_teachers_image_tower(
    world, feature_store, vocabulary, monkeypatch
):
    keys = agnostic(vocabulary, **{"TRAINER.FDBPL.STORE": feature_store})
    trainer = run(world, "", "FDBPL", "ca/stored", epochs=1, **keys)
    batch = next(iter(trainer.train_loader_x))
    assert batch["teacher_logits"].shape[1] == len(WORDS)
    terms, logits = trainer.losses(batch)
    assert "distill" in terms and logits is None
    # A second run reads the words' text features beside the store: no teacher at all.
    from models import teacher

    monkeypatch.setattr(teacher, "load_clip", lambda *_: pytest.fail("the teacher was loaded"))
    again = run(world, "", "FDBPL", "ca/stored_again", epochs=1, **keys)
    assert torch.equal(again.model.learner.ctx, trainer.model.learner.ctx)


def test_a_store_of_logits_cannot_teach_words(world, store, vocabulary):
    with pytest.raises(ValueError, match="of kind features"):
        run(world, store, "FDBPL", "ca/x", **agnostic(vocabulary))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"TRAINER.DISTILL.VOCABULARY": "/nowhere"}, "'/nowhere', which is no file"),
        ({"TRAINER.DISTILL.LABEL_WEIGHT": 1.0}, "LABEL_WEIGHT needs the classes"),
        ({"TRAINER.DISTILL.LABEL_LOGIT": 1.0}, "LABEL_LOGIT needs the classes"),
        ({"TRAINER.COOP.CSC": True}, "TRAINER.COOP.CSC"),
        ({"TRAINER.DISTILL.K_MAX": 0}, "TRAINER.DISTILL.K_MAX is 0"),
    ],
)
def test_what_words_cannot_do_is_refused(world, store, vocabulary, keys, message):
    with pytest.raises(ValueError, match=message):
        run(world, store, "CoOp_KDPL", "ca/x", **{**agnostic(vocabulary), **keys})


def test_vocabulary_files(tmp_path):
    path = tmp_path / "words.csv"
    path.write_text('Id,ClassName\n1,"cat, tabby"\n2,dog\n3,dog\n')
    assert read_vocabulary(str(path)) == ["cat, tabby", "dog"]
    path.write_text("cat\n")
    with pytest.raises(ValueError, match="holds 1 words"):
        read_vocabulary(str(path))


# Label-refined targets, cross-entropy, and the control


@pytest.mark.parametrize("name", ["CoOp_KDPL", "FDBPL"])
def test_targets_are_the_teachers_logits_plus_the_label(world, store, name):
    keys = {"TRAINER.DISTILL.LABEL_LOGIT": 16, "TRAINER.DISTILL.LABEL_WEIGHT": 0.5}
    if name == "FDBPL":
        keys["TRAINER.FDBPL.REGION_WEIGHT"] = "none"
    trainer = run(world, store, name, f"label/{name}", epochs=1, **keys)
    batch = next(iter(trainer.train_loader_x))
    terms, logits_BC = trainer.losses(batch)
    with torch.no_grad():
        teacher_BC = trainer.teacher_logits(batch)
    target_BC = teacher_BC + 16 * torch.nn.functional.one_hot(batch["label"], 24)
    wanted = losses.symmetric_kl(logits_BC, target_BC).mean()
    torch.testing.assert_close(terms["distill"], wanted)
    wanted = 0.5 * torch.nn.functional.cross_entropy(logits_BC, batch["label"])
    torch.testing.assert_close(terms["labels"], wanted)
    knobs = RunResult.read(world / "label" / name).knobs
    assert knobs == ["LABEL_WEIGHT 0.5", "LABEL_LOGIT 16"]


@pytest.mark.parametrize("name", ["CoOp_KDPL", "FDBPL"])
def test_a_uniform_teacher_knows_nothing_and_is_not_loaded(world, store, name, monkeypatch):
    from models import teacher

    monkeypatch.setattr(teacher, "load_clip", lambda *_: pytest.fail("the teacher was loaded"))
    keys = {"TRAINER.DISTILL.UNIFORM_TEACHER": True, "TRAINER.DISTILL.LABEL_LOGIT": 16}
    trainer = run(world, store, name, f"uniform/{name}", epochs=1, **keys)
    seen = []
    monkeypatch.setattr(
        type(trainer), "distill", lambda self, logits, target, weight: seen.append(target) or {}
    )
    batch = next(iter(trainer.train_loader_x))
    trainer.losses(batch)
    assert torch.equal(seen[0], 16.0 * torch.nn.functional.one_hot(batch["label"], 24))
    result = RunResult.read(world / "uniform" / name)
    assert result.teacher == "uniform" and "UNIFORM_TEACHER" in result.knobs


# Interpolation with the hand-written prompt at test


def test_a_sweep_over_interpolation_needs_no_training(world, store, capsys):
    run(world, store, "CoOp", "mix", epochs=2)
    evaluate = ["--eval-only", "--model-dir", str(world / "mix"), "--load-epoch", "2"]
    swept = run(world, store, "CoOp", "mix_sweep", extra=evaluate, scope="new",
                **{"TEST.TEXT_INTERPOLATION": "(0.0,0.3,1.0)"})  # fmt: skip
    assert "Accuracy by TEST.TEXT_INTERPOLATION" in capsys.readouterr().out
    result = RunResult.read(world / "mix_sweep")
    assert [row["alpha"] for row in result.sweep] == [0.0, 0.3, 1.0]
    assert result.sweep[0]["accuracy"] == pytest.approx(result.accuracy)
    zero_shot = run(world, store, "ZeroshotCLIP", "mix_zs", scope="new")
    assert result.sweep[2]["accuracy"] == pytest.approx(zero_shot.scores["accuracy"])
    # One value alone is deployed, and told as a knob.
    one = run(world, store, "CoOp", "mix_one", extra=evaluate, scope="new",
              **{"TEST.TEXT_INTERPOLATION": 0.3})  # fmt: skip
    assert one.scores["accuracy"] == pytest.approx(swept.tested.sweep()[1]["accuracy"])
    assert RunResult.read(world / "mix_one").knobs == ["TEXT_INTERPOLATION 0.3"]


@pytest.mark.parametrize("name", ["CoCoOp", "MaPLe", "FDBPL"])
def test_interpolation_is_the_formula_for_every_kind_of_prompt(world, store, name):
    keys = {"TEST.TEXT_INTERPOLATION": 0.4, "TEST.NO_TEST": True}
    trainer = run(world, store, name, f"mix/{name}", epochs=1, **keys)
    images = torch.randn(3, 3, 48, 48)
    trainer.set_model_mode("eval")
    with torch.no_grad():
        found = trainer.model_inference(images)
        output = trainer.model(images)
        text = output.text[0] if name == "FDBPL" else output.text
        plain = trainer.evaluation()._handwritten
        mixed = torch.nn.functional.normalize(0.6 * text + 0.4 * plain, dim=-1)
        mixed = mixed if mixed.dim() == 3 else mixed.expand(3, -1, -1)
        scale = trainer.model.clip.model.logit_scale.exp()
        wanted = scale * torch.einsum("bd,bcd->bc", output.image, mixed)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_interpolation_out_of_range_is_refused(world, store):
    with pytest.raises(ValueError, match="from 0 .learned prompt. to 1"):
        run(world, store, "CoOp", "mix_x", **{"TEST.TEXT_INTERPOLATION": 1.5})


# A teacher whose own prompt is tuned on the stored features


def test_the_tuned_prompt_is_kept_beside_the_raw_one(world, feature_store, capsys, monkeypatch):
    keys = {
        "TRAINER.FDBPL.STORE": feature_store,
        "TRAINER.FDBPL.TUNE_TEACHER_EPOCHS": 3,
        "TRAINER.FDBPL.TUNE_TEACHER_LR": 0.02,
    }
    raw = run(world, feature_store, "FDBPL", "tune/raw", epochs=1)
    tuned = run(world, "", "FDBPL", "tune/tuned", epochs=1, **keys)
    out = capsys.readouterr().out
    line = out.split("Teacher on the regions it was tuned on: ")[1].splitlines()[0]
    before, after = (float(part.split(" %")[0]) for part in line.split(", "))
    assert after > before
    assert RunResult.read(world / "tune/tuned").knobs == ["TUNE_TEACHER_EPOCHS 3"]
    assert (raw.store.text == RegionStore.open(feature_store).text).all()  # untouched
    assert tuned.store.variant.startswith("tuned 3 epochs")
    assert abs(tuned.store.text - raw.store.text).max() > 1e-3
    # It is tuned once: the next run reads it, and learns the same bits.
    from trainers import tuned_teacher

    monkeypatch.setattr(tuned_teacher, "tune_text", lambda *_: pytest.fail("tuned again"))
    again = run(world, "", "FDBPL", "tune/again", epochs=1, **keys)
    assert torch.equal(again.model.learner.ctx, tuned.model.learner.ctx)


def test_tuning_needs_features_and_labels(world, store, feature_store, vocabulary):
    keys = {"TRAINER.FDBPL.TUNE_TEACHER_EPOCHS": 3}
    with pytest.raises(ValueError, match="STORE_KIND features"):
        run(world, store, "FDBPL", "tune/x", **keys)
    keys |= {"TRAINER.FDBPL.STORE": feature_store, **agnostic(vocabulary)}
    with pytest.raises(
        ValueError, match="TUNE_TEACHER_EPOCHS tunes the teacher's prompt on labels"
    ):
        run(world, "", "FDBPL", "tune/x", **keys)


def test_negative_weights_are_refused(world, store):
    with pytest.raises(ValueError, match="TRAINER.DISTILL.LABEL_LOGIT is -1"):
        run(world, store, "CoOp_KDPL", "x", **{"TRAINER.DISTILL.LABEL_LOGIT": -1})


def test_knobs_are_off_by_default():
    from configs.cli import get_cfg_default
    from configs.defaults import extend_cfg

    cfg = get_cfg_default()
    extend_cfg(cfg)
    assert cfg.TRAINER.DISTILL.pop("K_MAX") == 1000 and not any(cfg.TRAINER.DISTILL.values())
    assert cfg.TEST.TEXT_INTERPOLATION == (0.0,) and not cfg.TRAINER.FDBPL.TUNE_TEACHER_EPOCHS
    assert TRAINER_REGISTRY.get("FDBPL").PROMPT == "COOP"


# Keys of older versions


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_key_names_the_new_one(world, old, new):
    with pytest.raises(ValueError, match=f"{old} was renamed to {new}"):
        run(world, "", "CoOp_KDPL", "x", **{old: 1})


def test_a_run_of_older_keys_is_opened(world):
    trainer = run(world, "", "CoOp", "older", epochs=1)
    path = world / "older" / "config.yaml"
    saved = yaml.safe_load(path.read_text())
    saved["TRAINER"]["KDPL"]["K_MAX"] = saved["TRAINER"]["DISTILL"].pop("K_MAX") + 1
    saved["MODEL"]["COMPILE"] = saved["TRAINER"]["FDBPL"]["CUT"] = False
    path.write_text(yaml.safe_dump(saved))
    opened = open_run(world / "older")
    assert opened.cfg.TRAINER.DISTILL.K_MAX == 1001
    assert torch.equal(opened.model.learner.ctx, trainer.model.learner.ctx)
