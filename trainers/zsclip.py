"""Zero-shot CLIP: the data set's hand-written prompt, nothing to train."""

from __future__ import annotations

from dassl.engine import TRAINER_REGISTRY

from models.prompted_clip import HandwrittenCLIP
from models.templates import template_for
from trainers.base import PromptTrainer


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(PromptTrainer):
    """CLIP as released, with one template per data set. Source: arXiv:2103.00020."""

    def build_model(self) -> None:
        cfg = self.cfg
        template = template_for(cfg.DATASET.NAME, cfg.DATASET.TEMPLATE)
        print(f'Prompt: "{template}"')
        self.model = HandwrittenCLIP(self.load_student_clip(), self.dm.dataset.classnames, template)

    def train(self) -> None:
        """Nothing to train: evaluate."""
        self.test()

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Nothing to load: --model-dir is not looked at."""
