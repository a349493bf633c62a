"""What every trainer shares: loading CLIP, the training step, evaluation, scores and times.

A method writes build_student() and losses(); an objective that composes with several methods is a
mixin placed before the method's class.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from dassl.engine import TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from torch import Tensor

from models.clip import PRECISIONS, LoadedClip, load_clip
from models.prompted_clip import PromptedCLIP
from trainers.checkpoint import find_checkpoint, load_prompts, read_checkpoint


class PromptTrainer(TrainerX):
    """A trainer of prompts on a frozen CLIP. Letters: B batch, C classes, D feature width."""

    PROMPT = "COOP"  # the config node of the method's prompts: TRAINER.<PROMPT>
    MODEL_NAME = "prompt_learner"  # the family's folder for checkpoints of text prompts

    def __init__(self, cfg):
        self.scores: dict[str, float] = {}  # of the latest test, in percent
        self.split = cfg.TEST.SPLIT  # that it was made on
        self.seconds: dict[str, float | None] = {"setup": None, "train": None, "test": None}
        self.store = None  # the region store of a training run that reads one
        self.scaler = None  # gradient scaler; only amp has one
        self._class_features: Tensor | None = None  # computed once per test
        self._start = time.perf_counter()
        super().__init__(cfg)

    # What a method provides

    def build_student(self, clip: LoadedClip) -> PromptedCLIP:
        raise NotImplementedError

    def losses(self, batch: dict) -> tuple[dict[str, Tensor], Tensor]:
        """Weighted loss terms by name, whose sum is trained on, and the logits (B, C)."""
        raise NotImplementedError

    def teacher_name(self) -> str | None:
        """The teacher that this run learns from, for its results."""
        return None

    # Set-up

    def check_cfg(self, cfg) -> None:
        if not cfg.MODEL.BACKBONE.NAME:
            raise ValueError(
                "MODEL.BACKBONE.NAME is empty; give a --config-file of configs/trainers, or "
                "--backbone ViT-B/16."
            )
        precision = cfg.TRAINER[self.PROMPT].PREC
        if precision not in PRECISIONS:
            raise ValueError(
                f"TRAINER.{self.PROMPT}.PREC is {precision!r}; choose one of {PRECISIONS}."
            )

    def build_model(self) -> None:
        cfg = self.cfg
        self.model = self.build_student(self.load_student_clip())
        learner = self.model.learner
        if cfg.MODEL.INIT_WEIGHTS:
            state = read_checkpoint(cfg.MODEL.INIT_WEIGHTS)["state_dict"]
            load_prompts(learner, state, cfg.MODEL.INIT_WEIGHTS)
        self.optim = build_optimizer(learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model(self.MODEL_NAME, learner, self.optim, self.sched)
        if self.model.clip.precision == "amp":
            self.scaler = torch.amp.GradScaler(self.device.type)

    def load_student_clip(self) -> LoadedClip:
        """
        Raises:
            ValueError: the config's input size or pixel scale is not the backbone's.
        """
        cfg = self.cfg
        print(f"Loading CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        clip = load_clip(cfg.MODEL.BACKBONE.NAME, cfg.TRAINER[self.PROMPT].PREC, self.device)
        if tuple(cfg.INPUT.SIZE) != (clip.image_size, clip.image_size):
            raise ValueError(
                f"INPUT.SIZE is {tuple(cfg.INPUT.SIZE)}, but {clip.name} takes {clip.image_size} x "
                f"{clip.image_size} pixels. Set INPUT.SIZE ({clip.image_size},{clip.image_size})."
            )
        for key, own in (("PIXEL_MEAN", clip.mean), ("PIXEL_STD", clip.std)):
            found = tuple(cfg.INPUT[key])
            if not _close(found, own):
                raise ValueError(
                    f"INPUT.{key} is {found}, but {clip.name} was trained with {own}. Set it in "
                    "the --config-file, as the recipes in configs/trainers do."
                )
        return clip

    # Training

    def forward_backward(self, batch: dict) -> dict[str, float]:
        batch = {
            key: value.to(self.device, non_blocking=True) if torch.is_tensor(value) else value
            for key, value in batch.items()
        }
        terms, logits_BC = self.losses(batch)
        loss = torch.stack(list(terms.values())).sum()
        summary = dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))
        self._require_finite(summary)
        if self.scaler is None:
            self.model_backward_and_update(loss)
        else:
            self.model_zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optim)
            self.scaler.update()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        accuracy = compute_accuracy(logits_BC.detach(), batch["label"])[0].item()
        named = summary if len(summary) > 1 else {}
        return {"loss": sum(summary.values()), **named, "acc": accuracy}

    def _require_finite(self, terms: dict[str, float]) -> None:
        broken = [name for name, value in terms.items() if not math.isfinite(value)]
        if broken:
            raise FloatingPointError(
                f"Loss term {', '.join(broken)} is not finite in epoch {self.epoch + 1}, batch "
                f"{self.batch_idx + 1} (all terms: {terms}). Lower OPTIM.LR, or compute in fp32 "
                "or amp instead of fp16."
            )

    def before_train(self) -> None:
        super().before_train()
        self._end_setup()
        self._train_start = time.perf_counter()

    def after_train(self) -> None:
        # A resumed run has seen a part of its epochs only: its time would flatter the method.
        whole = self.start_epoch == 0
        self.seconds["train"] = time.perf_counter() - self._train_start if whole else None
        super().after_train()

    # Evaluation

    def test(self, split: str | None = None) -> float:
        """Accuracy in percent; class features are computed once for all images."""
        self._end_setup()
        self.scores = {}
        start = time.perf_counter()
        with torch.no_grad():
            self._class_features = self.class_features()
        accuracy = super().test(split)
        self._class_features = None
        if split is None:  # the final test, not a look at the validation images
            self.seconds["test"] = time.perf_counter() - start
        return accuracy

    def _end_setup(self) -> None:
        if self.seconds["setup"] is None:
            self.seconds["setup"] = time.perf_counter() - self._start

    def class_features(self) -> Tensor:
        """Unit features (C, D) that images are compared with at test."""
        return self.model.text_features()

    def model_inference(self, images: Tensor) -> Tensor:
        text_CD = self._class_features
        if text_CD is None:  # called outside test()
            text_CD = self.class_features()
        return self.model.logits(self.model.image_features(images), text_CD)

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        split, _, name = tag.partition("/")
        if split in ("test", "val"):  # how Dassl's test() announces its results
            self.split, self.scores[name] = split, float(scalar_value)
        super().write_scalar(tag, scalar_value, global_step)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load the prompts of a run folder; see find_checkpoint and load_prompts for errors."""
        if not directory:
            raise ValueError(
                f"{type(self).__name__} was trained, so --eval-only needs --model-dir (the folder "
                "of the training run) and --load-epoch."
            )
        for name in self.get_model_names():
            path = find_checkpoint(directory, name, epoch)
            checkpoint = read_checkpoint(path)
            print(f'Loading weights to {name} from "{path}" (epoch = {checkpoint.get("epoch")})')
            load_prompts(self._models[name], checkpoint["state_dict"], path)


def _close(found: Sequence[float], own: Sequence[float]) -> bool:
    return all(abs(a - b) < 1e-3 for a, b in zip(found, own, strict=True))
