"""What prompt learning trains: tokens of the text tower, of the image tower, and what couples them.

A learner holds parameters, float32 whatever the towers compute in, and turns them into Prompts.
Letters: N text context tokens, K <= N of them learned, D text width, J layers with prompts of
their own, V prompt tokens of the image tower, W image width, C classes, B images.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.clip import LoadedClip

PLACEHOLDER = "X"  # stands where a context without words will be, one token each
STD = 0.02  # of prompts that start at random, in every official code


class Prompts(NamedTuple):
    """What a learner hands to the towers. Leading axes: positive and negative, images."""

    context: Tensor  # (..., N, D), or (..., C, N, D) with one per class
    deep: Tensor | None = None  # (..., J - 1, K, D): text context from the second layer on
    vision: Tensor | None = None  # (J, V, W): beside the patches, layer by layer


def context_words(context_init: str, num_context: int) -> str:
    """The words that hold the context's place in a prompt: the initial words, or placeholders."""
    words = context_init.replace("_", " ").strip()
    if words:
        return words
    if num_context < 1:
        raise ValueError(f"N_CTX is {num_context}; a learned context has at least one token.")
    return " ".join([PLACEHOLDER] * num_context)


def initial_context(clip: LoadedClip, context_init: str, num_context: int) -> Tensor:
    """(N, D) float32: embeddings of the initial words, or N(0, 0.02) without words, as in CoOp."""
    table = clip.model.token_embedding.weight
    if not context_init.strip():
        return torch.empty(num_context, table.shape[1]).normal_(std=STD)
    tokens = clip.tokenize([context_words(context_init, num_context)])[0]
    return table[tokens[1 : tokens.argmax()]].detach().float().cpu()


def random_prompts(depth: int, num_tokens: int, width: int) -> Tensor:
    """(depth, num_tokens, width) float32 from N(0, 0.02), as the official codes start them."""
    return torch.empty(depth, num_tokens, width).normal_(std=STD)


class ContextLearner(nn.Module):
    """The text context of one prompt: `ctx`, (K, D), or (C, N, D) with one per class.

    Words of the initial context beyond the first K stay as they are: MaPLe learns "a photo" and
    keeps "of a". After add_negative() there are two prompts, and contexts come stacked, (2, ...).
    """

    conditional = False  # True: prompts depend on the image

    def __init__(
        self,
        initial_ND: Tensor,
        num_classes: int | None = None,
        num_learned: int | None = None,
        text_depth: int = 1,
    ):
        """
        Args:
            num_classes: every class gets a context of its own with the same start.
            num_learned: K; all N when None.
            text_depth: J of the text tower; deeper layers start from N(0, 0.02).
        """
        super().__init__()
        learned_KD, kept = initial_ND[:num_learned], initial_ND[len(initial_ND[:num_learned]) :]
        if num_classes is not None:
            learned_KD = learned_KD.expand(num_classes, -1, -1)
        self.ctx = nn.Parameter(learned_KD.clone())
        self.register_buffer("kept", kept.clone(), persistent=False)
        self.register_parameter("negative_ctx", None)
        self.register_buffer("negative_kept", None, persistent=False)
        deep = random_prompts(text_depth - 1, *self.ctx.shape[-2:])
        self.deep_text = nn.ParameterList(nn.Parameter(layer) for layer in deep)
        self.negative_deep_text = nn.ParameterList()

    def add_negative(self, initial_ND: Tensor) -> None:
        """Give the prompt a negative twin that starts from other words.

        Its deep text prompts start as the positive ones do.

        Raises:
            ValueError: the two prompts start from different numbers of tokens.
        """
        num_learned = self.ctx.shape[-2]
        if len(initial_ND) != self.num_words:
            raise ValueError(
                f"The positive context has {self.num_words} tokens and NEGATIVE_INIT "
                f"{len(initial_ND)}; both prompts need the same number of words."
            )
        self.negative_ctx = nn.Parameter(initial_ND[:num_learned].expand_as(self.ctx).clone())
        self.negative_kept = initial_ND[num_learned:].clone()
        self.negative_deep_text = nn.ParameterList(
            layer.detach().clone() for layer in self.deep_text
        )

    @property
    def num_words(self) -> int:
        """N: tokens of the context, learned and kept ones."""
        return self.ctx.shape[-2] + len(self.kept)

    @property
    def has_vision(self) -> bool:
        """Whether the image tower gets prompts."""
        return False

    def forward(self) -> Prompts:
        return Prompts(self.contexts(), self.deep())

    def contexts(self) -> Tensor:
        """(N, D) or (C, N, D); with a negative twin (2, ...), the positive one first."""
        positive = _with_kept(self.ctx, self.kept)
        if self.negative_ctx is None:
            return positive
        return torch.stack([positive, _with_kept(self.negative_ctx, self.negative_kept)])

    def deep(self) -> Tensor | None:
        """(J - 1, K, D), or (2, J - 1, K, D) with a negative twin."""
        if not len(self.deep_text):
            return None
        positive = torch.stack(list(self.deep_text))
        if self.negative_ctx is None:
            return positive
        return torch.stack([positive, torch.stack(list(self.negative_deep_text))])


class ConditionalLearner(ContextLearner):
    """CoCoOp: a small network turns an image's feature into a shift of all context tokens.

    A negative twin is shifted by the same network. Source: arXiv:2203.05557.
    """

    conditional = True

    def __init__(self, initial_ND: Tensor, image_width: int):
        """image_width: width of the joint embedding; the hidden layer has a 16th of it."""
        super().__init__(initial_ND)
        hidden = image_width // 16
        if not hidden:
            raise ValueError(f"CoCoOp needs image features of width 16 or more, not {image_width}.")
        self.meta_net = nn.Sequential()
        self.meta_net.add_module("linear1", nn.Linear(image_width, hidden))
        self.meta_net.add_module("relu", nn.ReLU())
        self.meta_net.add_module("linear2", nn.Linear(hidden, initial_ND.shape[-1]))

    def forward(self, image_BD: Tensor) -> Prompts:
        """Contexts (B, N, D), or (2, B, N, D), for unit features of images."""
        shift_BD = self.meta_net(image_BD.to(self.ctx.dtype))
        return Prompts(self.contexts()[..., None, :, :] + shift_BD[:, None])


class VisionLearner(ContextLearner):
    """VPT: prompts of the image tower; the text is fixed words. Source: arXiv:2203.12119."""

    def __init__(self, words_ND: Tensor, vision_JVW: Tensor):
        super().__init__(words_ND, num_learned=0)
        del self.ctx
        self.register_buffer("ctx", words_ND.new_zeros(0, words_ND.shape[-1]), persistent=False)
        self.vision = nn.ParameterList(nn.Parameter(layer) for layer in vision_JVW)

    @property
    def has_vision(self) -> bool:
        return True

    def add_negative(self, initial_ND: Tensor) -> None:
        """A learned negative text beside the fixed positive one: all its words are learned."""
        super().add_negative(initial_ND)
        self.negative_ctx = nn.Parameter(self.negative_kept)
        self.negative_kept = self.negative_kept[:0]

    def forward(self) -> Prompts:
        return Prompts(self.contexts(), vision=torch.stack(list(self.vision)))


class IndependentLearner(ContextLearner):
    """IVLP and PromptSRC: prompts of both towers that know nothing of each other.

    Source: MaPLe (arXiv:2210.03117), its independent baseline; PromptSRC (arXiv:2307.06948).
    """

    def __init__(
        self,
        initial_ND: Tensor,
        num_learned: int,
        text_depth: int,
        vision_JVW: Tensor | None,
    ):
        """vision_JVW: None for language prompts alone."""
        super().__init__(initial_ND, num_learned=num_learned, text_depth=text_depth)
        layers = () if vision_JVW is None else vision_JVW
        self.vision = nn.ParameterList(nn.Parameter(layer) for layer in layers)

    @property
    def has_vision(self) -> bool:
        return len(self.vision) > 0

    def forward(self) -> Prompts:
        vision = torch.stack(list(self.vision)) if self.has_vision else None
        return Prompts(self.contexts(), self.deep(), vision)


class CoupledLearner(ContextLearner):
    """MaPLe: image prompts are linear images of the text prompts, layer by layer.

    A negative twin has text prompts alone. Source: arXiv:2210.03117.
    """

    def __init__(self, initial_ND: Tensor, num_learned: int, depth: int, vision_width: int):
        super().__init__(initial_ND, num_learned=num_learned, text_depth=depth)
        text_width = initial_ND.shape[-1]
        self.proj = nn.Linear(text_width, vision_width)
        first = nn.Linear(text_width, vision_width)  # all deeper ones start alike, as in MaPLe
        self.deep_proj = nn.ModuleList()
        for _ in self.deep_text:
            self.deep_proj.append(nn.Linear(text_width, vision_width))
            self.deep_proj[-1].load_state_dict(first.state_dict())

    @property
    def has_vision(self) -> bool:
        return True

    def forward(self) -> Prompts:
        vision = [self.proj(self.ctx)]
        vision += [layer(deep) for layer, deep in zip(self.deep_proj, self.deep_text, strict=True)]
        return Prompts(self.contexts(), self.deep(), torch.stack(vision))


def _with_kept(learned: Tensor, kept: Tensor) -> Tensor:
    return torch.cat([learned, kept], dim=-2) if len(kept) else learned
