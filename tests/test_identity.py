"""What a run is: every key counts or says why not; no run is taken for another, whatever asks."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from dassl.config import get_cfg_default
from family_world import make_images
from test_together import together
from toy_runs import flags, options, run, stopped_in

import dump_teacher_logits
import train
from configs.defaults import extend_cfg
from reporting.identity import (
    NOT_IDENTITY,
    WORKERS,
    IdentityError,
    can_extend,
    data_facts,
    differences,
    flatten,
    read_identity,
    run_identity,
)
from reporting.results import RunResult
from trained import open_run


def defaults():
    cfg = get_cfg_default()
    extend_cfg(cfg)
    return cfg


KEYS = dict(flatten(defaults()))


def with_key(key: str, value) -> dict:
    cfg = defaults()
    *nodes, last = key.split(".")
    node = cfg
    for name in nodes:
        node = node[name]
    node[last] = value
    return cfg


def other(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return value + "x" if isinstance(value, str) else [*value, 1]


# --- every key of the config


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_identity_or_on_the_list_with_a_reason(key):
    before, after = run_identity(defaults(), {}), run_identity(with_key(key, other(KEYS[key])), {})
    if key in NOT_IDENTITY:
        assert key not in before and len(NOT_IDENTITY[key]) > 5
        after = {name: value for name, value in after.items() if name.isupper() or "." in name}
        assert [each for each in differences(before, after) if each.field.isupper()] == []
    else:
        found = differences(before, after)
        names = {each.field for each in found}
        # With no transforms at all there are none that draw random numbers.
        assert key in names and names <= {key, WORKERS}


def test_the_list_names_no_key_that_is_gone():
    assert NOT_IDENTITY.keys() <= KEYS.keys()


@pytest.mark.parametrize(
    ("trainer", "transforms", "counts"),
    [
        ("CoOp", ["random_flip", "normalize"], True),
        ("MaPLe_KDPL", ["random_resized_crop"], True),
        ("CoOp", ["normalize"], False),
        ("CoOp_FDBPL", ["random_flip"], False),  # regions are drawn in the main process
        ("ZeroshotCLIP", ["random_flip"], False),
    ],
)
def test_workers_count_where_each_draws_its_own_augmentation(trainer, transforms, counts):
    cfg = with_key("TRAINER.NAME", trainer)
    cfg.INPUT.TRANSFORMS = transforms
    assert (WORKERS in run_identity(cfg, {})) == counts
    assert WORKERS not in run_identity(cfg, {}, eval_only=True)


def test_workers_do_move_a_training_that_augments_and_no_other(world, store):
    """Why they count. Where this fails since they move nothing any more, they need not count."""
    keys = {"epochs": 1, "TEST.NO_TEST": True}
    coop = [prompts(run(world, "", "CoOp", f"workers_{n}", **keys, **{WORKERS: n})) for n in (0, 2)]
    assert not torch.equal(*coop)
    keys |= {"TRAINER.FDBPL.CACHE_FEATURES": False}
    fdbpl = [
        prompts(run(world, store, "FDBPL", "workers", extra=["--fresh"], **keys, **{WORKERS: n}))
        for n in (0, 2)
    ]
    assert torch.equal(*fdbpl)


def test_whole_numbers_and_tuples_are_written_one_way():
    cfg = with_key("TRAINER.PROMPTSRC.GPA_MEAN", 15)
    cfg.INPUT.RRCROP_SCALE = [0.08, 1]
    assert differences(run_identity(defaults(), {}), run_identity(cfg, {})) == []
    identity = run_identity(defaults(), {})
    assert json.loads(json.dumps(identity)) == identity


def test_images_are_told_apart_by_name_label_and_size_and_not_by_their_place(tmp_path):
    for root in ("a", "b"):
        make_images(tmp_path / root, ["train/0.jpg", "train/1.jpg", "test/2.jpg"])

    def facts(root, label=0, names=("x", "y")):
        train = [(str(tmp_path / root / f"train/{i}.jpg"), label) for i in (0, 1)]
        return data_facts(names, test=[(str(tmp_path / root / "test/2.jpg"), 1)], train=train)

    assert facts("a") == facts("b")
    assert facts("a", label=1)["train images"] != facts("a")["train images"]
    assert facts("a", names=("y", "x"))["classes"] != facts("a")["classes"]
    (tmp_path / "b/test/2.jpg").unlink()
    (tmp_path / "b/test/2.jpg").write_bytes(b"another image")
    assert facts("a")["test images"] != facts("b")["test images"]
    assert facts("a")["train images"] == facts("b")["train images"]


# --- resuming: the run of the same folder, or none


def identity(path: Path) -> dict:
    return read_identity(path)


def prompts(trainer) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in trainer.model.learner.parameters()])


@pytest.fixture(scope="module")
def finished(world):
    """A finished run of three epochs; tests must leave it as it is."""
    run(world, "", "CoOp", "a")
    return world / "a"


@pytest.fixture
def a(world, finished):
    """A copy of it."""
    folder = world / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished, folder)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


OTHERS = {  # asked into a folder of CoOp, seed 1, 3 epochs; what the message names
    "trainer": (dict(trainer="CoOp_KDPL"), "TRAINER.NAME is CoOp there and CoOp_KDPL now"),
    "seed": (dict(seed=2), "SEED is 1 there and 2 now"),
    "rate": ({"OPTIM.LR": 0.5}, "OPTIM.LR is 0.01 there and 0.5 now"),
    "fewer epochs": (dict(epochs=1), "OPTIM.MAX_EPOCH is 3 there and 1 now"),
    "more epochs": (dict(epochs=5), "OPTIM.MAX_EPOCH is 3 there and 5 now"),
    "shots": ({"DATASET.NUM_SHOTS": 2}, "DATASET.NUM_SHOTS is 4 there and 2 now"),
    "classes": (dict(scope="new"), "DATASET.SUBSAMPLE_CLASSES is base there and new now"),
    "student": ({"MODEL.BACKBONE.NAME": "toy-teacher"}, "MODEL.BACKBONE.NAME is toy-student"),
    "workers": ({WORKERS: 1}, "DATALOADER.NUM_WORKERS is 0 there and 1 now"),
}


@pytest.mark.parametrize("how", OTHERS)
@pytest.mark.parametrize("state", ["finished", "interrupted"])
def test_another_run_is_refused_before_it_trains_and_nothing_changes(world, a, how, state):
    if state == "interrupted":
        (a / "results.json").unlink()
    keys, told = OTHERS[how]
    keys = {"trainer": "CoOp", **keys}
    before = content(a)
    with pytest.raises(IdentityError) as refusal:
        run(world, "", keys.pop("trainer"), "copy", **keys)
    said = str(refusal.value)
    assert f"{a} holds another run: " in said and told in said
    assert "another --output-dir" in said and "--fresh" in said
    assert content(a) == before


@pytest.mark.parametrize("how", ["trainer", "seed", "rate"])
def test_resume_of_another_folder_asks_as_well(world, finished, how):
    keys, told = OTHERS[how]
    keys = {"trainer": "CoOp", **keys}
    with pytest.raises(IdentityError, match=told):
        extra = ["--resume", str(finished)]
        run(world, "", keys.pop("trainer"), f"resumed_{how}", extra=extra, **keys)


def test_the_old_values_are_given_as_they_are_written(world, a):
    with pytest.raises(IdentityError, match="Or give the old values: OPTIM.LR 0.01 OPTIM.MOMENTUM"):
        run(world, "", "CoOp", "copy", **{"OPTIM.LR": 0.5, "OPTIM.MOMENTUM": 0.1})


def test_the_same_run_asked_again_tests_and_does_not_train(world, a):
    before = RunResult.read(a)
    trainer = run(world, "", "CoOp", "copy", **{"TRAIN.PRINT_FREQ": 1, "TRAIN.CHECKPOINT_FREQ": 2})
    assert trainer.start_epoch == 3
    after = RunResult.read(a)
    assert after.accuracy == before.accuracy and after.identity == before.identity
    assert after.identity == identity(a)


def test_an_interrupted_run_has_said_what_it_is_and_goes_on(world):
    with stopped_in("CoOp", epoch=1):
        run(world, "", "CoOp", "stopped")
    assert identity(world / "stopped")["OPTIM.MAX_EPOCH"] == 3
    assert not (world / "stopped/results.json").exists()
    assert run(world, "", "CoOp", "stopped").start_epoch == 1


def test_a_run_that_saved_nothing_stands_in_nobodys_way(world):
    with stopped_in("CoOp", epoch=0):
        run(world, "", "CoOp", "early")
    run(world, "", "CoOp", "early", epochs=1, **{"OPTIM.LR": 0.5})
    assert RunResult.read(world / "early").identity["OPTIM.LR"] == 0.5


def test_a_folder_that_does_not_say_what_it_is_is_not_resumed(world, a):
    (a / "identity.json").unlink()
    with pytest.raises(IdentityError, match="a run without identity.json.*--fresh.*--eval-only"):
        run(world, "", "CoOp", "copy")
    (a / "identity.json").write_text("{")
    with pytest.raises(IdentityError, match="identity.json cannot be read"):
        run(world, "", "CoOp", "copy")


def test_fresh_sets_the_old_run_aside_and_starts_anew(world, a, capsys):
    before = content(a)
    (a / "notes.txt").write_text("mine")
    trainer = run(world, "", "CoOp", "copy", extra=["--fresh"], epochs=1, **{"OPTIM.LR": 0.5})
    assert trainer.start_epoch == 0 and "copy/earlier-1" in capsys.readouterr().out
    assert RunResult.read(a).identity["OPTIM.LR"] == 0.5
    assert content(a / "earlier-1") == before
    assert (a / "notes.txt").read_text() == "mine"
    assert [path.name for path in (a / "prompt_learner").glob("model*")] == ["model.pth.tar-1"]


def test_fresh_and_resume_are_one_or_the_other(world, finished):
    with pytest.raises(ValueError, match="give one of them"):
        run(world, "", "CoOp", "both", extra=["--fresh", "--resume", str(finished)])


# --- extending


STEPS = {"OPTIM.LR_SCHEDULER": "multi_step", "OPTIM.STEPSIZE": "(1,)"}


def test_a_stepped_run_is_extended_on_demand_and_ends_as_the_longer_one(world):
    run(world, "", "CoOp", "steps", epochs=2, **STEPS)
    with pytest.raises(IdentityError, match="add --extend: it goes on from epoch 2"):
        run(world, "", "CoOp", "steps", epochs=3, **STEPS)
    extended = run(world, "", "CoOp", "steps", epochs=3, extra=["--extend"], **STEPS)
    whole = run(world, "", "CoOp", "steps_whole", epochs=3, **STEPS)
    assert extended.start_epoch == 2 and torch.equal(prompts(extended), prompts(whole))
    found, wanted = (RunResult.read(world / name) for name in ("steps", "steps_whole"))
    assert found.epochs == 3 and found.identity == wanted.identity == identity(world / "steps")
    assert found.accuracy == wanted.accuracy
    with pytest.raises(IdentityError, match="MAX_EPOCH is 3 there and 2 now"):  # not back
        run(world, "", "CoOp", "steps", epochs=2, extra=["--extend"], **STEPS)


@pytest.mark.parametrize("extra", [[], ["--extend"]])
def test_a_cosine_is_not_extended(world, a, extra):
    with pytest.raises(IdentityError) as refusal:
        run(world, "", "CoOp", "copy", epochs=4, extra=extra)
    assert "It cannot be extended" in str(refusal.value)
    assert "cosine" in str(refusal.value) and "--extend" not in str(refusal.value)


def test_schedules_that_can_be_extended():
    def of(trainer="CoOp", **keys):
        cfg = with_key("TRAINER.NAME", trainer)
        for key, value in keys.items():
            cfg.OPTIM[key] = value
        return can_extend(run_identity(cfg, {}))

    assert of(LR_SCHEDULER="multi_step", STEPSIZE=(3,))
    assert of(LR_SCHEDULER="single_step", STEPSIZE=(3,))
    assert not of(LR_SCHEDULER="single_step", STEPSIZE=(-1,))  # that means MAX_EPOCH
    assert not of(LR_SCHEDULER="cosine")
    assert not of("PromptSRC_KDPL", LR_SCHEDULER="multi_step", STEPSIZE=(3,))  # its average


# --- what files hold that the config names


def test_initial_prompts_that_were_replaced_make_another_run(world, finished):
    first = world / "init.pth.tar"
    learned = finished / "prompt_learner"
    shutil.copy(learned / "model.pth.tar-1", first)
    keys = {"MODEL.INIT_WEIGHTS": first}
    run(world, "", "CoOp", "init", epochs=1, **keys)
    moved = world / "moved.pth.tar"
    first.rename(moved)  # the same under another name is the same
    keys = {"MODEL.INIT_WEIGHTS": moved}
    assert run(world, "", "CoOp", "init", epochs=1, **keys).start_epoch == 1
    shutil.copy(learned / "model.pth.tar-2", moved)
    with pytest.raises(IdentityError, match="initial prompts is"):
        run(world, "", "CoOp", "init", epochs=1, **keys)


def test_a_word_list_that_was_replaced_makes_another_run(world):
    words = world / "words.txt"
    words.write_text("red\nblue\n")
    keys = {
        "TRAINER.DISTILL.CLASS_AGNOSTIC": True,
        "TRAINER.DISTILL.VOCABULARY": words,
        "epochs": 1,
    }
    run(world, "", "CoOp_KDPL", "words", **keys)
    words.write_text("red\nblue\ngreen\n")
    with pytest.raises(IdentityError, match="vocabulary is"):
        run(world, "", "CoOp_KDPL", "words", **keys)


def test_a_store_that_was_replaced_makes_another_run(world, store):
    ours = world / "replaced"
    shutil.copytree(store, ours)
    run(world, ours, "FDBPL", "stored", epochs=1)
    assert run(world, store, "FDBPL", "stored", epochs=1).start_epoch == 1  # the same, elsewhere
    shutil.rmtree(ours)
    keys = {"TRAINER.FDBPL.STORE_DTYPE": "float32"}
    command = [*flags(world, "FDBPL"), *options(**keys)]
    assert dump_teacher_logits.run(["--store", str(ours), *command]) == 0
    with pytest.raises(IdentityError, match="store: dtype is float16 there and float32 now"):
        run(world, ours, "FDBPL", "stored", epochs=1)


def test_a_store_that_is_absent_does_not_wipe_out_what_was_read(world, store):
    ours, folder = world / "absent", world / "absent_run"
    shutil.copytree(store, ours)
    run(world, ours, "FDBPL", "absent_run", epochs=1)
    before = identity(folder)
    ours.rename(world / "away")
    with pytest.raises(ValueError, match="absent"):
        run(world, ours, "FDBPL", "absent_run", epochs=1)
    assert identity(folder) == before and before["store"]["kind"] == "logits"


def test_own_data_with_another_list_of_images_are_another_run(world):
    names = ("red triangle", "blue circle")
    folder = world / "data/own"
    make_images(folder, [f"{p}/{n}/{i}.jpg" for p in ("train", "test") for n in names
                         for i in range(3)])  # fmt: skip
    keys = {"DATASET.NAME": "ImageFolder", "DATASET.FOLDER": "own", "DATASET.NUM_SHOTS": -1,
            "epochs": 1, "scope": "all"}  # fmt: skip
    run(world, "", "CoOp", "own", **keys)
    folder.rename(world / "data/moved")
    keys["DATASET.FOLDER"] = "moved"
    assert run(world, "", "CoOp", "own", **keys).start_epoch == 1
    (world / "data/moved/test/blue circle/2.jpg").unlink()
    with pytest.raises(IdentityError, match="test images is"):
        run(world, "", "CoOp", "own", **keys)


def test_a_recipe_that_was_edited_makes_another_run(world, a):
    recipe = world / "recipe.yaml"
    text = Path("configs/trainers/CoOp/toy.yaml").read_text()
    recipe.write_text(text.replace("LR: 0.01", "LR: 0.02"))
    command = flags(world, "CoOp")
    command[command.index("--config-file") + 1] = str(recipe)
    with pytest.raises(IdentityError, match="OPTIM.LR is 0.01 there and 0.02 now"):
        train.main([*command, "--output-dir", str(a), *options()])
    recipe.write_text(f"# a comment\n{text}")
    assert train.main([*command, "--output-dir", str(a), *options()]).start_epoch == 3


# --- testing what was trained


def evaluate(world, folder, out, trainer="CoOp", epoch=3, **keys):
    extra = ["--eval-only", "--model-dir", str(folder), "--load-epoch", str(epoch)]
    return run(world, "", trainer, out, extra=extra, **keys)


def test_a_test_holds_what_was_trained(world, finished):
    evaluate(world, finished, "new", scope="new", epoch=2)
    found = RunResult.read(world / "new")
    assert found.identity["trained"] == {**identity(finished), "epoch": 2}
    assert found.identity["DATASET.SUBSAMPLE_CLASSES"] == "new" and found.epochs == 3
    # Its folder is no other test's.
    with pytest.raises(IdentityError, match="trained: epoch is 2 there and 3 now"):
        evaluate(world, finished, "new", scope="new", epoch=3)
    with pytest.raises(IdentityError, match="DATASET.SUBSAMPLE_CLASSES is new there"):
        evaluate(world, finished, "new", epoch=2)
    evaluate(world, finished, "new", scope="new", epoch=2, **{"TRAIN.PRINT_FREQ": 3})


TESTED = {
    "trainer": (dict(trainer="CoOp_KDPL"), "TRAINER.NAME is CoOp there and CoOp_KDPL now"),
    "seed": (dict(seed=2), "SEED is 1 there and 2 now"),
    "rate": ({"OPTIM.LR": 0.5}, "OPTIM.LR is 0.01 there and 0.5 now"),
    "prompt": ({"TRAINER.COOP.CLASS_TOKEN_POSITION": "front"}, "CLASS_TOKEN_POSITION is end there"),
    "knob": ({"TRAINER.DISTILL.LABEL_LOGIT": 4.0}, "LABEL_LOGIT is 0 there and 4 now"),
    "shots": ({"DATASET.NUM_SHOTS": 2}, "DATASET.NUM_SHOTS is 4 there and 2 now"),
    "student": ({"MODEL.BACKBONE.NAME": "toy-teacher"}, "MODEL.BACKBONE.NAME is toy-student there"),
}


@pytest.mark.parametrize("how", TESTED)
def test_a_test_under_another_label_is_refused(world, finished, how):
    keys, told = TESTED[how]
    with pytest.raises(IdentityError) as refusal:
        evaluate(world, finished, f"tested_{how}", **keys)
    assert told in str(refusal.value) and "Give the values of the training" in str(refusal.value)
    assert not (world / f"tested_{how}/results.json").exists()


def test_official_runs_are_tested_and_their_training_is_unknown(world, finished, a, capsys):
    (a / "identity.json").unlink()
    evaluate(world, a, "official", scope="new")
    assert f"What was trained in {a} is not known" in capsys.readouterr().out
    trained = RunResult.read(world / "official").identity["trained"]
    assert trained["identity"] == "unknown" and trained["epoch"] == 3
    shutil.copy(a / "prompt_learner/model.pth.tar-2", a / "prompt_learner/model.pth.tar-3")
    with pytest.raises(IdentityError, match="trained: weights is"):
        evaluate(world, a, "official", scope="new")


def test_a_run_is_not_overwritten_by_its_own_test(world, a):
    before = content(a)
    with pytest.raises(IdentityError, match="holds another run: kind is training there and test"):
        evaluate(world, a, "copy", scope="new")
    assert content(a) == before


def test_a_student_that_was_replaced_is_noticed_when_a_run_is_opened(world, a):
    known = identity(a)
    (a / "identity.json").write_text(json.dumps({**known, "student weights": "0" * 16}))
    with pytest.raises(ValueError, match="made with other weights of toy-student"):
        open_run(a)
    (a / "identity.json").unlink()  # of an older version
    open_run(a)


def test_seeds_in_one_process_ask_as_their_own_runs_do(world):
    together(world, Path(""), "CoOp", "seeds", epochs=1)
    found = [RunResult.read(world / f"seeds/seed{seed}").identity for seed in (1, 2)]
    assert [each.field for each in differences(*found)] == ["SEED"]  # 4 shots are all images here
    with pytest.raises(ValueError, match=r"2 of 2 seeds failed. seed 1: .*OPTIM.LR is 0.01 there"):
        together(world, Path(""), "CoOp", "seeds", epochs=1, **{"OPTIM.LR": 0.5})
    # Only the folder of seed 2 is another's.
    shutil.rmtree(world / "seeds/seed1")
    with pytest.raises(ValueError, match=r"1 of 2 seeds failed. seed 2: "):
        together(world, Path(""), "CoOp", "seeds", epochs=1, **{"OPTIM.LR": 0.5})
    assert RunResult.read(world / "seeds/seed1").identity["OPTIM.LR"] == 0.5


# --- METHOD_VERSION

# A few learned numbers of three epochs on the small toy world, with METHOD_VERSION 1.
GOLDEN = Path(__file__).parent / "golden" / "method_version.json"


@pytest.mark.parametrize("trainer", ["CoOp", "FDBPL", "MaPLe_KDPL"])
def test_the_method_still_learns_what_its_version_says(world, store, trainer):
    learned = run(world, store, trainer, f"golden_{trainer}", **{"TEST.NO_TEST": True})
    found = prompts(learned).double()
    started = run(world, store, trainer, f"start_{trainer}", epochs=3, extra=["--no-train"])
    moved = found - prompts(started).double()
    numbers = [moved.norm().item(), moved.abs().max().item(), *moved[:: len(moved) // 16].tolist()]
    key = f"{trainer}, METHOD_VERSION {run_identity(defaults(), {})['method version']}"
    if os.environ.get("WRITE_GOLDEN"):
        known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        GOLDEN.write_text(json.dumps({**known, key: numbers}, indent=1) + "\n")
    wanted = json.loads(GOLDEN.read_text()).get(key)
    # A thousandth of the way learned: libraries round less, a change of the method moves more.
    close = wanted and torch.allclose(
        torch.tensor(numbers), torch.tensor(wanted), rtol=0.001, atol=0.001 * moved.abs().max()
    )
    assert close, (
        f"{trainer} learns other prompts than {GOLDEN.name} says of {key}. If the change that did "
        "this is meant, raise METHOD_VERSION in reporting/identity.py, say so in CHANGELOG.md, "
        "and run this file once with WRITE_GOLDEN=1. If not, it is a fault."
    )
