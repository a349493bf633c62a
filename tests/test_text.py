"""The fast text path computes what CLIP's full-length pass computes."""

from __future__ import annotations

import clip
import pytest
import reference
import torch
from clip.model import CLIP

from models.text import PromptLayout, TextEncoder

NAMES = ["cat", "Highway or Road", "Saint_Bernard", "pirate ship", "a", "2012 BMW M3 coupe!"]
WIDTH = 128


def tokenize(texts: list[str]) -> torch.Tensor:
    return clip.tokenize(texts).long()


@pytest.fixture(scope="module")
def clip_model() -> torch.nn.Module:
    torch.manual_seed(0)
    model = CLIP(64, 32, 1, 64, 16, 77, 49408, WIDTH, 2, 3)
    for name, value in model.named_parameters():  # layer norms and biases start trivial
        if "ln_" in name or name.endswith("bias"):
            value.data += 0.1 * torch.randn_like(value)
    return model.double().requires_grad_(False)


def both_ways(clip_model, position, per_class, names, words="a photo of a"):
    """Features and context gradients of the fast path and of the full-length reference."""
    count = len(words.split())
    shape = (len(names), count, WIDTH) if per_class else (count, WIDTH)
    start = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    layout = PromptLayout.build(names, tokenize, words, position, per_class)
    encoder = TextEncoder(clip_model, layout)

    spoken = [name.replace("_", " ") for name in names]
    tokens_CL = tokenize([f"{words} {name}." for name in spoken])
    lengths = (tokenize(spoken).argmax(-1) - 1).tolist()

    def plain(context):
        embedded = reference.coop_embeddings(clip_model, tokens_CL, lengths, context, position)
        return reference.text_features(clip_model, embedded, tokens_CL.argmax(-1))

    results = []
    for encode in (encoder, plain):
        context = start.clone().requires_grad_()
        features_CD = encode(context)
        torch.sin(3 * features_CD).sum().backward()  # a gradient that differs in every entry
        results += [features_CD.detach(), context.grad]
    return results


@pytest.mark.parametrize("per_class", [False, True], ids=["shared", "class-specific"])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("names", [NAMES, NAMES[:1], ["cat", "dog"]], ids=["six", "one", "two"])
def test_fast_path_equals_full_length_reference(clip_model, position, per_class, names):
    fast, fast_grad, plain, plain_grad = both_ways(clip_model, position, per_class, names)
    assert (fast - plain).abs().max() < 1e-10
    assert (fast_grad - plain_grad).abs().max() < 1e-10


def test_sixteen_random_tokens_in_the_middle(clip_model):
    fast, fast_grad, plain, plain_grad = both_ways(
        clip_model, "middle", False, NAMES, words=" ".join(["X"] * 16)
    )
    assert (fast - plain).abs().max() < 1e-10
    assert (fast_grad - plain_grad).abs().max() < 1e-10


def test_odd_context_splits_like_the_official_code(clip_model):
    """Three tokens in the middle position: one before the name, two after."""
    layout = PromptLayout.build(["cat"], tokenize, "X X X", "middle")
    assert layout.slot_CL[0, :5].tolist() == [-1, 0, -1, 1, 2]


def test_stacked_contexts_equal_one_by_one(clip_model):
    layout = PromptLayout.build(NAMES, tokenize, "a photo of a")
    encoder = TextEncoder(clip_model, layout)
    context = torch.randn(2, 4, WIDTH, dtype=torch.float64)
    stacked = encoder(context)
    assert stacked.shape == (2, len(NAMES), 64)
    for index in range(2):
        assert (stacked[index] - encoder(context[index])).abs().max() < 1e-12


def test_plain_words_equal_clips_own_encoder(clip_model):
    """Context tokens set to word embeddings are the words: encode_text of clip in float32."""
    model = clip_model.float()
    tokens = tokenize(["a photo of a cat.", "a photo of a Saint Bernard."])
    layout = PromptLayout.build(["cat", "Saint_Bernard"], tokenize, "a photo of a")
    context = model.token_embedding(tokens[0, 1:5])
    fast = TextEncoder(model, layout)(context)
    torch.testing.assert_close(fast, model.encode_text(tokens), atol=1e-5, rtol=1e-5)
    clip_model.double()


def test_nothing_after_end_of_text_and_the_prefix_once():
    """The work that a layout asks for: 5 shared places, then up to the longest end-of-text."""
    layout = PromptLayout.build(["cat", "pirate ship"], tokenize, "a photo of a")
    assert layout.token_CL.shape == (2, 5 + len(["pirate", "ship", ".", "end"]))
    assert layout.prefix_length == 5
    assert PromptLayout.build(NAMES, tokenize, "a b", "front").prefix_length == 1
    assert PromptLayout.build(["cat", "dog"], tokenize, "a b", per_class=True).prefix_length == 1


def test_name_that_merges_with_the_full_stop_ends_where_its_tokens_end():
    """ "coupe!" and "." become one token "!.", so name length + 2 would miss end-of-text."""
    layout = PromptLayout.build(["coupe!"], tokenize, "a photo of a")
    ids = layout.token_CL[0]
    assert ids[layout.end_C[0]] == 49407 and (ids == 49407).sum() == 1


def test_too_long_a_name_is_refused(clip_model):
    from models.clip import _tokenize

    with pytest.raises(ValueError, match="Shorten the class name"):
        PromptLayout.build(
            ["word " * 80], lambda texts: _tokenize(clip.tokenize, 77, texts), "a photo of a"
        )


def test_unknown_position_is_refused():
    with pytest.raises(ValueError, match="choose one of end, middle, front"):
        PromptLayout.build(["cat"], tokenize, "a", "beginning")


def test_a_tower_that_is_not_clips_is_refused():
    with pytest.raises(ValueError, match="Choose a CLIP model as MODEL.BACKBONE.NAME"):
        TextEncoder(torch.nn.Linear(1, 1), PromptLayout.build(["cat"], tokenize, "a"))
