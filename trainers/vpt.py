"""VPT: prompts of the image tower, fixed words for the text."""

from __future__ import annotations

from models.clip import LoadedClip
from models.learners import VisionLearner, initial_context, random_prompts
from models.prompted_clip import PromptedCLIP
from models.vision import VisionEncoder
from trainers.base import PromptTrainer
from trainers.registry import prompt_model


@prompt_model
class VPT(PromptTrainer):
    """Deep visual prompts on CLIP. Source: arXiv:2203.12119, as MaPLe's repository sets it up."""

    PROMPT = "VPT"

    def build_student(self, clip: LoadedClip) -> PromptedCLIP:
        keys, tower = self.prompt_keys, VisionEncoder(clip.model)
        self.require_range("N_CTX_VISION", 1)
        self.require_range("PROMPT_DEPTH_VISION", 1, tower.num_layers)
        if not keys.CTX_INIT.strip():
            raise ValueError(
                "TRAINER.VPT.CTX_INIT is empty, but VPT learns no text: give the words that stand "
                'before each class name, for example "a photo of a".'
            )
        words = keys.CTX_INIT.replace("_", " ").strip()
        print(f'Fixed text: "{words} <class>.", {keys.N_CTX_VISION} image prompts')
        vision = random_prompts(keys.PROMPT_DEPTH_VISION, keys.N_CTX_VISION, tower.width)
        learner = VisionLearner(initial_context(clip, words, 0), vision)
        return PromptedCLIP(clip, learner, self.dm.dataset.classnames, words)
