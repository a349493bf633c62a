"""What all objectives with a teacher share: labels beside it, controls, class-agnostic teaching.

Letters: B samples of a batch, V classes that the teacher knows, C classes a step learns from.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import losses
from inputs import read_text
from models.prompted_clip import PromptedCLIP
from models.templates import DEFAULT, template_for


class Distillation:
    """Mixin before a prompt model; an objective writes teacher_logits() and distill()."""

    OBJECTIVE = ""  # the config node that names the teacher: TRAINER.<OBJECTIVE>.TEACHER

    def teacher_name(self) -> str:
        uniform = self.cfg.TRAINER.DISTILL.UNIFORM_TEACHER
        return "uniform" if uniform else self.cfg.TRAINER[self.OBJECTIVE].TEACHER

    def teacher_logits(self, batch: dict) -> Tensor:
        """(B, V) of the batch's images, for taught_classnames()."""
        raise NotImplementedError

    def distill(self, logits: Tensor, target_BC: Tensor, weight_B: Tensor) -> dict[str, Tensor]:
        """Weighted loss terms that the teacher causes.

        Args:
            logits: the student's, (B, C), or (2, B, C) of a positive and a negative prompt.
            target_BC: the teacher's, refined by labels where that is switched on.
            weight_B: 1 - H / ln C of the teacher's own word.
        """
        raise NotImplementedError

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        keys = cfg.TRAINER.DISTILL
        for key in ("LABEL_WEIGHT", "LABEL_LOGIT"):
            if keys[key] < 0:
                raise ValueError(f"TRAINER.DISTILL.{key} is {keys[key]}; it needs 0 or more.")
        if not keys.CLASS_AGNOSTIC:
            return
        for key in ("LABEL_WEIGHT", "LABEL_LOGIT", "UNIFORM_TEACHER"):
            if keys[key]:
                raise ValueError(
                    f"TRAINER.DISTILL.{key} needs the classes of the data set, but with "
                    "TRAINER.DISTILL.CLASS_AGNOSTIC True training sees the vocabulary's words "
                    "alone. Switch one of them off."
                )
        if cfg.TRAINER[self.PROMPT].get("CSC", False):
            raise ValueError(
                f"TRAINER.{self.PROMPT}.CSC gives each class a context of its own, which no word "
                "of a vocabulary has: with TRAINER.DISTILL.CLASS_AGNOSTIC True set it to False."
            )
        if keys.K_MAX < 1:
            raise ValueError(
                f"TRAINER.DISTILL.K_MAX is {keys.K_MAX}; it needs 1 or more, such as 1000."
            )

    def taught_classnames(self) -> list[str]:
        if not self.cfg.TRAINER.DISTILL.CLASS_AGNOSTIC:
            return super().taught_classnames()
        if not hasattr(self, "_vocabulary"):
            self._vocabulary = read_vocabulary(self.cfg.TRAINER.DISTILL.VOCABULARY)
        return self._vocabulary

    def teacher_template(self) -> str:
        """The teacher's hand-written prompt; a vocabulary has no template of its own."""
        cfg = self.cfg
        name = "" if cfg.TRAINER.DISTILL.CLASS_AGNOSTIC else cfg.DATASET.NAME
        return template_for(name, cfg.DATASET.TEMPLATE) if name else DEFAULT

    def before_train(self) -> None:
        self.taught_model: PromptedCLIP = self.model
        if self.cfg.TRAINER.DISTILL.CLASS_AGNOSTIC:
            words = self.taught_classnames()
            print(f"Class-agnostic: training tells apart {len(words)} words instead of the classes")
            self.taught_model = self.model.for_classes(words)
        super().before_train()

    def losses(self, batch: dict) -> tuple[dict[str, Tensor], Tensor | None]:
        keys = self.cfg.TRAINER.DISTILL
        teacher_BV = self.teacher_logits(batch)
        classes = None
        if keys.CLASS_AGNOSTIC:
            classes = likely_classes(teacher_BV, keys.K_MAX)
            teacher_BV = teacher_BV[:, classes]
        weight_B = losses.region_weight(teacher_BV)
        target_BC = torch.zeros_like(teacher_BV) if keys.UNIFORM_TEACHER else teacher_BV
        if keys.LABEL_LOGIT:
            target_BC = losses.with_label(target_BC, batch["label"], keys.LABEL_LOGIT)
        output = self.taught_model(batch["img"], classes)
        terms = self.distill(output.logits, target_BC, weight_B)
        positive_BC = output.logits if output.logits.dim() == 2 else output.logits[0]
        if keys.LABEL_WEIGHT:
            terms["labels"] = keys.LABEL_WEIGHT * F.cross_entropy(positive_BC, batch["label"])
        terms |= self.regularisers(output, batch["img"], classes)
        return terms, positive_BC if classes is None else None

    def knobs(self) -> list[str]:
        keys = self.cfg.TRAINER.DISTILL
        on = [f"{key} {keys[key]:g}" for key in ("LABEL_WEIGHT", "LABEL_LOGIT") if keys[key]]
        if keys.UNIFORM_TEACHER:
            on.append("UNIFORM_TEACHER")
        if keys.CLASS_AGNOSTIC:
            on.append("CLASS_AGNOSTIC")
        return [*on, *super().knobs()]


def likely_classes(teacher_BV: Tensor, k_max: int) -> Tensor:
    """(min(k_max, V),) int64: the classes of the highest mean probability in the batch, sorted.

    Source: KDPL (arXiv:2407.03056), class-agnostic variant.
    """
    mean_V = teacher_BV.float().softmax(dim=-1).mean(dim=0)
    return mean_V.topk(min(k_max, len(mean_V))).indices.sort().values


def read_vocabulary(path: str) -> list[str]:
    """One word or name a line, each once, in the file's order.

    KDPL's own list, a csv with the column ClassName, is read as well.

    Raises:
        ValueError: no path is given, the file is missing, or it holds fewer than two words.
    """
    if not path or not Path(path).is_file():
        raise ValueError(
            f"TRAINER.DISTILL.VOCABULARY is {path!r}, which is no file. With CLASS_AGNOSTIC True "
            "it needs to be a text file with one word or name a line."
        )
    lines = read_text(path).splitlines()
    if lines and "ClassName" in lines[0].split(","):
        import csv

        lines = [row["ClassName"] or "" for row in csv.DictReader(lines)]
    words = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(words) < 2:
        raise ValueError(
            f"TRAINER.DISTILL.VOCABULARY {path} holds {len(words)} words; give 2 or more."
        )
    return words
