"""Learning rates equal Dassl's; a resumed schedule goes on."""

from __future__ import annotations

import io
import json
import math
import re

import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer

from .dassl_toy import DATA

SCHEDULES = json.loads((DATA / "lr_schedules.json").read_text())
CASE = re.compile(r"(\w+)\|max_epoch=(\d+)\|warmup=(\w+):(\d+)\|recount=(\w+)\|lr=([\d.]+)")


def optim_cfg(*opts):
    cfg = get_cfg_default().OPTIM
    cfg.merge_from_list(["NAME", "sgd", "LR", 0.002, *opts])
    return cfg


def parity_cfg(case: str):
    name, max_epoch, kind, warmup, recount, lr = CASE.fullmatch(case).groups()
    opts = ["LR_SCHEDULER", name, "MAX_EPOCH", int(max_epoch), "LR", float(lr)]
    opts += ["WARMUP_TYPE", kind, "WARMUP_EPOCH", int(warmup), "WARMUP_RECOUNT", recount == "True"]
    return optim_cfg(*opts, "STEPSIZE", (2, 4) if name == "multi_step" else (-1,))


def start(cfg):
    optim = build_optimizer([nn.Parameter(torch.ones(2))], cfg)
    return optim, build_lr_scheduler(optim, cfg)


def rates(optim, sched, epochs: int) -> list[float]:
    found = []
    for _ in range(epochs):
        found.append(optim.param_groups[0]["lr"])
        optim.step()
        sched.step()
    return found


@pytest.mark.parametrize("case", SCHEDULES)
def test_rates_equal_the_parity_file(case):
    cfg = parity_cfg(case)
    assert rates(*start(cfg), cfg.MAX_EPOCH) == pytest.approx(SCHEDULES[case], rel=1e-9)


@pytest.mark.parametrize("case", SCHEDULES)
def test_a_resumed_schedule_goes_on(case):
    cfg = parity_cfg(case)
    optim, sched = start(cfg)
    before = rates(optim, sched, 3)
    file = io.BytesIO()
    torch.save({"optim": optim.state_dict(), "sched": sched.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    optim, sched = start(cfg)
    optim.load_state_dict(state["optim"])
    sched.load_state_dict(state["sched"])
    after = rates(optim, sched, cfg.MAX_EPOCH - 3)
    assert before + after == rates(*start(cfg), cfg.MAX_EPOCH)  # same bits


def test_linear_warmup_starts_at_the_minimum():
    cfg = optim_cfg("LR_SCHEDULER", "cosine", "MAX_EPOCH", 8, "WARMUP_EPOCH", 4)
    expected = [1e-5, 0.0005, 0.001, 0.0015]
    expected += [0.001 * (1 + math.cos(math.pi * t / 8)) for t in range(4)]
    assert rates(*start(cfg), 8) == pytest.approx(expected)


def test_no_warmup_equals_torch():
    cfg = optim_cfg("LR_SCHEDULER", "cosine", "MAX_EPOCH", 7)
    optim = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.002)
    theirs = rates(optim, torch.optim.lr_scheduler.CosineAnnealingLR(optim, 7), 7)
    assert rates(*start(cfg), 7) == pytest.approx(theirs)


def test_warmup_of_all_epochs_ends_without_error():
    cfg = optim_cfg("LR_SCHEDULER", "cosine", "MAX_EPOCH", 3, "WARMUP_EPOCH", 3)
    cfg.merge_from_list(["WARMUP_TYPE", "constant", "WARMUP_RECOUNT", False])
    assert rates(*start(cfg), 3) == [1e-5] * 3


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("LR_SCHEDULER", "cosin"), "'cosin'. Known: single_step, multi_step, cosine"),
        (("WARMUP_TYPE", "quick", "WARMUP_EPOCH", 1), "'quick'. Known: constant, linear"),
        (("LR_SCHEDULER", "multi_step", "STEPSIZE", 3), "multi_step takes a list"),
        (("NAME", "lion"), "'lion'. Known: adam, amsgrad, sgd, rmsprop, radam, adamw"),
    ],
)
def test_unknown_names_are_told_with_the_known_ones(opts, message):
    cfg = optim_cfg()
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        cfg[key] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        start(cfg)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sgd", torch.optim.SGD),
        ("adam", torch.optim.Adam),
        ("amsgrad", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("radam", torch.optim.RAdam),
        ("rmsprop", torch.optim.RMSprop),
    ],
)
def test_optimizers_take_modules_parameters_and_groups(name, kind):
    cfg, layer = optim_cfg("NAME", name), nn.Linear(2, 3)
    for given in (layer, list(layer.parameters()), [{"params": [layer.weight], "lr": 0.5}]):
        optim = build_optimizer(given, cfg)
        assert type(optim) is kind
        group = optim.param_groups[0]
        assert group["weight_decay"] == 5e-4
        assert group["lr"] == (0.5 if isinstance(given, list) and len(given) == 1 else 0.002)
        assert group.get("amsgrad", False) == (name == "amsgrad")
        assert group.get("momentum", 0.9) == 0.9
    assert build_optimizer(None, cfg, param_groups=[layer.bias]).param_groups[0]["lr"] == 0.002


def test_staged_lr_slows_the_old_layers():
    model = nn.Sequential()
    model.add_module("body", nn.Linear(2, 2))
    model.add_module("head", nn.Linear(2, 2))
    optim = build_optimizer(model, optim_cfg("STAGED_LR", True, "NEW_LAYERS", ("head",)))
    assert [group["lr"] for group in optim.param_groups] == pytest.approx([0.0002, 0.002])
    assert optim.param_groups[1]["params"][0] is model.head.weight
    with pytest.raises(ValueError, match="children: body, head"):
        build_optimizer(model, optim_cfg("STAGED_LR", True, "NEW_LAYERS", ("tail",)))


@pytest.mark.parametrize(
    "name, theirs, options",
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.9}),
        ("adam", torch.optim.Adam, {}),
        ("amsgrad", torch.optim.Adam, {"amsgrad": True}),
        ("adamw", torch.optim.AdamW, {}),
        ("radam", torch.optim.RAdam, {}),
        ("rmsprop", torch.optim.RMSprop, {"momentum": 0.9}),
    ],
)
def test_steps_are_those_of_torchs_optimizer(name, theirs, options):
    torch.manual_seed(0)
    start, gradients = torch.randn(5), torch.randn(6, 5)
    weights = [nn.Parameter(start.clone()) for _ in range(2)]
    optims = [
        build_optimizer([weights[0]], optim_cfg("NAME", name, "WEIGHT_DECAY", 5e-4)),
        theirs([weights[1]], lr=0.002, weight_decay=5e-4, **options),
    ]
    for gradient in gradients:
        for weight, optim in zip(weights, optims, strict=True):
            weight.grad = gradient.clone()
            optim.step()
    assert torch.equal(*weights) and not torch.equal(weights[0], start)
