"""Classification results: accuracy, macro F1, per class, confusion matrix. B batch, C classes."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor
from yacs.config import CfgNode

from .build import EVALUATOR_REGISTRY


class EvaluatorBase:
    """What a trainer calls: reset, process once per batch, evaluate once."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def reset(self) -> None:
        raise NotImplementedError

    def process(self, mo: Tensor, gt: Tensor) -> None:
        raise NotImplementedError

    def evaluate(self) -> OrderedDict[str, float]:
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Top-1 results in percent; the first of evaluate()'s values is what trainer.test() returns."""

    def __init__(
        self, cfg: CfgNode, lab2cname: Mapping[int, str] | None = None, **_: object
    ) -> None:
        super().__init__(cfg)
        if cfg.TEST.PER_CLASS_RESULT and lab2cname is None:
            raise ValueError("TEST.PER_CLASS_RESULT needs class names; pass lab2cname.")
        self._lab2cname = lab2cname
        self.reset()

    def reset(self) -> None:
        self._labels: list[Tensor] = []
        self._guesses: list[Tensor] = []

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """Add a batch: model output (B, C) and true classes (B,)."""
        self._guesses.append(mo.argmax(dim=1).cpu())
        self._labels.append(gt.cpu())

    def evaluate(self) -> OrderedDict[str, float]:
        """Print the result block and return accuracy, error_rate, macro_f1, all in percent.

        Raises:
            ValueError: no sample was processed.
        """
        total = sum(len(labels) for labels in self._labels)
        if total == 0:
            raise ValueError("There is no result to evaluate: the evaluation set gave no batch.")
        labels, guesses = torch.cat(self._labels), torch.cat(self._guesses)
        # Rows are true classes, columns guesses.
        size = int(max(labels.max(), guesses.max(), *(self._lab2cname or [0]))) + 1
        confusion_CC = torch.bincount(labels * size + guesses, minlength=size**2)
        confusion_CC = confusion_CC.reshape(size, size)
        hits_C, count_C = confusion_CC.diagonal(), confusion_CC.sum(dim=1)

        correct = int(hits_C.sum())
        accuracy = 100.0 * correct / total
        macro_f1 = 100.0 * _macro_f1(confusion_CC)
        results = OrderedDict(accuracy=accuracy, error_rate=100.0 - accuracy, macro_f1=macro_f1)
        print(
            "=> result\n"
            f"* total: {total:,}\n"
            f"* correct: {correct:,}\n"
            f"* accuracy: {accuracy:.1f}%\n"
            f"* error: {100.0 - accuracy:.1f}%\n"
            f"* macro_f1: {macro_f1:.1f}%"
        )
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._print_classes(hits_C, count_C)
        if self.cfg.TEST.COMPUTE_CMAT:
            self._save_confusion(confusion_CC)
        return results

    def _print_classes(self, hits_C: Tensor, count_C: Tensor) -> float:
        print("=> per-class result")
        accuracies = []
        for label in count_C.nonzero().flatten().tolist():
            total, correct = int(count_C[label]), int(hits_C[label])
            accuracies.append(100.0 * correct / total)
            print(
                f"* class: {label} ({self._lab2cname[label]})\t"
                f"total: {total:,}\tcorrect: {correct:,}\tacc: {accuracies[-1]:.1f}%"
            )
        mean = sum(accuracies) / len(accuracies)
        print(f"* average: {mean:.1f}%")
        return mean

    def _save_confusion(self, confusion_CC: Tensor) -> None:
        """Save fractions of each true class (float64, C x C; a class without samples is zero)."""
        rows_CC = confusion_CC.double()
        path = os.path.join(self.cfg.OUTPUT_DIR, "cmat.pt")
        os.makedirs(self.cfg.OUTPUT_DIR, exist_ok=True)
        torch.save(rows_CC / rows_CC.sum(dim=1, keepdim=True).clamp(min=1), path)
        print(f"Confusion matrix is saved to {path}")


def _macro_f1(confusion_CC: Tensor) -> float:
    """Mean F1 = 2 TP / (2 TP + FP + FN) over the classes that have samples."""
    true_C, guessed_C = confusion_CC.sum(dim=1), confusion_CC.sum(dim=0)
    present_C = true_C > 0
    f1_C = 2.0 * confusion_CC.diagonal().double() / (true_C + guessed_C).clamp(min=1)
    return float(f1_C[present_C].mean())
