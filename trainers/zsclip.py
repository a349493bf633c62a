"""Zero-shot CLIP: the data set's hand-written prompt or an ensemble, nothing to train."""

from __future__ import annotations

from dassl.engine import TRAINER_REGISTRY

from models.prompted_clip import HandwrittenCLIP
from models.templates import ENSEMBLE, SEPARATOR, template_for
from trainers.base import PromptTrainer


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(PromptTrainer):
    """CLIP as released, with one template per data set. Source: arXiv:2103.00020."""

    def build_model(self) -> None:
        template = self.template()
        print(f'Prompt: "{template}"')
        self.model = HandwrittenCLIP(self.load_student_clip(), self.dm.dataset.classnames, template)

    def template(self) -> str:
        return template_for(self.cfg.DATASET.NAME, self.cfg.DATASET.TEMPLATE)

    def train(self) -> None:
        """Nothing to train: evaluate."""
        self.test()

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Nothing to load: --model-dir is not looked at."""


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """CLIP with an ensemble: seven templates and, but for ImageNet, the data set's own.

    Source: CoOp's repository.
    """

    def template(self) -> str:
        if self.cfg.DATASET.NAME == "ImageNet" and not self.cfg.DATASET.TEMPLATE:
            return SEPARATOR.join(ENSEMBLE)
        return SEPARATOR.join([*ENSEMBLE, super().template()])
