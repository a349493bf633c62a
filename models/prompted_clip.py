"""A frozen CLIP as a classifier: images and class names in, logits out.

Letters: B images, C classes, D width of the joint embedding, E templates of an ensemble.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.clip import LoadedClip, tell_unknown_words
from models.learners import ContextLearner, Prompts
from models.plain_text import PlainTextEncoder
from models.prompt_layout import PromptLayout
from models.templates import SEPARATOR, fill
from models.text import TextEncoder, encode_tokens, has_clip_text
from models.vision import VisionEncoder

TEXT_PATHS = {  # LoadedClip.text_path -> what encodes prompts; both compute the same
    "fast": TextEncoder,
    "reference": PlainTextEncoder,  # all 77 tokens of every prompt, for comparison
}


class FrozenCLIP(nn.Module):
    """Compares images with class features; where these come from is the subclass's business."""

    conditional = False  # True: class features depend on the image

    def __init__(self, clip: LoadedClip):
        super().__init__()
        self.clip = clip
        self.clip_model = clip.model

    def image_features(self, images: Tensor) -> Tensor:
        """Unit features (B, D) of images (B, 3, size, size); no gradient, the tower is frozen.

        Features (B, D) that were computed before are given back.
        """
        if images.dim() == 2:
            return images
        with torch.no_grad(), self.clip.autocast():
            features = self.clip_model.encode_image(images.to(self._dtype()))
        return unit(features)

    def logits(self, image_BD: Tensor, text_CD: Tensor) -> Tensor:
        """(..., B, C) of unit features: cosines times the model's own logit scale."""
        scale = self.clip_model.logit_scale.exp().to(image_BD.dtype)
        return scale * image_BD @ text_CD.transpose(-1, -2)

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
        tell_unknown_words(clip, classnames)
        text_ECD = template_features(clip, classnames, template.split(SEPARATOR))
        text_CD = unit(text_ECD[0] if len(text_ECD) == 1 else unit(text_ECD).mean(dim=0))
        self.register_buffer("text_CD", text_CD, persistent=False)

    def text_features(self) -> Tensor:
        """Unit class features (C, D)."""
        return self.text_CD

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C)."""
        return self.logits(self.image_features(images), self.text_CD)


def template_features(
    clip: LoadedClip, classnames: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """(E, C, D): text features, not normalised, of every class in every template.

    Raises:
        ValueError: a prompt is longer than the model's context length.
    """
    fast = clip.text_path == "fast" and has_clip_text(clip.model)
    features = []
    with torch.no_grad(), clip.autocast():
        for template in templates:
            tokens = clip.tokenize(fill(template, list(classnames)))
            if fast:
                features.append(encode_tokens(clip.model, tokens))
            else:
                parts = tokens.to(clip.device).split(256)
                features.append(torch.cat([clip.model.encode_text(part) for part in parts]))
    return torch.stack(features)


class Output(NamedTuple):
    """What a prompted CLIP makes of images. Leading axes: positive and negative prompt."""

    logits: Tensor  # (..., B, C)
    image: Tensor  # (B, D) unit features
    text: Tensor  # (..., C, D) unit features; (..., B, C, D) where they depend on the image


class PromptedCLIP(FrozenCLIP):
    """A frozen CLIP whose learner puts prompts into its towers; only the learner is trained."""

    def __init__(
        self,
        clip: LoadedClip,
        learner: ContextLearner,
        classnames: Sequence[str],
        context: str,
        position: str = "end",
        per_class: bool = False,
    ):
        """See PromptLayout.build for context, position, per_class and the errors raised.

        Raises:
            ValueError: the learner has image prompts and the backbone no vision transformer.
        """
        super().__init__(clip)
        tell_unknown_words(clip, classnames)
        self.learner = learner.to(clip.device)
        self.vision_encoder = VisionEncoder(clip.model) if learner.has_vision else None
        self._layout = (context, position, per_class)
        self._fixed_text_CD: Tensor | None = None  # of a positive prompt that is not learned
        layout = PromptLayout.build(classnames, clip.tokenize, context, position, per_class)
        self.text_encoder = TEXT_PATHS[clip.text_path](clip.model, layout, clip.text_chunk)

    @property
    def conditional(self) -> bool:
        """Whether class features depend on the image."""
        return self.learner.conditional

    def for_classes(self, classnames: Sequence[str]) -> PromptedCLIP:
        """The same towers and learner with other class names."""
        return PromptedCLIP(self.clip, self.learner, classnames, *self._layout)

    def forward(self, images: Tensor, classes: Tensor | None = None) -> Output:
        """
        Args:
            images: (B, 3, size, size).
            classes: (c,) int64: compare with these classes alone; all when None.
        """
        if self.conditional:
            image_BD = self.image_features(images)
            text = self.text_features(image_BD, classes)
        else:
            prompts = self._prompts()
            image_BD = self._image_features(images, prompts)
            text = self._text_features(prompts, classes)
        return Output(self.logits(image_BD, text), image_BD, text)

    def image_features(self, images: Tensor) -> Tensor:
        """Unit features (B, D) of images, with the learner's image prompts where it has some."""
        if self.vision_encoder is None:
            return super().image_features(images)
        return self._image_features(images, self._prompts())

    def plain_image_features(self, images: Tensor) -> Tensor:
        """Unit features (B, D) of the tower without prompts; no gradient."""
        return super().image_features(images)

    def text_features(
        self, image_BD: Tensor | None = None, classes: Tensor | None = None
    ) -> Tensor:
        """Unit class features (..., C, D); (..., B, C, D) for images, where conditional.

        Leading axis: 2, positive and negative, of a learner with two prompts.
        """
        if self.conditional:
            with self.clip.autocast():
                return self._text_features(self.learner(image_BD), classes)
        return self._text_features(self._prompts(), classes)

    def logits(self, image_BD: Tensor, text: Tensor) -> Tensor:
        """(..., B, C) of unit features: cosines times the model's own logit scale."""
        if not self.conditional:
            return super().logits(image_BD, text)
        scale = self.clip_model.logit_scale.exp().to(image_BD.dtype)
        return scale * (text @ image_BD[:, :, None])[..., 0]

    def _prompts(self) -> Prompts:
        with self.clip.autocast():
            return self.learner()

    def _image_features(self, images: Tensor, prompts: Prompts) -> Tensor:
        if prompts.vision is None:
            return super().image_features(images)
        with self.clip.autocast():
            return unit(self.vision_encoder(images, prompts.vision))

    def _text_features(self, prompts: Prompts, classes: Tensor | None) -> Tensor:
        if self.learner.ctx.numel():
            with self.clip.autocast():
                return unit(self.text_encoder(prompts.context, prompts.deep, classes))
        has_negative = self.learner.negative_ctx is not None
        if self._fixed_text_CD is None:
            fixed = prompts.context[0] if has_negative else prompts.context
            with torch.no_grad(), self.clip.autocast():
                self._fixed_text_CD = unit(self.text_encoder(fixed))
        positive = self._fixed_text_CD if classes is None else self._fixed_text_CD[classes]
        if not has_negative:
            return positive
        with self.clip.autocast():
            negative = unit(self.text_encoder(prompts.context[1:], classes=classes))
        return torch.cat([positive[None], negative])


def unit(features: Tensor) -> Tensor:
    """To length 1, in float32 at least: half precision would blur logits by about 0.1."""
    wide = features if features.dtype == torch.float64 else features.float()
    return F.normalize(wide, dim=-1)
