"""A frozen CLIP with a learned context: images and class names in, logits out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.clip import LoadedClip
from models.learners import ContextLearner
from models.text import PromptLayout, TextEncoder


class PromptedCLIP(nn.Module):
    """CLIP whose class prompts are "<learned context> <class name>.", frozen but for the context.

    Letters: B images, C classes, D embedding width.
    """

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
        super().__init__()
        layout = PromptLayout.build(classnames, clip.tokenize, context, position, per_class)
        self.clip = clip
        self.clip_model = clip.model
        self.learner = learner.to(clip.device)
        self.text_encoder = TextEncoder(clip.model, layout)

    def image_features(self, images: Tensor) -> Tensor:
        """Unit features (B, D) of images (B, 3, size, size); no gradient, the tower is frozen."""
        with torch.no_grad(), self.clip.autocast():
            images = images.to(self.text_encoder.dtype)
            return F.normalize(self.clip_model.encode_image(images), dim=-1)

    def text_features(self) -> Tensor:
        """Unit class features (C, D), or (2, C, D) of a learner with two contexts."""
        with self.clip.autocast():
            return F.normalize(self.text_encoder(self.learner()), dim=-1)

    def logits(self, image_BD: Tensor, text_CD: Tensor) -> Tensor:
        """(..., B, C) of unit features: cosines times CLIP's logit scale."""
        scale = self.clip_model.logit_scale.exp().to(image_BD.dtype)
        return scale * image_BD @ text_CD.transpose(-1, -2)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C) logits, or (2, B, C) of a learner with two contexts."""
        return self.logits(self.image_features(images), self.text_features())
