"""Gradients of a training step: of one run, of several runs at once, as a recorded CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.prompted_clip import PromptedCLIP, text_features_together

Batch = dict[str, Any]
WARM_UP = 3  # steps before a recording, as torch's notes on CUDA graphs ask for


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


class Recorded:
    """gradients() of some trainers, recorded once per shape of their batches and replayed.

    A replay costs the host one launch instead of one per operation.
    """

    def __init__(
        self,
        trainers: Sequence[Any],
        record: Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]] | None = None,
    ) -> None:
        """record: runs a function and returns its result and what computes it anew in place."""
        self.trainers = list(trainers)
        self.record = record or record_cuda_graph
        self._steps: dict[tuple, _Step] = {}

    def __call__(self, batches: Sequence[Batch]) -> list[StepLosses]:
        tensors = [{k: v for k, v in batch.items() if torch.is_tensor(v)} for batch in batches]
        shapes = tuple((k, v.shape, v.dtype) for batch in tensors for k, v in batch.items())
        if shapes not in self._steps:
            self._steps[shapes] = self._recorded(tensors)
        return self._steps[shapes].replayed(tensors)

    def _recorded(self, batches: Sequence[dict[str, Tensor]]) -> _Step:
        inputs = [{name: value.clone() for name, value in batch.items()} for batch in batches]
        found, replay = self.record(lambda: gradients(self.trainers, inputs))
        learners = [trainer.model.learner for trainer in self.trainers]
        grads = {x: x.grad for one in learners for x in one.parameters() if x.requires_grad}
        return _Step(inputs, found, replay, grads)


class _Step(NamedTuple):
    inputs: list[dict[str, Tensor]]
    found: list[StepLosses]
    replay: Callable[[], None]
    grads: dict[nn.Parameter, Tensor | None]  # the memory that a replay writes to

    def replayed(self, batches: Sequence[dict[str, Tensor]]) -> list[StepLosses]:
        for kept, batch in zip(self.inputs, batches, strict=True):
            for name, value in batch.items():
                kept[name].copy_(value, non_blocking=True)
        self.replay()
        for parameter, grad in self.grads.items():
            parameter.grad = grad
        return self.found


def record_cuda_graph(run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """The result of a function, and a replay that computes it anew in the same memory."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    return found, graph.replay


def not_recordable(trainers: Sequence[Any]) -> str:
    """Why these trainers' step cannot be a CUDA graph; "" where it can."""
    for trainer in trainers:
        if trainer.device.type != "cuda":
            return f"the device is {trainer.device.type}"
        if trainer.scaler is not None:
            return "amp scales its losses"
        if not_text_only(trainer):
            return not_text_only(trainer)
        if trainer.cfg.MODEL.TEXT_PATH != "fast":
            return f"MODEL.TEXT_PATH is {trainer.cfg.MODEL.TEXT_PATH}"
        if not trainer.model.text_in_one_piece(len(trainers)):
            return "the classes are encoded in pieces"
    return ""


def make_gradients(trainers: Sequence[Any]) -> Callable[[Sequence[Batch]], list[StepLosses]]:
    """How these trainers compute their steps, by TRAIN.CUDA_GRAPH and by what is possible."""

    def plain(batches: Sequence[Batch]) -> list[StepLosses]:
        return gradients(trainers, batches)

    if not trainers[0].cfg.TRAIN.CUDA_GRAPH:
        return plain
    why = not_recordable(trainers)
    if why:
        print(f"TRAIN.CUDA_GRAPH: steps are launched operation by operation, since {why}")
        return plain
    recorded, failed = Recorded(trainers), False

    def replayed_or_plain(batches: Sequence[Batch]) -> list[StepLosses]:
        nonlocal failed
        if not failed:
            try:
                return recorded(batches)
            except RuntimeError as error:
                failed = True
                told = str(error).strip().splitlines()[0]
                print(f"TRAIN.CUDA_GRAPH: recording failed, steps are launched one by one ({told})")
        return plain(batches)

    return replayed_or_plain
