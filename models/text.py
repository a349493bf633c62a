"""CLIP's text encoder on the tokens that matter: prompts go in, class features come out.

The tower is causal and read at the end-of-text token, so a token's state depends on its prefix
alone. Hence, without changing a number (DESIGN section 6):
- nothing after end-of-text is computed;
- the prefix that all classes share (start-of-text and the context) is computed once, the stem;
- tokens before the first learned one are constants: their keys and values are computed once;
- fixed tokens enter the first layer as constants; only learned rows are projected there;
- the classes' own tokens, their branches, stand packed in chunks of one width, and names that begin
  alike share what is alike (models/packing.py);
- the last layer answers end-of-text rows alone;
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
from models.packing import Plan, Queries, Rows, make_plan, prefix_lengths
from models.prompt_layout import PromptLayout

# A piece of classes is as large as these allow, where its size is not given.
_TRAINING_BYTES = 6 << 28  # kept for backward: 1.5 GiB
_ENCODING_BYTES = 1 << 28  # of one layer, where no gradient is wanted: 256 MiB
_VALUES_PER_ROW = 11  # times D: what a layer keeps of a row for backward


def has_clip_text(clip_model: nn.Module) -> bool:
    """Whether the model's text tower is CLIP's: causal, and read at the highest token id."""
    blocks = getattr(getattr(clip_model, "transformer", None), "resblocks", None)
    return (
        blocks is not None
        and hasattr(clip_model, "token_embedding")
        and getattr(clip_model, "text_pool_type", "argmax") == "argmax"
        and getattr(clip_model, "attn_mask", True) is not None  # open_clip's sign of no mask
        and all(isinstance(getattr(block, "attn", None), nn.MultiheadAttention) for block in blocks)
    )


def text_blocks(clip_model: nn.Module) -> Sequence[nn.Module]:
    """The layers of CLIP's causal text transformer.

    Raises:
        ValueError: the model has another text tower.
    """
    if not has_clip_text(clip_model):
        raise ValueError(
            f"{type(clip_model).__name__} has another text tower than CLIP's, so prompts "
            "cannot be learned on it; it can serve as a teacher. Choose a CLIP model as "
            "MODEL.BACKBONE.NAME."
        )
    return clip_model.transformer.resblocks


def encode_tokens(clip_model: nn.Module, token_CL: Tensor) -> Tensor:
    """Features, not normalised, of prompts without a learned token; no gradient.

    Args:
        token_CL: int64 ids as a tokenizer gives them.
    Returns:
        (C, width of the joint embedding)
    Raises:
        ValueError: the model's text tower is not CLIP's causal transformer.
    """
    encoder = TextEncoder(clip_model, PromptLayout.of_tokens(token_CL.cpu()))
    position_LD = clip_model.positional_embedding
    with torch.no_grad():
        return encoder(position_LD.new_zeros(0, position_LD.shape[1]))


class TextEncoder(nn.Module):
    """Turns the context of a layout into class features with a frozen CLIP's text tower."""

    def __init__(self, clip_model: nn.Module, layout: PromptLayout, piece: int = 0):
        """Read widths, heads and depth from the model.

        Args:
            piece: classes that are encoded at a time; 0: as many as memory for their gradient
                allows (1.5 GiB), or all.
        Raises:
            ValueError: the model's text tower is not CLIP's causal transformer.
        """
        super().__init__()
        self.blocks = text_blocks(clip_model)
        self.clip_model = clip_model
        self.layout = layout
        self.piece = piece
        # Of all classes at once.
        self._whole: tuple[object, Plan, list[_Seen], _Fixed] | None = None

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
        plan, constants, fixed = self._plan(classes)
        rows, last = plan.live, len(self.blocks) - 1
        x, q, own = self._first(rows, fixed, context)
        for layer, block in enumerate(self.blocks):
            if layer:
                if deep is not None and layer <= deep.shape[1]:
                    x = _replace(rows, x, deep[:, layer - 1])
                normed = layer_norm(block.ln_1, x)
                own = keys_and_values(block.attn, normed)
                q = queries(block.attn, normed if layer < last else normed[:, plan.end_HU])
            elif layer == last:
                q = q[..., plan.end_HU, :]
            asking = rows.all if layer < last else plan.ends
            mixed = _attend(q, asking, _Seen(*_split(own, rows.all)), constants[layer])
            if layer == last:
                x, mixed = x[:, plan.end_HU[plan.end_C]], mixed[:, plan.end_C]
            x = rest_of_block(block, x, mixed)
        return project(layer_norm(self.clip_model.ln_final, x), self.clip_model.text_projection)

    def _plan(self, classes: Tensor | None) -> tuple[Plan, list[_Seen], _Fixed]:
        """The plan of some classes and their constants; those of all classes are kept."""
        weight = self.blocks[0].attn.in_proj_weight
        device = weight.device
        with torch.inference_mode(False), torch.no_grad():  # what is kept serves training as well
            if classes is not None:
                plan = make_plan(self.layout, classes, self.dtype, device)
                return plan, self._constants(plan.constant), self._fixed(plan.live)
            casts = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
            state = (weight.data_ptr(), weight._version, weight.dtype, device, casts)
            if self._whole is None or self._whole[0] != state:
                plan = make_plan(self.layout, None, self.dtype, device)
                self._whole = state, plan, self._constants(plan.constant), self._fixed(plan.live)
            return self._whole[1:]

    def _constants(self, rows: Rows) -> list[_Seen]:
        """Keys and values, layer by layer, of tokens that no learned token precedes."""
        x, q, own = self._fixed(rows)
        found = []
        for layer, block in enumerate(self.blocks):
            if layer:
                normed = layer_norm(block.ln_1, x)
                q, own = queries(block.attn, normed), keys_and_values(block.attn, normed)
            found.append(_Seen(*_split(own, rows.all)))
            if layer + 1 < len(self.blocks):
                x = rest_of_block(block, x, _attend(q, rows.all, found[-1]))
        return found

    def _fixed(self, rows: Rows) -> _Fixed:
        """What the first layer makes of fixed tokens."""
        words_RD = self.clip_model.token_embedding(rows.token_R) * rows.fixed_R[:, None]
        x = words_RD + self.clip_model.positional_embedding[rows.place_R]
        return self._ask(x[None].to(self.dtype))

    def _ask(self, x: Tensor) -> _Fixed:
        """Queries, keys and values of the first layer."""
        attention, normed = self.blocks[0].attn, layer_norm(self.blocks[0].ln_1, x)
        return _Fixed(x, queries(attention, normed), keys_and_values(attention, normed))

    def _first(self, rows: Rows, fixed: _Fixed, context: Tensor) -> _Fixed:
        """The same of all rows, where only learned tokens are left to do."""
        own = (rows.class_S, rows.slot_S) if self.layout.per_class else (rows.slot_S,)
        place_SD = self.clip_model.positional_embedding[rows.place_R[rows.row_S]]
        learned_GSD = context.to(place_SD.dtype)[(slice(None), *own)] + place_SD
        learned = self._ask(learned_GSD.to(self.dtype))
        x = fixed.x.expand(len(context), -1, -1).index_copy(1, rows.row_S, learned.x)
        q = fixed.q.expand(len(context), -1, -1, -1).index_copy(2, rows.row_S, learned.q)
        own = fixed.own.expand(-1, len(context), -1, -1, -1).index_copy(3, rows.row_S, learned.own)
        return _Fixed(x, q, own)


class _Fixed(NamedTuple):
    """Rows and what the first layer's attention starts from; G is 1 where no context stands."""

    x: Tensor  # (G, R, D)
    q: Tensor  # queries, (G, heads, R, W)
    own: Tensor  # keys and values, (2, G, heads, R, W)


class _Seen(NamedTuple):
    """What rows can attend to in one layer; the first axis is keys, values."""

    stem: Tensor  # (2, G, heads, Z, W)
    chunks: Tensor  # (2, G, H, heads, T, W)


def _attend(q: Tensor, asking: Queries, seen: _Seen, constants: _Seen | None = None) -> Tensor:
    """Attention of rows to what is computed with them and to constants: (G, asking rows, D)."""
    stem, chunks = seen
    if constants is not None:
        stem = torch.cat([constants.stem.expand(-1, len(q), -1, -1, -1), stem], dim=-2)
    of_stem, of_chunks = _split(q, asking)
    mixed = []
    if asking.stem:
        mixed.append(_mix(of_stem, stem, asking.stem_mask))
    num_chunks, width = asking.chunks
    if width:
        parts = [stem[:, :, None].expand(-1, -1, num_chunks, -1, -1, -1), chunks]
        if constants is not None:
            parts.insert(1, constants.chunks.expand(-1, len(q), -1, -1, -1, -1))
        mask = asking.chunk_mask[None, :, None].expand(len(q), -1, -1, -1, -1).flatten(0, 1)
        answers = _mix(of_chunks.flatten(0, 1), torch.cat(parts, dim=-2).flatten(1, 2), mask)
        mixed.append(answers.unflatten(0, (-1, num_chunks)).flatten(1, 2))
    return torch.cat(mixed, dim=1)


def _mix(q: Tensor, keys_values: Tensor, mask: Tensor) -> Tensor:
    """(batch, heads, tokens, W) with keys and values (2, batch, heads, ...): (batch, tokens, D)."""
    k, v = keys_values
    return merge_heads(F.scaled_dot_product_attention(q, k, v, mask.to(q.dtype)))


def _split(x: Tensor, rows: Queries) -> tuple[Tensor, Tensor]:
    """(..., G, heads, R, W) to the stem's (..., G, heads, Z, W) and (..., G, H, heads, T, W)."""
    stem, chunks = x.split((rows.stem, math.prod(rows.chunks)), dim=-2)
    return stem, chunks.unflatten(-2, rows.chunks).transpose(-4, -3)


def _replace(rows: Rows, x: Tensor, deep_GKD: Tensor) -> Tensor:
    """The first K context tokens replaced; positions are not added to them."""
    count = rows.learned_before[deep_GKD.shape[1]]
    return x.index_copy(1, rows.row_S[:count], deep_GKD[:, rows.slot_S[:count]].to(x.dtype))


def project(x: Tensor, projection: nn.Module | Tensor | None) -> Tensor:
    """To the joint embedding: a matrix in OpenAI's CLIP, possibly a module or nothing elsewhere."""
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Module) else x @ projection
