"""The transformer block of CLIP, OpenAI's and open_clip's, in the parts both towers are made of.

Letters: D width, (...) any leading axes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_QUICK = 1.702  # QuickGELU(x) = x sigmoid(1.702 x), OpenAI's approximation of GELU


def layer_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """LayerNorm in the dtype of its weights (float32 in a half-precision CLIP)."""
    if not isinstance(norm, nn.LayerNorm):  # open_clip puts an identity where a model has none
        return norm(x)
    wide = x.to(norm.weight.dtype)
    return F.layer_norm(wide, norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(x.dtype)


def queries(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """(..., tokens, D) to (..., heads, tokens, D / heads)."""
    width = x.shape[-1]
    q = F.linear(x, attention.in_proj_weight[:width], attention.in_proj_bias[:width])
    return q.unflatten(-1, (attention.num_heads, -1)).transpose(-3, -2)


def keys_and_values(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """(..., tokens, D) to (2, ..., heads, tokens, D / heads)."""
    width = x.shape[-1]
    kv = F.linear(x, attention.in_proj_weight[width:], attention.in_proj_bias[width:])
    return kv.unflatten(-1, (2, attention.num_heads, -1)).movedim(-3, 0).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """(..., heads, tokens, D / heads) to (..., tokens, D)."""
    return x.transpose(-3, -2).flatten(-2)


def rest_of_block(block: nn.Module, x: Tensor, mixed: Tensor) -> Tensor:
    """Everything after attention; open_clip's layer scales are used where a block has them."""
    scale_1, scale_2 = getattr(block, "ls_1", _same), getattr(block, "ls_2", _same)
    x = x + scale_1(block.attn.out_proj(mixed))
    return x + scale_2(_mlp(block.mlp, layer_norm(block.ln_2, x)))


def matrix_dtype(block: nn.Module) -> torch.dtype:
    """The dtype in which a tower computes: that of its matrices."""
    return block.mlp.c_fc.weight.dtype


def _mlp(mlp: nn.Module, x: Tensor) -> Tensor:
    """The two matrices and what lies between.

    QuickGELU(x) is silu(1.702 x) / 1.702. With the factors inside the matrix products it is one
    kernel, and backward needs half of what x sigmoid(1.702 x), taken literally, keeps.
    """
    if type(mlp.gelu).__name__ != "QuickGELU":
        return mlp(x)
    fc, proj = mlp.c_fc, mlp.c_proj
    flat = x.flatten(0, -2)
    hidden = torch.addmm(fc.bias, flat, fc.weight.T, beta=_QUICK, alpha=_QUICK)
    out = (F.silu(hidden) @ proj.weight.T) * (1 / _QUICK) + proj.bias
    return out.unflatten(0, x.shape[:-1])


def _same(x: Tensor) -> Tensor:
    return x
