"""Training steps to be timed: those of the official code and those of this repository.

Letters: B images or regions of a batch, C classes, D width of the joint embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import losses
from benchmarks.clips import class_names, random_unit
from benchmarks.official import FullPrompts
from models.clip import LoadedClip
from models.learners import (
    ContextLearner,
    CoupledLearner,
    IndependentLearner,
    initial_context,
    random_prompts,
)
from models.prompted_clip import PromptedCLIP

POSITIVE, NEGATIVE = "a photo of a", "a photo of no"
BATCH = 32  # CoOp, KDPL and FDBPL
SMALL_BATCH = 4  # MaPLe and PromptSRC
DEPTH = 9  # layers with prompts of MaPLe and PromptSRC
Step = Callable[[], None]


@dataclass
class Bench:
    """A student and everything that steps are fed with."""

    clip: LoadedClip

    @property
    def device(self) -> torch.device:
        return self.clip.device

    def image_features(self, batch: int) -> Tensor:
        """Unit features (B, D), as a cache holds them."""
        return random_unit(batch, self.clip.feature_width, device=self.device)

    def teacher_logits(self, batch: int, classes: int) -> Tensor:
        """(B, C) from certain to hopeless."""
        generator = torch.Generator().manual_seed(3)
        sharpness_B1 = torch.rand(batch, 1, generator=generator) * 10
        return (sharpness_B1 * torch.randn(batch, classes, generator=generator)).to(self.device)

    def labels(self, batch: int, classes: int) -> Tensor:
        generator = torch.Generator().manual_seed(4)
        return torch.randint(classes, (batch,), generator=generator).to(self.device)

    def pixels(self, batch: int) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        size = self.clip.image_size
        return torch.randn(batch, 3, size, size, generator=generator).to(self.device)

    # As the official code computes it

    def official_coop(self, classes: int) -> Step:
        """CoOp's step on given image features: 77 tokens, forward, backward, SGD."""
        prompts = FullPrompts(self.clip, class_names(classes), POSITIVE)
        image_BD, label_B = self.image_features(BATCH), self.labels(BATCH, classes)
        scale = self.clip.model.logit_scale.exp().float()
        return trained(
            prompts,
            lambda: F.cross_entropy(scale * image_BD @ prompts.text_features().T, label_B),
        )

    def loss_alone(self, classes: int, loss: Callable[[Tensor], Tensor], prompts: int) -> Step:
        """A loss on logits that are already there, forward and backward."""
        shape = (prompts, BATCH, classes) if prompts > 1 else (BATCH, classes)
        logits = torch.randn(shape, device=self.device, requires_grad=True)

        def run() -> None:
            logits.grad = None
            loss(logits).backward()

        return run

    # As this repository computes it

    def prompted(self, classes: int, learner: ContextLearner) -> PromptedCLIP:
        return PromptedCLIP(self.clip, learner, class_names(classes), POSITIVE)

    def coop_learner(self, negative: bool = False) -> ContextLearner:
        learner = ContextLearner(initial_context(self.clip, POSITIVE, 0))
        if negative:
            learner.add_negative(initial_context(self.clip, NEGATIVE, 0))
        return learner.to(self.device)

    def coop(self, classes: int) -> Step:
        """CoOp on cached image features."""
        model, image_BD = self.prompted(classes, self.coop_learner()), self.image_features(BATCH)
        label_B = self.labels(BATCH, classes)
        return trained(
            model.learner,
            lambda: F.cross_entropy(model.logits(image_BD, model.text_features()), label_B),
        )

    def kdpl(self, classes: int) -> Step:
        """KDPL on cached image features and given teacher logits."""
        model, image_BD = self.prompted(classes, self.coop_learner()), self.image_features(BATCH)
        loss = self.kdpl_loss(classes)
        return trained(model.learner, lambda: loss(model.logits(image_BD, model.text_features())))

    def fdbpl(self, classes: int, regions: int = BATCH) -> Step:
        """FDBPL on cached region features: two prompts, all four terms."""
        model = self.prompted(classes, self.coop_learner(negative=True))
        image_BD, loss = self.image_features(regions), self.fdbpl_loss(classes, regions)
        return trained(model.learner, lambda: loss(model.logits(image_BD, model.text_features())))

    def maple(self, classes: int) -> Step:
        """MaPLe reads images: prompts of both towers, labels."""
        visual = self.clip.model.visual
        start, depth = initial_context(self.clip, POSITIVE, 0), self._depth()
        learner = CoupledLearner(start, 2, depth, visual.conv1.out_channels)
        model, label_B = self.prompted(classes, learner), self.labels(SMALL_BATCH, classes)
        images = self.pixels(SMALL_BATCH)
        return trained(model.learner, lambda: F.cross_entropy(model(images).logits, label_B))

    def promptsrc(self, classes: int) -> Step:
        """PromptSRC reads images: prompts of both towers, labels and three consistency terms."""
        visual = self.clip.model.visual
        start, depth = initial_context(self.clip, POSITIVE, 0), self._depth()
        vision = random_prompts(depth, 4, visual.conv1.out_channels)
        model = self.prompted(classes, IndependentLearner(start, 4, depth, vision))
        label_B, images = self.labels(SMALL_BATCH, classes), self.pixels(SMALL_BATCH)
        text_CD = random_unit(classes, self.clip.feature_width, device=self.device)

        def total() -> Tensor:
            output, plain_BD = model(images), model.plain_image_features(images)
            return (
                F.cross_entropy(output.logits, label_B)
                + 25 * losses.feature_distance(output.text, text_CD)
                + 10 * losses.feature_distance(output.image, plain_BD)
                + losses.mean_kl(output.logits, model.logits(plain_BD, text_CD))
            )

        return trained(model.learner, total)

    def kdpl_loss(self, classes: int) -> Callable[[Tensor], Tensor]:
        teacher_BC = self.teacher_logits(BATCH, classes)
        return lambda logits_BC: losses.symmetric_kl(logits_BC, teacher_BC).mean()

    def fdbpl_loss(self, classes: int, regions: int = BATCH) -> Callable[[Tensor], Tensor]:
        """The four terms of trainers/fdbpl.py at their default weights, of logits (2, B, C)."""
        teacher_BC = self.teacher_logits(regions, classes)
        scale = self.clip.model.logit_scale.exp().float()

        def total(logits: Tensor) -> Tensor:
            positive_BC, negative_BC = logits
            weight_B = losses.region_weight(teacher_BC)
            difference_BC = (positive_BC - negative_BC) / scale
            similarity_B = losses.logit_similarity(positive_BC, negative_BC)
            return (
                (weight_B * losses.symmetric_kl(positive_BC, teacher_BC)).mean()
                + ((1 - weight_B) * losses.rejection(negative_BC)).mean()
                + 0.001 * (weight_B * similarity_B).mean()
                + 0.1 * losses.cascaded_difference(difference_BC, teacher_BC, weight_B)
            )

        return total

    def _depth(self) -> int:
        layers = len(self.clip.model.transformer.resblocks)
        return min(DEPTH, layers, len(self.clip.model.visual.transformer.resblocks))


def trained(module: nn.Module, loss: Callable[[], Tensor]) -> Step:
    """A step of training: loss, backward, SGD as every recipe of the family has it."""
    parameters = [x for x in module.parameters() if x.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.002, momentum=0.9, weight_decay=5e-4)

    def run() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return run


def features_of(encode: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], Tensor]:
    """An image tower's forward pass, without gradients."""

    def run() -> Tensor:
        with torch.no_grad():
            return encode(images)

    return run
