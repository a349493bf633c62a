"""Every method on the small toy world: it trains what it should, goes on after a stop, is saved."""

from __future__ import annotations

import math

import pytest
import torch
from dassl.engine import TRAINER_REGISTRY
from safetensors.torch import load_file
from toy_runs import run, stopped_in

from models import clip as clip_loader
from reporting.results import RunResult
from trainers import promptsrc
from trainers.promptsrc import WeightedAverage, gaussian_weights
from trainers.registry import OBJECTIVES, PROMPT_MODELS

HOSTS = ["CoCoOp", "CoOp", "IVLP", "MaPLe", "PromptSRC", "VPT"]
EVERY = [*HOSTS, *(f"{host}_{suffix}" for host in HOSTS for suffix in ("FDBPL", "KDPL"))]
FOLDER = {"MaPLe": "MultiModalPromptLearner"} | dict.fromkeys(
    ("IVLP", "PromptSRC"), "VLPromptLearner"
)
# What a toy recipe of each host trains: 2 text layers, 3 image layers at most.
TEXT = {"CoOp": 1, "CoCoOp": 1, "IVLP": 2, "MaPLe": 2, "PromptSRC": 2}
META = {f"meta_net.linear{i}.{part}" for i in (1, 2) for part in ("weight", "bias")}
LINEAR = {"weight", "bias"}


def folder_of(name: str) -> str:
    return FOLDER.get(name.split("_")[0], "prompt_learner")


def expected_parameters(trainer, name: str) -> set[str]:
    """Names of what the method learns, written down from the papers."""
    host, learner = name.split("_")[0], trainer.model.learner
    names = {"ctx"} if host in TEXT else set()
    names |= {f"deep_text.{i}" for i in range(TEXT.get(host, 1) - 1)}
    if host in ("IVLP", "PromptSRC", "VPT"):
        names |= {f"vision.{i}" for i in range(len(learner.vision))}
    if host == "CoCoOp":
        names |= META
    if host == "MaPLe":
        names |= {f"proj.{part}" for part in LINEAR} | {f"deep_proj.0.{part}" for part in LINEAR}
    if name.endswith("FDBPL"):
        names |= {"negative_ctx"}
        names |= {f"negative_{name}" for name in names if name.startswith("deep_text.")}
    return names


def state_of(trainer) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in trainer.model.learner.state_dict().items()}


def test_every_pair_is_registered():
    assert {cls.__name__ for cls in PROMPT_MODELS} == set(HOSTS)
    assert set(OBJECTIVES) == {"KDPL", "FDBPL"}
    for name in (*EVERY, "FDBPL", "PromptKD", "ZeroshotCLIP", "ZeroshotCLIP2"):
        assert TRAINER_REGISTRY.get(name).__name__ == name


@pytest.mark.parametrize("name", EVERY)
def test_trains_stops_goes_on_and_is_evaluated_on_new_names(world, store, name):
    whole = run(world, store, name, f"m/{name}", epochs=2)
    learned = state_of(whole)

    # Gradients of the last step reached exactly what the method trains, and nothing frozen.
    reached = {
        key for key, value in whole.model.learner.named_parameters() if value.grad is not None
    }
    assert reached == expected_parameters(whole, name) == set(learned)
    assert not any(value.requires_grad for value in whole.model.clip.model.parameters())

    # Stopped in the middle of epoch 2 and started again: the same bits.
    with stopped_in(name, epoch=1):
        run(world, store, name, f"m/{name}_cut", epochs=2)
    continued = run(world, store, name, f"m/{name}_cut", epochs=2)
    assert continued.start_epoch == 1
    found = state_of(continued)
    assert all(torch.equal(learned[key], found[key]) for key in learned)

    # Small files: the prompts, as the family's checkpoint and as safetensors.
    folder = world / "m" / name / folder_of(name)
    saved = load_file(folder / "prompts-2.safetensors")
    assert saved.keys() == learned.keys()
    assert all(torch.equal(saved[key], learned[key]) for key in saved)
    assert (folder / "model.pth.tar-2").stat().st_size < 300_000

    # The saved prompts recognise the base classes as after training, and other names.
    evaluate = ["--eval-only", "--model-dir", str(world / "m" / name), "--load-epoch", "2"]
    new = run(world, "", name, f"m/{name}_new", extra=evaluate, scope="new")
    assert new.scores["accuracy"] > 8  # chance is 4.2
    base = RunResult.read(world / "m" / name)
    assert base.trainer == name and base.knobs == [] and not base.transductive
    if "_" in name:
        return  # how prompts are saved and loaded is the host's business
    (folder / "model.pth.tar-2").unlink()  # safetensors alone are enough
    again = run(world, "", name, f"m/{name}_again", extra=evaluate)
    assert again.scores["accuracy"] == base.accuracy


@pytest.mark.parametrize("name", EVERY)
def test_bf16_trains_on_a_cpu(world, store, name, monkeypatch):
    # The frozen text of PromptSRC takes most of the time, and two templates show as much as 60.
    monkeypatch.setattr(promptsrc, "IMAGENET_TEMPLATES", promptsrc.IMAGENET_TEMPLATES[:2])
    keys = {"TEST.NO_TEST": True, **precision_of(name, "bf16")}
    trainer = run(world, store, name, f"bf16/{name}", epochs=1, **keys)
    assert trainer.model.clip.precision == "bf16"
    assert all(value.dtype == torch.float32 for value in trainer.model.learner.parameters())
    assert all(torch.isfinite(value).all() for value in trainer.model.learner.parameters())


def precision_of(name: str, precision: str) -> dict[str, str]:
    node = TRAINER_REGISTRY.get(name).PROMPT
    teacher = "fp32" if precision == "amp" else precision
    return {f"TRAINER.{node}.PREC": precision, "TRAINER.KDPL.TEACHER_PREC": teacher}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "amp", "bf16"])
@pytest.mark.parametrize("name", EVERY)
def test_every_precision_trains_on_a_gpu(world, store, name, precision):
    out = f"gpu/{name}_{precision}"
    trainer = run(world, store, name, out, epochs=1, **precision_of(name, precision))
    assert trainer.device.type == "cuda" and trainer.model.clip.precision == precision
    assert all(torch.isfinite(value).all() for value in trainer.model.learner.parameters())


# Which prompts a term of FDBPL reaches on each host: the table of docs/METHOD.md

NEGATIVE = {"negative_ctx", "negative_deep_text.0"}
REJECT_REACHES = {
    "CoOp": {"negative_ctx"},
    "CoCoOp": {"negative_ctx", *META},
    "VPT": {"negative_ctx", "vision.0", "vision.1", "vision.2"},
    "IVLP": {*NEGATIVE, "vision.0", "vision.1", "vision.2"},
    "PromptSRC": {*NEGATIVE, "vision.0", "vision.1", "vision.2"},
    "MaPLe": "all",
}
REACHES = {"distill": "positive", "similarity": "all", "cascade": "all"}


@pytest.mark.parametrize("host", HOSTS)
def test_terms_reach_the_prompts_that_the_page_names(world, store, host):
    keys = {"TEST.NO_TEST": True, "OPTIM.LR": 0.0}
    trainer = run(world, store, f"{host}_FDBPL", f"reach/{host}", epochs=1, **keys)
    batch = next(iter(trainer.train_loader_x))
    terms, _ = trainer.losses(batch)
    learner = trainer.model.learner
    every = {name for name, _ in learner.named_parameters()}
    positive = {name for name in every if not name.startswith("negative")}
    for term in ("reject", *REACHES):
        learner.zero_grad()
        terms[term].backward(retain_graph=True)
        reached = {
            name
            for name, value in learner.named_parameters()
            if value.grad is not None and value.grad.abs().max() > 0
        }
        wanted = REJECT_REACHES[host] if term == "reject" else REACHES[term]
        assert reached == {"all": every, "positive": positive}.get(str(wanted), wanted), term


# PromptSRC's average over epochs


def test_the_average_is_the_sum_with_the_papers_weights():
    weights = gaussian_weights(5, 3.0, 1.0)
    assert sum(weights) == pytest.approx(1) and max(weights) == weights[2]
    wanted = [math.exp(-0.5 * (epoch - 3) ** 2) for epoch in range(1, 6)]
    assert weights == pytest.approx([value / sum(wanted) for value in wanted])
    module = torch.nn.Linear(3, 2).double()
    average, total = WeightedAverage(module), torch.zeros(2, 3, dtype=torch.float64)
    for weight in weights:
        module.weight.data = torch.randn(2, 3, dtype=torch.float64)
        average.add(module, weight)
        total += weight * module.weight.data
    torch.testing.assert_close(average.mean.weight.data, total)


def test_weights_too_small_for_a_float_do_not_break_the_average():
    weights = gaussian_weights(200, 190.0, 1.0)
    average, module = WeightedAverage(torch.nn.Linear(1, 1)), torch.nn.Linear(1, 1)
    for weight in weights[:3]:
        average.add(module, weight)
    assert weights[0] == 0 and torch.equal(average.mean.weight, module.weight)


def test_the_average_of_all_epochs_is_deployed(world, store, monkeypatch):
    learned = []
    monkeypatch.setattr(
        WeightedAverage,
        "add",
        lambda self, module, weight: (
            learned.append((weight, module.ctx.detach().clone())) or add(self, module, weight)
        ),
    )
    trainer = run(world, store, "PromptSRC", "gpa", **{"TRAINER.PROMPTSRC.GPA_MEAN": 2.0})
    assert [weight for weight, _ in learned] == gaussian_weights(3, 2.0, 1.0)
    wanted = sum(weight * ctx for weight, ctx in learned)
    torch.testing.assert_close(trainer.model.learner.ctx.detach(), wanted)


add = WeightedAverage.add


# PromptKD


@pytest.fixture(scope="module")
def tuned_teacher(world, store):
    """PromptSRC on the toy teacher: the first stage of PromptKD."""
    run(world, store, "PromptSRC", "teacher", epochs=2, **{"MODEL.BACKBONE.NAME": "toy-teacher"})
    return world / "teacher"


def promptkd(world, teacher, out, **keys):
    keys = {"TRAINER.PROMPTKD.TEACHER_DIR": teacher, **keys}
    return run(world, "", "PromptKD", out, **keys)


def test_promptkd_learns_from_all_images_or_from_the_few(world, tuned_teacher):
    everything = promptkd(world, tuned_teacher, "kd/all")
    assert len(everything.train_loader_x.dataset) == 48 * 4  # base and new, every image
    assert everything.taught_text_CT.shape[0] == 48
    assert RunResult.read(world / "kd/all").transductive
    few = promptkd(world, tuned_teacher, "kd/few", **{"TRAINER.PROMPTKD.TRANSDUCTIVE": False})
    assert len(few.train_loader_x.dataset) == 24 * 4
    assert few.taught_text_CT.shape[0] == 24
    assert not RunResult.read(world / "kd/few").transductive
    reached = {key for key, value in few.model.learner.named_parameters() if value.grad is not None}
    assert reached == {
        *(f"vision.{i}" for i in range(3)),
        *(f"projector.{layer}.{part}" for layer in (0, 1, 3) for part in ("weight", "bias")),
    }

    evaluate = ["--eval-only", "--model-dir", str(world / "kd/all"), "--load-epoch", "3"]
    again = promptkd(world, tuned_teacher, "kd/again", extra=evaluate)
    assert again.scores["accuracy"] == everything.scores["accuracy"]
    new = promptkd(world, tuned_teacher, "kd/new", extra=evaluate, scope="new")
    assert new.num_classes == 24


def test_promptkd_never_looks_at_a_label(world, tuned_teacher):
    trainer = promptkd(world, tuned_teacher, "kd/labels", epochs=1)
    batch = next(iter(trainer.train_loader_x))
    del batch["label"]
    terms, logits = trainer.losses(batch)
    assert set(terms) == {"loss"} and logits is None


def test_promptkd_says_what_teacher_it_needs(world, store, tuned_teacher):
    with pytest.raises(ValueError, match="TRAINER.PROMPTKD.TEACHER_DIR is empty"):
        promptkd(world, "", "kd/x")
    run(world, store, "CoOp", "kd/coop", epochs=1)
    with pytest.raises(ValueError, match="Check --model-dir|holds no checkpoint"):
        promptkd(world, world / "kd/coop", "kd/x")


# Wrong depth, count, backbone


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("VPT", {"TRAINER.VPT.PROMPT_DEPTH_VISION": 12}, r"PROMPT_DEPTH_VISION is 12.* 1 to 3"),
        ("VPT", {"TRAINER.VPT.N_CTX_VISION": 0}, r"TRAINER.VPT.N_CTX_VISION is 0.* 1 or more"),
        ("VPT", {"TRAINER.VPT.CTX_INIT": ""}, "TRAINER.VPT.CTX_INIT is empty"),
        ("IVLP", {"TRAINER.IVLP.PROMPT_DEPTH_TEXT": 0}, r"PROMPT_DEPTH_TEXT is 0.* 1 to 2"),
        ("IVLP", {"TRAINER.IVLP.N_CTX_TEXT": 3, "TRAINER.IVLP.CTX_INIT": "a photo"}, "N_CTX_TEXT"),
        ("MaPLe", {"TRAINER.MAPLE.PROMPT_DEPTH": 9}, r"TRAINER.MAPLE.PROMPT_DEPTH is 9.* 1 to 2"),
        ("PromptSRC", {"TRAINER.PROMPTSRC.GPA_STD": 0.0}, "TRAINER.PROMPTSRC.GPA_STD"),
        ("CoCoOp", {"TRAINER.COCOOP.CTX_INIT": "", "TRAINER.COCOOP.N_CTX": 0}, "N_CTX is 0"),
        ("MaPLe_KDPL", {"TRAINER.KDPL.TEACHER": "ViT-Z"}, "ViT-Z"),
        ("MaPLe_FDBPL", {"TRAINER.FDBPL.NEGATIVE_INIT": "no"}, "same number of words"),
    ],
)
def test_a_wrong_key_is_named_with_what_fits(world, store, name, keys, message):
    with pytest.raises(ValueError, match=message):
        run(world, store, name, "wrong", **keys)


def small_resnet(path) -> str:
    """Weights of a tiny CLIP with a ResNet, under OpenAI's names."""
    from clip.model import CLIP

    torch.manual_seed(0)
    model = CLIP(64, 32, (1, 1, 1, 1), 8, None, 24, 49408, 64, 2, 2)
    for name, value in model.visual.named_buffers():  # running means must not be trivial
        if name.endswith("running_mean"):
            value.normal_(std=0.1)
    torch.save(model.state_dict(), path)
    return str(path)


@pytest.mark.parametrize("name", ["CoOp", "CoCoOp", "IVLP", "CoOp_KDPL"])
def test_text_prompts_learn_on_a_resnet(world, store, name, tmp_path):
    backbone = small_resnet(tmp_path / "rn.pt")
    keys = {"TRAINER.IVLP.PROMPT_DEPTH_VISION": 0}
    keys |= {"MODEL.BACKBONE.NAME": backbone, "INPUT.SIZE": "(32,32)", "TEST.NO_TEST": True}
    trainer = run(world, store, name, f"rn/{name}", epochs=1, **keys)
    assert type(trainer.model.clip.model.visual).__name__ == "ModifiedResNet"


@pytest.mark.parametrize("name", ["VPT", "MaPLe", "PromptSRC", "IVLP"])
def test_image_prompts_on_a_resnet_are_refused_with_the_backbones_that_fit(
    world, store, name, tmp_path
):
    backbone = small_resnet(tmp_path / "rn.pt")
    with pytest.raises(ValueError, match=r"ModifiedResNet takes no prompts.*ViT-B/32.*RN50"):
        keys = {"MODEL.BACKBONE.NAME": backbone, "INPUT.SIZE": "(32,32)"}
        run(world, store, name, "rn/x", **keys)


def test_a_cpu_has_no_fp16(capsys):
    clip_loader._tell_once.cache_clear()
    assert clip_loader.supported_precision("fp16", torch.device("cpu")) == "fp32"
    assert clip_loader.supported_precision("bf16", torch.device("cpu")) == "bf16"
    assert "fp16 is for GPUs" in capsys.readouterr().out
