"""Top-k accuracy of a batch. Letters: B batch, C classes, K largest k."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def compute_accuracy(
    output: Tensor | Sequence[Tensor], target: Tensor, topk: Sequence[int] = (1,)
) -> list[Tensor]:
    """Percent of samples whose true class is among the k highest outputs.

    Args:
        output: logits (B, C), or a tuple or list that starts with them.
        target: true classes (B,).
        topk: every k to report, each at most C.
    Returns:
        One tensor of shape (1,) per k.
    """
    logits_BC = output[0] if isinstance(output, tuple | list) else output
    guesses_BK = logits_BC.topk(max(topk), dim=1).indices
    hits_BK = guesses_BK == target[:, None]
    return [100.0 * hits_BK[:, :k].any(dim=1).float().mean().reshape(1) for k in topk]
