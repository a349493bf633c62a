"""IVLP: prompts of both towers, independent of each other; language prompts alone, too."""

from __future__ import annotations

from models.clip import LoadedClip
from models.learners import IndependentLearner, random_prompts
from models.prompted_clip import PromptedCLIP
from models.vision import VisionEncoder
from trainers.base import PromptTrainer
from trainers.registry import prompt_model


@prompt_model
class IVLP(PromptTrainer):
    """Independent vision-language prompts. Source: MaPLe, arXiv:2210.03117, section 4.1.

    PROMPT_DEPTH_VISION 0 leaves the image tower alone, and then ResNets serve as well.
    """

    PROMPT = "IVLP"
    MODEL_NAME = "VLPromptLearner"

    def build_student(self, clip: LoadedClip) -> PromptedCLIP:
        keys = self.prompt_keys
        self.require_range("N_CTX_TEXT", 1)
        self.require_range("PROMPT_DEPTH_TEXT", 1, clip.text_layers)
        vision = None
        if keys.PROMPT_DEPTH_VISION:
            tower = VisionEncoder(clip.model)
            self.require_range("N_CTX_VISION", 1)
            self.require_range("PROMPT_DEPTH_VISION", 0, tower.num_layers)
            vision = random_prompts(keys.PROMPT_DEPTH_VISION, keys.N_CTX_VISION, tower.width)
        words, start_ND = self.words_and_start(clip, "N_CTX_TEXT")
        learner = IndependentLearner(start_ND, keys.N_CTX_TEXT, keys.PROMPT_DEPTH_TEXT, vision)
        return PromptedCLIP(clip, learner, self.dm.dataset.classnames, words)

    def context_init(self) -> str:
        return self.words_unless_long("N_CTX_TEXT")
