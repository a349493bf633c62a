"""KDPL: a prompt model taught by an online teacher instead of labels."""

from __future__ import annotations

import torch
from torch import Tensor

from losses import symmetric_kl
from models.teacher import Teacher
from trainers.distillation import Distillation
from trainers.registry import objective


@objective("KDPL")
class OnlineTeacher(Distillation):
    """The student's logits follow a frozen teacher's on the same augmented image.

    The teacher looks at every image in every epoch. Source: KDPL, arXiv:2407.03056; here the
    teacher keeps its own logit scale where the authors' code takes the student's.
    """

    OBJECTIVE = "KDPL"

    def before_train(self) -> None:
        keys = self.cfg.TRAINER.KDPL
        if not self.cfg.TRAINER.DISTILL.UNIFORM_TEACHER:
            print(f"Loading the teacher (TRAINER.KDPL.TEACHER: {keys.TEACHER})")
            self.teacher = Teacher.load(
                keys.TEACHER,
                self.taught_classnames(),
                self.teacher_template(),
                keys.TEACHER_PREC,
                self.device,
            )
        super().before_train()

    def teacher_logits(self, batch: dict) -> Tensor:
        if self.cfg.TRAINER.DISTILL.UNIFORM_TEACHER:
            return torch.zeros(len(batch["img"]), len(self.taught_classnames()), device=self.device)
        pixels = self.cfg.INPUT
        return self.teacher(
            self.teacher.from_student_pixels(batch["img"], pixels.PIXEL_MEAN, pixels.PIXEL_STD)
        )

    def distill(self, logits: Tensor, target_BC: Tensor, weight_B: Tensor) -> dict[str, Tensor]:
        return {"distill": symmetric_kl(logits, target_BC).mean()}
