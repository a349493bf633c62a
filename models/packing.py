"""Which tokens of many prompts CLIP's text tower computes, and where they stand side by side.

All prompts of a layout form one tree: a stem that they share, then one branch per class. Tokens
before the first learned one are constants, computed once; what follows is live. Branches are packed
several to a chunk of equal width, so that one attention serves them all with static shapes.

Letters: C classes, R rows (tokens that are computed): those of the stem, then H chunks of T rows;
N context tokens, S rows that hold a learned token, P places of the shared prefix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.prompt_layout import PromptLayout

CHUNK_ROWS = 64  # docs/LOG.md: on a CPU 32 to 96 cost the same
_PADDING = -1  # class of a row that no prompt uses


@dataclass(frozen=True)
class Rows:
    """Tokens that are computed together: the stem's, then H chunks of T."""

    stem: int
    chunks: tuple[int, int]  # (H, T)
    token_R: Tensor  # int64 token ids; 0 where a learned token or padding stands
    place_R: Tensor  # int64 place in the prompt
    fixed_R: Tensor  # bool: the token's embedding counts
    row_S: Tensor  # int64: rows of learned tokens, by slot
    slot_S: Tensor  # int64: which context token
    class_S: Tensor  # int64: whose, where each class has its own
    learned_before: tuple[int, ...]  # how many of the S rows have a slot below 0, 1, ..., N
    stem_mask: Tensor  # (stem, keys): 0 where a row attends, -inf elsewhere
    chunk_mask: Tensor  # (H, T, keys): keys are the stem's, the chunk's constants, the chunk's own


@dataclass(frozen=True)
class Plan:
    """How the prompts of some classes are computed."""

    constant: Rows  # no learned token stands before them or in them
    live: Rows
    end_C: Tensor  # int64: row of each class's end-of-text among all chunks' rows


def prefix_lengths(layout: PromptLayout) -> tuple[int, int, Tensor, Tensor]:
    """Places of the shared prefix, how many of them are constant; per class the same of branches.

    Returns:
        P, constants of the stem, (C,) places of each branch, (C,) how many of them are constant.
        End-of-text is live always.
    """
    learned_CL = layout.slot_CL >= 0
    places = torch.arange(learned_CL.shape[1])
    first_C = torch.where(learned_CL, places, len(places)).amin(dim=1)  # first learned place
    stem = layout.prefix_length
    branch_C = layout.end_C + 1 - stem
    constant_C = (torch.minimum(first_C, layout.end_C) - stem).clamp(min=0)
    return stem, min(stem, int(first_C.min())), branch_C, constant_C


def make_plan(
    layout: PromptLayout, classes: Tensor | None, dtype: torch.dtype, device: torch.device
) -> Plan:
    """Lay out the prompts of `classes` (all when None), in that order.

    Args:
        dtype: of the masks; that of the queries, since scaled_dot_product_attention on a CPU is
            silently wrong for float64 queries with a float32 mask.
    """
    stem, stem_constant, branch_C, constant_C = prefix_lengths(layout)
    if classes is None:
        classes = torch.arange(len(layout.end_C))
    branch_C, constant_C = branch_C[classes], constant_C[classes]
    length_C = branch_C - constant_C
    chunk_C, start_C, shape = _pack(length_C.tolist())
    before_C, widest = _running_sums(chunk_C, constant_C, shape[0])

    lay = _Builder(layout, classes, chunk_C, dtype, device)
    constant = lay.rows(
        range(stem_constant), before_C, stem + 0 * constant_C, constant_C, (shape[0], widest), None
    )
    live = lay.rows(
        range(stem_constant, stem), start_C, stem + constant_C, length_C, shape, constant
    )
    end_C = chunk_C * shape[1] + start_C + length_C - 1
    return Plan(constant.rows, live.rows, end_C.to(device))


@dataclass(frozen=True)
class _Built:
    rows: Rows
    class_HT: Tensor  # class of each chunk row, _PADDING where none


@dataclass(frozen=True)
class _Builder:
    layout: PromptLayout
    classes: Tensor
    chunk_C: Tensor
    dtype: torch.dtype
    device: torch.device

    def rows(
        self,
        stem: range,
        start_C: Tensor,
        first_C: Tensor,
        length_C: Tensor,
        shape: tuple[int, int],
        before: _Built | None,
    ) -> _Built:
        """Rows for the places `stem`, and per class `length_C` places from `first_C` on.

        Args:
            start_C: a class's first row within its chunk.
            before: constants that these rows attend to.
        """
        layout, (num_chunks, width) = self.layout, shape
        class_R = torch.full((num_chunks * width,), _PADDING)
        place_R = torch.zeros(num_chunks * width, dtype=torch.long)
        owner = torch.arange(len(self.classes)).repeat_interleave(length_C)
        step = torch.arange(len(owner)) - (length_C.cumsum(0) - length_C)[owner]
        row = (self.chunk_C * width + start_C)[owner] + step
        class_R[row], place_R[row] = owner, first_C[owner] + step
        class_HT = class_R.view(shape)

        # The stem reads like the first class's prompt, as it does like any other's.
        place_R = torch.cat([torch.tensor(stem, dtype=torch.long), place_R])
        used_R = torch.cat([torch.zeros(len(stem), dtype=torch.long), class_R])
        of_R = self.classes[used_R.clamp(min=0)]
        slot_R = torch.where(used_R >= 0, layout.slot_CL[of_R, place_R], -1)
        fixed_R = (slot_R < 0) & (used_R >= 0)
        row_S = (slot_R >= 0).nonzero()[:, 0]
        row_S = row_S[slot_R[row_S].argsort(stable=True)]
        slot_S = slot_R[row_S]
        counts = torch.bincount(slot_S, minlength=layout.num_context).cumsum(0)

        ahead = 0 if before is None else before.rows.stem
        stem_seen = torch.ones(len(stem), ahead + len(stem), dtype=torch.bool).tril(ahead)
        own = (class_HT[:, :, None] == class_HT[:, None, :]).tril()
        seen = [torch.ones(num_chunks, width, ahead + len(stem), dtype=torch.bool), own]
        if before is not None:
            theirs = before.class_HT[:, None, :]
            seen.insert(1, (class_HT[:, :, None] == theirs) & (theirs >= 0))
        rows = Rows(
            stem=len(stem),
            chunks=shape,
            token_R=torch.where(fixed_R, layout.token_CL[of_R, place_R], 0).to(self.device),
            place_R=place_R.to(self.device),
            fixed_R=fixed_R.to(self.device),
            row_S=row_S.to(self.device),
            slot_S=slot_S.to(self.device),
            class_S=of_R[row_S].to(self.device),
            learned_before=(0, *counts.tolist()),
            stem_mask=self._additive(stem_seen),
            chunk_mask=self._additive(torch.cat(seen, dim=-1)),
        )
        return _Built(rows, class_HT)

    def _additive(self, seen: Tensor) -> Tensor:
        mask = torch.zeros(seen.shape, dtype=self.dtype).masked_fill_(~seen, float("-inf"))
        return mask.to(self.device)


def _pack(lengths: list[int]) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Chunk and first row of each class, and (H, T): as few chunks and rows as fit.

    Longest first, each into the fullest chunk that has room. T is at most CHUNK_ROWS, or what the
    longest class needs, plus the little that makes every class fit into the fewest chunks.
    """
    total, longest = sum(lengths), max(lengths)
    wanted = -(-total // max(longest, CHUNK_ROWS))
    width = max(longest, -(-total // wanted))
    longest_first = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    while True:
        chunk_C, start_C, with_room = [0] * len(lengths), [0] * len(lengths), {}
        count = 0
        for index in longest_first:
            need = lengths[index]
            room = next((r for r in range(need, width + 1) if with_room.get(r)), None)
            if room is None:
                room, chunk = width, count
                count += 1
            else:
                chunk = with_room[room].pop()
            chunk_C[index], start_C[index] = chunk, width - room
            with_room.setdefault(room - need, []).append(chunk)
        if count <= wanted:
            return torch.tensor(chunk_C), torch.tensor(start_C), (count, width)
        width += 1


def _running_sums(chunk_C: Tensor, length_C: Tensor, num_chunks: int) -> tuple[Tensor, int]:
    """(C,): lengths of earlier classes in the same chunk; and the largest sum of a chunk."""
    filled, before = [0] * num_chunks, []
    for chunk, length in zip(chunk_C.tolist(), length_C.tolist(), strict=True):
        before.append(filled[chunk])
        filled[chunk] += length
    return torch.tensor(before), max(filled)
