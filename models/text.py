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
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import (
    layer_norm,
    linear_qkv,
    matrix_dtype,
    merge_heads,
    rest_of_block,
    split_heads,
)
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


def text_blocks(clip_model: nn.Module) -> Sequence[nn.Module]:
    """The layers of CLIP's causal text transformer.

    Raises:
        ValueError: the model has another text tower.
    """
    if not hasattr(clip_model, "transformer") or not hasattr(clip_model, "token_embedding"):
        raise ValueError(
            f"{type(clip_model).__name__} has another text tower than CLIP's, so prompts "
            "cannot be learned on it; it can serve as a teacher. Choose a CLIP model as "
            "MODEL.BACKBONE.NAME."
        )
    return clip_model.transformer.resblocks


class TextEncoder(nn.Module):
    """Turns the context of a layout into class features with a frozen CLIP's text tower.

    Every layer is linear operations on one flat (tokens, D) tensor, the shared prefix first and the
    suffixes of all classes after it, and one attention each for prefix and suffixes. Deep prompts
    belong to no class either, so the prefix stays shared at every depth.
    """

    def __init__(self, clip_model: nn.Module, layout: PromptLayout):
        """Read widths, heads and depth from the model.

        Raises:
            ValueError: the model's text tower is not CLIP's causal transformer.
        """
        super().__init__()
        self.blocks = text_blocks(clip_model)
        self.clip_model = clip_model
        self.per_class = layout.per_class
        self.num_prefix = layout.prefix_length
        self.num_context = layout.num_context
        device = clip_model.positional_embedding.device
        # Constants of the layout: rebuilt with the class names of each run, never saved.
        self.register_buffer("token_CL", layout.token_CL.to(device), persistent=False)
        self.register_buffer("slot_CL", layout.slot_CL.to(device), persistent=False)
        self.register_buffer("end_C", layout.end_C.to(device), persistent=False)
        self._whole: _Constants | None = None  # of all classes, made when first asked for

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the tower computes."""
        return matrix_dtype(self.blocks[0])

    def forward(
        self, context: Tensor, deep: Tensor | None = None, classes: Tensor | None = None
    ) -> Tensor:
        """Class features, not normalised.

        Args:
            context: (..., N, D), or (..., C, N, D) where each class has its own; leading axes are
                contexts that share the layout.
            deep: (..., J - 1, K, D): what replaces the first K <= N context tokens before layers
                2 to J; layers that the tower does not have are passed over, as in MaPLe's code.
            classes: (c,) int64: encode these classes alone, in this order; all when None.
        Returns:
            (..., C or c, width of the joint embedding)
        """
        own_axes = 3 if self.per_class else 2
        leading = context.shape[: context.dim() - own_axes]
        constants = self._constants(classes)
        context = context.reshape(-1, *context.shape[context.dim() - own_axes :])
        tokens = self._embed(constants, context)
        if deep is None:
            deep = context.new_empty(len(context), 0, 0, 0)
        else:
            assert self.num_prefix > deep.shape[-2] and not self.per_class
            deep = deep.expand(*leading, *deep.shape[-3:]).reshape(-1, *deep.shape[-3:])
        for layer, block in enumerate(self.blocks):
            if 1 <= layer <= deep.shape[1]:
                tokens = tokens.with_context(deep[:, layer - 1])
            if layer + 1 < len(self.blocks):
                tokens = self._block(block, constants, tokens)
        end_GCD = layer_norm(self.clip_model.ln_final, self._last_block(block, constants, tokens))
        features = _project(end_GCD, self.clip_model.text_projection)
        return features.reshape(*leading, *features.shape[1:])

    def _constants(self, classes: Tensor | None) -> _Constants:
        if classes is not None:
            return self._make_constants(
                *(x[classes] for x in (self.token_CL, self.slot_CL, self.end_C))
            )
        if self._whole is None:
            self._whole = self._make_constants(self.token_CL, self.slot_CL, self.end_C)
        return self._whole

    @torch.no_grad()
    def _make_constants(self, token_CL: Tensor, slot_CL: Tensor, end_C: Tensor) -> _Constants:
        length = int(end_C.max()) + 1
        token_CL, slot_CL = token_CL[:, :length], slot_CL[:, :length]
        words_CLD = self.clip_model.token_embedding(token_CL) * (slot_CL < 0)[..., None]
        position_LD = self.clip_model.positional_embedding[:length]
        select_CLN = F.one_hot(slot_CL + 1, self.num_context + 1)[..., 1:]
        seen = torch.ones(length - self.num_prefix, length, dtype=torch.bool, device=end_C.device)
        return _Constants(
            fixed_CLD=words_CLD + position_LD,
            select_CLN=select_CLN.to(words_CLD.dtype),
            seen_SL=seen.tril(self.num_prefix),
            end_C=end_C - self.num_prefix,
        )

    def _embed(self, constants: _Constants, context: Tensor) -> _Tokens:
        """Fixed tokens, and context tokens at their places, with positions added."""
        context = context.to(constants.fixed_CLD.dtype)
        if not self.per_class:
            context = context[:, None]
        # A product with 0/1 rows puts a context token in place exactly, and sums its gradient in
        # a fixed order.
        p, fixed, select = self.num_prefix, constants.fixed_CLD, constants.select_CLN
        prefix = fixed[:1, :p] + select[:1, :p] @ context[:, :1]
        suffix = fixed[:, p:] + select[:, p:] @ context
        return _Tokens.join(prefix[:, 0].to(self.dtype), suffix.to(self.dtype))

    def _block(self, block: nn.Module, constants: _Constants, x: _Tokens) -> _Tokens:
        qkv = x.like(linear_qkv(block.attn, layer_norm(block.ln_1, x.flat)))
        heads = block.attn.num_heads
        q, k, v = split_heads(qkv.prefix, 3, heads)
        prefix = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        suffix_q, *own = split_heads(qkv.suffix, 3, heads)
        k, v = _after_prefix((k, v), own)
        suffix = _attend_seen(suffix_q, k, v, constants.seen_SL)
        mixed = _Tokens.join(merge_heads(prefix), merge_heads(suffix))
        return x.like(rest_of_block(block, x.flat, mixed.flat))

    def _last_block(self, block: nn.Module, constants: _Constants, x: _Tokens) -> Tensor:
        """The last layer, for the end-of-text rows alone: (G, C, D)."""
        end_C = constants.end_C
        rows_C = torch.arange(len(end_C), device=end_C.device)
        qkv = x.like(linear_qkv(block.attn, layer_norm(block.ln_1, x.flat)))
        heads = block.attn.num_heads
        _, *of_prefix = split_heads(qkv.prefix, 3, heads)
        q, *own = split_heads(qkv.suffix, 3, heads)
        k, v = _after_prefix(of_prefix, own)
        q = q[:, rows_C, :, end_C].transpose(0, 1)[:, :, :, None]
        mixed = merge_heads(_attend_seen(q, k, v, constants.seen_SL[end_C][:, None, None]))
        return rest_of_block(block, x.suffix[:, rows_C, end_C], mixed[:, :, 0])


class _Constants(NamedTuple):
    """What the class names alone decide. Letters: S = L - P."""

    fixed_CLD: Tensor  # embedded fixed tokens with positions; positions alone at learned places
    select_CLN: Tensor  # 1 where a learned token stands
    seen_SL: Tensor  # bool: which places a suffix token attends to
    end_C: Tensor  # place of end-of-text within the suffix


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

    def with_context(self, deep_GKD: Tensor) -> _Tokens:
        """The first K tokens after start-of-text replaced; positions are not added to them."""
        deep = deep_GKD.to(self.flat.dtype)
        prefix = torch.cat([self.prefix[:, :1], deep, self.prefix[:, 1 + deep.shape[1] :]], dim=1)
        return _Tokens.join(prefix, self.suffix)

    @property
    def prefix(self) -> Tensor:
        """(G, P, D)"""
        return self.flat[: self.prefix_shape.numel()].unflatten(0, self.prefix_shape)

    @property
    def suffix(self) -> Tensor:
        """(G, C, S, D)"""
        return self.flat[self.prefix_shape.numel() :].unflatten(0, self.suffix_shape)


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


def _project(x: Tensor, projection: nn.Module | Tensor | None) -> Tensor:
    """To the joint embedding: a matrix in OpenAI's CLIP, possibly a module or nothing elsewhere."""
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Module) else x @ projection
