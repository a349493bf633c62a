"""CoOp: one learned context, taught by labels."""

from __future__ import annotations

from dassl.engine import TRAINER_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from models.clip import LoadedClip
from models.learners import ContextLearner, context_words, initial_context
from models.prompted_clip import PromptedCLIP
from trainers.base import PromptTrainer


@TRAINER_REGISTRY.register()
class CoOp(PromptTrainer):
    """Context Optimization. Source: arXiv:2109.01134."""

    def build_student(self, clip: LoadedClip) -> PromptedCLIP:
        keys = self.cfg.TRAINER.COOP
        classnames = self.dm.dataset.classnames
        words = context_words(keys.CTX_INIT, keys.N_CTX)
        print(f'Initial context: "{words}", class names at the {keys.CLASS_TOKEN_POSITION}')
        learner = self.build_learner(clip, len(classnames) if keys.CSC else None)
        return PromptedCLIP(
            clip, learner, classnames, words, keys.CLASS_TOKEN_POSITION, per_class=keys.CSC
        )

    def build_learner(self, clip: LoadedClip, num_classes: int | None) -> ContextLearner:
        """num_classes is given where each class has a context of its own."""
        keys = self.cfg.TRAINER.COOP
        return ContextLearner(initial_context(clip, keys.CTX_INIT, keys.N_CTX), num_classes)

    def losses(self, batch: dict) -> tuple[dict[str, Tensor], Tensor]:
        logits_BC = self.model(batch["img"])
        return {"loss": F.cross_entropy(logits_BC, batch["label"])}, logits_BC
