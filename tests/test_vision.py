"""The image tower with prompts computes what full attention over all its tokens computes."""

from __future__ import annotations

import clip.model
import open_clip.model
import pytest
import reference
import torch

from models.vision import VisionEncoder

WIDTH, LAYERS = 64, 3


def openai(**_) -> torch.nn.Module:
    return clip.model.CLIP(32, 32, LAYERS, WIDTH, 8, 77, 100, 64, 1, 1)


def open_clips(layer_scale: float | None, quick: bool) -> torch.nn.Module:
    vision = open_clip.model.CLIPVisionCfg(
        layers=LAYERS,
        width=WIDTH,
        head_width=32,
        patch_size=8,
        image_size=32,
        ls_init_value=layer_scale,
    )
    text = open_clip.model.CLIPTextCfg(vocab_size=100, width=64, heads=1, layers=1)
    return open_clip.model.CLIP(32, vision, text, quick_gelu=quick)


TOWERS = {
    "openai": openai,
    "open_clip": lambda: open_clips(None, quick=False),
    "open_clip-quickgelu": lambda: open_clips(None, quick=True),
    "open_clip-layerscale": lambda: open_clips(0.3, quick=False),
}


@pytest.fixture(scope="module", params=TOWERS)
def model(request) -> torch.nn.Module:
    torch.manual_seed(0)
    model = TOWERS[request.param]()
    for name, value in model.named_parameters():  # layer norms, scales and biases start trivial
        if "ln_" in name or "ls_" in name or name.endswith("bias"):
            value.data += 0.1 * torch.randn_like(value)
    return model.double().eval().requires_grad_(False)


@pytest.mark.parametrize("depth", [1, 2, LAYERS, LAYERS + 2])
def test_prompted_tower_equals_full_attention(model, depth):
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    start = torch.randn(depth, 2, WIDTH, dtype=torch.float64)
    results = []
    encoder = VisionEncoder(model)
    for encode in (encoder, lambda *args: reference.image_features(model.visual, *args)):
        prompts = start.clone().requires_grad_()
        features_BD = encode(images, prompts)
        torch.sin(3 * features_BD).sum().backward()
        results.append((features_BD.detach(), prompts.grad))
    (fast, fast_grad), (plain, plain_grad) = results
    assert plain_grad[: min(depth, LAYERS)].abs().amax(dim=(1, 2)).min() > 1e-6
    assert (fast - plain).abs().max() < 1e-10
    assert (fast_grad - plain_grad).abs().max() < 1e-10


def test_without_prompts_it_is_clips_own_encode_image(model):
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    own = VisionEncoder(model)(images)
    assert (own - reference.image_features(model.visual, images, None)).abs().max() < 1e-10
    single = model.float()  # OpenAI's layer norm computes in float32 alone
    with torch.no_grad():
        torch.testing.assert_close(
            VisionEncoder(single)(images.float()),
            single.encode_image(images.float()),
            atol=2e-5,
            rtol=1e-4,
        )
    model.double()
