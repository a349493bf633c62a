"""Slow and plain forms that the fast ones are compared with: CLIP's two towers on all tokens.

Written out with softmax and einsum, in the dtype of their input, so that they run in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def text_features(
    clip_model: nn.Module,
    embedded_CLD: Tensor,
    end_C: Tensor,
    deep_JKD: Tensor | None = None,
    slot_CL: Tensor | None = None,
) -> Tensor:
    """(C, D) from full-length token embeddings (C, 77, D), position by position as CLIP does.

    Args:
        deep_JKD: before layer 2 + j, token slot k < K of the context becomes deep_JKD[j, k].
        slot_CL: index of the context token that stands in a place, -1 for other tokens.
    """
    x = embedded_CLD + clip_model.positional_embedding
    length = x.shape[1]
    future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
    for layer, block in enumerate(clip_model.transformer.resblocks):
        if deep_JKD is not None and 1 <= layer <= len(deep_JKD):
            for slot, token_D in enumerate(deep_JKD[layer - 1]):
                x = torch.where((slot_CL == slot)[..., None], token_D, x)
        x = transformer_block(block, x, future)
    x = layer_norm(clip_model.ln_final, x)
    return x[torch.arange(len(x)), end_C] @ clip_model.text_projection


def image_features(visual: nn.Module, images: Tensor, prompts_JVW: Tensor | None) -> Tensor:
    """(B, D) of a vision transformer with prompts after the patches, all tokens in every layer."""
    patches = torch.nn.functional.conv2d(images, visual.conv1.weight, stride=visual.conv1.stride)
    patches = patches.flatten(2).transpose(1, 2)
    first = visual.class_embedding.expand(len(images), 1, -1)
    x = torch.cat([first, patches], dim=1) + visual.positional_embedding
    own = x.shape[1]
    for layer, block in enumerate(visual.transformer.resblocks):
        if prompts_JVW is not None and layer < len(prompts_JVW):
            beside = prompts_JVW[layer].expand(len(images), -1, -1)
            x = torch.cat([x[:, :own], beside], dim=1)
        if layer == 0:
            x = layer_norm(visual.ln_pre, x)
        x = transformer_block(block, x, torch.zeros(x.shape[1], x.shape[1], dtype=torch.bool))
    return layer_norm(visual.ln_post, x[:, 0]) @ visual.proj


def transformer_block(block: nn.Module, x: Tensor, hidden: Tensor) -> Tensor:
    """One layer on (batch, L, D); `hidden` (L, L) is true where a token does not attend."""
    scale_1, scale_2 = (
        getattr(getattr(block, name, None), "gamma", 1.0) for name in ("ls_1", "ls_2")
    )
    heads = block.attn.num_heads
    qkv = layer_norm(block.ln_1, x) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in qkv.chunk(3, dim=-1))
    score = torch.einsum("clhd,cmhd->chlm", q, k) / q.shape[-1] ** 0.5
    attention = score.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    mixed = torch.einsum("chlm,cmhd->clhd", attention, v).flatten(-2)
    x = x + scale_1 * (mixed @ block.attn.out_proj.weight.T + block.attn.out_proj.bias)
    return x + scale_2 * block.mlp(layer_norm(block.ln_2, x))


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
    words_CLD = clip_model.token_embedding(tokens_CL)
    return _with_context(words_CLD, name_lengths, context, position)


def coop_slots(
    tokens_CL: Tensor, name_lengths: list[int], num_context: int, position: str
) -> Tensor:
    """(C, 77): which context token coop_embeddings puts into a place, -1 where it puts none."""
    none_CL1 = torch.full((*tokens_CL.shape, 1), -1)
    context = torch.arange(num_context)[:, None]
    return _with_context(none_CL1, name_lengths, context, position)[..., 0]


def _with_context(
    words_CLD: Tensor, name_lengths: list[int], context: Tensor, position: str
) -> Tensor:
    rows = []
    for index, (words, length) in enumerate(zip(words_CLD, name_lengths, strict=True)):
        own = context[index] if context.dim() == 3 else context
        count = len(own)
        start, name, tail = words[:1], words[1 + count :][:length], words[1 + count :][length:]
        half = {"end": count, "middle": count // 2, "front": 0}[position]
        rows.append(torch.cat([start, own[:half], name, own[half:], tail]))
    return torch.stack(rows)
