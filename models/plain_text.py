"""CLIP's text encoder as it stands: every token of every prompt through the tower's own parts.

The slow path (MODEL.TEXT_PATH reference) that the fast one of models/text.py is compared with.

Letters: G contexts, C classes, L = 77 tokens, N context tokens, K of them replaced, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import layer_norm
from models.text import TextEncoder, project


class PlainTextEncoder(TextEncoder):
    """TextEncoder without its short cuts; takes and gives the same.

    Classes are encoded in pieces only where `piece` says so.
    """

    def _pieces(
        self, classes: Tensor | None, num_contexts: int, with_gradient: bool
    ) -> tuple[Tensor, ...]:
        wanted = torch.arange(len(self.layout.end_C)) if classes is None else classes
        return wanted.split(self.piece or len(wanted))

    def _encode(self, context: Tensor, deep: Tensor | None, classes: Tensor | None) -> Tensor:
        layout, model = self.layout, self.clip_model
        if classes is None:
            classes = torch.arange(len(layout.end_C))
        position_LD = model.positional_embedding
        cut = len(position_LD) - layout.token_CL.shape[1]  # the layout ends with its longest prompt
        token_CL = F.pad(layout.token_CL[classes], (0, cut)).to(position_LD.device)
        slot_CL = F.pad(layout.slot_CL[classes], (0, cut), value=-1).to(position_LD.device)
        place_C = layout.end_C[classes].to(position_LD.device)

        words_CLD = model.token_embedding(token_CL)
        own = slot_CL.clamp(min=0)
        if layout.per_class:
            learned_GCLD = context[:, classes.to(own.device)[:, None], own]
        else:
            learned_GCLD = context[:, own]
        is_learned = (slot_CL >= 0)[..., None]
        x = torch.where(is_learned, learned_GCLD.to(words_CLD.dtype), words_CLD) + position_LD
        x = x.to(self.dtype)
        future = torch.full((x.shape[2],) * 2, float("-inf"), dtype=x.dtype, device=x.device)
        future = future.triu(1)
        for layer, block in enumerate(self.blocks):
            if deep is not None and 1 <= layer <= deep.shape[1]:
                count = deep.shape[2]
                is_deep = ((slot_CL >= 0) & (slot_CL < count))[..., None]
                x = torch.where(is_deep, deep[:, layer - 1][:, own.clamp(max=count - 1)], x).to(x)
            x = _block(block, x.flatten(0, 1), future).unflatten(0, x.shape[:2])
        x = layer_norm(model.ln_final, x)
        x = x[:, torch.arange(len(place_C), device=x.device), place_C]
        return project(x, model.text_projection)


def _block(block: nn.Module, x: Tensor, future: Tensor) -> Tensor:
    """One layer on (prompts, L, D), by the modules that CLIP has for it."""
    normed = layer_norm(block.ln_1, x)
    if not block.attn.batch_first:
        normed = normed.transpose(0, 1)
    mixed = block.attn(normed, normed, normed, need_weights=False, attn_mask=future)[0]
    if not block.attn.batch_first:
        mixed = mixed.transpose(0, 1)
    scale_1, scale_2 = (getattr(block, name, nn.Identity()) for name in ("ls_1", "ls_2"))
    x = x + scale_1(mixed)
    return x + scale_2(block.mlp(layer_norm(block.ln_2, x)))
