"""A CLIP image tower whose features are projected to another CLIP's joint embedding.

Letters: B images, C classes, J layers with prompts, V prompt tokens, W width of the image tower,
D width of the student's joint embedding, T of the teacher's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.clip import LoadedClip
from models.prompted_clip import FrozenCLIP, unit
from models.vision import VisionEncoder


class ProjectionLearner(nn.Module):
    """Image prompts and the projector: what PromptKD's student trains.

    The projector is two linear layers with batch normalisation between them (the authors' 1 x 1
    convolutions on single pixels). Source: PromptKD, arXiv:2403.02781.
    """

    def __init__(self, vision_JVW: Tensor, student_width: int, teacher_width: int):
        super().__init__()
        self.vision = nn.ParameterList(nn.Parameter(layer) for layer in vision_JVW)
        self.projector = nn.Sequential(
            nn.Linear(student_width, teacher_width),
            nn.BatchNorm1d(teacher_width),
            nn.ReLU(),
            nn.Linear(teacher_width, teacher_width),
        )

    def forward(self, image_BD: Tensor) -> Tensor:
        """(B, T)"""
        return self.projector(image_BD.to(self.projector[0].weight.dtype))


class ProjectedCLIP(FrozenCLIP):
    """A prompted image tower and its projector, compared with a teacher's class features."""

    def __init__(self, clip: LoadedClip, learner: ProjectionLearner, text_CT: Tensor):
        """
        Raises:
            ValueError: the backbone has no vision transformer.
        """
        super().__init__(clip)
        self.learner = learner.to(clip.device)
        self.vision_encoder = VisionEncoder(clip.model)
        self.register_buffer("text_CT", text_CT, persistent=False)

    def image_features(self, images: Tensor) -> Tensor:
        """Unit features (B, T) in the teacher's joint embedding."""
        with self.clip.autocast():
            prompts = torch.stack(list(self.learner.vision))
            return unit(self.learner(self.vision_encoder(images, prompts)))

    def text_features(self) -> Tensor:
        """Unit class features (C, T): the teacher's, frozen."""
        return self.text_CT

    def forward(self, images: Tensor, text_CT: Tensor | None = None) -> Tensor:
        """Logits (B, C), by default for the classes it was made with."""
        return self.logits(
            self.image_features(images), self.text_CT if text_CT is None else text_CT
        )
