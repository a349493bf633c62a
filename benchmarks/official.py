"""Text prompts as the official code computes them: all 77 tokens of every prompt, every step.

Written from the description of CoOp (arXiv:2109.01134); KDPL and FDBPL's authors compute the same.
The prompt is put together from its embedded start-of-text, the learned context and the embedded
rest; CLIP's own transformer runs over all places, also those after end-of-text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.clip import LoadedClip
from models.learners import initial_context
from models.prompted_clip import unit


class FullPrompts(nn.Module):
    """One context for all classes, end position. Letters: C classes, N context tokens, D width."""

    def __init__(self, clip: LoadedClip, classnames: Sequence[str], context: str):
        super().__init__()
        model, start_ND = clip.model, initial_context(clip, context, 0)
        tokens_CL = clip.tokenize([f"{context} {name}." for name in classnames]).to(clip.device)
        dtype = model.visual.conv1.weight.dtype
        with torch.no_grad():
            embedded_CLD = model.token_embedding(tokens_CL).to(dtype)
        self.ctx = nn.Parameter(start_ND.to(clip.device))
        self.clip, self.dtype = clip, dtype
        self.register_buffer("end_C", tokens_CL.argmax(dim=-1))
        self.register_buffer("prefix_C1D", embedded_CLD[:, :1].clone())
        self.register_buffer("suffix_CSD", embedded_CLD[:, 1 + len(start_ND) :].clone())

    def text_features(self) -> Tensor:
        """Unit class features (C, width of the joint embedding)."""
        model = self.clip.model
        context_CND = self.ctx.to(self.dtype).expand(len(self.end_C), -1, -1)
        x = torch.cat([self.prefix_C1D, context_CND, self.suffix_CSD], dim=1)
        x = x + model.positional_embedding.to(self.dtype)
        with self.clip.autocast():
            x = model.transformer(x.transpose(0, 1)).transpose(0, 1)
            x = model.ln_final(x).to(self.dtype)
            x = x[torch.arange(len(x), device=x.device), self.end_C] @ model.text_projection
        return unit(x)
