"""The frozen teacher: images to zero-shot logits at its own logit scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.clip import LoadedClip, load_clip
from models.prompted_clip import HandwrittenCLIP

TEACHER_PRECISIONS = ("fp32", "fp16", "bf16")


class Teacher(HandwrittenCLIP):
    """Zero-shot CLIP that others learn from. Letters: B batch, C classes."""

    def __init__(self, clip: LoadedClip, classnames: Sequence[str], template: str):
        super().__init__(clip, classnames, template)
        self.name, self.digest = clip.name, clip.digest
        self.image_size, self.mean, self.std = clip.image_size, clip.mean, clip.std
        self.classnames, self.template = tuple(classnames), template
        self.logit_scale = self.clip_model.logit_scale.exp().item()

    @classmethod
    def load(
        cls,
        name: str,
        classnames: Sequence[str],
        template: str,
        precision: str = "fp32",
        device: str | torch.device = "cpu",
    ) -> Teacher:
        """Load a teacher by its name in models.clip.

        Raises:
            ValueError: unknown name, precision or template, or the weights are missing.
        """
        if precision not in TEACHER_PRECISIONS:
            raise ValueError(f"TEACHER_PREC is {precision!r}; choose one of {TEACHER_PRECISIONS}.")
        # fp16 as autocast: the weights stay exact, and every architecture can do it.
        wanted = "amp" if precision == "fp16" else precision
        return cls(load_clip(name, wanted, device), classnames, template)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C), float32, of images (B, 3, size, size) in the teacher's own pixel scale."""
        return super().forward(images)

    def from_student_pixels(
        self, images: Tensor, mean: Sequence[float], std: Sequence[float]
    ) -> Tensor:
        """Turn a student's normalised batch into the teacher's: see convert_pixels."""
        return convert_pixels(images, mean, std, self.clip)


def convert_pixels(
    images: Tensor, mean: Sequence[float], std: Sequence[float], clip: LoadedClip
) -> Tensor:
    """A batch (B, 3, H, W) normalised by mean and std as `clip` takes it: its size, its scale.

    Equal sizes and pixel scales, the usual case, return the batch as it is.
    """
    if tuple(mean) != tuple(clip.mean) or tuple(std) != tuple(clip.std):
        images = images * _channels(std, images) + _channels(mean, images)
        images = (images - _channels(clip.mean, images)) / _channels(clip.std, images)
    if images.shape[-1] != clip.image_size:
        size = (clip.image_size, clip.image_size)
        images = F.interpolate(images, size, mode="bicubic", antialias=True)
    return images


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(3, 1, 1)
