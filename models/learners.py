"""What prompt learning trains: context tokens, one prompt's or a positive and a negative one's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.clip import LoadedClip

PLACEHOLDER = "X"  # stands where a context without words will be, one token each


def context_words(context_init: str, num_context: int) -> str:
    """The words that hold the context's place in a prompt: the initial words, or placeholders."""
    words = context_init.replace("_", " ").strip()
    if words:
        return words
    if num_context < 1:
        raise ValueError(f"N_CTX is {num_context}; a learned context has at least one token.")
    return " ".join([PLACEHOLDER] * num_context)


def initial_context(clip: LoadedClip, context_init: str, num_context: int) -> Tensor:
    """(N, D) float32: embeddings of the initial words, or N(0, 0.02) without words, as in CoOp."""
    table = clip.model.token_embedding.weight
    if not context_init.strip():
        return torch.empty(num_context, table.shape[1]).normal_(std=0.02)
    tokens = clip.tokenize([context_words(context_init, num_context)])[0]
    return table[tokens[1 : tokens.argmax()]].detach().float().cpu()


class ContextLearner(nn.Module):
    """The context of one prompt: `ctx`, (N, D), or (C, N, D) with one per class. Float32."""

    def __init__(self, initial_ND: Tensor, num_classes: int | None = None):
        """With num_classes, every class gets a context of its own with the same start."""
        super().__init__()
        if num_classes is not None:
            initial_ND = initial_ND.expand(num_classes, -1, -1)
        self.ctx = nn.Parameter(initial_ND.clone())

    def forward(self) -> Tensor:
        return self.ctx


class DualContextLearner(ContextLearner):
    """A positive and a negative context of one layout; returns both, stacked: (2, ..., N, D).

    The positive one keeps the name `ctx`.
    """

    def __init__(self, positive_ND: Tensor, negative_ND: Tensor, num_classes: int | None = None):
        """
        Raises:
            ValueError: the two prompts start from different numbers of tokens.
        """
        super().__init__(positive_ND, num_classes)
        if positive_ND.shape != negative_ND.shape:
            raise ValueError(
                f"The positive context has {len(positive_ND)} tokens and NEGATIVE_INIT "
                f"{len(negative_ND)}; both prompts need the same number of words."
            )
        self.negative_ctx = nn.Parameter(negative_ND.expand_as(self.ctx).clone())

    def forward(self) -> Tensor:
        return torch.stack([self.ctx, self.negative_ctx])
