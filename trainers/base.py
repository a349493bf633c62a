"""What every trainer shares: loading CLIP, the training step, evaluation, scores and times.

A prompt model writes build_student() and, if it has any, regularisers(); an objective that composes
with every prompt model is a mixin placed before it (trainers/registry.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from dassl.engine import TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from models.clip import PRECISIONS, LoadedClip, load_clip
from models.learners import context_words, initial_context
from models.prompted_clip import TEXT_PATHS, Output, PromptedCLIP
from models.templates import template_for
from trainers.checkpoint import find_checkpoint, load_prompts, read_checkpoint, save_prompts
from trainers.evaluation import Evaluation
from trainers.feature_cache import with_kept_features
from trainers.images import data_manager
from trainers.sanity import report_own_data


class PromptTrainer(TrainerX):
    """A trainer of prompts on a frozen CLIP. Letters: B batch, C classes, D feature width."""

    PROMPT = "COOP"  # the config node of the prompt model: TRAINER.<PROMPT>
    MODEL_NAME = "prompt_learner"  # the family's folder for the prompts' checkpoints
    transductive = False  # whether training saw unlabelled images of the classes it is tested on

    def __init__(self, cfg):
        self.tested: Evaluation | None = None  # the final test
        self.scores: dict[str, float] = {}  # its results, in percent
        self.split = cfg.TEST.SPLIT  # that it was made on
        self.seconds: dict[str, float | None] = {"setup": None, "train": None, "test": None}
        self.store = None  # the region store of a training run that reads one
        self.scaler = None  # gradient scaler; only amp has one
        self.loaded: tuple[Path, int | None] | None = None  # checkpoint of load_model, its epoch
        self._start = time.perf_counter()
        super().__init__(cfg)

    # What a prompt model provides

    def build_student(self, clip: LoadedClip) -> PromptedCLIP:
        raise NotImplementedError

    def regularisers(
        self, output: Output, images: Tensor, classes: Tensor | None
    ) -> dict[str, Tensor]:
        """Weighted loss terms that the prompt model adds to every objective, by name."""
        return {}

    def context_init(self) -> str:
        """The words that the text context starts from; "" where it starts at random."""
        return self.prompt_keys.CTX_INIT

    # What an objective replaces; here: labels

    def losses(self, batch: dict) -> tuple[dict[str, Tensor], Tensor | None]:
        """Weighted loss terms by name, whose sum is trained on.

        Also logits (B, C) to compare with the labels for the log, or None.
        """
        output = self.model(batch["img"])
        terms = {"loss": F.cross_entropy(output.logits, batch["label"])}
        extra = self.regularisers(output, batch["img"], None)
        if extra:
            terms = {"labels": terms["loss"], **extra}
        return terms, output.logits

    def taught_classnames(self) -> list[str]:
        """Names of the classes that training tells apart."""
        return self.dm.dataset.classnames

    def training_images(self) -> Sequence:
        """The images that training sees, as the data set lists them."""
        return self.dm.dataset.train_x

    def teacher_name(self) -> str | None:
        """The teacher that this run learns from, for its results."""
        return None

    def knobs(self) -> list[str]:
        """What is switched on beyond the method as published, for tables."""
        alphas = self.cfg.TEST.TEXT_INTERPOLATION
        return [f"TEXT_INTERPOLATION {alphas[0]}"] if alphas[0] else []

    # Set-up

    def check_cfg(self, cfg) -> None:
        if not cfg.MODEL.BACKBONE.NAME:
            raise ValueError(
                "MODEL.BACKBONE.NAME is empty; give a --config-file of configs/trainers, or "
                "--backbone ViT-B/16."
            )
        if cfg.MODEL.TEXT_PATH not in TEXT_PATHS:
            raise ValueError(
                f"MODEL.TEXT_PATH is {cfg.MODEL.TEXT_PATH!r}; choose {' or '.join(TEXT_PATHS)}."
            )
        if cfg.MODEL.TEXT_CHUNK < 0:
            raise ValueError(
                f"MODEL.TEXT_CHUNK is {cfg.MODEL.TEXT_CHUNK}; it is a number of classes, or 0 for "
                "as many as fit."
            )
        alphas = cfg.TEST.TEXT_INTERPOLATION
        if not alphas or not all(0 <= alpha <= 1 for alpha in alphas):
            raise ValueError(
                f"TEST.TEXT_INTERPOLATION is {alphas}; it needs one or more values from 0 (learned "
                "prompt) to 1 (hand-written prompt)."
            )
        precision = cfg.TRAINER[self.PROMPT].PREC
        if precision not in PRECISIONS:
            raise ValueError(
                f"TRAINER.{self.PROMPT}.PREC is {precision!r}; choose one of {PRECISIONS}."
            )

    def build_data_loader(self) -> None:
        self.dm = data_manager(self.cfg)
        for name in ("train_loader_x", "train_loader_u", "val_loader", "test_loader"):
            setattr(self, name, getattr(self.dm, name))
        for name in ("num_classes", "num_source_domains", "lab2cname"):
            setattr(self, name, getattr(self.dm, name))

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

    @property
    def prompt_keys(self):
        """The config node of the prompt model."""
        return self.cfg.TRAINER[self.PROMPT]

    def require_range(self, key: str, lowest: int, highest: int | None = None) -> None:
        """
        Raises:
            ValueError: TRAINER.<PROMPT>.<key> is not from lowest to highest.
        """
        value = self.prompt_keys[key]
        if value < lowest or (highest is not None and value > highest):
            wanted = f"{lowest} or more" if highest is None else f"{lowest} to {highest}"
            raise ValueError(
                f"TRAINER.{self.PROMPT}.{key} is {value}; with {self.cfg.MODEL.BACKBONE.NAME} it "
                f"can be {wanted}."
            )

    def words_unless_long(self, count_key: str) -> str:
        """CTX_INIT for up to four learned tokens, none for more: the rule of MaPLe and its kin."""
        keys = self.prompt_keys
        return keys.CTX_INIT if keys[count_key] <= 4 else ""

    def words_and_start(self, clip: LoadedClip, count_key: str) -> tuple[str, Tensor]:
        """The words that hold the context's place and their embeddings, or random ones (N, D).

        Raises:
            ValueError: CTX_INIT has fewer tokens than are to be learned.
        """
        init, count = self.context_init(), self.prompt_keys[count_key]
        words, start_ND = context_words(init, count), initial_context(clip, init, count)
        if len(start_ND) < count:
            raise ValueError(
                f"TRAINER.{self.PROMPT}.{count_key} is {count}, but CTX_INIT {init!r} has "
                f"{len(start_ND)} tokens. Lower {count_key}, or give more words or none."
            )
        print(f'Initial context: "{words}", of which {count} tokens are learned')
        return words, start_ND

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
        return replace(clip, text_path=cfg.MODEL.TEXT_PATH, text_chunk=cfg.MODEL.TEXT_CHUNK)

    # Training

    def forward_backward(self, batch: dict) -> dict[str, float]:
        batch = {
            key: value.to(self.device, non_blocking=True) if torch.is_tensor(value) else value
            for key, value in batch.items()
        }
        self.model_zero_grad()
        terms, logits_BC = self.losses(batch)
        loss = torch.stack(list(terms.values())).sum()
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        values = torch.stack(list(terms.values())).detach().tolist()
        summary = dict(zip(terms, values, strict=True))
        self._require_finite(summary)
        if self.scaler is None:
            self.model_update()
        else:
            self.scaler.step(self.optim)
            self.scaler.update()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        named = summary if len(summary) > 1 else {}
        told = {"loss": sum(summary.values()), **named}
        if logits_BC is not None:
            told["acc"] = compute_accuracy(logits_BC.detach(), batch["label"])[0].item()
        return told

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
        report_own_data(self)
        self._train_start = time.perf_counter()

    def after_train(self) -> None:
        # A resumed run has seen a part of its epochs only: its time would flatter the method.
        whole = self.start_epoch == 0
        self.seconds["train"] = time.perf_counter() - self._train_start if whole else None
        super().after_train()

    # Evaluation

    def test(self, split: str | None = None) -> float:
        """Accuracy in percent, of TEST.SPLIT or of the one that is given."""
        self._end_setup()
        start = time.perf_counter()
        tested, scores, on = self.evaluate(split or self.cfg.TEST.SPLIT)
        if split is None:  # the final test, not a look at the validation images
            self.seconds["test"] = time.perf_counter() - start
            self.tested, self.scores, self.split = tested, scores, on
            if len(tested.alphas) > 1:
                print(tested.sweep_table())
        return scores["accuracy"]

    @torch.no_grad()
    def evaluate(self, split: str) -> tuple[Evaluation, dict[str, float], str]:
        """What was said of the images of a split, results in percent by name, and the split.

        That is "test" where there are no validation images.
        """
        self.set_model_mode("eval")
        self.evaluator.reset()
        loader = self.val_loader if split == "val" else self.test_loader
        if loader is None:
            split, loader = "test", self.test_loader
        tested = self.evaluation()  # class features are computed once for all images
        loader = with_kept_features(self.model, self.cfg, loader)
        print(f"Evaluate on the *{split}* set")
        for batch in tqdm(loader, disable=None):
            images, label_B = self.parse_batch_test(batch)
            self.evaluator.process(tested.add(images, label_B, batch["impath"]), label_B)
        results = self.evaluator.evaluate()
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return tested, {name: float(value) for name, value in results.items()}, split

    def evaluation(self) -> Evaluation:
        """What images are compared with at test."""
        cfg = self.cfg
        template = template_for(cfg.DATASET.NAME, cfg.DATASET.TEMPLATE)
        return Evaluation(
            self.model, self.dm.dataset.classnames, template, cfg.TEST.TEXT_INTERPOLATION
        )

    def model_inference(self, images: Tensor) -> Tensor:
        """Logits (B, C) of the prompt that recognises."""
        return self.evaluation().logits(images)

    def _end_setup(self) -> None:
        if self.seconds["setup"] is None:
            self.seconds["setup"] = time.perf_counter() - self._start

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load the prompts of a run folder; see find_checkpoint and load_prompts for errors."""
        if not directory:
            raise ValueError(
                f"{type(self).__name__} was trained, so --eval-only needs --model-dir (the folder "
                "of the training run) and --load-epoch."
            )
        path = find_checkpoint(directory, self.MODEL_NAME, epoch)
        checkpoint = read_checkpoint(path)
        epoch = checkpoint.get("epoch")
        print(f'Loading weights to {self.MODEL_NAME} from "{path}" (epoch = {epoch})')
        load_prompts(self._models[self.MODEL_NAME], checkpoint["state_dict"], path)
        self.loaded = path, epoch

    def save_model(self, epoch: int, directory: str, *args, **keys) -> None:
        """Dassl's checkpoints, and the prompts beside them as safetensors."""
        super().save_model(epoch, directory, *args, **keys)
        folder = Path(directory, self.MODEL_NAME)
        save_prompts(self._models[self.MODEL_NAME], folder, epoch + 1)


def _close(found: Sequence[float], own: Sequence[float]) -> bool:
    return all(abs(a - b) < 1e-3 for a, b in zip(found, own, strict=True))
