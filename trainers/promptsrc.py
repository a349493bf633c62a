"""PromptSRC: prompts of both towers, held near the frozen model and averaged over epochs."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import losses
from models.clip import LoadedClip
from models.prompted_clip import Output, template_features, unit
from models.templates import IMAGENET_TEMPLATES
from trainers.ivlp import IVLP
from trainers.registry import prompt_model


@prompt_model
class PromptSRC(IVLP):
    """Self-regulating prompts: three consistency terms and Gaussian-weighted prompt aggregation.

    Source: arXiv:2307.06948.
    """

    PROMPT = "PROMPTSRC"
    AVERAGE = "VLPromptLearner_average"  # folder of the average so far, for runs that go on

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        if cfg.TRAINER.PROMPTSRC.GPA_STD <= 0:
            raise ValueError(
                f"TRAINER.PROMPTSRC.GPA_STD is {cfg.TRAINER.PROMPTSRC.GPA_STD}; it is the width of "
                "a Gaussian over epochs and must be above 0, for example 1."
            )

    def build_model(self) -> None:
        super().build_model()
        keys, epochs = self.prompt_keys, self.cfg.OPTIM.MAX_EPOCH
        self.epoch_weights = gaussian_weights(epochs, keys.GPA_MEAN, keys.GPA_STD)
        self.average = WeightedAverage(self.model.learner)
        self.register_model(self.AVERAGE, self.average)
        self._frozen_text: Tensor | None = None  # made in training alone

    def regularisers(
        self, output: Output, images: Tensor, classes: Tensor | None
    ) -> dict[str, Tensor]:
        """Distance of prompted features and logits to those of the model without prompts."""
        keys = self.prompt_keys
        if self._frozen_text is None:
            self._frozen_text = frozen_text(self.model.clip, self.taught_classnames())
        text_CD = self._frozen_text if classes is None else self._frozen_text[classes]
        image_BD = self.model.plain_image_features(images)
        # With a negative twin the positive prompt is the one that is held near.
        learned_CD = output.text if output.text.dim() == 2 else output.text[0]
        logits_BC = output.logits if output.logits.dim() == 2 else output.logits[0]
        frozen_BC = self.model.logits(image_BD, text_CD)
        return {
            "text": keys.TEXT_LOSS_WEIGHT * losses.feature_distance(learned_CD, text_CD),
            "image": keys.IMAGE_LOSS_WEIGHT * losses.feature_distance(output.image, image_BD),
            "logits": losses.mean_kl(logits_BC, frozen_BC),
        }

    def after_epoch(self) -> None:
        """Add the epoch's prompts to the average; after the last epoch the average is the model."""
        self.average.add(self.model.learner, self.epoch_weights[self.epoch])
        if self.epoch + 1 == self.max_epoch:
            print("Using the Gaussian-weighted average of all epochs' prompts")
            self.model.learner.load_state_dict(self.average.mean.state_dict())
        super().after_epoch()


class WeightedAverage(nn.Module):
    """Running weighted mean of a module's parameters: the weighted sum, weights scaled to 1."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.mean = copy.deepcopy(module).requires_grad_(False)
        self.register_buffer("total", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def add(self, module: nn.Module, weight: float) -> None:
        self.total += weight
        total = self.total.item()
        share = weight / total if total else 1.0  # epochs far from the mean may weigh nothing
        for mean, current in zip(self.mean.parameters(), module.parameters(), strict=True):
            mean += share * (current - mean)


def gaussian_weights(epochs: int, mean: float, std: float) -> list[float]:
    """Weights of epochs 1 to `epochs`, a Gaussian that sums to 1 over them.

    Source: PromptSRC, section 3.2.
    """
    exponents = [-0.5 * ((epoch - mean) / std) ** 2 for epoch in range(1, epochs + 1)]
    largest = max(exponents, default=0.0)  # so that not every weight rounds to 0
    weights = [math.exp(exponent - largest) for exponent in exponents]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def frozen_text(clip: LoadedClip, classnames: Sequence[str]) -> Tensor:
    """(C, D): unit length after averaging the features of 60 templates, as PromptSRC does it."""
    return unit(template_features(clip, classnames, IMAGENET_TEMPLATES).float().mean(dim=0))
