"""One test: class features computed once, interpolated with hand-written ones, and what was said.

Letters: B images of a batch, C classes, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.prompted_clip import FrozenCLIP, HandwrittenCLIP, unit


class Evaluation:
    """Logits of the recognising prompt for each share of the hand-written one.

    A share a mixes class features as unit((1 - a) learned + a hand-written); nothing is trained
    anew. The first share gives the logits; the others are counted beside it, for a sweep.
    """

    def __init__(
        self,
        model: FrozenCLIP,
        classnames: Sequence[str],
        template: str,
        alphas: Sequence[float] = (0.0,),
    ):
        self.model = model
        self.alphas = tuple(alphas)
        self.impaths: list[str] = []
        self.labels: list[int] = []
        self.predictions: list[int] = []  # of the first share
        self._hits = torch.zeros(len(self.alphas), dtype=torch.long)
        with torch.no_grad():
            self._text = None if model.conditional else _recognising(model.text_features(), 2)
        self._handwritten = None
        if any(self.alphas):
            self._handwritten = HandwrittenCLIP(model.clip, classnames, template).text_features()

    def add(self, images: Tensor, label_B: Tensor, impaths: Sequence[str]) -> Tensor:
        """logits() of a batch, whose images and true classes are kept beside what was said."""
        every = self._every(images)
        said = torch.stack([logits_BC.argmax(dim=-1) for logits_BC in every])
        self._hits += (said == label_B).sum(dim=1).cpu()
        self.impaths += list(impaths)
        self.labels += label_B.tolist()
        self.predictions += said[0].tolist()
        return every[0]

    def logits(self, images: Tensor) -> Tensor:
        """(B, C) for the first share of TEST.TEXT_INTERPOLATION."""
        return self._every(images)[0]

    @torch.no_grad()
    def _every(self, images: Tensor) -> list[Tensor]:
        """(B, C) for each share."""
        image_BD = self.model.image_features(images)
        text = self._text
        if text is None:
            text = _recognising(self.model.text_features(image_BD), 3)
        every = [self.model.logits(image_BD, self._mix(text, alpha)) for alpha in self.alphas]
        require_finite("logits", *every)
        return every

    def class_features(self) -> Tensor | None:
        """Unit features (C, D) for the first share; None where they depend on the image."""
        if self._text is None:
            return None
        text_CD = self._mix(self._text, self.alphas[0])
        require_finite("class features", text_CD)
        return text_CD

    def sweep(self) -> list[dict[str, float]]:
        """Accuracy in percent for each share, where there are several."""
        if len(self.alphas) == 1 or not self.labels:
            return []
        percent = (100 * self._hits / len(self.labels)).tolist()
        return [{"alpha": a, "accuracy": p} for a, p in zip(self.alphas, percent, strict=True)]

    def sweep_table(self) -> str:
        """The sweep as text for the log."""
        lines = [f"  {row['alpha']:5.2f}  {row['accuracy']:6.2f} %" for row in self.sweep()]
        return "\n".join(["Accuracy by TEST.TEXT_INTERPOLATION:", *lines])

    def _mix(self, text: Tensor, alpha: float) -> Tensor:
        if not alpha:
            return text
        return unit((1 - alpha) * text + alpha * self._handwritten)


def require_finite(what: str, *values: Tensor) -> None:
    """
    Raises:
        ValueError: a number is NaN or infinite.
    """
    if not all(value.isfinite().all() for value in values):
        raise ValueError(
            f"The {what} hold NaN or infinity, and are no result. Compute in fp32 (TRAINER.*.PREC "
            "and TEACHER_PREC) where fp16 overflows; else the weights, the prompts or kept "
            "features are damaged."
        )


def _recognising(text: Tensor, dims: int) -> Tensor:
    """The positive prompt's features where there are two prompts."""
    return text if text.dim() == dims else text[0]
