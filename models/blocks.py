"""The transformer block of CLIP, OpenAI's and open_clip's, in the parts both towers are made of.

Letters: D width, (...) any leading axes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def layer_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """LayerNorm in the dtype of its weights (float32 in a half-precision CLIP)."""
    if not isinstance(norm, nn.LayerNorm):  # open_clip puts an identity where a model has none
        return norm(x)
    wide = x.to(norm.weight.dtype)
    return F.layer_norm(wide, norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(x.dtype)


def linear_qkv(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """(..., D) to (..., 3 D): queries, keys and values."""
    return F.linear(x, attention.in_proj_weight, attention.in_proj_bias)


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """(..., tokens, parts * D) to `parts` tensors (..., heads, tokens, D / heads)."""
    return x.unflatten(-1, (parts, heads, -1)).transpose(-4, -2).unbind(-3)


def merge_heads(x: Tensor) -> Tensor:
    """(..., heads, tokens, D / heads) to (..., tokens, D)."""
    return x.transpose(-3, -2).flatten(-2)


def rest_of_block(block: nn.Module, x: Tensor, mixed: Tensor) -> Tensor:
    """Everything after attention; open_clip's layer scales are used where a block has them."""
    scale_1, scale_2 = getattr(block, "ls_1", _same), getattr(block, "ls_2", _same)
    x = x + scale_1(block.attn.out_proj(mixed))
    return x + scale_2(block.mlp(layer_norm(block.ln_2, x)))


def matrix_dtype(block: nn.Module) -> torch.dtype:
    """The dtype in which a tower computes: that of its matrices."""
    return block.mlp.c_fc.weight.dtype


def _same(x: Tensor) -> Tensor:
    return x
