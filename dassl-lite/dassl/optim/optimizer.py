"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from yacs.config import CfgNode

KNOWN = ("adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw")


def build_optimizer(
    model: nn.Module | Iterable, optim_cfg: CfgNode, param_groups: Iterable | None = None
) -> torch.optim.Optimizer:
    """Build OPTIM.NAME over a model's parameters.

    Args:
        model: a module, or an iterable of parameters or parameter groups.
        optim_cfg: the OPTIM node.
        param_groups: used instead of ``model`` when given.
    Raises:
        ValueError: an unknown OPTIM.NAME, or STAGED_LR that cannot apply.
    """
    if param_groups is None:
        if optim_cfg.STAGED_LR:
            param_groups = _staged_groups(model, optim_cfg)
        else:
            param_groups = model.parameters() if isinstance(model, nn.Module) else model
    elif optim_cfg.STAGED_LR:
        raise ValueError("OPTIM.STAGED_LR has no effect on given param_groups; set it to False.")

    name = optim_cfg.NAME
    common = {"lr": optim_cfg.LR, "weight_decay": optim_cfg.WEIGHT_DECAY}
    betas = (optim_cfg.ADAM_BETA1, optim_cfg.ADAM_BETA2)
    if name == "sgd":
        return torch.optim.SGD(
            param_groups,
            momentum=optim_cfg.MOMENTUM,
            dampening=optim_cfg.SGD_DAMPNING,
            nesterov=optim_cfg.SGD_NESTEROV,
            **common,
        )
    if name in ("adam", "amsgrad"):
        return torch.optim.Adam(param_groups, betas=betas, amsgrad=name == "amsgrad", **common)
    if name == "adamw":
        return torch.optim.AdamW(param_groups, betas=betas, **common)
    if name == "radam":
        return torch.optim.RAdam(param_groups, betas=betas, **common)
    if name == "rmsprop":
        return torch.optim.RMSprop(
            param_groups, momentum=optim_cfg.MOMENTUM, alpha=optim_cfg.RMSPROP_ALPHA, **common
        )
    raise ValueError(f"OPTIM.NAME is {name!r}. Known: {', '.join(KNOWN)}")


def _staged_groups(model: nn.Module | Iterable, optim_cfg: CfgNode) -> list[dict]:
    """New layers learn at OPTIM.LR, all other children of the model at a fraction of it."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"OPTIM.STAGED_LR needs a module to tell layers apart, not {type(model).__name__}."
        )
    if isinstance(model, nn.DataParallel):
        model = model.module
    new_layers = optim_cfg.NEW_LAYERS
    new_layers = [new_layers] if isinstance(new_layers, str) else list(new_layers)
    children = dict(model.named_children())
    unknown = [layer for layer in new_layers if layer not in children]
    if unknown or not new_layers:
        raise ValueError(
            f"OPTIM.NEW_LAYERS is {new_layers}; with OPTIM.STAGED_LR it names some of the model's "
            f"children: {', '.join(children)}"
        )
    old_layers = [key for key in children if key not in new_layers]
    base = [p for key in old_layers for p in children[key].parameters()]
    new = [p for key in new_layers for p in children[key].parameters()]
    return [{"params": base, "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT}, {"params": new}]
