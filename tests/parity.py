r"""Compare this repository with what the official implementations compute.

    python tests/parity.py DIR

Reads every *.safetensors fixture in DIR (the format: tests/data/parity/README.md), and
lr_schedules.json and fewshot_selections.json where they are. For each fixture the model of its
`config` is built on the fixtures' random CLIP, `params.*` are loaded under their official names by
the code that loads official checkpoints, and the largest absolute differences are printed. The last
line is "N passed, N failed"; a difference above 1e-4, or a fixture that is not understood, fails
and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

REPO = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(REPO)]

import losses  # noqa: E402
from models.clip import LoadedClip, load_clip  # noqa: E402
from models.learners import (  # noqa: E402
    ConditionalLearner,
    ContextLearner,
    CoupledLearner,
    IndependentLearner,
    VisionLearner,
    context_words,
    initial_context,
    random_prompts,
)
from models.prompted_clip import HandwrittenCLIP, PromptedCLIP  # noqa: E402
from models.teacher import Teacher  # noqa: E402
from models.templates import DEFAULT, template_for  # noqa: E402
from trainers.checkpoint import load_prompts, translate  # noqa: E402
from trainers.distillation import likely_classes  # noqa: E402
from trainers.promptsrc import frozen_text, gaussian_weights  # noqa: E402

TOLERANCE = 1e-4
WEIGHTS = {"text": 25.0, "image": 10.0}  # of PromptSRC's terms, in every official config


class NotUnderstood(ValueError):
    """The fixture holds something that this tool cannot compare."""


# The inputs of the fixtures, rebuilt from seeds


def random_clip(seed: int) -> dict[str, Tensor]:
    """State dict of the fixtures' CLIP, ViT-B wide, 4 + 4 layers: seed 11 student, 12 teacher."""
    from clip.model import CLIP

    torch.manual_seed(seed)
    state = CLIP(512, 224, 4, 768, 32, 77, 49408, 512, 8, 4).state_dict()
    noise = torch.Generator().manual_seed(seed + 1000)
    for name, value in state.items():  # layer norms and biases start trivial: move them
        if ".ln_" in name or name.startswith(("ln_", "visual.ln_")) or name.endswith("bias"):
            state[name] = value + 0.05 * torch.randn(value.shape, generator=noise)
    state["logit_scale"] = torch.tensor(4.6052)
    return {name: value.half() for name, value in state.items()}


def images_and_labels() -> tuple[Tensor, Tensor]:
    """Images (4, 3, 224, 224) and labels (4,) of the fixtures."""
    images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(123))
    return images.half().float(), torch.tensor([0, 3, 7, 9])


@cache
def fixture_clip(seed: int) -> LoadedClip:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.pt")
        torch.save(random_clip(seed), path)
        return load_clip(str(path))


# A fixture as a tree


@dataclass
class Fixture:
    """What a file says: tensors and plain values by name, and groups such as params and grads."""

    values: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, Fixture] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Fixture:
        with safe_open(path, "pt") as file:
            flat = {key: file.get_tensor(key) for key in file.keys()}
            about = json.loads((file.metadata() or {}).get("json", "{}"))
        fixture = cls()
        for name, value in {**about, **flat}.items():
            fixture._put(name.split("."), value)
        return fixture

    def _put(self, parts: list[str], value: Any) -> None:
        if len(parts) > 1 and parts[0] in ("params", "grads"):  # the rest is an official name
            parts = [parts[0], ".".join(parts[1:])]
        if len(parts) > 1 or _is_group(value):
            group = self.groups.setdefault(parts[0], Fixture())
            if len(parts) > 1:
                group._put(parts[1:], value)
            else:
                items = value.items() if isinstance(value, Mapping) else enumerate(value)
                for key, item in items:
                    group._put([str(key)], item)
        else:
            self.values[parts[0]] = value

    def first(self, *names: str, default: Any = None) -> Any:
        """The value of the first name that is there."""
        return next((self.values[name] for name in names if name in self.values), default)

    def group(self, *names: str) -> Fixture:
        return next((self.groups[name] for name in names if name in self.groups), Fixture())

    @property
    def classnames(self) -> list[str]:
        names = self.values.get("classnames")
        if not names:
            raise NotUnderstood("it names no classes")
        return list(names)

    @property
    def config(self) -> dict[str, Any]:
        return self.group("config").values


def _is_group(value: Any) -> bool:
    """Objects, and lists of objects; lists of plain values stay values."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, Mapping) for item in value)
    return isinstance(value, Mapping)


class Differences(dict):
    """Largest absolute difference by what was compared."""

    def add(self, name: str, found: Tensor | float, wanted: Tensor | float | list) -> None:
        found, wanted = torch.as_tensor(found), torch.as_tensor(wanted)
        if found.numel() != wanted.numel():
            raise NotUnderstood(
                f"{name} has shape {tuple(wanted.shape)} there, {tuple(found.shape)} here"
            )
        wanted = wanted.reshape(found.shape)
        gap = (found.double() - wanted.double()).abs().max().item() if found.numel() else 0.0
        self[name] = max(self.get(name, 0.0), math.inf if math.isnan(gap) else gap)

    @property
    def passed(self) -> bool:
        return bool(self) and all(gap <= TOLERANCE for gap in self.values())

    def __str__(self) -> str:
        return ", ".join(f"{name} {gap:.1e}" for name, gap in self.items())


# Prompt models


def build(fixture: Fixture, method: str) -> PromptedCLIP:
    """Our model of a fixture's config on the student, with its parameters loaded."""
    clip, config = fixture_clip(11), fixture.config
    params = fixture.group("params").values
    state = translate(params)
    layers = [name.split(".")[0] for name in state]
    init = config.get("ctx_init")
    position, csc = "end", False
    if method == "CoOp":
        init, count = init or "", int(config.get("n_ctx", 16))
        words = context_words(init, count)
        position, csc = config.get("class_token_position", "end"), bool(config.get("csc", False))
        start_ND = initial_context(clip, init, count)
        learner = ContextLearner(start_ND, len(fixture.classnames) if csc else None)
    elif method == "CoCoOp":
        init, count = init or "", int(config.get("n_ctx", 4))
        words = context_words(init, count)
        learner = ConditionalLearner(initial_context(clip, init, count), clip.feature_width)
    elif method == "VPT":
        words = init or "a photo of a"
        # Layers beyond the tower's are not made, as in the official code.
        depth = min(int(config.get("prompt_depth_vision", layers.count("vision"))), 4)
        vision = random_prompts(depth, int(config["n_ctx_vision"]), 768)
        learner = VisionLearner(initial_context(clip, words, 0), vision)
    elif method in ("IVLP", "PromptSRC"):
        count = int(config.get("n_ctx_text", config.get("n_ctx", 2)))
        words, start_ND = _few_words(clip, init, count)
        text_depth = min(int(config.get("prompt_depth_text", 1 + layers.count("deep_text"))), 4)
        depth = min(int(config.get("prompt_depth_vision", layers.count("vision"))), 4)
        vision = random_prompts(depth, int(config.get("n_ctx_vision", 0)), 768) if depth else None
        learner = IndependentLearner(start_ND, count, text_depth, vision)
    elif method == "MaPLe":
        count = int(config.get("n_ctx", 2))
        words, start_ND = _few_words(clip, init, count)
        learner = CoupledLearner(start_ND, count, int(config["prompt_depth"]), 768)
    else:
        raise NotUnderstood(f"its method is {method!r}")
    load_prompts(learner, params, "params")
    return PromptedCLIP(clip, learner, fixture.classnames, words, position, csc)


def _few_words(clip: LoadedClip, init: str | None, count: int) -> tuple[str, Tensor]:
    init = "a photo of a" if init is None else init
    init = init if count <= 4 else ""
    return context_words(init, count), initial_context(clip, init, count)


def compare_model(fixture: Fixture, method: str) -> Differences:
    """Logits in eval mode; loss and gradients in train mode."""
    images, labels = images_and_labels()
    model, found = build(fixture, method), Differences()
    output = model(images)
    given = fixture.values
    _add(found, fixture, "logits", output.logits)
    _add(found, fixture, "text_features_raw", lambda: _raw_text(model))
    _add(found, fixture, "image_features_raw", lambda: model.clip_model.encode_image(images))
    _add(found, fixture, "fixed_text", lambda: _raw_text(model))
    terms = {"ce": F.cross_entropy(output.logits, labels)}
    if method == "PromptSRC":
        terms |= promptsrc_terms(model, output, images, fixture.classnames)
        compare_terms(found, fixture, terms)
        compare_gpa(found, fixture)
    candidates = {"cross-entropy": terms["ce"]}
    if len(terms) > 1:
        candidates["all terms"] = sum(terms.values())
    if "loss" in given:
        compare_loss(found, fixture, model, candidates)
    if not found:
        raise NotUnderstood("it holds nothing to compare")
    return found


def _add(found: Differences, fixture: Fixture, name: str, value: Tensor | Callable) -> None:
    if name in fixture.values:
        with torch.no_grad():
            found.add(name, value() if callable(value) else value.detach(), fixture.values[name])


def _raw_text(model: PromptedCLIP) -> Tensor:
    return model.text_encoder(model.learner().context)


def compare_loss(
    found: Differences, fixture: Fixture, model: PromptedCLIP, candidates: Mapping[str, Tensor]
) -> None:
    """The loss and its gradients; where several losses are meant, the nearest one is told."""
    wanted = torch.as_tensor(fixture.values["loss"])
    name = min(candidates, key=lambda key: (candidates[key].detach() - wanted).abs().item())
    label = "loss" if len(candidates) == 1 else f"loss ({name})"
    found.add(label, candidates[name].detach(), wanted)
    grads = translate(fixture.group("grads").values)
    if not grads:
        return
    model.learner.zero_grad()
    candidates[name].backward(retain_graph=True)
    own = {key: value.grad for key, value in model.learner.named_parameters()}
    reached = {key for key, value in own.items() if value is not None}
    if not reached <= set(grads) <= set(own):  # prompts of layers that do not exist may be listed
        raise NotUnderstood(f"gradients of {sorted(grads)} there, of {sorted(reached)} here")
    for key, value in grads.items():
        found.add("gradients", own[key] if key in reached else torch.zeros_like(value), value)


# PromptSRC


def promptsrc_terms(model, output, images, classnames) -> dict[str, Tensor]:
    text_CD = frozen_text(model.clip, classnames)
    image_BD = model.plain_image_features(images)
    return {
        "text": WEIGHTS["text"] * losses.feature_distance(output.text, text_CD),
        "image": WEIGHTS["image"] * losses.feature_distance(output.image, image_BD),
        "logits": losses.mean_kl(output.logits, model.logits(image_BD, text_CD)),
    }


_TERM = {  # how a fixture may call a term -> ours
    "ce": "ce", "loss_ce": "ce", "scl_text": "text", "loss_scl_text": "text", "text": "text",
    "scl_image": "image", "loss_scl_image": "image", "image": "image", "scl_logits": "logits",
    "l_scl_logits": "logits", "loss_scl_logits": "logits", "logits": "logits", "kl": "logits",
}  # fmt: skip


def compare_terms(found: Differences, fixture: Fixture, terms: Mapping[str, Tensor]) -> None:
    """Terms by name, with or without their weight."""
    for name, wanted in fixture.group("terms").values.items():
        ours = _TERM.get(name.lower())
        if ours is None or torch.as_tensor(wanted).numel() != 1:
            continue
        value, wanted = terms[ours].detach(), torch.as_tensor(wanted)
        plain = value / WEIGHTS.get(ours, 1.0)
        nearer = min((value, plain), key=lambda x: (x - wanted.reshape(())).abs().item())
        found.add(f"term {ours}", nearer, wanted)


def compare_gpa(found: Differences, fixture: Fixture) -> None:
    """Weights of epochs: one list for the config's mean and deviation, or lists by settings."""
    values = fixture.values.get("gpa_weights")
    config = fixture.config
    if values is not None:
        mean, std = (
            config.get(f"gpa_{key}", config.get(f"GPA_{key.upper()}")) for key in ("mean", "std")
        )
        found.add("gpa_weights", _gpa(len(values), mean, std, values), values)
    for name, values in fixture.group("gpa_weights").values.items():
        mean, std = (
            float(match[1]) if (match := re.search(rf"{key}_?(\d+(?:\.\d+)?)", name)) else None
            for key in ("mean", "std")
        )
        found.add(f"gpa_weights {name}", _gpa(len(values), mean, std, values), values)


def _gpa(epochs: int, mean: float | None, std: float | None, wanted: Iterable[float]) -> Tensor:
    """Ours for the fixture's settings, or for the official recipe it fits where it names none."""
    official = [(15, 1), (6, 10), (30, 30), (45, 5)]
    settings = official if mean is None or std is None else [(mean, std)]
    wanted = torch.as_tensor(wanted).double()
    ours = [torch.tensor(gaussian_weights(epochs, *pair), dtype=torch.double) for pair in settings]
    return min(ours, key=lambda weights: (weights - wanted).abs().max().item())


# KDPL


def compare_kdpl(fixture: Fixture, method: str) -> Differences:
    """The teacher's logits, and per case the chosen classes, the loss and its gradients."""
    images, _ = images_and_labels()
    found, given = Differences(), fixture.values
    host = fixture.config.get("student", fixture.config.get("host", method.removesuffix("_KDPL")))
    host = "CoOp" if host in ("", "KDPL") else host
    teacher_BC = torch.as_tensor(given["teacher_logits"]) if "teacher_logits" in given else None
    named = [fixture.config.get(key) for key in ("teacher_template", "template")]
    templates = [name for name in named if name] or [template_for("EuroSAT"), DEFAULT]
    ours = [Teacher(fixture_clip(12), fixture.classnames, form)(images) for form in templates]
    if teacher_BC is None:
        teacher_BC = ours[0]
    else:
        nearest = min(ours, key=lambda logits: (logits - teacher_BC).abs().max().item())
        found.add("teacher_logits", nearest, teacher_BC)
    cases = _cases(fixture) or [fixture]
    if cases != [fixture] and ("loss" in given or "logits" in given):
        cases.append(fixture)
    for case in cases:
        params = case.groups.get("params") or fixture.groups.get("params")
        merged = Fixture(
            {**given, **case.values}, {**fixture.groups, **case.groups, "params": params}
        )
        if params is None:
            compare_kd_of_logits(found, merged, case, teacher_BC)
        else:
            compare_kd_of_model(found, merged, case, host, teacher_BC)
    return found


def _cases(fixture: Fixture) -> list[Fixture]:
    """The groups under `cases`; a description that names a group of tensors is part of it."""
    groups = dict(fixture.group("cases").groups)
    for key, about in list(groups.items()):
        name = str(about.values.get("name"))
        if name != key and name in groups:
            groups[name].values = {**about.values, **groups[name].values}
            del groups[key]
    for key, case in groups.items():
        case.values.setdefault("name", key)
    return list(groups.values())


def _case_classes(case: Fixture, teacher_BC: Tensor, found: Differences) -> Tensor:
    """The classes a case distils, in its order; ours must be the same set."""
    k = case.first("k_max", "K_MAX", "k", "K")
    k = case.config.get("k_max", case.config.get("K_MAX")) if k is None else k
    given = case.first("prompt_indices", "prompts_indices", "indices", "classes", "selected")
    if k is None:
        k = teacher_BC.shape[1] if given is None else len(given)
    chosen = likely_classes(teacher_BC, int(k))
    if given is None:
        return chosen
    given = torch.as_tensor(given).long()
    found.add("chosen classes", chosen, given.sort().values)
    return given


def compare_kd_of_model(
    found: Differences, merged: Fixture, case: Fixture, host: str, teacher_BC: Tensor
) -> None:
    images, labels = images_and_labels()
    model = build(merged, host)
    classes = _case_classes(case, teacher_BC, found)
    output = model(images)
    for name in ("logits", "student_logits", "student_logits_full"):
        if name in case.values:
            whole = torch.as_tensor(case.values[name]).shape[-1] == output.logits.shape[-1]
            order = classes if not whole or name == "student_logits" else slice(None)
            found.add(name, output.logits[:, order].detach(), case.values[name])
    chosen = model(images, classes)
    term = losses.symmetric_kl(chosen.logits, teacher_BC[:, classes]).mean()
    _compare_directions(found, case, chosen.logits.detach(), teacher_BC[:, classes])
    candidates = {"distillation": term}
    if host == "PromptSRC":
        terms = promptsrc_terms(
            model, chosen, images, [merged.classnames[i] for i in classes.tolist()]
        )
        compare_terms(found, case, {"ce": F.cross_entropy(output.logits, labels), **terms})
        candidates["distillation and regularisers"] = term + sum(terms.values())
    candidates["cross-entropy"] = F.cross_entropy(output.logits, labels)
    if "loss" in case.values:
        compare_loss(found, case, model, candidates)


def compare_kd_of_logits(
    found: Differences, merged: Fixture, case: Fixture, teacher_BC: Tensor
) -> None:
    """A case without parameters: the loss alone, on given logits of the student."""
    student = merged.first("student_logits", "logits")
    if student is None or "loss" not in case.values:
        raise NotUnderstood("a case has neither parameters nor logits of the student with a loss")
    student_BC = torch.as_tensor(student)
    teacher_BC = torch.as_tensor(case.first("teacher_logits", default=teacher_BC))
    classes = _case_classes(case, teacher_BC, found)
    if student_BC.shape[1] != len(classes):
        student_BC = student_BC[:, classes]
    if teacher_BC.shape[1] != len(classes):
        teacher_BC = teacher_BC[:, classes]
    found.add("loss", losses.symmetric_kl(student_BC, teacher_BC).mean(), case.values["loss"])
    _compare_directions(found, case, student_BC, teacher_BC)


def _compare_directions(
    found: Differences, case: Fixture, student_BC: Tensor, teacher_BC: Tensor
) -> None:
    log_s, log_t = student_BC.log_softmax(-1), teacher_BC.log_softmax(-1)
    ways = {
        "loss_F": F.kl_div(log_s, log_t, reduction="batchmean", log_target=True),
        "loss_R": F.kl_div(log_t, log_s, reduction="batchmean", log_target=True),
    }
    for name, value in ways.items():
        wanted = case.first(name, default=case.group("terms").first(name))
        if wanted is not None:
            found.add(name, value, wanted)


# Zero-shot CLIP and the authors' loss


def compare_zero_shot(fixture: Fixture) -> Differences:
    images, _ = images_and_labels()
    template = fixture.config.get("template", DEFAULT)
    model, found = HandwrittenCLIP(fixture_clip(11), fixture.classnames, template), Differences()
    found.add("logits", model(images), fixture.values["logits"])
    _add(found, fixture, "image_features_raw", lambda: model.clip_model.encode_image(images))
    tokens = model.clip.tokenize(list(fixture.values.get("prompts", [])) or [template])
    _add(found, fixture, "tokenized", tokens)
    return found


def compare_fdbpl_loss(fixture: Fixture) -> Differences:
    """The authors' loss without its cascade term, which is zero; their log adds 1e-6 inside."""
    given, terms, found = (
        fixture.group("inputs").values,
        fixture.group("terms").values,
        Differences(),
    )
    order, image_BD = given["prompt_indices"], given["image_features"].clone().requires_grad_()
    teacher_BC = given["teacher_logits"]
    num_classes = len(order)
    grads = fixture.group("grads").values
    texts = []
    for side in ("pos", "neg"):
        full = torch.zeros_like(grads[f"text_features_{side}_full"])
        full[order] = given[f"text_features_{side}"]
        texts.append(full.requires_grad_())
    cosine = given["image_features"] @ given["text_features_pos"].T
    scale = (given["logits_pos"] * cosine).sum() / cosine.square().sum()
    positive_BC, negative_BC = (scale * image_BD @ text[order].T for text in texts)
    weight_B = losses.region_weight(teacher_BC)
    found.add("w", weight_B, terms["w"])
    kl_B = losses.symmetric_kl(positive_BC, teacher_BC)
    found.add("KL", kl_B.detach(), 0.5 * (terms["loss_F"] + terms["loss_R"]))
    reject_B = losses.rejection(negative_BC) - math.log(num_classes)
    found.add("rejection", reject_B.detach(), terms["loss_neg"])
    similarity_B = losses.logit_similarity(positive_BC, negative_BC)
    found.add("similarity", similarity_B.detach(), terms["loss_JS"])
    loss = (weight_B * kl_B + (1 - weight_B) * reject_B + 0.001 * weight_B * similarity_B).mean()
    found.add("loss", loss.detach(), terms["loss"])
    loss.backward()
    leaves = {"image_features": image_BD, "text_features_pos_full": texts[0]}
    for name, leaf in {**leaves, "text_features_neg_full": texts[1]}.items():
        largest = max(1.0, grads[name].abs().max().item())  # relative where gradients are large
        found.add("gradients", leaf.grad / largest, grads[name] / largest)
    return found


# Schedules and few-shot draws

_SCHEDULE = re.compile(
    r"(\w+)\|max_epoch=(\d+)\|warmup=(\w+):(-?\d+)\|recount=(\w+)\|lr=([\d.e-]+)"
)


def compare_schedules(path: Path) -> Differences:
    from dassl.config import get_cfg_default
    from dassl.optim import build_lr_scheduler, build_optimizer

    found = Differences()
    for case, wanted in json.loads(path.read_text()).items():
        match = _SCHEDULE.fullmatch(case)
        if match is None:
            raise NotUnderstood(f"its case {case!r}")
        name, epochs, kind, warmup, recount, rate = match.groups()
        cfg = get_cfg_default().OPTIM
        steps = (2, 4) if name == "multi_step" else (-1,)
        cfg.merge_from_list(
            ["NAME", "sgd", "LR", float(rate), "LR_SCHEDULER", name, "MAX_EPOCH", int(epochs)]
            + ["WARMUP_TYPE", kind, "WARMUP_EPOCH", int(warmup), "STEPSIZE", steps]
            + ["WARMUP_RECOUNT", recount == "True"]
        )
        optim = build_optimizer([torch.nn.Parameter(torch.ones(1))], cfg)
        sched = build_lr_scheduler(optim, cfg)
        rates = []
        for _ in wanted:
            rates.append(optim.param_groups[0]["lr"])
            optim.step()
            sched.step()
        found.add("learning rate", rates, wanted)
    return found


def compare_draws(path: Path) -> Differences:
    from dassl.data.datasets import Datum

    from datasets.fewshot import few_shot_split, subsample_classes

    split = json.loads(path.with_name("split_zhou_EuroSAT.synthetic.json").read_text())

    def read(part: str) -> list[Datum]:
        return [Datum(impath=p, label=label, classname=name) for p, label, name in split[part]]

    found = Differences()
    for case, wanted in json.loads(path.read_text()).items():
        match = re.fullmatch(r"seed(\d+)_shots(-?\d+)_(\w+)", case)
        if match is None:
            raise NotUnderstood(f"its case {case!r}")
        seed, shots, scope = int(match[1]), int(match[2]), match[3]
        train, val = few_shot_split(read("train"), read("val"), shots, seed)
        train, val, test = subsample_classes(scope, train, val, read("test"))
        drawn = {
            "train": [[item.impath, item.label, item.classname] for item in train],
            "val": [[item.impath, item.label, item.classname] for item in val],
            "n_test": len(test),
        }
        wrong = [name for name, value in drawn.items() if name in wanted and value != wanted[name]]
        found.add("draws that differ", float(len(wrong)), 0.0)
    return found


# All of a folder


def compare(path: Path) -> Differences:
    """Compare one file.

    Raises:
        NotUnderstood: the file is of a kind, or of a content, that is not known.
    """
    if path.name == "lr_schedules.json":
        return compare_schedules(path)
    if path.name == "fewshot_selections.json":
        with warnings.catch_warnings():  # the images do not exist, which every item tells
            warnings.simplefilter("ignore")
            return compare_draws(path)
    fixture = Fixture.read(path)
    if path.name.startswith("fdbpl_loss"):
        return compare_fdbpl_loss(fixture)
    if "gpa_weights" in {**fixture.values, **fixture.groups} and "params" not in fixture.groups:
        found = Differences()
        compare_gpa(found, fixture)
        return found
    method = str(fixture.config.get("method", fixture.config.get("trainer", "")))
    if method.lower() in ("zeroshotclip", "zsclip", "zero-shot", "zeroshot", "clip") or (
        not method and path.name.startswith("zsclip")
    ):
        return compare_zero_shot(fixture)
    if "KDPL" in method.upper() or "teacher_logits" in fixture.values:
        return compare_kdpl(fixture, method)
    return compare_model(fixture, method)


def files_in(folder: Path) -> list[Path]:
    named = [folder / "lr_schedules.json", folder / "fewshot_selections.json"]
    return sorted(folder.glob("*.safetensors")) + [path for path in named if path.is_file()]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with fixtures")
    folder = parser.parse_args(argv).folder
    paths = files_in(folder)
    if not paths:
        print(f"error: {folder} holds no fixture (*.safetensors).", file=sys.stderr)
        return 1
    passed = 0
    for path in paths:
        try:
            found = compare(path)
        except Exception as error:  # whatever a fixture breaks is a fixture that failed
            print(f"FAIL  {path.name}: not understood: {type(error).__name__}: {error}")
            continue
        passed += found.passed
        print(f"{'ok  ' if found.passed else 'FAIL'}  {path.name}: {found}")
    print(f"{passed} passed, {len(paths) - passed} failed")
    return 0 if passed == len(paths) else 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
