"""Which tokens of many prompts CLIP's text tower computes, and where they stand side by side.

All prompts of a layout form one tree: a stem that they share, then branches, which classes whose
names begin alike share as far as they do. Tokens before the first learned one are constants,
computed once; what follows is live. Branches are packed several to a chunk of equal width, so that
one attention serves them all with static shapes.

Letters: C classes, L tokens of the longest prompt, N context tokens, R rows (tokens that are
computed): those of the stem, then H chunks of T rows; S rows that hold a learned token, U rows of
which each chunk has a number alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.prompt_layout import PromptLayout

CHUNK_ROWS = 64  # docs/LOG.md: on a CPU 32 to 96 cost the same
_PADDING = -1  # class of a row that no prompt uses


@dataclass(frozen=True)
class Queries:
    """Rows that ask in one attention, the stem's and then H chunks of T, and what they see.

    Masks are 0 where a row attends and -inf elsewhere.
    """

    stem: int
    chunks: tuple[int, int]  # (H, T)
    stem_mask: Tensor  # (stem, keys)
    chunk_mask: Tensor  # (H, T, keys): keys are the stem's, the chunk's constants, the chunk's own


@dataclass(frozen=True)
class Rows:
    """Tokens that are computed together: the stem's, then H chunks of T."""

    all: Queries
    token_R: Tensor  # int64 token ids; 0 where a learned token or padding stands
    place_R: Tensor  # int64 place in the prompt
    fixed_R: Tensor  # bool: the token's embedding counts
    row_S: Tensor  # int64: rows of learned tokens, by slot
    slot_S: Tensor  # int64: which context token
    class_S: Tensor  # int64: whose, where each class has its own
    learned_before: tuple[int, ...]  # how many of the S rows have a slot below 0, 1, ..., N


@dataclass(frozen=True)
class Plan:
    """How the prompts of some classes are computed."""

    constant: Rows  # no learned token stands before them or in them
    live: Rows
    ends: Queries  # what the last layer answers: U end-of-text rows of each chunk
    end_HU: Tensor  # (H U,) int64: where they stand among the live rows
    end_C: Tensor  # int64: which of these a class's is


def prefix_lengths(layout: PromptLayout) -> tuple[int, int, Tensor, Tensor]:
    """Places of the shared prefix, how many of them are constant; per class the same of branches.

    Returns:
        Places of the stem, constants of the stem, (C,) places of each branch, (C,) how many of
        them are constant. End-of-text is live always; so are branches where nothing is learned,
        since what is computed once needs no keys and values kept.
    """
    learned_CL = layout.slot_CL >= 0
    places = torch.arange(learned_CL.shape[1])
    first_C = torch.where(learned_CL, places, len(places)).amin(dim=1)  # first learned place
    stem = layout.prefix_length
    branch_C = layout.end_C + 1 - stem
    constant_C = (torch.minimum(first_C, layout.end_C) - stem).clamp(min=0) * learned_CL.any()
    return stem, min(stem, int(first_C.min())), branch_C, constant_C


def make_plan(
    layout: PromptLayout, classes: Tensor | None, dtype: torch.dtype, device: torch.device
) -> Plan:
    """Lay out the prompts of `classes` (all when None), in that order.

    Args:
        dtype: of the masks; that of the queries, since scaled_dot_product_attention on a CPU is
            silently wrong for float64 queries with a float32 mask.
    """
    stem, stem_constant, _, constant_C = prefix_lengths(layout)
    if classes is None:
        classes = torch.arange(len(layout.end_C))
    order_C, alike_C = _sorted(layout, classes)
    classes = classes[order_C]  # neighbours begin alike
    first_C, end_C = stem + constant_C[classes], layout.end_C[classes]
    chunk_C, alike_C = _pack(alike_C, stem, first_C, end_C)

    lay = _Builder(layout, classes, chunk_C, _owners(alike_C, layout), dtype, device)
    constant = lay.rows(range(stem_constant), 0 * first_C + stem, first_C, None)
    live = lay.rows(range(stem_constant, stem), first_C, end_C + 1, constant)
    ends, end_HU, asked_C = lay.ends(live, end_C)
    asked_C = torch.empty_like(asked_C).index_copy_(0, order_C, asked_C)
    return Plan(constant.rows, live.rows, ends, end_HU.to(device), asked_C.to(device))


@dataclass(frozen=True)
class _Built:
    rows: Rows
    class_HT: Tensor  # class of each chunk row, _PADDING where none
    place_HT: Tensor
    row_CL: Tensor  # where a token stands among the chunks' rows, where it is the owner's


@dataclass(frozen=True)
class _Builder:
    layout: PromptLayout
    classes: Tensor
    chunk_C: Tensor
    owner_CL: Tensor
    dtype: torch.dtype
    device: torch.device

    def rows(self, stem: range, first_C: Tensor, stop_C: Tensor, before: _Built | None) -> _Built:
        """Rows for the places `stem`, and per class for places from `first_C` to before `stop_C`.

        Args:
            before: constants that these rows attend to.
        """
        layout = self.layout
        place_L = torch.arange(layout.token_CL.shape[1])
        owned_CL = self.owner_CL == torch.arange(len(self.classes))[:, None]
        owned_CL &= (place_L >= first_C[:, None]) & (place_L < stop_C[:, None])
        owner, place = owned_CL.nonzero(as_tuple=True)
        row, shape = self._spread(self.chunk_C[owner])
        class_HT = torch.full(shape, _PADDING)
        place_HT = torch.zeros(shape, dtype=torch.long)
        class_HT.view(-1)[row], place_HT.view(-1)[row] = owner, place
        row_CL = torch.full(owned_CL.shape, _PADDING).masked_scatter_(owned_CL, row)

        # The stem reads like the first class's prompt, as it does like any other's.
        place_R = torch.cat([torch.tensor(stem, dtype=torch.long), place_HT.flatten()])
        used_R = torch.cat([torch.zeros(len(stem), dtype=torch.long), class_HT.flatten()])
        of_R = self.classes[used_R.clamp(min=0)]
        slot_R = torch.where(used_R >= 0, layout.slot_CL[of_R, place_R], -1)
        fixed_R = (slot_R < 0) & (used_R >= 0)
        row_S = (slot_R >= 0).nonzero()[:, 0]
        row_S = row_S[slot_R[row_S].argsort(stable=True)]
        slot_S = slot_R[row_S]
        counts = torch.bincount(slot_S, minlength=layout.num_context).cumsum(0)

        ahead = 0 if before is None else before.rows.all.stem
        stem_seen = torch.ones(len(stem), ahead + len(stem), dtype=torch.bool).tril(ahead)
        asking = (class_HT, place_HT)
        own = self._sees(asking, asking) | torch.eye(shape[1], dtype=torch.bool)  # padding: itself
        seen = [torch.ones(*shape, ahead + len(stem), dtype=torch.bool), own]
        if before is not None:
            seen.insert(1, self._sees(asking, (before.class_HT, before.place_HT)))
        rows = Rows(
            all=Queries(
                stem=len(stem),
                chunks=shape,
                stem_mask=self._additive(stem_seen),
                chunk_mask=self._additive(torch.cat(seen, dim=-1)),
            ),
            token_R=torch.where(fixed_R, layout.token_CL[of_R, place_R], 0).to(self.device),
            place_R=place_R.to(self.device),
            fixed_R=fixed_R.to(self.device),
            row_S=row_S.to(self.device),
            slot_S=slot_S.to(self.device),
            class_S=of_R[row_S].to(self.device),
            learned_before=(0, *counts.tolist()),
        )
        return _Built(rows, class_HT, place_HT, row_CL)

    def ends(self, live: _Built, end_C: Tensor) -> tuple[Queries, Tensor, Tensor]:
        """End-of-text rows, as many of each chunk; see Plan.ends, .end_HU and .end_C."""
        all_rows = live.rows.all
        row_C = live.row_CL[self.owner_CL.gather(1, end_C[:, None])[:, 0], end_C]
        asked_C, shape = self._spread(self.chunk_C)
        row_HU = torch.arange(shape[0]).mul(all_rows.chunks[1])[:, None].repeat(1, shape[1])
        row_HU.view(-1)[asked_C] = row_C
        mask = all_rows.chunk_mask.flatten(0, 1)[row_HU.to(self.device)]
        ends = Queries(0, shape, all_rows.stem_mask[:0], mask)
        return ends, all_rows.stem + row_HU.flatten(), asked_C

    def _spread(self, chunk_K: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """A row of its own for each of K things in its chunk, and the chunks' (number, width)."""
        count_H = torch.bincount(chunk_K, minlength=int(self.chunk_C.max()) + 1)
        width = int(count_H.max())
        order_K = chunk_K.argsort(stable=True)
        step_K = torch.arange(len(chunk_K)) - (count_H.cumsum(0) - count_H)[chunk_K[order_K]]
        row_K = torch.empty_like(chunk_K)
        row_K[order_K] = chunk_K[order_K] * width + step_K
        return row_K, (len(count_H), width)

    def _sees(self, asking: tuple[Tensor, Tensor], asked: tuple[Tensor, Tensor]) -> Tensor:
        """(H, rows, rows): whether the one token stands before the other, or is it."""
        (class_HT, place_HT), (class_HV, place_HV) = asking, asked
        owner_HTV = self.owner_CL[class_HT.clamp(min=0)[:, :, None], place_HV[:, None]]
        return (owner_HTV == class_HV[:, None]) & (place_HV[:, None] <= place_HT[:, :, None])

    def _additive(self, seen: Tensor) -> Tensor:
        mask = torch.zeros(seen.shape, dtype=self.dtype).masked_fill_(~seen, float("-inf"))
        return mask.to(self.device)


def _sorted(layout: PromptLayout, classes: Tensor) -> tuple[Tensor, Tensor]:
    """An order of the prompts in which neighbours begin alike, and in it: how many places of each
    are those of the one before."""
    slot_CL, token_CL = layout.slot_CL[classes], layout.token_CL[classes]
    learned_CL = slot_CL + (layout.num_context * classes[:, None] if layout.per_class else 0)
    step_CL = torch.where(slot_CL < 0, token_CL, -1 - learned_CL)
    order_C = step_CL.unique(dim=0, return_inverse=True)[1].argsort(stable=True)
    step_CL = step_CL[order_C]
    same_CL = (step_CL[1:] == step_CL[:-1]).long().cumprod(dim=1)
    return order_C, torch.cat([torch.zeros(1, dtype=torch.long), same_CL.sum(dim=1)])


def _owners(alike_C: Tensor, layout: PromptLayout) -> Tensor:
    """(C, L): the first class that has this token after the same ones, in the order of _sorted."""
    place_L = torch.arange(layout.token_CL.shape[1])
    own_CL = place_L >= alike_C[:, None]
    return (own_CL * torch.arange(len(alike_C))[:, None]).cummax(dim=0).values


def _pack(alike_C: Tensor, stem: int, first_C: Tensor, end_C: Tensor) -> tuple[Tensor, Tensor]:
    """The chunk of each class, and how many places each has in common with the one before there.

    Classes whose branches begin alike stay together, up to CHUNK_ROWS rows. The parts are packed
    longest first, each into the fullest chunk that has room. T is at most CHUNK_ROWS, or what the
    longest part needs, plus the little that makes all fit into the fewest chunks.
    """
    part_C, sizes, kept_C = [], [], []
    for alike, first, end in zip(*(x.tolist() for x in (alike_C, first_C, end_C)), strict=True):
        more = end + 1 - max(first, min(alike, end + 1))
        if not sizes or alike <= stem or sizes[-1] + more > CHUNK_ROWS:
            alike, more = stem, end + 1 - first
            sizes.append(0)
        sizes[-1] += more
        part_C.append(len(sizes) - 1)
        kept_C.append(alike)
    total, longest = sum(sizes), max(sizes)
    wanted = -(-total // max(longest, CHUNK_ROWS))
    width = max(longest, -(-total // wanted))
    while max(chunks := _fit(sizes, width)) >= wanted:
        width += 1
    return torch.tensor(chunks)[torch.tensor(part_C)], torch.tensor(kept_C)


def _fit(sizes: list[int], width: int) -> list[int]:
    """The chunk of each part, longest first, each into the fullest chunk that has room."""
    chunks, with_room, count = [0] * len(sizes), {}, 0
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        need = sizes[index]
        room = next((r for r in range(need, width + 1) if with_room.get(r)), None)
        if room is None:
            room, chunk = width, count
            count += 1
        else:
            chunk = with_room[room].pop()
        chunks[index] = chunk
        with_room.setdefault(room - need, []).append(chunk)
    return chunks
