"""PromptKD: image prompts and a projector learn from a teacher that PromptSRC tuned."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from dassl.data import DataManager
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor

import losses
from models.clip import LoadedClip, load_clip
from models.learners import IndependentLearner, initial_context, random_prompts
from models.projected_clip import ProjectedCLIP, ProjectionLearner
from models.prompted_clip import PromptedCLIP
from models.teacher import convert_pixels
from models.vision import VisionEncoder
from trainers.base import PromptTrainer
from trainers.checkpoint import find_checkpoint, load_prompts, read_checkpoint, translate
from trainers.images import data_manager
from wording import counted

TEACHER_MODEL_NAME = "VLPromptLearner"  # PromptSRC's folder for its prompts


@TRAINER_REGISTRY.register()
class PromptKD(PromptTrainer):
    """Stage two of PromptKD; stage one is a run of PromptSRC. Source: arXiv:2403.02781.

    The last epoch is evaluated; the authors choose the epoch on the test images.
    """

    PROMPT = "PROMPTKD"
    MODEL_NAME = "VLPromptLearner"

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        keys = cfg.TRAINER.PROMPTKD
        if not keys.TEACHER_DIR:
            raise ValueError(
                "TRAINER.PROMPTKD.TEACHER_DIR is empty; name the run folder of the PromptSRC run "
                f"that tuned {keys.TEACHER_NAME} (the folder that holds {TEACHER_MODEL_NAME}/)."
            )
        if keys.TEMPERATURE <= 0:
            raise ValueError(f"TRAINER.PROMPTKD.TEMPERATURE is {keys.TEMPERATURE}; it must be > 0.")

    @property
    def transductive(self) -> bool:
        return self.prompt_keys.TRANSDUCTIVE

    def teacher_name(self) -> str:
        return f"{self.prompt_keys.TEACHER_NAME} tuned by PromptSRC"

    def build_student(self, clip: LoadedClip) -> ProjectedCLIP:
        keys, tower = self.prompt_keys, VisionEncoder(clip.model)
        self.require_range("N_CTX_VISION", 1)
        self.require_range("PROMPT_DEPTH_VISION", 1, tower.num_layers)
        self.teacher = self.load_teacher()
        vision = random_prompts(keys.PROMPT_DEPTH_VISION, keys.N_CTX_VISION, tower.width)
        learner = ProjectionLearner(vision, clip.feature_width, self.teacher.clip.feature_width)
        with torch.no_grad():
            return ProjectedCLIP(clip, learner, self.teacher.text_features())

    def load_teacher(self) -> PromptedCLIP:
        """The tuned teacher for the run's classes, frozen.

        Raises:
            ValueError: TEACHER_DIR holds no prompts of PromptSRC for TEACHER_NAME.
        """
        keys, context_init = self.prompt_keys, self.cfg.TRAINER.PROMPTSRC.CTX_INIT
        epoch = keys.TEACHER_EPOCH if keys.TEACHER_EPOCH >= 0 else None
        path = find_checkpoint(keys.TEACHER_DIR, TEACHER_MODEL_NAME, epoch)
        state = translate(read_checkpoint(path)["state_dict"])
        print(f"Loading the teacher {keys.TEACHER_NAME} with the prompts of {path}")
        clip = load_clip(keys.TEACHER_NAME, keys.PREC, self.device)
        if "ctx" not in state or "vision.0" not in state:
            raise ValueError(
                f"{path} (TRAINER.PROMPTKD.TEACHER_DIR) holds no prompts of PromptSRC. Train the "
                "teacher first: --trainer PromptSRC with TEACHER_NAME as --backbone."
            )
        layers = [name.split(".")[0] for name in state]
        words = context_init if len(state["ctx"]) <= 4 else " ".join(["X"] * len(state["ctx"]))
        vision = torch.zeros(layers.count("vision"), *state["vision.0"].shape)
        learner = IndependentLearner(
            initial_context(clip, words, 0),
            len(state["ctx"]),
            1 + layers.count("deep_text"),
            vision,
        )
        load_prompts(learner, state, path)
        learner.requires_grad_(False)
        return PromptedCLIP(clip, learner, self.dm.dataset.classnames, words)

    @functools.cached_property
    def everything(self) -> DataManager:
        """All training images of all classes."""
        return data_manager(_all_images(self.cfg))

    def training_images(self) -> Sequence:
        return self.everything.dataset.train_x if self.transductive else super().training_images()

    def before_train(self) -> None:
        taught = self.dm.dataset
        if self.transductive:
            self.train_loader_x, taught = self.everything.train_loader_x, self.everything.dataset
            print(
                f"Transductive: {len(taught.train_x)} unlabelled images of all "
                f"{counted(len(taught.classnames), 'class')}, those it is tested on included"
            )
        with torch.no_grad():
            self.taught_text_CT = self.teacher.for_classes(taught.classnames).text_features()
        super().before_train()

    def losses(self, batch: dict) -> tuple[dict[str, Tensor], None]:
        keys, pixels = self.prompt_keys, self.cfg.INPUT
        images = convert_pixels(
            batch["img"], pixels.PIXEL_MEAN, pixels.PIXEL_STD, self.teacher.clip
        )
        with torch.no_grad():
            teacher_BC = self.teacher.logits(
                self.teacher.image_features(images), self.taught_text_CT
            )
        student_BC = self.model(batch["img"], self.taught_text_CT)
        loss = losses.mean_kl(student_BC, teacher_BC, keys.TEMPERATURE)
        return {"loss": keys.KD_WEIGHT * loss}, None  # labels are not looked at


def _all_images(cfg):
    """The run's config with every training image of every class."""
    everything = cfg.clone()
    everything.defrost()
    everything.DATASET.NUM_SHOTS = -1
    everything.DATASET.SUBSAMPLE_CLASSES = "all"
    everything.freeze()
    return everything
