"""CoCoOp: a text context that each image shifts."""

from __future__ import annotations

from models.clip import LoadedClip
from models.learners import ConditionalLearner, context_words, initial_context
from models.prompted_clip import PromptedCLIP
from trainers.base import PromptTrainer
from trainers.registry import prompt_model


@prompt_model
class CoCoOp(PromptTrainer):
    """Conditional Context Optimization. Source: arXiv:2203.05557."""

    PROMPT = "COCOOP"

    def build_student(self, clip: LoadedClip) -> PromptedCLIP:
        keys = self.prompt_keys
        words = context_words(keys.CTX_INIT, keys.N_CTX)
        print(f'Initial context: "{words}", shifted for each image')
        start_ND = initial_context(clip, keys.CTX_INIT, keys.N_CTX)
        learner = ConditionalLearner(start_ND, clip.feature_width)
        return PromptedCLIP(clip, learner, self.dm.dataset.classnames, words)
