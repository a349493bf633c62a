"""CoOp: one learned text context."""

from __future__ import annotations

from models.clip import LoadedClip
from models.learners import ContextLearner, context_words, initial_context
from models.prompted_clip import PromptedCLIP
from trainers.base import PromptTrainer
from trainers.registry import prompt_model


@prompt_model
class CoOp(PromptTrainer):
    """Context Optimization. Source: arXiv:2109.01134."""

    def build_student(self, clip: LoadedClip) -> PromptedCLIP:
        keys = self.prompt_keys
        classnames = self.dm.dataset.classnames
        words = context_words(keys.CTX_INIT, keys.N_CTX)
        print(f'Initial context: "{words}", class names at the {keys.CLASS_TOKEN_POSITION}')
        learner = ContextLearner(
            initial_context(clip, keys.CTX_INIT, keys.N_CTX), len(classnames) if keys.CSC else None
        )
        return PromptedCLIP(
            clip, learner, classnames, words, keys.CLASS_TOKEN_POSITION, per_class=keys.CSC
        )
