"""MaPLe: prompts of both towers, those of the images coupled to those of the text."""

from __future__ import annotations

from models.clip import LoadedClip
from models.learners import CoupledLearner
from models.prompted_clip import PromptedCLIP
from models.vision import VisionEncoder
from trainers.base import PromptTrainer
from trainers.registry import prompt_model


@prompt_model
class MaPLe(PromptTrainer):
    """Multi-modal Prompt Learning. Source: arXiv:2210.03117."""

    PROMPT = "MAPLE"
    MODEL_NAME = "MultiModalPromptLearner"

    def build_student(self, clip: LoadedClip) -> PromptedCLIP:
        keys, tower = self.prompt_keys, VisionEncoder(clip.model)
        self.require_range("N_CTX", 1)
        self.require_range("PROMPT_DEPTH", 1, min(clip.text_layers, tower.num_layers))
        words, start_ND = self.words_and_start(clip, "N_CTX")
        learner = CoupledLearner(start_ND, keys.N_CTX, keys.PROMPT_DEPTH, tower.width)
        return PromptedCLIP(clip, learner, self.dm.dataset.classnames, words)

    def context_init(self) -> str:
        return self.words_unless_long("N_CTX")
