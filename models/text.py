"""CLIP's text encoder on the tokens that matter: prompts go in, class features come out.

The tower is causal and read at the end-of-text token, so a token's state depends on its prefix
alone. Two consequences, both exact (DESIGN section 6): nothing after end-of-text is computed, and
the prefix that all classes share (start-of-text and the context) runs once per layer.

Letters: G contexts that share a layout (positive and negative, several seeds), C classes, L tokens
of the longest prompt, P tokens of the shared prefix, S = L - P, N context tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.templates import spoken

POSITIONS = ("end", "middle", "front")


@dataclass(frozen=True)
class PromptLayout:
    """Which places of C prompts hold fixed tokens and which hold the learned context."""

    token_CL: Tensor  # int64 token ids; 0 after end-of-text
    slot_CL: Tensor  # int64: index of the context token that stands here, -1 for a fixed token
    end_C: Tensor  # int64: place of end-of-text
    num_context: int
    per_class: bool  # each class has a context of its own

    @property
    def prefix_length(self) -> int:
        """P: how many leading places are the same in every prompt; less than L."""
        same_L = (self.token_CL == self.token_CL[:1]) & (self.slot_CL == self.slot_CL[:1])
        if self.per_class:
            same_L &= self.slot_CL < 0
        shared = int(same_L.all(dim=0).long().cumprod(dim=0).sum())
        return min(shared, int(self.end_C.min()))  # end-of-text itself belongs to the class

    @classmethod
    def build(
        cls,
        classnames: Sequence[str],
        tokenize: Callable[[list[str]], Tensor],
        context: str,
        position: str = "end",
        per_class: bool = False,
    ) -> PromptLayout:
        """Lay out "<context> <class name>." with the context's tokens as learnable slots.

        Args:
            context: words that hold the context's place, for example "a photo of a" or "X X X X".
            position: where the class name stands relative to the context, as in CoOp: end,
                middle (the first half of the context before it) or front.
        Raises:
            ValueError: unknown position, or a prompt longer than the model's context length.

        Source: CoOp (arXiv:2109.01134) and its released prompt learner.
        """
        if position not in POSITIONS:
            raise ValueError(
                f"CLASS_TOKEN_POSITION is {position!r}; choose one of {', '.join(POSITIONS)}."
            )
        names = [spoken(name) for name in classnames]
        token_CL = tokenize([f"{context} {name}." for name in names])
        end_C = token_CL.argmax(dim=-1)  # end-of-text has the highest id of the vocabulary
        num_context = int(tokenize([context]).argmax(dim=-1)) - 1
        name_length_C = tokenize(names).argmax(dim=-1) - 1

        token_CL = token_CL[:, : int(end_C.max()) + 1]
        place_L = torch.arange(token_CL.shape[1])
        slot_L = torch.where((place_L > 0) & (place_L <= num_context), place_L - 1, -1)
        slot_CL = slot_L.expand_as(token_CL)
        order_CL = torch.stack(
            [_order(place_L, position, num_context, int(length)) for length in name_length_C]
        )
        return cls(
            token_CL=token_CL.gather(1, order_CL),
            slot_CL=slot_CL.gather(1, order_CL),
            end_C=end_C,
            num_context=num_context,
            per_class=per_class,
        )


def _order(place_L: Tensor, position: str, num_context: int, name_length: int) -> Tensor:
    """Places of the "end" layout in the order in which another layout reads them."""
    start, rest = place_L[:1], place_L[1 + num_context :]
    context, name, tail = place_L[1 : 1 + num_context], rest[:name_length], rest[name_length:]
    before = {"end": num_context, "middle": num_context // 2, "front": 0}[position]
    return torch.cat([start, context[:before], name, context[before:], tail])


class TextEncoder(nn.Module):
    """Turns the context of a layout into class features with a frozen CLIP's text tower.

    Every layer is linear operations on one flat (tokens, D) tensor, the shared prefix first and the
    suffixes of all classes after it, and one attention each for prefix and suffixes.
    """

    def __init__(self, clip_model: nn.Module, layout: PromptLayout):
        """Read widths, heads and depth from the model.

        Raises:
            ValueError: the model's text tower is not CLIP's causal transformer.
        """
        super().__init__()
        if not hasattr(clip_model, "transformer") or not hasattr(clip_model, "token_embedding"):
            raise ValueError(
                f"{type(clip_model).__name__} has another text tower than CLIP's, so prompts "
                "cannot be learned on it; it can serve as a teacher. Choose a CLIP model as "
                "MODEL.BACKBONE.NAME."
            )
        self.clip_model = clip_model
        self.per_class = layout.per_class
        self.num_prefix = layout.prefix_length
        device = clip_model.positional_embedding.device
        context_CLN = F.one_hot(layout.slot_CL + 1, layout.num_context + 1)[..., 1:].to(device)
        fixed_CL1 = (layout.slot_CL < 0)[..., None].to(device)
        with torch.no_grad():
            words_CLD = clip_model.token_embedding(layout.token_CL.to(device)) * fixed_CL1
            position_LD = clip_model.positional_embedding[: words_CLD.shape[1]]
        num_suffix = words_CLD.shape[1] - self.num_prefix
        seen = torch.ones(num_suffix, words_CLD.shape[1], dtype=torch.bool).tril(self.num_prefix)
        # Constants of the layout: rebuilt with the class names of each run, never saved.
        self.register_buffer("fixed_CLD", words_CLD + position_LD, persistent=False)
        self.register_buffer("select_CLN", context_CLN.to(words_CLD.dtype), persistent=False)
        self.register_buffer("seen_SL", seen.to(device), persistent=False)
        end_C = layout.end_C.to(device) - self.num_prefix
        self.register_buffer("end_C", end_C, persistent=False)  # place within the suffix

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the tower computes: that of its matrices."""
        return self.clip_model.transformer.resblocks[0].mlp.c_fc.weight.dtype

    def forward(self, context: Tensor) -> Tensor:
        """Class features, not normalised.

        Args:
            context: (..., N, D), or (..., C, N, D) where each class has its own; leading axes are
                contexts that share the layout.
        Returns:
            (..., C, width of the joint embedding)
        """
        own_axes = 3 if self.per_class else 2
        leading = context.shape[: context.dim() - own_axes]
        tokens = self._embed(context.reshape(-1, *context.shape[context.dim() - own_axes :]))
        *blocks, last = self.clip_model.transformer.resblocks
        for block in blocks:
            tokens = self._block(block, tokens)
        end_GCD = _layer_norm(self.clip_model.ln_final, self._last_block(last, tokens))
        features = _project(end_GCD, self.clip_model.text_projection)
        return features.reshape(*leading, *features.shape[1:])

    def _embed(self, context: Tensor) -> _Tokens:
        """Fixed tokens, and context tokens at their places, with positions added."""
        context = context.to(self.fixed_CLD.dtype)
        if not self.per_class:
            context = context[:, None]
        # A product with 0/1 rows puts a context token in place exactly, and sums its gradient in
        # a fixed order.
        p = self.num_prefix
        prefix = self.fixed_CLD[:1, :p] + self.select_CLN[:1, :p] @ context[:, :1]
        suffix = self.fixed_CLD[:, p:] + self.select_CLN[:, p:] @ context
        return _Tokens.join(prefix[:, 0].to(self.dtype), suffix.to(self.dtype))

    def _block(self, block: nn.Module, x: _Tokens) -> _Tokens:
        qkv = x.like(_linear_qkv(block.attn, _layer_norm(block.ln_1, x.flat)))
        heads = block.attn.num_heads
        q, k, v = _split_heads(qkv.prefix, 3, heads)
        prefix = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        suffix_q, *own = _split_heads(qkv.suffix, 3, heads)
        k, v = _after_prefix((k, v), own)
        suffix = _attend_seen(suffix_q, k, v, self.seen_SL)
        mixed = _Tokens.join(_merge_heads(prefix), _merge_heads(suffix))
        return x.like(_rest_of_block(block, x.flat, mixed.flat))

    def _last_block(self, block: nn.Module, x: _Tokens) -> Tensor:
        """The last layer, for the end-of-text rows alone: (G, C, D)."""
        rows_C = torch.arange(len(self.end_C), device=self.end_C.device)
        qkv = x.like(_linear_qkv(block.attn, _layer_norm(block.ln_1, x.flat)))
        heads = block.attn.num_heads
        _, *of_prefix = _split_heads(qkv.prefix, 3, heads)
        q, *own = _split_heads(qkv.suffix, 3, heads)
        k, v = _after_prefix(of_prefix, own)
        q = q[:, rows_C, :, self.end_C].transpose(0, 1)[:, :, :, None]
        mixed = _merge_heads(_attend_seen(q, k, v, self.seen_SL[self.end_C][:, None, None]))
        return _rest_of_block(block, x.suffix[:, rows_C, self.end_C], mixed[:, :, 0])


@dataclass(frozen=True)
class _Tokens:
    """States of all tokens: flat (G P + G C S, D), with the prefix and the suffixes as views."""

    flat: Tensor
    prefix_shape: torch.Size  # (G, P)
    suffix_shape: torch.Size  # (G, C, S)

    @classmethod
    def join(cls, prefix: Tensor, suffix: Tensor) -> _Tokens:
        flat = torch.cat([prefix.flatten(0, -2), suffix.flatten(0, -2)])
        return cls(flat, prefix.shape[:-1], suffix.shape[:-1])

    def like(self, flat: Tensor) -> _Tokens:
        return _Tokens(flat, self.prefix_shape, self.suffix_shape)

    @property
    def prefix(self) -> Tensor:
        """(G, P, D)"""
        return self.flat[: self.prefix_shape.numel()].unflatten(0, self.prefix_shape)

    @property
    def suffix(self) -> Tensor:
        """(G, C, S, D)"""
        return self.flat[self.prefix_shape.numel() :].unflatten(0, self.suffix_shape)


def _layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """LayerNorm in the dtype of its weights (float32 in a half-precision CLIP)."""
    wide = x.to(norm.weight.dtype)
    return F.layer_norm(wide, norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(x.dtype)


def _linear_qkv(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    return F.linear(x, attention.in_proj_weight, attention.in_proj_bias)


def _split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """(..., tokens, parts * D) to `parts` tensors (..., heads, tokens, D / heads)."""
    return x.unflatten(-1, (parts, heads, -1)).transpose(-4, -2).unbind(-3)


def _merge_heads(x: Tensor) -> Tensor:
    """(..., heads, tokens, D / heads) to (..., tokens, D)."""
    return x.transpose(-3, -2).flatten(-2)


def _after_prefix(of_prefix: Sequence[Tensor], own: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Keys and values of the shared prefix before each class's own: (G, C, heads, P + S, width)."""
    return tuple(
        torch.cat([shared[:, None].expand(-1, mine.shape[1], -1, -1, -1), mine], dim=-2)
        for shared, mine in zip(of_prefix, own, strict=True)
    )


def _attend_seen(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Attention of (G, C, heads, tokens, width) where `seen`, which broadcasts, is true."""
    seen = seen.expand(*q.shape[:3], q.shape[3], k.shape[3]).flatten(0, 1)
    # Four axes: the fast kernels take no more.
    mixed = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), seen)
    return mixed.unflatten(0, q.shape[:2])


def _rest_of_block(block: nn.Module, x: Tensor, mixed: Tensor) -> Tensor:
    """Everything after attention; open_clip's layer scales are used where a block has them."""
    scale_1, scale_2 = getattr(block, "ls_1", _same), getattr(block, "ls_2", _same)
    x = x + scale_1(block.attn.out_proj(mixed))
    return x + scale_2(block.mlp(_layer_norm(block.ln_2, x)))


def _same(x: Tensor) -> Tensor:
    return x


def _project(x: Tensor, projection: nn.Module | Tensor | None) -> Tensor:
    """To the joint embedding: a matrix in OpenAI's CLIP, possibly a module or nothing elsewhere."""
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Module) else x @ projection
