"""CLIP's text encoder on the tokens that matter: prompts go in, class features come out.

The tower is causal and read at the end-of-text token, so a token's state depends on its prefix
alone. Hence, without changing a number (DESIGN section 6):
- nothing after end-of-text is computed;
- the prefix that all classes share (start-of-text and the context) is computed once, the stem;
- tokens before the first learned one are constants: their keys and values are computed once;
- the classes' own tokens, their branches, stand packed in chunks of one width (models/packing.py);
- after the last layer's attention only end-of-text rows go on;
- more classes than memory holds are encoded in pieces, and computed again for the gradient.

Letters: G contexts that share a layout (positive and negative, images), C classes, N context
tokens, D width, R computed rows, of which the stem's come first and then those of H chunks of T
rows; Z places of the stem, W width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from models.blocks import (
    keys_and_values,
    layer_norm,
    matrix_dtype,
    merge_heads,
    queries,
    rest_of_block,
)
from models.packing import Plan, Rows, make_plan, prefix_lengths
from models.prompt_layout import PromptLayout

# A piece of classes is as large as these allow, where its size is not given.
_TRAINING_BYTES = 7 << 28  # kept for backward: 1.75 GiB
_ENCODING_BYTES = 1 << 28  # of one layer, where no gradient is wanted: 256 MiB
_VALUES_PER_ROW = 11  # times D: what a layer keeps of a row for backward


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
    """Turns the context of a layout into class features with a frozen CLIP's text tower."""

    def __init__(self, clip_model: nn.Module, layout: PromptLayout, piece: int = 0):
        """Read widths, heads and depth from the model.

        Args:
            piece: classes that are encoded at a time; 0: as many as memory for their gradient
                allows (1.75 GiB), or all.
        Raises:
            ValueError: the model's text tower is not CLIP's causal transformer.
        """
        super().__init__()
        self.blocks = text_blocks(clip_model)
        self.clip_model = clip_model
        self.layout = layout
        self.piece = piece
        self._whole: tuple[object, Plan, list[_KeysValues]] | None = None  # of all classes at once

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
        own_axes = 3 if self.layout.per_class else 2
        leading = context.shape[: context.dim() - own_axes]
        num_contexts = math.prod(leading)
        context = context.reshape(num_contexts, *context.shape[len(leading) :])
        if deep is not None:
            deep = deep.expand(*leading, *deep.shape[-3:]).reshape(num_contexts, *deep.shape[-3:])
        classes = None if classes is None else classes.cpu()
        with_gradient = torch.is_grad_enabled() and (
            context.requires_grad or (deep is not None and deep.requires_grad)
        )
        pieces = self._pieces(classes, num_contexts, with_gradient)
        features = []
        for piece in pieces[:-1]:
            if with_gradient:  # keep nothing, encode it again when backward gets here
                again = {"use_reentrant": False, "preserve_rng_state": False}
                features.append(checkpoint(self._encode, context, deep, piece, **again))
            else:
                features.append(self._encode(context, deep, piece))
        # Backward starts with the last piece and frees what it kept before it needs the others'.
        features.append(self._encode(context, deep, pieces[-1] if features else classes))
        features = torch.cat(features, dim=1)
        return features.reshape(*leading, *features.shape[1:])

    def in_one_piece(self, num_contexts: int) -> bool:
        """Whether training encodes all classes at once, for so many contexts."""
        return len(self._pieces(None, num_contexts, True)) == 1

    def _pieces(
        self, classes: Tensor | None, num_contexts: int, with_gradient: bool
    ) -> tuple[Tensor, ...]:
        """The classes in parts to be encoded one after the other; only the first may be smaller."""
        wanted = torch.arange(len(self.layout.end_C)) if classes is None else classes
        size = self.piece
        if not size:
            needed = num_contexts * self._bytes(wanted)
            bound = _TRAINING_BYTES if with_gradient else _ENCODING_BYTES * len(self.blocks)
            size = max(1, len(wanted) * bound // max(needed, 1))
        return wanted.tensor_split(tuple(range(len(wanted) % size or size, len(wanted), size)))

    def _bytes(self, classes: Tensor) -> int:
        """What backward of one context keeps for these classes, about."""
        _, _, branch_C, constant_C = prefix_lengths(self.layout)
        rows = int((branch_C - constant_C)[classes].sum())
        width = self.clip_model.positional_embedding.shape[1]
        return rows * len(self.blocks) * _VALUES_PER_ROW * width * self.dtype.itemsize

    def _encode(self, context: Tensor, deep: Tensor | None, classes: Tensor | None) -> Tensor:
        """(G, c, width of the joint embedding)"""
        plan, constants = self._plan(classes)
        rows = plan.live
        x = self._embed(rows, context)
        for layer, block in enumerate(self.blocks):
            if deep is not None and 1 <= layer <= deep.shape[1]:
                x = _replace(rows, x, deep[:, layer - 1])
            mixed, _ = _attention(block, rows, x, constants[layer])
            if layer + 1 == len(self.blocks):
                ends_C = rows.stem + plan.end_C
                x, mixed = x[:, ends_C], mixed[:, ends_C]
            x = rest_of_block(block, x, mixed)
        return project(layer_norm(self.clip_model.ln_final, x), self.clip_model.text_projection)

    def _plan(self, classes: Tensor | None) -> tuple[Plan, list[_KeysValues]]:
        """The plan of some classes and their constants; those of all classes are kept."""
        weight = self.blocks[0].attn.in_proj_weight
        device = weight.device
        with torch.inference_mode(False), torch.no_grad():  # what is kept serves training as well
            if classes is not None:
                plan = make_plan(self.layout, classes, self.dtype, device)
                return plan, self._constants(plan.constant)
            casts = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
            state = (weight.data_ptr(), weight._version, weight.dtype, device, casts)
            if self._whole is None or self._whole[0] != state:
                plan = make_plan(self.layout, None, self.dtype, device)
                self._whole = (state, plan, self._constants(plan.constant))
            return self._whole[1:]

    def _constants(self, rows: Rows) -> list[_KeysValues]:
        """Keys and values, layer by layer, of tokens that no learned token precedes."""
        x, found = self._embed(rows), []
        for block in self.blocks:
            mixed, keys_values = _attention(block, rows, x)
            found.append(keys_values)
            x = rest_of_block(block, x, mixed)
        return found

    def _embed(self, rows: Rows, context: Tensor | None = None) -> Tensor:
        """(G, R, D): fixed tokens, and context tokens at their places, with positions added."""
        words_RD = self.clip_model.token_embedding(rows.token_R) * rows.fixed_R[:, None]
        fixed_RD = words_RD + self.clip_model.positional_embedding[rows.place_R]
        if context is None:
            return fixed_RD[None].to(self.dtype)
        own = (rows.class_S, rows.slot_S) if self.layout.per_class else (rows.slot_S,)
        learned_GSD = context.to(fixed_RD.dtype)[(slice(None), *own)] + fixed_RD[rows.row_S]
        x = fixed_RD.expand(len(context), -1, -1).index_copy(1, rows.row_S, learned_GSD)
        return x.to(self.dtype)


class _KeysValues(NamedTuple):
    """Of one layer; the first axis is keys, values."""

    stem: Tensor  # (2, G, heads, Z, W)
    chunks: Tensor  # (2, G, H, heads, T, W)


def _attention(
    block: nn.Module, rows: Rows, x_GRD: Tensor, constants: _KeysValues | None = None
) -> tuple[Tensor, _KeysValues]:
    """Attention of rows to themselves and to constants: (G, R, D), and the rows' keys and values.

    Those of the stem are returned together with the constant ones.
    """
    normed = layer_norm(block.ln_1, x_GRD)
    q = queries(block.attn, normed)  # (G, heads, R, W)
    own = keys_and_values(block.attn, normed)
    stem, branches = own[..., : rows.stem, :], _chunked(own[..., rows.stem :, :], rows)
    if constants is not None:
        stem = torch.cat([constants.stem.expand(-1, len(q), -1, -1, -1), stem], dim=-2)
    found = _KeysValues(stem, branches)
    mixed = []
    if rows.stem:
        mixed.append(_attend(q[..., : rows.stem, :], stem, rows.stem_mask))
    if rows.chunks[1]:
        num_chunks = rows.chunks[0]
        seen = [stem[:, :, None].expand(-1, -1, num_chunks, -1, -1, -1), branches]
        if constants is not None:
            seen.insert(1, constants.chunks.expand(-1, len(q), -1, -1, -1, -1))
        q = _chunked(q[..., rows.stem :, :], rows).flatten(0, 1)
        mask = rows.chunk_mask[None, :, None].expand(len(x_GRD), -1, -1, -1, -1).flatten(0, 1)
        chunks = _attend(q, torch.cat(seen, dim=-2).flatten(1, 2), mask)
        mixed.append(chunks.unflatten(0, (-1, num_chunks)).flatten(1, 2))
    return torch.cat(mixed, dim=1), found


def _attend(q: Tensor, keys_values: Tensor, mask: Tensor) -> Tensor:
    """(batch, heads, tokens, W) with keys and values (2, batch, heads, ...): (batch, tokens, D)."""
    k, v = keys_values
    return merge_heads(F.scaled_dot_product_attention(q, k, v, mask.to(q.dtype)))


def _chunked(x: Tensor, rows: Rows) -> Tensor:
    """(..., G, heads, H T, W) to (..., G, H, heads, T, W)"""
    return x.unflatten(-2, rows.chunks).transpose(-4, -3)


def _replace(rows: Rows, x: Tensor, deep_GKD: Tensor) -> Tensor:
    """The first K context tokens replaced; positions are not added to them."""
    count = rows.learned_before[deep_GKD.shape[1]]
    return x.index_copy(1, rows.row_S[:count], deep_GKD[:, rows.slot_S[:count]].to(x.dtype))


def project(x: Tensor, projection: nn.Module | Tensor | None) -> Tensor:
    """To the joint embedding: a matrix in OpenAI's CLIP, possibly a module or nothing elsewhere."""
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Module) else x @ projection
