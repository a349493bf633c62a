"""Losses: tensors in, one value per region or a mean out, no state.

Letters: B regions of a batch, C classes, D feature width. Logits are at their own logit scale;
everything is computed in float32 at least and measured in nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def symmetric_kl(student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
    """Mean of KL(teacher || student) and KL(student || teacher): (B,).

    Source: KDPL (arXiv:2407.03056), both directions with weight 1/2.
    """
    log_student_BC = F.log_softmax(_wide(student_BC), dim=-1)
    log_teacher_BC = F.log_softmax(_wide(teacher_BC), dim=-1)
    gap_BC = log_teacher_BC - log_student_BC
    return 0.5 * ((log_teacher_BC.exp() - log_student_BC.exp()) * gap_BC).sum(dim=-1)


def entropy(logits_BC: Tensor) -> Tensor:
    """Entropy of softmax(logits): (B,), from 0 to ln C."""
    log_p_BC = F.log_softmax(_wide(logits_BC), dim=-1)
    return -(log_p_BC.exp() * log_p_BC).sum(dim=-1)


def region_weight(teacher_BC: Tensor) -> Tensor:
    """w = 1 - H(p) / ln C: (B,), 1 for a certain teacher, 0 for one that cannot tell.

    A single class leaves nothing to tell apart: its weight is 1.
    Source: FDBPL (arXiv:2505.18053), region weight; the authors' code adds 1e-6 inside the log.
    """
    if teacher_BC.shape[-1] == 1:
        return torch.ones_like(_wide(teacher_BC)[:, 0])
    return (1 - entropy(teacher_BC) / math.log(teacher_BC.shape[-1])).clamp(0, 1)


def rejection(negative_BC: Tensor) -> Tensor:
    """KL(n || uniform) = ln C - H(n) of the negative prompt: (B,), 0 when it rejects all alike.

    Source: FDBPL's negative term -H(n), shifted by ln C so that its minimum is 0.
    """
    return math.log(negative_BC.shape[-1]) - entropy(negative_BC)


def logit_similarity(positive_BC: Tensor, negative_BC: Tensor) -> Tensor:
    """Cosine of positive and negative logits over the classes: (B,), from -1 to 1.

    Source: FDBPL's similarity term.
    """
    return F.cosine_similarity(_wide(positive_BC), _wide(negative_BC), dim=-1)


def cascaded_difference(
    difference_BC: Tensor, teacher_BC: Tensor, weight_B: Tensor, margin: float = 0.2
) -> Tensor:
    """Hinge on second-order differences, averaged over pairs of regions: a scalar.

    First order: D_c = t+_c - t-_c, what a class's two prompts say differently. Second order: for
    regions a, b that the teacher gives to classes i != j, region a should lie further along
    D_i - D_j than region b does: w_a w_b max(0, margin - (f_a - f_b).(D_i - D_j)).
    Without such a pair the value is 0.

    Args:
        difference_BC: f.D_c, the cosine with the positive prompt minus that with the negative one.

    Source: FDBPL's cascaded difference, in the hinge form that its authors' code carries commented
    out; the sum it runs instead is antisymmetric and always zero.
    """
    class_B = teacher_BC.argmax(dim=-1)
    # (f_a - f_b).(D_i - D_j) = f_a.D_i - f_a.D_j - f_b.D_i + f_b.D_j
    score_BB = _wide(difference_BC)[:, class_B]  # f_a . D_class(b)
    own_B = score_BB.diagonal()
    gap_BB = own_B[:, None] - score_BB - score_BB.T + own_B[None, :]
    differ_BB = (class_B[:, None] != class_B[None, :]).triu(1)  # symmetric: each pair once
    pair_BB = weight_B[:, None] * weight_B[None, :] * (margin - gap_BB).clamp(min=0)
    return (pair_BB * differ_BB).sum() / differ_BB.sum().clamp(min=1)


def feature_distance(features: Tensor, frozen: Tensor) -> Tensor:
    """Mean absolute difference over all entries: a scalar.

    Source: PromptSRC (arXiv:2307.06948), L1 consistency of prompted and frozen features.
    """
    return F.l1_loss(_wide(features), _wide(frozen))


def mean_kl(student_BC: Tensor, teacher_BC: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher || student) at temperature T, averaged over samples and classes: a scalar.

    Averaged over classes too, as PromptSRC (arXiv:2307.06948) and PromptKD (arXiv:2403.02781) do
    it, which is why PromptKD's weight for it is large.
    """
    log_student_BC = F.log_softmax(_wide(student_BC) / temperature, dim=-1)
    log_teacher_BC = F.log_softmax(_wide(teacher_BC) / temperature, dim=-1)
    total = F.kl_div(log_student_BC, log_teacher_BC, reduction="sum", log_target=True)
    return total * temperature**2 / student_BC.numel()


def with_label(teacher_BC: Tensor, label_B: Tensor, bonus: float) -> Tensor:
    """Teacher logits with `bonus` added to the true class: (B, C) label-refined targets."""
    return teacher_BC + bonus * F.one_hot(label_B, teacher_BC.shape[-1]).to(teacher_BC.dtype)


def _wide(x: Tensor) -> Tensor:
    """At least float32; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()
