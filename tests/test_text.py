"""The fast text path computes what CLIP's full-length pass computes."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import clip
import pytest
import reference
import torch
from clip.model import CLIP
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from torch.nn import functional as F

from benchmarks.clips import random_student
from benchmarks.steps import Bench
from models import clip as clip_loader
from models import text
from models.blocks import queries
from models.clip import LoadedClip
from models.learners import (
    ConditionalLearner,
    ContextLearner,
    CoupledLearner,
    IndependentLearner,
    VisionLearner,
)
from models.packing import make_plan
from models.plain_text import PlainTextEncoder
from models.prompted_clip import HandwrittenCLIP, PromptedCLIP, template_features
from models.templates import fill
from models.text import PromptLayout, TextEncoder

NAMES = ["cat", "Highway or Road", "Saint_Bernard", "pirate ship", "a", "2012 BMW M3 coupe!"]
WIDTH = 128


CUTTING = functools.partial(clip.tokenize, truncate=True)  # as models/clip.py takes it


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


def full_prompts(names, words):
    """Full-length prompts with words in the context's place, and the names' numbers of tokens."""
    spoken = [name.replace("_", " ") for name in names]
    tokens_CL = tokenize([f"{words} {name}." for name in spoken])
    return tokens_CL, (tokenize(spoken).argmax(-1) - 1).tolist()


def both_ways(clip_model, position, per_class, names, words="a photo of a"):
    """Features and context gradients of the fast path and of the full-length reference."""
    count = len(words.split())
    width = clip_model.positional_embedding.shape[1]
    shape = (len(names), count, width) if per_class else (count, width)
    start = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    layout = PromptLayout.build(names, tokenize, words, position, per_class)
    encoder = TextEncoder(clip_model, layout)

    tokens_CL, lengths = full_prompts(names, words)

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
            ["word " * 80], functools.partial(_tokenize, CUTTING, 77), "a photo of a"
        )


def test_unknown_position_is_refused():
    with pytest.raises(ValueError, match="choose one of end, middle, front"):
        PromptLayout.build(["cat"], tokenize, "a", "beginning")


def test_a_tower_that_is_not_clips_is_refused():
    with pytest.raises(ValueError, match="Choose a CLIP model as MODEL.BACKBONE.NAME"):
        TextEncoder(torch.nn.Linear(1, 1), PromptLayout.build(["cat"], tokenize, "a"))


# Every host, with everything that it learns


def random_start(count: int = 4) -> torch.Tensor:
    return torch.randn(count, WIDTH)


HOSTS = {  # name -> (learner, where the class name stands, a context for each class)
    "coop-end": lambda: (ContextLearner(random_start()), "end"),
    "coop-middle": lambda: (ContextLearner(random_start()), "middle"),
    "coop-front": lambda: (ContextLearner(random_start()), "front"),
    "csc-end": lambda: (ContextLearner(random_start(), len(NAMES)), "end"),
    "csc-middle": lambda: (ContextLearner(random_start(), len(NAMES)), "middle"),
    "csc-front": lambda: (ContextLearner(random_start(), len(NAMES)), "front"),
    "cocoop": lambda: (ConditionalLearner(random_start(), 64), "end"),
    "vpt": lambda: (VisionLearner(random_start(), torch.randn(2, 2, 64)), "end"),
    "ivlp": lambda: (IndependentLearner(random_start(), 2, 2, torch.randn(2, 2, 64)), "end"),
    "maple": lambda: (CoupledLearner(random_start(), 2, 3, 64), "end"),
    "promptsrc": lambda: (IndependentLearner(random_start(), 4, 5, torch.randn(2, 4, 64)), "end"),
}


def loaded(clip_model: torch.nn.Module, path: str = "fast", chunk: int = 0) -> LoadedClip:
    ends = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "precision": "fp32"}
    return LoadedClip(
        "random", clip_model, tokenize, "", 32, device=torch.device("cpu"), **ends,
        text_path=path, text_chunk=chunk,
    )  # fmt: skip


def plain_text(clip_model, learner, prompts, position: str) -> torch.Tensor:
    """Unit features of a learner's prompts, one context after the other, written out."""
    tokens_CL, lengths = full_prompts(NAMES, "a photo of a")
    slot_CL = reference.coop_slots(tokens_CL, lengths, learner.num_words, position)
    own_axes = 3 if learner.ctx.dim() == 3 else 2
    leading = prompts.context.shape[: prompts.context.dim() - own_axes]
    contexts = prompts.context.flatten(0, len(leading) - 1) if leading else prompts.context[None]
    deep = [None] * len(contexts)
    if prompts.deep is not None:
        deep = prompts.deep.reshape(len(contexts), *prompts.deep.shape[-3:])
    rows = []
    for context, layers in zip(contexts, deep, strict=True):
        embedded = reference.coop_embeddings(clip_model, tokens_CL, lengths, context, position)
        rows.append(
            reference.text_features(clip_model, embedded, tokens_CL.argmax(-1), layers, slot_CL)
        )
    return F.normalize(torch.stack(rows).reshape(*leading, len(NAMES), -1), dim=-1)


def with_gradients(learner, text: torch.Tensor) -> tuple[torch.Tensor, dict]:
    """Features, and gradients of all that the learner learns."""
    learner.zero_grad()
    if text.requires_grad:
        torch.sin(3 * text).sum().backward()  # a gradient that differs in every entry
    grads = {name: value.grad for name, value in learner.named_parameters()}
    return text.detach(), {k: v.clone() for k, v in grads.items() if v is not None}


def assert_equal_results(ours, plain, bound: float = 1e-10) -> None:
    assert (ours[0] - plain[0]).abs().max() < bound
    assert ours[1].keys() == plain[1].keys()
    for name, gradient in plain[1].items():
        assert (ours[1][name] - gradient).abs().max() < bound, name


@pytest.mark.parametrize("negative", [False, True], ids=["one", "twin"])
@pytest.mark.parametrize("host", HOSTS)
def test_every_host_and_path_equals_the_written_out_tower(clip_model, host, negative):
    torch.manual_seed(2)
    learner, position = HOSTS[host]()
    if negative:
        learner.add_negative(random_start())
    for value in learner.parameters():  # a twin's deep prompts, CoCoOp's network: apart
        value.data += 0.1 * torch.randn_like(value)
    learner.double()
    image_BD = F.normalize(torch.randn(2, 64, dtype=torch.float64), dim=-1)
    given = (image_BD,) if learner.conditional else ()
    some = torch.tensor([4, 0, 2])
    plain_all = plain_text(clip_model, learner, learner(*given), position)
    plain_some = with_gradients(learner, plain_all[..., some, :])
    plain_all = with_gradients(learner, plain_text(clip_model, learner, learner(*given), position))
    assert not negative or (plain_all[0][0] - plain_all[0][1]).abs().max() > 0.01
    for path, chunk in [("fast", 0), ("fast", 2), ("reference", 0), ("reference", 4)]:
        model = PromptedCLIP(
            loaded(clip_model, path, chunk), learner, NAMES, "a photo of a", position,
            per_class=host.startswith("csc"),
        )  # fmt: skip
        assert_equal_results(with_gradients(learner, model.text_features(*given)), plain_all)
        with torch.no_grad():
            assert (model.text_features(*given) - plain_all[0]).abs().max() < 1e-10
        subset = model.text_features(*given, classes=some)
        assert_equal_results(with_gradients(learner, subset), plain_some)


@pytest.mark.parametrize("position", ["middle", "front"])
@pytest.mark.parametrize("per_class", [False, True], ids=["shared", "class-specific"])
def test_deep_prompts_replace_context_tokens_wherever_they_stand(clip_model, position, per_class):
    """No host has these; the encoder serves them all the same, and so does the plain one."""
    layout = PromptLayout.build(NAMES, tokenize, "a photo of a", position, per_class)
    context = torch.randn((len(NAMES),) * per_class + (4, WIDTH), dtype=torch.float64)
    start = torch.randn(2, 2, WIDTH, dtype=torch.float64)
    tokens_CL, lengths = full_prompts(NAMES, "a photo of a")
    embedded = reference.coop_embeddings(clip_model, tokens_CL, lengths, context, position)
    slot_CL = reference.coop_slots(tokens_CL, lengths, 4, position)
    results = []
    for encode in (
        lambda deep: TextEncoder(clip_model, layout)(context, deep),
        lambda deep: PlainTextEncoder(clip_model, layout)(context, deep),
        lambda deep: reference.text_features(
            clip_model, embedded, tokens_CL.argmax(-1), deep, slot_CL
        ),
    ):
        deep = start.clone().requires_grad_()
        features_CD = encode(deep)
        torch.sin(3 * features_CD).sum().backward()
        results.append((features_CD.detach(), {"deep": deep.grad}))
    for ours in results[:2]:
        assert_equal_results(ours, results[2])


# Many classes, long names


@pytest.fixture(scope="module")
def tiny_model() -> torch.nn.Module:
    torch.manual_seed(0)
    model = CLIP(8, 32, 1, 64, 16, 77, 49408, 16, 2, 2)
    return model.double().requires_grad_(False)


LAYOUTS = [(position, own) for position in ("end", "middle", "front") for own in (False, True)]


@pytest.mark.parametrize(
    ("position", "per_class", "count"),
    [(*layout, count) for layout in LAYOUTS for count in (1, 2, 50)]
    + [("end", False, 1000), ("middle", False, 1000), ("front", True, 1000)],
)
def test_any_number_of_classes(tiny_model, position, per_class, count):
    names = IMAGENET_CLASSNAMES[:count]
    fast, fast_grad, plain, plain_grad = both_ways(tiny_model, position, per_class, names)
    assert (fast - plain).abs().max() < 1e-10
    assert (fast_grad - plain_grad).abs().max() < 1e-10 * plain_grad.abs().max().clamp(min=1)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_names_of_1_to_60_tokens(tiny_model, position):
    names = ["cat " * count for count in range(60, 0, -1)]
    assert (tokenize(names).argmax(-1) - 1).tolist() == list(range(60, 0, -1))
    fast, fast_grad, plain, plain_grad = both_ways(tiny_model, position, False, names)
    assert (fast - plain).abs().max() < 1e-10
    assert (fast_grad - plain_grad).abs().max() < 1e-10


@pytest.mark.parametrize(("position", "per_class"), LAYOUTS)
def test_names_that_begin_alike(tiny_model, position, per_class):
    """More of them than a chunk holds, one twice, one the beginning of others, in no order."""
    names = ["great", "sea", *(f"great {name}" for name in IMAGENET_CLASSNAMES[:70]), "sea", "sea"]
    fast, fast_grad, plain, plain_grad = both_ways(tiny_model, position, per_class, names)
    assert (fast - plain).abs().max() < 1e-10
    assert (fast_grad - plain_grad).abs().max() < 1e-10


def test_a_tower_of_one_layer():
    torch.manual_seed(0)
    model = CLIP(8, 32, 1, 64, 16, 77, 49408, 16, 2, 1).double().requires_grad_(False)
    fast, fast_grad, plain, plain_grad = both_ways(model, "end", False, NAMES)
    assert (fast - plain).abs().max() < 1e-10
    assert (fast_grad - plain_grad).abs().max() < 1e-10


def random_layout(count: int) -> PromptLayout:
    """Prompts "start, 4 learned tokens, 1 to 8 words, end" as a vocabulary list would give."""
    words_C = torch.randint(1, 9, (count,), generator=torch.Generator().manual_seed(3))
    place_L = torch.arange(1 + 4 + 8 + 1)
    end_C = 5 + words_C
    token_CL = torch.randint(1000, 40000, (count, len(place_L)))
    token_CL[:, 0] = 49406
    token_CL = token_CL.masked_fill(place_L > end_C[:, None], 0)
    token_CL[torch.arange(count), end_C] = 49407
    slot_L = torch.where((place_L >= 1) & (place_L <= 4), place_L - 1, -1)
    return PromptLayout(token_CL, slot_L.expand_as(token_CL).clone(), end_C, 4, per_class=False)


def test_20000_names_are_encoded_and_a_thousand_of_them_trained(tiny_model, monkeypatch):
    layout, context = random_layout(20_000), torch.randn(2, 4, 16, dtype=torch.float64)
    encoder = TextEncoder(tiny_model, layout)
    monkeypatch.setattr(text, "_ENCODING_BYTES", 1 << 24)
    with torch.no_grad():
        every = encoder(context)
    assert every.shape == (2, 20_000, 8) and len(encoder._pieces(None, 2, False)) > 1
    some = torch.arange(19_999, 0, -20)
    context.requires_grad_()
    part = encoder(context, classes=some)
    part.square().sum().backward()
    assert (part - every[:, some]).abs().max() < 1e-12 and context.grad.abs().max() > 0


def test_pieces_of_automatic_size_change_nothing(tiny_model, monkeypatch):
    layout = PromptLayout.build(IMAGENET_CLASSNAMES[:100], tokenize, "a photo of a")
    encoder = TextEncoder(tiny_model, layout)
    results = []
    for bound in (1 << 40, 1 << 18):
        monkeypatch.setattr(text, "_TRAINING_BYTES", bound)
        context = torch.randn(
            2, 4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        ).requires_grad_()
        features = encoder(context)
        features.square().sum().backward()
        results.append((features.detach(), {"context": context.grad}))
        results[-1][1]["pieces"] = torch.tensor(len(encoder._pieces(None, 2, True)))
    one, many = (grads.pop("pieces") for _, grads in results)
    assert one == 1 and many > 3
    assert_equal_results(*results, bound=1e-12)


def test_pieces_leave_room_for_every_context(tiny_model, monkeypatch):
    layout = PromptLayout.build(IMAGENET_CLASSNAMES[:100], tokenize, "a photo of a")
    encoder = TextEncoder(tiny_model, layout)
    for contexts in (1, 2, 3):
        context = torch.randn(contexts, 4, 16, dtype=torch.float64, requires_grad=True)
        monkeypatch.setattr(text, "_TRAINING_BYTES", 1 << 40)
        kept = saved_bytes(encoder, context)
        # Two thirds of what all contexts keep are too little, four thirds are enough.
        for share, fits in ((2 / 3, False), (4 / 3, True)):
            monkeypatch.setattr(text, "_TRAINING_BYTES", int(share * kept))
            one = len(encoder._pieces(None, contexts, with_gradient=True)) == 1
            assert one is fits, (contexts, share)


def test_pieces_are_of_one_size_the_first_may_be_smaller(tiny_model, monkeypatch):
    names = IMAGENET_CLASSNAMES[:10]
    layout = PromptLayout.build(names, tokenize, "a photo of a")
    for piece, sizes in ((3, [1, 3, 3, 3]), (5, [5, 5]), (10, [10]), (99, [10]), (1, [1] * 10)):
        encoder = TextEncoder(tiny_model, layout, piece)
        for gradient in (False, True):
            pieces = encoder._pieces(None, 1, gradient)
            assert [len(part) for part in pieces] == sizes
            assert torch.cat(pieces).tolist() == list(range(10))
        some = torch.tensor([7, 0, 3, 9])
        assert torch.cat(encoder._pieces(some, 1, True)).tolist() == some.tolist()
    monkeypatch.setattr(text, "_TRAINING_BYTES", 1)  # not even one class fits: one at a time
    assert len(TextEncoder(tiny_model, layout)._pieces(None, 1, True)) == 10
    assert len(TextEncoder(tiny_model, layout)._pieces(None, 1, False)) == 1


@pytest.mark.parametrize("learned", ["context", "deep"])
def test_pieces_keep_what_one_of_them_needs(tiny_model, monkeypatch, learned):
    layout = PromptLayout.build(IMAGENET_CLASSNAMES[:100], tokenize, "a photo of a")
    encoder = TextEncoder(tiny_model, layout)
    context = torch.randn(1, 4, 16, dtype=torch.float64, requires_grad=learned == "context")
    deep = torch.randn(1, 1, 2, 16, dtype=torch.float64, requires_grad=learned == "deep")
    given = [context, deep] if learned == "deep" else [context]
    monkeypatch.setattr(text, "_TRAINING_BYTES", 1 << 40)
    whole = saved_bytes(encoder, *given)
    monkeypatch.setattr(text, "_TRAINING_BYTES", whole // 4)
    assert len(encoder._pieces(None, 1, True)) >= 4
    assert saved_bytes(encoder, *given) < whole / 2


# Prompts without a learned token


TEMPLATES = ["a photo of a {}.", "{} texture.", "itap of the {}, a type of pet, once seen."]


def encode_text(model, names, template) -> torch.Tensor:
    return model.encode_text(tokenize(fill(template, names)))


@pytest.mark.parametrize(
    "names",
    [NAMES, NAMES[:1], ["cat", "dog", "cat"], [f"{'cat ' * 60}", "cat"], IMAGENET_CLASSNAMES[:300]],
    ids=["six", "one", "twice", "60 tokens", "300"],
)
def test_templates_equal_clips_own_encoder(tiny_model, monkeypatch, names):
    own_norm = torch.nn.LayerNorm.forward  # CLIP's goes through float32
    monkeypatch.setattr(clip.model.LayerNorm, "forward", own_norm)
    own_ECD = torch.stack([encode_text(tiny_model, names, template) for template in TEMPLATES])
    monkeypatch.setattr(text, "_ENCODING_BYTES", 1 << 18)  # 300 names in several pieces
    features_ECD = template_features(loaded(tiny_model), names, TEMPLATES)
    assert (features_ECD - own_ECD).abs().max() < 1e-10 and not features_ECD.requires_grad
    reference_ECD = template_features(loaded(tiny_model, "reference"), names, TEMPLATES)
    assert (reference_ECD - own_ECD).abs().max() < 1e-14


def test_templates_do_not_go_through_77_tokens(clip_model, monkeypatch):
    monkeypatch.setattr(clip_model, "encode_text", None)
    zero_shot = HandwrittenCLIP(loaded(clip_model), NAMES, " | ".join(TEMPLATES))
    assert zero_shot.text_features().shape == (len(NAMES), 64)


def test_templates_keep_the_dtype_of_the_tower(tiny_model):
    exact = template_features(loaded(tiny_model), NAMES, TEMPLATES[:1])[0]
    half, single = (copy.deepcopy(tiny_model).float() for _ in range(2))
    clip.model.convert_weights(half)
    towers = [loaded(half), replace(loaded(single), precision="bf16")]
    for tower, dtype in zip(towers, (torch.float16, torch.bfloat16), strict=True):
        with tower.autocast():
            plain = encode_text(tower.model, NAMES, TEMPLATES[0])
        ours = template_features(tower, NAMES, TEMPLATES[:1])[0]
        assert ours.dtype == plain.dtype == dtype
        assert (ours - exact).abs().max() < 2 * (plain - exact).abs().max()


def test_a_name_too_long_for_a_template_is_refused(clip_model):
    checked = replace(
        loaded(clip_model), tokenize=functools.partial(clip_loader._tokenize, CUTTING, 77)
    )
    with pytest.raises(ValueError, match="Shorten the class name"):
        template_features(checked, ["cat", "word " * 73], ["a photo of a {}."])


# Constants are those of the model and the classes that are asked for


def test_no_constant_is_stale(clip_model):
    layout = PromptLayout.build(NAMES, tokenize, "a photo of a", "front")
    context = torch.randn(4, WIDTH, dtype=torch.float64, requires_grad=True)
    encoder, plain = TextEncoder(clip_model, layout), PlainTextEncoder(clip_model, layout)

    def agree(classes=None):
        difference = encoder(context, classes=classes) - plain(context, classes=classes)
        return difference.abs().max() < 1e-10

    with torch.inference_mode():
        assert agree()
    encoder(context).sum().backward()  # what inference kept serves training
    for classes in ([3, 1], [0], None, [5, 4, 3, 2, 1, 0]):
        assert agree(None if classes is None else torch.tensor(classes))
    kept = clip_model.transformer.resblocks[0].attn.in_proj_weight.detach().clone()
    try:
        clip_model.load_state_dict(
            {"transformer.resblocks.0.attn.in_proj_weight": 2 * kept}, strict=False
        )
        assert agree()
    finally:
        clip_model.transformer.resblocks[0].attn.in_proj_weight.data.copy_(kept)
    assert TextEncoder(clip_model.float(), layout)(context.float()).dtype == torch.float32
    assert encoder(context.float()).dtype == torch.float32
    clip_model.double()
    assert agree()


# What is computed and kept


def test_a_positive_prompt_that_is_not_learned_is_encoded_once(clip_model):
    learner, position = HOSTS["vpt"]()
    learner.add_negative(random_start())
    model = PromptedCLIP(loaded(clip_model), learner.double(), NAMES, "a photo of a", position)
    model.text_features()
    seen = []
    model.text_encoder.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    text_CD = model.text_features(classes=torch.tensor([1, 3]))
    assert seen == [1] and text_CD.shape == (2, 2, 64)


@pytest.mark.parametrize(
    ("position", "per_class", "constants", "live"),
    [  # names of 1 and 2 tokens; start, four learned tokens, name, full stop, end
        ("end", False, 1, 4 + (1 + 2) + (2 + 2)),
        ("end", True, 1, (4 + 1 + 2) + (4 + 2 + 2)),
        ("front", False, 1 + 1 + 2, 2 * (4 + 2)),
        ("middle", False, 1, 2 + (1 + 2 + 2) + (2 + 2 + 2)),
    ],
)
def test_each_token_is_computed_once_and_constants_apart(position, per_class, constants, live):
    layout = PromptLayout.build(
        ["cat", "pirate ship"], tokenize, "a photo of a", position, per_class
    )
    plan = make_plan(layout, None, torch.float64, torch.device("cpu"))
    counts = [
        rows.stem + rows.chunks[0] * rows.chunks[1] for rows in (plan.constant.all, plan.live.all)
    ]
    assert counts == [constants, live]


def test_names_that_begin_alike_share_rows_within_a_chunk():
    def computed(names):
        layout = PromptLayout.build(names, tokenize, "a photo of a")
        rows = make_plan(layout, None, torch.float64, torch.device("cpu")).live.all
        return rows.chunks

    assert computed(["great white shark", "cat", "great grey owl"]) == (1, (1 + 4 + 4) + 3)
    assert computed(["cat", "dog", "cat"]) == (1, 3 + 3)
    chunks = computed([f"great {name}" for name in IMAGENET_CLASSNAMES[:200]])
    assert chunks[0] > 10 and chunks[1] <= 66  # a part is cut where it would outgrow a chunk


def test_the_first_layer_asks_for_learned_rows_and_the_last_for_ends(clip_model, monkeypatch):
    layout = PromptLayout.build(["cat", "pirate ship"], tokenize, "a photo of a")
    encoder = TextEncoder(clip_model, layout)
    context = torch.randn(4, WIDTH, dtype=torch.float64)
    encoder(context)  # makes the constants
    seen = []
    monkeypatch.setattr(
        text, "queries", lambda attention, x: seen.append(x) or queries(attention, x)
    )
    encoder(context)
    assert [x.shape[-2] for x in seen] == [4, 4 + 3 + 4, 2]


def test_chunks_waste_little():
    layout = PromptLayout.build(IMAGENET_CLASSNAMES, tokenize, "a photo of a")
    rows = make_plan(layout, None, torch.float32, torch.device("cpu")).live.all
    computed = rows.chunks[0] * rows.chunks[1]
    prompts = zip(layout.token_CL.tolist(), layout.end_C.tolist(), strict=True)
    beginnings = {tuple(row[: place + 1]) for row, end in prompts for place in range(end + 1)}
    needed = len(beginnings) - layout.prefix_length
    assert needed < int((layout.end_C + 1 - layout.prefix_length).sum())
    assert needed <= computed <= 1.02 * needed and rows.chunks[1] <= 66


def random_clip() -> CLIP:
    """ViT-B/16's text tower with random weights; the image tower is as small as can be."""
    torch.manual_seed(0)
    return CLIP(512, 32, 1, 64, 16, 77, 49408, 512, 8, 12).float().eval().requires_grad_(False)


def saved_bytes(encoder: TextEncoder, *given: torch.Tensor) -> int:
    """Bytes that a forward pass keeps for backward, weights not counted."""
    own = {value.untyped_storage().data_ptr() for value in encoder.parameters()}
    kept: dict[int, int] = {}

    def note(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        features = encoder(*given)
    del features
    return sum(kept.values())


def test_backward_keeps_an_18th_of_what_77_tokens_keep():
    """At ViT-B's size with 50 classes the 77-token pass keeps 1273 MiB (docs/LOG.md)."""
    model = random_clip()
    encoder = TextEncoder(
        model, PromptLayout.build(IMAGENET_CLASSNAMES[:50], tokenize, "a photo of a")
    )
    kept = saved_bytes(encoder, torch.randn(4, 512, requires_grad=True))
    assert kept * 18 <= 1273 * 2**20
    estimate = encoder._bytes(torch.arange(50))  # what decides on the size of pieces
    assert 0.9 * kept < estimate < 1.2 * kept


@pytest.mark.gpu
@pytest.mark.parametrize(("count", "largest"), [(1000, 3_000_000_000), (20_000, 8_000_000_000)])
def test_an_fdbpl_step_over_many_names_fits_on_a_card(count, largest):
    """Batch 32, a positive and a negative prompt, all four terms."""
    cuda = torch.device("cuda")
    bench = Bench(random_student("ViT-B/16", "fp32", cuda))
    every = list(dict.fromkeys(IMAGENET_CLASSNAMES))
    turns = range(-(-count // len(every)))
    names = [f"{turn} {name}" if turn else name for turn in turns for name in every][:count]
    image_BD, loss = bench.image_features(32), bench.fdbpl_loss(count)
    torch.cuda.reset_peak_memory_stats(cuda)
    model = PromptedCLIP(bench.clip, bench.coop_learner(negative=True), names, "a photo of a")
    loss(model.logits(image_BD, model.text_features())).backward()
    assert torch.cuda.max_memory_allocated(cuda) <= largest


@pytest.mark.parametrize("position", ["middle", "front"])
def test_a_closing_bracket_takes_the_full_stop_before_the_context_as_in_coop(position):
    """CLIP's tokenizer has one token for ")." and CoOp cuts by the name's length without it."""
    merged = [name for name in IMAGENET_CLASSNAMES if name.endswith(")")]
    assert len(merged) == 6
    stop, merged_stop = clip.tokenize(["."])[0, 1].item(), clip.tokenize([")."])[0, 1].item()
    tokens_CL, lengths = full_prompts(IMAGENET_CLASSNAMES, "a photo of a")
    layout = PromptLayout.build(IMAGENET_CLASSNAMES, tokenize, "a photo of a", position)
    before = {"middle": 2, "front": 0}[position]
    rows = zip(tokens_CL.tolist(), lengths, layout.token_CL.tolist(), layout.slot_CL.tolist(),
               layout.end_C.tolist(), IMAGENET_CLASSNAMES, strict=True)  # fmt: skip
    for full, length, tokens, slots, end, name in rows:
        prefix, suffix = full[:1], full[5:]  # CoOp's token_prefix and token_suffix
        learned = [None] * 4
        plain = [*prefix, *learned[:before], *suffix[:length], *learned[before:], *suffix[length:]]
        found = [None if slot >= 0 else token for token, slot in zip(tokens, slots, strict=True)]
        assert found == plain[: len(found)]
        assert [slot for slot in slots if slot >= 0] == [0, 1, 2, 3]
        after_name, last = 1 + before + length, found[end - 1]
        if name in merged:  # nothing but end-of-text follows the context
            assert found[after_name - 1] == merged_stop and last is None
        else:
            assert found[after_name - 1] != stop and last == stop


def test_an_unknown_text_path_is_refused():
    from dassl.config import get_cfg_default

    from configs.defaults import extend_cfg
    from trainers.base import PromptTrainer

    for key, value, message in (
        ("TEXT_PATH", "slow", "MODEL.TEXT_PATH is 'slow'; choose fast or reference"),
        ("TEXT_CHUNK", -1, "MODEL.TEXT_CHUNK is -1"),
    ):
        cfg = get_cfg_default()
        extend_cfg(cfg)
        cfg.MODEL.BACKBONE.NAME = "toy-student"
        cfg.MODEL[key] = value
        with pytest.raises(ValueError, match=message):
            PromptTrainer.check_cfg(None, cfg)
