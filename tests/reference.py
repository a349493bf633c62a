"""Slow and plain forms that the fast ones are compared with: CLIP's text tower on all 77 tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def text_features(clip_model: nn.Module, embedded_CLD: Tensor, end_C: Tensor) -> Tensor:
    """(C, D) from full-length token embeddings (C, 77, D), position by position as CLIP does.

    Written out with softmax and einsum, in the dtype of its input, so that it runs in float64.
    """
    x = embedded_CLD + clip_model.positional_embedding
    length = x.shape[1]
    future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
    for block in clip_model.transformer.resblocks:
        heads = block.attn.num_heads
        qkv = layer_norm(block.ln_1, x) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
        q, k, v = (part.unflatten(-1, (heads, -1)) for part in qkv.chunk(3, dim=-1))
        score = torch.einsum("clhd,cmhd->chlm", q, k) / q.shape[-1] ** 0.5
        attention = score.masked_fill(future, float("-inf")).softmax(dim=-1)
        mixed = torch.einsum("chlm,cmhd->clhd", attention, v).flatten(-2)
        x = x + mixed @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
        x = x + block.mlp(layer_norm(block.ln_2, x))
    x = layer_norm(clip_model.ln_final, x)
    return x[torch.arange(len(x)), end_C] @ clip_model.text_projection


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def coop_embeddings(
    clip_model: nn.Module,
    tokens_CL: Tensor,
    name_lengths: list[int],
    context: Tensor,
    position: str,
) -> Tensor:
    """(C, 77, D): the learned context put into full-length prompts, one class at a time.

    tokens_CL: "<words that hold the context's place> <class name>." tokenised to full length.
    """
    rows = []
    for index, (tokens, length) in enumerate(zip(tokens_CL, name_lengths, strict=True)):
        words = clip_model.token_embedding(tokens)
        own = context[index] if context.dim() == 3 else context
        count = len(own)
        start, name, tail = words[:1], words[1 + count :][:length], words[1 + count :][length:]
        half = {"end": count, "middle": count // 2, "front": 0}[position]
        rows.append(torch.cat([start, own[:half], name, own[half:], tail]))
    return torch.stack(rows)
