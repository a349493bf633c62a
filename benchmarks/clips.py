"""CLIPs with random weights at real sizes: what a step costs does not depend on the weights."""

from __future__ import annotations

import clip
import torch
from open_clip import create_model, list_models
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from torch import Tensor

from models.clip import OPENAI_MEAN, OPENAI_STD, LoadedClip, supported_precision
from models.prompted_clip import unit

TINY = "tiny"  # for tests
# embed_dim, image size, image layers, image width, patch, places, vocabulary, text width, heads,
# text layers: OpenAI's published configurations.
STUDENTS = {
    "ViT-B/16": (512, 224, 12, 768, 16, 77, 49408, 512, 8, 12),
    "ViT-B/32": (512, 224, 12, 768, 32, 77, 49408, 512, 8, 12),
    "ViT-L/14": (768, 224, 24, 1024, 14, 77, 49408, 768, 12, 12),
    TINY: (32, 32, 2, 64, 16, 77, 49408, 64, 2, 2),
}


def class_names(count: int) -> list[str]:
    """The first names of ImageNet's list, whose lengths are what real prompts have.

    Raises:
        ValueError: there are not so many.
    """
    if not 1 <= count <= len(IMAGENET_CLASSNAMES):
        raise ValueError(f"--classes {count}: it needs 1 to {len(IMAGENET_CLASSNAMES)}.")
    return list(IMAGENET_CLASSNAMES[:count])


def random_student(name: str, precision: str, device: torch.device) -> LoadedClip:
    """
    Raises:
        ValueError: the name is not one of STUDENTS.
    """
    if name not in STUDENTS:
        raise ValueError(f"--student {name!r} is unknown; choose one of {', '.join(STUDENTS)}.")
    precision = supported_precision(precision, device)
    torch.manual_seed(0)
    model = clip.model.CLIP(*STUDENTS[name])
    if precision == "fp16":
        clip.model.convert_weights(model)
    return _loaded(name, model, STUDENTS[name][1], precision, device)


def random_teacher(name: str, device: torch.device, half: bool = False) -> LoadedClip:
    """A teacher's image tower; the text tower works once per run and is left out.

    Args:
        half: weights in bfloat16, the fastest that an online teacher can be.
    Raises:
        ValueError: neither open_clip nor STUDENTS knows the name.
    """
    if name in STUDENTS:
        loaded = random_student(name, "fp32", device)
        model, size = loaded.model, loaded.image_size
    elif name in list_models():
        model = create_model(name, device="meta")
        size = model.visual.image_size[0]
    else:
        raise ValueError(
            f"--teacher {name!r} is unknown; choose one of {', '.join(STUDENTS)} or of "
            "open_clip.list_models(), for example ViT-H-14."
        )
    for part in ("transformer", "token_embedding"):
        if hasattr(model, part):
            delattr(model, part)
    if any(weight.is_meta for weight in model.parameters()):
        fill(model.to_empty(device="cpu"))
    return _loaded(name, in_bfloat16(model) if half else model, size, "fp32", device)


def in_bfloat16(model: torch.nn.Module) -> torch.nn.Module:
    """All weights but those of OpenAI's LayerNorm, which computes in float32 and wants them so."""
    for module in model.bfloat16().modules():
        if isinstance(module, clip.model.LayerNorm):
            module.float()
    return model


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    """Weights of the size that training starts from, one block of random numbers repeated.

    Drawing 600 million of them would take longer than timing a step.
    """
    block = torch.randn(4099, generator=torch.Generator().manual_seed(1)) * 0.02
    for weight in model.parameters():
        repeated = block.repeat(-(-weight.numel() // len(block)))
        weight.copy_(repeated[: weight.numel()].view(weight.shape))


def random_unit(*shape: int, device: torch.device) -> Tensor:
    """Rows of length 1, float32."""
    generator = torch.Generator().manual_seed(2)
    return unit(torch.randn(*shape, generator=generator)).to(device)


def _loaded(
    name: str, model: torch.nn.Module, size: int, precision: str, device: torch.device
) -> LoadedClip:
    model.requires_grad_(False)
    return LoadedClip(
        name=name,
        model=model.eval().to(device),
        tokenize=clip.tokenize,
        digest="random",
        image_size=size,
        mean=OPENAI_MEAN,
        std=OPENAI_STD,
        precision=precision,
        device=device,
    )
