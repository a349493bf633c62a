"""KDPL: a method taught by an online teacher instead of labels."""

from __future__ import annotations

from dassl.engine import TRAINER_REGISTRY
from torch import Tensor

from losses import symmetric_kl
from models.teacher import Teacher
from models.templates import template_for
from trainers.coop import CoOp


class OnlineTeacher:
    """Objective: the student's logits follow a frozen teacher's on the same augmented image.

    The teacher looks at every image in every epoch. Source: KDPL, arXiv:2407.03056; here the
    teacher keeps its own logit scale where the authors' code takes the student's.
    """

    def teacher_name(self) -> str:
        return self.cfg.TRAINER.KDPL.TEACHER

    def before_train(self) -> None:
        cfg = self.cfg
        print(f"Loading the teacher (TRAINER.KDPL.TEACHER: {self.teacher_name()})")
        self.teacher = Teacher.load(
            self.teacher_name(),
            self.dm.dataset.classnames,
            template_for(cfg.DATASET.NAME, cfg.DATASET.TEMPLATE),
            cfg.TRAINER.KDPL.TEACHER_PREC,
            self.device,
        )
        super().before_train()

    def losses(self, batch: dict) -> tuple[dict[str, Tensor], Tensor]:
        pixels = self.cfg.INPUT
        images = self.teacher.from_student_pixels(batch["img"], pixels.PIXEL_MEAN, pixels.PIXEL_STD)
        student_BC, teacher_BC = self.model(batch["img"]), self.teacher(images)
        return {"loss": symmetric_kl(student_BC, teacher_BC).mean()}, student_BC


@TRAINER_REGISTRY.register()
class CoOp_KDPL(OnlineTeacher, CoOp):
    """CoOp's prompt, KDPL's objective."""
