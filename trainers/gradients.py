"""Gradients of a training step: of one run, or of several runs at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.prompted_clip import PromptedCLIP, text_features_together

Batch = dict[str, Any]


class StepLosses(NamedTuple):
    """What a run's losses() made of a batch."""

    terms: dict[str, Tensor]  # weighted loss terms by name
    logits: Tensor | None  # (B, C), for the log


def gradients(trainers: Sequence[Any], batches: Sequence[Batch]) -> list[StepLosses]:
    """Put each trainer's gradients into its learner; a batch, and a result, for each.

    The text features of several trainers, which must be together() ones, are computed in one pass.
    """
    texts = [None]
    if len(trainers) > 1:
        texts = text_features_together([trainer.model for trainer in trainers])
    found, scaled = [], []
    for trainer, batch, text in zip(trainers, batches, texts, strict=True):
        trainer.model_zero_grad()
        terms, logits = trainer.losses(batch if text is None else {**batch, "text": text})
        loss = torch.stack(list(terms.values())).sum()
        scaled.append(loss if trainer.scaler is None else trainer.scaler.scale(loss))
        found.append(StepLosses(terms, logits))
    torch.stack(scaled).sum().backward()
    return found


def not_text_only(trainer: Any) -> str:
    """Why a trainer's step is more than one pass of text for all images; "" where it is not."""
    name, model = type(trainer).__name__, trainer.model
    if not isinstance(model, PromptedCLIP) or model.learner.has_vision:
        return f"{name} trains more than text prompts"
    if model.conditional or not model.learner.ctx.numel():
        return f"{name} has no text prompt that all images share"
    if trainer.taught_classnames() != trainer.dm.dataset.classnames:
        return f"{name} learns from other words in each step"
    return ""


def make_gradients(trainers: Sequence[Any]) -> Callable[[Sequence[Batch]], list[StepLosses]]:
    """gradients() of these trainers."""
    return lambda batches: gradients(trainers, batches)
