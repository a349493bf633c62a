"""Where the words of each class's prompt stand, and where the learned context.

Letters: C classes, L tokens of the longest prompt, N context tokens, P tokens of the shared prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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

    @classmethod
    def of_tokens(cls, token_CL: Tensor) -> PromptLayout:
        """Prompts without a learned token: int64 ids as a tokenizer gives them."""
        end_C = token_CL.argmax(dim=-1)
        token_CL = token_CL[:, : int(end_C.max()) + 1]
        return cls(token_CL, torch.full_like(token_CL, -1), end_C, num_context=0, per_class=False)


def _order(place_L: Tensor, position: str, num_context: int, name_length: int) -> Tensor:
    """Places of the "end" layout in the order in which another layout reads them."""
    start, rest = place_L[:1], place_L[1 + num_context :]
    context, name, tail = place_L[1 : 1 + num_context], rest[:name_length], rest[name_length:]
    before = {"end": num_context, "middle": num_context // 2, "front": 0}[position]
    return torch.cat([start, context[:before], name, context[before:], tail])
