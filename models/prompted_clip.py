"""A frozen CLIP as a classifier: images and class names in, logits out.

Letters: B images, C classes, D width of the joint embedding, E templates of an ensemble.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.clip import LoadedClip
from models.learners import ContextLearner
from models.templates import SEPARATOR, fill
from models.text import PromptLayout, TextEncoder


class FrozenCLIP(nn.Module):
    """Compares images with class features; where these come from is the subclass's business."""

    def __init__(self, clip: LoadedClip):
        super().__init__()
        self.clip = clip
        self.clip_model = clip.model

    def image_features(self, images: Tensor) -> Tensor:
        """Unit features (B, D) of images (B, 3, size, size); no gradient, the tower is frozen."""
        with torch.no_grad(), self.clip.autocast():
            features = self.clip_model.encode_image(images.to(self._dtype()))
        return unit(features)

    def text_features(self) -> Tensor:
        """Unit class features (..., C, D)."""
        raise NotImplementedError

    def logits(self, image_BD: Tensor, text_CD: Tensor) -> Tensor:
        """(..., B, C) of unit features: cosines times the model's own logit scale."""
        scale = self.clip_model.logit_scale.exp().to(image_BD.dtype)
        return scale * image_BD @ text_CD.transpose(-1, -2)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (..., B, C)."""
        return self.logits(self.image_features(images), self.text_features())

    def _dtype(self) -> torch.dtype:
        """The dtype of images that the image tower takes: that of its first convolution."""
        layers = self.clip_model.visual.modules()
        return next(layer.weight.dtype for layer in layers if isinstance(layer, nn.Conv2d))


class HandwrittenCLIP(FrozenCLIP):
    """Zero-shot CLIP: class features of a hand-written template, computed once.

    The features of an ensemble, templates joined by " | ", are the mean of their unit features,
    scaled to length 1 again. Source: CLIP (arXiv:2103.00020), section 3.1.4.
    """

    def __init__(self, clip: LoadedClip, classnames: Sequence[str], template: str):
        super().__init__(clip)
        text_ECD = torch.stack(
            [self._encode(fill(part, list(classnames))) for part in template.split(SEPARATOR)]
        )
        text_CD = text_ECD[0] if len(text_ECD) == 1 else unit(text_ECD.mean(dim=0))
        self.register_buffer("text_CD", text_CD, persistent=False)

    def _encode(self, texts: list[str]) -> Tensor:
        tokens = self.clip.tokenize(texts).to(self.clip.device)
        with torch.no_grad(), self.clip.autocast():
            parts = [self.clip_model.encode_text(part) for part in tokens.split(256)]
        return unit(torch.cat(parts))

    def text_features(self) -> Tensor:
        return self.text_CD


class PromptedCLIP(FrozenCLIP):
    """CLIP with class prompts "<learned context> <class name>."; only the context is trained."""

    def __init__(
        self,
        clip: LoadedClip,
        learner: ContextLearner,
        classnames: Sequence[str],
        context: str,
        position: str = "end",
        per_class: bool = False,
    ):
        """See PromptLayout.build for context, position, per_class and the errors raised."""
        super().__init__(clip)
        layout = PromptLayout.build(classnames, clip.tokenize, context, position, per_class)
        self.learner = learner.to(clip.device)
        self.text_encoder = TextEncoder(clip.model, layout)

    def text_features(self) -> Tensor:
        """Unit class features (C, D), or (2, C, D) of a learner with two contexts."""
        with self.clip.autocast():
            features = self.text_encoder(self.learner())
        return unit(features)


def unit(features: Tensor) -> Tensor:
    """To length 1, in float32 at least: half precision would blur logits by about 0.1."""
    wide = features if features.dtype == torch.float64 else features.float()
    return F.normalize(wide, dim=-1)
