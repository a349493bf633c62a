"""Each trainer through the command line on a small toy world: what it trains, saves and reports."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toy_runs import REPO, flags, run, stopped_in

import train
from configs.cli import get_cfg_default, setup_cfg
from configs.defaults import extend_cfg
from models import clip
from reporting.results import RunResult
from trainers import fdbpl

TRAINED = ["CoOp", "CoOp_KDPL", "FDBPL"]


def saved_prompts(world: Path, out: str, epoch: int = 3) -> dict[str, torch.Tensor]:
    path = world / out / "prompt_learner" / f"model.pth.tar-{epoch}"
    return torch.load(path, weights_only=True)["state_dict"]


# End to end


@pytest.mark.parametrize("name", [*TRAINED, "CoOp_FDBPL"])
def test_trains_saves_and_evaluates_on_new_classes(world, store, name, capsys):
    trainer = run(world, store, name, f"{name}/base")
    log = capsys.readouterr().out
    start = trainer.model.learner
    expected = {"ctx", "negative_ctx"} if name.endswith("FDBPL") else {"ctx"}
    assert set(saved_prompts(world, f"{name}/base")) == expected
    assert all(torch.equal(saved_prompts(world, f"{name}/base")[k], getattr(start, k).detach())
               for k in expected)  # fmt: skip
    assert "Finish training" in log and "=> result" in log
    if name.endswith("FDBPL"):
        for term in ("distill", "reject", "similarity", "cascade"):
            assert f" {term} " in log

    base = RunResult.read(world / name / "base")
    assert (base.trainer, base.dataset, base.scope, base.shots) == (name, "ToyShapes", "base", 4)
    assert base.num_images == 24 * 4 and base.num_classes == 24 and base.epochs == 3
    assert base.accuracy > 20 and base.seconds["train"] > 0  # chance is 4.2
    assert (base.store is not None) == name.endswith("FDBPL")
    assert (base.seconds["dump"] is not None) == name.endswith("FDBPL")

    evaluate = ["--eval-only", "--model-dir", str(world / name / "base"), "--load-epoch", "3"]
    run(world, "", name, f"{name}/new", extra=evaluate, scope="new")
    new = RunResult.read(world / name / "new")
    assert new.scope == "new" and new.eval_only and new.accuracy > 15
    again = run(world, "", name, f"{name}/again", extra=evaluate)
    assert again.scores["accuracy"] == base.accuracy  # the loaded prompts are the trained ones


def test_zero_shot_needs_no_training_and_no_checkpoint(world, store, capsys):
    accuracies = [
        run(world, store, "ZeroshotCLIP", out, extra=extra, scope="new").scores["accuracy"]
        for out, extra in (("zs", []), ("zs_eval", ["--eval-only"]))
    ]
    assert accuracies[0] == accuracies[1] > 15
    assert RunResult.read(world / "zs").teacher is None


def test_an_error_is_one_line_without_a_traceback(world):
    command = [sys.executable, "train.py", *flags(world, "FDBPL"), "--output-dir"]
    done = subprocess.run(
        [*command, str(world / "child"), "TRAINER.FDBPL.NUM_REGIONS", "0"],
        cwd=REPO, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: TRAINER.FDBPL.REGIONS_PER_STEP")


# The same seed gives the same bits; another seed does not


@pytest.mark.parametrize("name", TRAINED)
def test_a_seed_decides_every_bit(world, store, name):
    first, second = (saved_prompts_of(run(world, store, name, f"{name}/{i}")) for i in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)
    if name != "FDBPL":  # its store belongs to seed 1
        other = saved_prompts_of(run(world, store, name, f"{name}/c", seed=0))
        assert not torch.equal(first["ctx"], other["ctx"])


def test_a_seed_decides_every_byte_of_the_prompts_file(world, store):
    files = set()
    for index in range(4):
        run(world, store, "CoOp", f"bytes/{index}", epochs=1, **{"TEST.NO_TEST": True})
        path = world / "bytes" / str(index) / "prompt_learner" / "prompts-1.safetensors"
        files.add(path.read_bytes())
    assert len(files) == 1


def saved_prompts_of(trainer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in trainer.model.learner.state_dict().items()}


def test_workers_do_not_change_a_bit(world, store):
    alone = saved_prompts_of(run(world, store, "FDBPL", "w0"))
    helped = saved_prompts_of(run(world, store, "FDBPL", "w2", **{"DATALOADER.NUM_WORKERS": 2}))
    assert all(torch.equal(alone[key], helped[key]) for key in alone)


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_that_stopped_and_went_on_ends_with_the_same_bits(world, store, name):
    whole = saved_prompts_of(run(world, store, name, f"{name}/whole", epochs=4))
    with stopped_in(name, epoch=2):
        run(world, store, name, f"{name}/cut", epochs=4)
    continued = run(world, store, name, f"{name}/cut", epochs=4)
    assert continued.start_epoch == 2
    found = saved_prompts_of(continued)
    assert all(torch.equal(whole[key], found[key]) for key in whole)
    result = RunResult.read(world / name / "cut")
    assert result.seconds["train"] is None  # a part of the epochs is no training time


# The objective does what its keys say


def test_terms_switch_off_and_on(world, store, capsys):
    keys = dict.fromkeys(
        ("REJECT_WEIGHT", "SIMILARITY_WEIGHT", "CASCADE_WEIGHT"), 0.0
    ) | {"REGIONS_PER_STEP": 2}  # fmt: skip
    keys = {f"TRAINER.FDBPL.{key}": value for key, value in keys.items()}
    keys["TRAINER.DISTILL.LABEL_WEIGHT"] = 0.5
    run(world, store, "FDBPL", "terms", epochs=1, **keys)
    line = next(row for row in capsys.readouterr().out.splitlines() if row.startswith("epoch ["))
    assert " distill " in line and " labels " in line
    assert " reject " not in line and " similarity " not in line and " cascade " not in line


def test_all_terms_off_is_refused(world, store):
    keys = {f"TRAINER.FDBPL.{k}_WEIGHT": 0.0
            for k in ("DISTILL", "REJECT", "SIMILARITY", "CASCADE")}  # fmt: skip
    with pytest.raises(ValueError, match="nothing is left to learn"):
        run(world, store, "FDBPL", "off", **keys)


@pytest.mark.parametrize("count", [0, 1, 4, 5])
def test_a_step_takes_1_to_all_regions_of_an_image(world, store, count):
    keys = {"TRAINER.FDBPL.REGIONS_PER_STEP": count, "TEST.NO_TEST": True}
    if count in (0, 5):
        with pytest.raises(ValueError, match=rf"STEP is {count}; it needs 1 to NUM_REGIONS \(4\)"):
            run(world, store, "FDBPL", f"step/{count}", epochs=1, **keys)
        return
    trainer = run(world, store, "FDBPL", f"step/{count}", epochs=1, **keys)
    batches = list(trainer.train_loader_x)
    size = trainer.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
    assert len(batches) == 24 * 4 // size == trainer.num_batches
    for batch in batches:
        assert len(batch["label"]) == len(batch["teacher_logits"]) == size * count
        counts = torch.bincount(batch["index"], minlength=96)
        assert counts[counts > 0].tolist() == [count] * size
    seen = torch.cat([batch["index"].unique() for batch in batches])
    assert len(seen.unique()) == len(seen)  # no image twice in an epoch


@pytest.mark.parametrize("images", [40, 1000])
def test_a_batch_is_whole_and_as_large_as_there_are_images(world, store, images):
    keys = {"DATALOADER.TRAIN_X.BATCH_SIZE": images, "TEST.NO_TEST": True}
    trainer = run(world, store, "FDBPL", f"batch/{images}", epochs=1, **keys)
    sizes = [len(batch["label"]) for batch in trainer.train_loader_x]
    assert sizes == ([40, 40] if images == 40 else [96])


def test_workers_cut_regions_and_kept_features_need_none(world, store):
    keys = {"DATALOADER.NUM_WORKERS": 1, "TEST.NO_TEST": True}
    cut = run(world, store, "VPT_FDBPL", "workers/cut", epochs=1, **keys).train_loader_x
    kept = run(world, store, "FDBPL", "workers/kept", epochs=1, **keys).train_loader_x
    assert (cut.num_workers, kept.num_workers) == (1, 0)
    assert not cut.pin_memory and not kept.pin_memory  # on a CPU
    assert cut.dataset[0]["img"].shape[1:] == (3, 48, 48)
    assert next(iter(kept))["img"].dim() == 2  # features, not pixels


def test_other_weights_under_the_teachers_name_are_refused(world, store, monkeypatch):
    monkeypatch.setitem(clip.TOY_FILES, "toy-teacher", clip.TOY_FILES["toy-student"])
    with pytest.raises(ValueError, match="teacher with weights .*, but this run has"):
        run(world, store, "FDBPL", "weights", epochs=1)


def test_images_replaced_since_the_dump_stop_a_training(world, store, capsys):
    keys = {"TEST.NO_TEST": True}
    trainer = run(world, store, "FDBPL", "replaced/as_dumped", epochs=1, **keys)
    assert "not compared" not in capsys.readouterr().out
    path = Path(trainer.dm.dataset.train_x[5].impath)
    content, times = path.read_bytes(), path.stat()
    try:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # as large and as old
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(ValueError, match=f"1 of 96 images changed since .*{path.name}"):
            run(world, store, "FDBPL", "replaced/other", epochs=1, **keys)
        keys["TRAINER.FDBPL.TRUST_MTIME"] = True
        run(world, store, "FDBPL", "replaced/trusted", epochs=1, **keys)
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("known, told", [(3, ""), (1, "2 of 3 images"), (0, "3 of 3 images")])
def test_what_is_not_known_of_some_images_is_told(known, told, capsys):
    compared = []
    contents = SimpleNamespace(
        of=lambda places: (np.arange(3) < known, None),
        require_unchanged=lambda *given: compared.append(given[:4]),
    )
    store = SimpleNamespace(
        contents=contents, spec="spec", path="p", image_indices=lambda images: [4, 5, 6]
    )
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.TRAINER.FDBPL.TRUST_MTIME, cfg.DATASET.ROOT = True, "r"
    fdbpl.require_images(store, ["a", "b", "c"], cfg)
    assert compared == [("spec", [4, 5, 6], "r", True)]
    out = capsys.readouterr().out
    assert told in out and ("not compared" in out) == bool(told)


@pytest.mark.parametrize("alone", ["DISTILL", "REJECT", "SIMILARITY", "CASCADE", "labels"])
def test_one_term_alone_is_enough(world, store, alone):
    keys = {f"TRAINER.FDBPL.{k}_WEIGHT": float(k == alone)
            for k in ("DISTILL", "REJECT", "SIMILARITY", "CASCADE")}  # fmt: skip
    keys |= {"TRAINER.DISTILL.LABEL_WEIGHT": float(alone == "labels"), "TEST.NO_TEST": True}
    trainer = run(world, store, "FDBPL", f"alone/{alone}", epochs=1, **keys)
    terms, _ = trainer.losses(next(iter(trainer.train_loader_x)))
    assert list(terms) == [alone.lower()]


def written_out_terms(f_BD, text_2CD, scale, teacher_BC, margin, weighted):
    """The table of docs/METHOD.md in float64, region by region and pair by pair, unweighted."""
    f_BD, text_2CD, teacher_BC = f_BD.double(), text_2CD.double(), teacher_BC.double()
    log_c = math.log(teacher_BC.shape[1])
    w_B, values = [], {"distill": [], "reject": [], "similarity": [], "cascade": []}
    for f_D, teacher_C in zip(f_BD, teacher_BC, strict=True):
        positive_C, negative_C = (scale * text_CD @ f_D for text_CD in text_2CD)
        p, q, n = (z.softmax(0) for z in (teacher_C, positive_C, negative_C))
        w = 1 + float((p * p.log()).sum()) / log_c if weighted else 1.0
        w_B.append(w)
        both = ((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2
        values["distill"].append(w * both)
        values["reject"].append((1 - w) * (log_c + (n * n.log()).sum()))
        cosine = positive_C @ negative_C / positive_C.norm() / negative_C.norm()
        values["similarity"].append(w * cosine)
    difference_CD, class_B = text_2CD[0] - text_2CD[1], teacher_BC.argmax(1)
    for a in range(len(f_BD)):
        for b in range(a):
            if class_B[a] != class_B[b]:
                along = difference_CD[class_B[a]] - difference_CD[class_B[b]]
                hinge = max(0.0, margin - float((f_BD[a] - f_BD[b]) @ along))
                values["cascade"].append(w_B[a] * w_B[b] * hinge)
    assert max(values["cascade"]) > 0
    return {name: sum(map(float, each)) / len(each) for name, each in values.items()}


@pytest.mark.parametrize("weight", ["entropy", "none"])
@pytest.mark.parametrize("host", ["FDBPL", "VPT_FDBPL"])
def test_every_term_is_the_one_written_down(world, store, host, weight):
    chosen = {"DISTILL": 0.5, "REJECT": 2.0, "SIMILARITY": 0.25, "CASCADE": 3.0}
    keys = {f"TRAINER.FDBPL.{name}_WEIGHT": value for name, value in chosen.items()}
    keys |= {"TRAINER.FDBPL.REGION_WEIGHT": weight, "TRAINER.FDBPL.CASCADE_MARGIN": 0.3}
    keys |= {"TRAINER.FDBPL.REGIONS_PER_STEP": 2, "TEST.NO_TEST": True}
    trainer = run(world, store, host, f"terms/{host}_{weight}", epochs=1, **keys)
    batch = next(iter(trainer.train_loader_x))
    with torch.no_grad():
        terms, _ = trainer.losses(batch)
        output = trainer.model(batch["img"])
        scale = trainer.model.clip.model.logit_scale.exp().item()
    assert scale > 5  # the cascade is over cosines: without its division it would be far away
    wanted = written_out_terms(
        output.image, output.text, scale, batch["teacher_logits"], 0.3, weight == "entropy"
    )
    for key, value in chosen.items():
        name = key.lower()
        assert terms[name].item() == pytest.approx(value * wanted[name], rel=2e-4, abs=1e-6), name


def test_rejection_alone_leaves_the_positive_prompt_where_it_was(world, store):
    """Its gradient reaches the negative prompt only (frozen encoders): a structural fact."""
    keys = {f"TRAINER.FDBPL.{k}_WEIGHT": 0.0 for k in ("DISTILL", "SIMILARITY", "CASCADE")}
    keys["OPTIM.WEIGHT_DECAY"] = 0.0
    trainer = run(world, store, "FDBPL", "reject", **keys)
    from models.learners import initial_context

    start_ND = initial_context(trainer.model.clip, "a photo of a", 4)
    assert torch.equal(trainer.model.learner.ctx.detach(), start_ND)
    assert not torch.equal(trainer.model.learner.negative_ctx.detach(), start_ND)


def test_entropy_weights_are_what_training_uses(world, store):
    weighted = saved_prompts_of(run(world, store, "FDBPL", "w_entropy"))
    uniform = saved_prompts_of(
        run(world, store, "FDBPL", "w_none", **{"TRAINER.FDBPL.REGION_WEIGHT": "none"})
    )
    assert not torch.equal(weighted["ctx"], uniform["ctx"])


def test_fdbpl_step_equals_the_losses_written_out(world, store):
    """One batch: the trainer's terms against the formulas, weight by weight."""
    import math

    trainer = run(world, store, "FDBPL", "formula", epochs=1)
    batch = next(iter(trainer.train_loader_x))
    terms, positive_BC = trainer.losses(batch)
    with torch.no_grad():
        f = trainer.model.image_features(batch["img"])
        t_pos, t_neg = trainer.model.text_features()
    s = trainer.model.clip.model.logit_scale.exp()
    p = batch["teacher_logits"].softmax(-1)
    q, n = (s * f @ t_pos.T).softmax(-1), (s * f @ t_neg.T).softmax(-1)
    w = 1 + (p * p.log()).sum(-1) / math.log(24)
    kl = 0.5 * (p * (p / q).log()).sum(-1) + 0.5 * (q * (q / p).log()).sum(-1)
    reject = (n * (n * 24).log()).sum(-1)
    torch.testing.assert_close(terms["distill"], (w * kl).mean(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(terms["reject"], ((1 - w) * reject).mean(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(positive_BC.softmax(-1), q, atol=1e-5, rtol=1e-3)


def test_fdbpl_never_loads_the_teacher(world, store, monkeypatch):
    from models import clip, teacher
    from trainers import base

    loaded = []
    monkeypatch.setattr(teacher, "load_clip", lambda name, *_: loaded.append(name))
    real = clip.load_clip
    monkeypatch.setattr(
        base, "load_clip", lambda name, *rest: loaded.append(name) or real(name, *rest)
    )
    run(world, store, "FDBPL", "no_teacher", epochs=1)
    assert loaded == ["toy-student"]


def test_learning_rate_follows_the_familys_schedule(world, store, capsys):
    """Epoch 1 at 1e-5, then the cosine from the full rate; the last batch shows the next one."""
    run(world, store, "CoOp", "schedule", epochs=5, **{"OPTIM.LR": 0.002})
    rows = [row for row in capsys.readouterr().out.splitlines() if row.startswith("epoch [")]
    rates = [float(row.split(" lr ")[1].split()[0]) for row in rows if "batch [1/3]" in row]
    assert rates == [1e-5, 2e-3, 1.8090e-3, 1.3090e-3, 6.9098e-4]


# Bad input is answered with the way out


def test_nan_stops_with_step_and_term(world, store, monkeypatch):
    import losses

    monkeypatch.setattr(losses, "rejection", lambda x: x.sum(-1) * float("nan"))
    with pytest.raises(FloatingPointError, match=r"Loss term reject .* epoch 1, batch 1"):
        run(world, store, "FDBPL", "nan")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"TRAINER.FDBPL.STORE": ""}, "TRAINER.FDBPL.STORE is empty"),
        ({"TRAINER.FDBPL.STORE": "/nowhere"}, "/nowhere"),
        ({"TRAINER.FDBPL.TEACHER": "ViT-L/14"}, "Set TRAINER.FDBPL.TEACHER toy-teacher"),
        ({"TRAINER.FDBPL.NUM_REGIONS": 5}, "Set TRAINER.FDBPL.NUM_REGIONS 4"),
        ({"DATASET.TEMPLATE": "a drawing of a {}."}, "DATASET.TEMPLATE"),
        ({"DATASET.NUM_SHOTS": 3, "DATASET.SUBSAMPLE_CLASSES": "new"}, "DATASET.SUBSAMPLE_CLASSES"),
        ({"INPUT.SIZE": "(224,224)"}, r"Set INPUT.SIZE \(48,48\)"),
        ({"INPUT.PIXEL_MEAN": "[0.5,0.5,0.5]"}, "INPUT.PIXEL_MEAN"),
        ({"TRAINER.COOP.PREC": "fp8"}, "TRAINER.COOP.PREC is 'fp8'"),
        ({"TRAINER.COOP.CLASS_TOKEN_POSITION": "top"}, "choose one of end, middle, front"),
        ({"TRAINER.FDBPL.NEGATIVE_INIT": "no"}, "same number of words"),
        ({"TRAINER.FDBPL.REGION_WEIGHT": "x"}, "TRAINER.FDBPL.REGION_WEIGHT"),
        ({"MODEL.BACKBONE.NAME": "ViT-B/99"}, "ViT-B/99"),
    ],
)
def test_a_wrong_key_is_named(world, store, keys, message):
    with pytest.raises(ValueError, match=message):
        run(world, store, "FDBPL", "wrong", **keys)


def test_a_store_of_another_seed_is_refused(world, store):
    with pytest.raises(ValueError, match="--seed"):
        run(world, store, "FDBPL", "wrong_seed", seed=2)


def test_checkpoints_that_do_not_fit_are_refused(world, store):
    run(world, store, "CoOp", "fit", epochs=1)
    evaluate = ["--eval-only", "--model-dir", str(world / "fit")]
    with pytest.raises(ValueError, match="holds epochs 1. Check --model-dir and --load-epoch"):
        run(world, store, "CoOp", "x", extra=[*evaluate, "--load-epoch", "9"])
    with pytest.raises(ValueError, match="TRAINER.NAME is CoOp there and FDBPL now"):
        run(world, "", "FDBPL", "x", extra=evaluate)
    (world / "fit" / "identity.json").unlink()  # as where official code trained
    with pytest.raises(ValueError, match=r"missing \['negative_ctx'\]"):
        run(world, "", "FDBPL", "x", extra=evaluate)
    words = {"TRAINER.COOP.CTX_INIT": "a photo"}
    with pytest.raises(ValueError, match="Check N_CTX, CTX_INIT"):
        run(world, store, "CoOp", "x", extra=evaluate, **words)
    with pytest.raises(ValueError, match="--eval-only needs --model-dir"):
        run(world, store, "CoOp", "x", extra=["--eval-only"])
    (world / "fit" / "prompt_learner" / "model.pth.tar-1").write_bytes(b"cut")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        run(world, store, "CoOp", "x", extra=[*evaluate, "--load-epoch", "1"])


def test_config_errors_name_file_key_and_pair(world, tmp_path):
    for command, message in (
        (["--config-file", "configs/trainers/CoOp/nope.yaml"], "vit_b16_ctxv1.yaml"),
        (["TRAINER.COOP.NCTX", "4"], "TRAINER.COOP.NCTX"),
        (["OPTIM.LR"], "KEY VALUE pairs"),
        (["OPTIM.MAX_EPOCH", "many"], "OPTIM.MAX_EPOCH"),
    ):
        with pytest.raises(ValueError, match=message):
            train.main(command)


# Merging (the recipes themselves: test_recipes.py)


def test_merge_order_is_the_familys():
    """defaults < data set yaml < recipe < named flags < KEY VALUE."""
    parser = train.argparse.ArgumentParser()
    from configs.cli import add_family_flags

    add_family_flags(parser)
    recipe = ["--config-file", str(REPO / "configs/trainers/CoOp/vit_b16_ctxv1.yaml")]
    assert setup_cfg(parser.parse_args([])).TRAINER.COOP.N_CTX == 16
    assert setup_cfg(parser.parse_args(recipe)).MODEL.BACKBONE.NAME == "ViT-B/16"
    named = [*recipe, "--backbone", "RN50", "--seed", "0"]
    assert setup_cfg(parser.parse_args(named)).MODEL.BACKBONE.NAME == "RN50"
    assert setup_cfg(parser.parse_args(named)).SEED == 0
    last = [*named, "MODEL.BACKBONE.NAME", "RN101"]
    assert setup_cfg(parser.parse_args(last)).MODEL.BACKBONE.NAME == "RN101"
