"""Image transforms by name. Random ones draw from python's, numpy's or torch's global generator."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor
from torchvision import transforms as T
from yacs.config import CfgNode

INTERPOLATION_MODES = {
    "bilinear": Resampling.BILINEAR,
    "bicubic": Resampling.BICUBIC,
    "nearest": Resampling.NEAREST,
}


class Random2DTranslation:
    """With probability p enlarge the image to 9/8 of the size and crop it anywhere, else resize."""

    def __init__(
        self,
        height: int,
        width: int,
        p: float = 0.5,
        interpolation: Resampling = Resampling.BILINEAR,
    ) -> None:
        self.height, self.width, self.p, self.interpolation = height, width, p, interpolation

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.uniform(0, 1) > self.p:
            return image.resize((self.width, self.height), self.interpolation)
        height, width = round(self.height * 1.125), round(self.width * 1.125)
        enlarged = image.resize((width, height), self.interpolation)
        left = round(random.uniform(0, width - self.width))
        top = round(random.uniform(0, height - self.height))
        return enlarged.crop((left, top, left + self.width, top + self.height))


class InstanceNormalization:
    """Give every channel of an image tensor mean 0 and standard deviation 1."""

    def __init__(self, eps: float = 1e-8) -> None:
        self.eps = eps

    def __call__(self, image_CHW: Tensor) -> Tensor:
        mean_C = image_CHW.mean(dim=(1, 2), keepdim=True)
        std_C = image_CHW.std(dim=(1, 2), keepdim=True)
        return (image_CHW - mean_C) / (std_C + self.eps)


class Cutout:
    """Set square patches of an image tensor to 0 (DeVries and Taylor, arXiv:1708.04552)."""

    def __init__(self, n_holes: int = 1, length: int = 16) -> None:
        self.n_holes, self.length = n_holes, length

    def __call__(self, image_CHW: Tensor) -> Tensor:
        height, width = image_CHW.shape[1:]
        image_CHW = image_CHW.clone()
        for _ in range(self.n_holes):
            y, x = np.random.randint(height), np.random.randint(width)
            rows = slice(max(0, y - self.length // 2), y + self.length // 2)
            columns = slice(max(0, x - self.length // 2), x + self.length // 2)
            image_CHW[:, rows, columns] = 0
        return image_CHW


class GaussianNoise:
    """With probability p add normal noise to an image tensor."""

    def __init__(self, mean: float = 0.0, std: float = 0.15, p: float = 0.5) -> None:
        self.mean, self.std, self.p = mean, std, p

    def __call__(self, image_CHW: Tensor) -> Tensor:
        if random.uniform(0, 1) > self.p:
            return image_CHW
        return image_CHW + torch.randn(image_CHW.shape) * self.std + self.mean


# One training step: its line in the log, and the transform.
Step = tuple[str, Any]


def _random_translation(keys: CfgNode) -> Step:
    return "random translation", Random2DTranslation(*keys.SIZE)


def _random_crop(keys: CfgNode) -> Step:
    padding = keys.CROP_PADDING
    return f"random crop (padding = {padding})", T.RandomCrop(keys.SIZE, padding=padding)


def _random_resized_crop(keys: CfgNode) -> Step:
    size, scale = keys.SIZE, keys.RRCROP_SCALE
    return (
        f"random resized crop (size={size}, scale={scale})",
        T.RandomResizedCrop(size, scale, interpolation=_interpolation(keys)),
    )


def _random_flip(keys: CfgNode) -> Step:
    return "random flip", T.RandomHorizontalFlip()


def _colorjitter(keys: CfgNode) -> Step:
    b, c, s, h = keys.COLORJITTER_B, keys.COLORJITTER_C, keys.COLORJITTER_S, keys.COLORJITTER_H
    return (
        f"color jitter (brightness={b}, contrast={c}, saturation={s}, hue={h})",
        T.ColorJitter(b, c, s, h),
    )


def _randomgrayscale(keys: CfgNode) -> Step:
    return "random gray scale", T.RandomGrayscale(p=keys.RGS_P)


def _gaussian_blur(keys: CfgNode) -> Step:
    blur = T.RandomApply([T.GaussianBlur(keys.GB_K)], p=keys.GB_P)
    return f"gaussian blur (kernel={keys.GB_K})", blur


def _cutout(keys: CfgNode) -> Step:
    holes, length = keys.CUTOUT_N, keys.CUTOUT_LEN
    return f"cutout (n_holes={holes}, length={length})", Cutout(holes, length)


def _normalize(keys: CfgNode) -> Step:
    mean, std = keys.PIXEL_MEAN, keys.PIXEL_STD
    if 0 in std:
        raise ValueError(f"INPUT.PIXEL_STD is {list(std)}; pixels are divided by it.")
    return f"normalization (mean={mean}, std={std})", T.Normalize(mean, std)


def _gaussian_noise(keys: CfgNode) -> Step:
    mean, std = keys.GN_MEAN, keys.GN_STD
    return f"gaussian noise (mean={mean}, std={std})", GaussianNoise(mean, std)


def _instance_norm(keys: CfgNode) -> Step:
    return "instance normalization", InstanceNormalization()


# The order is that of application, whatever the order in INPUT.TRANSFORMS.
ON_IMAGES: dict[str, Callable[[CfgNode], Step]] = {
    "random_translation": _random_translation,
    "random_crop": _random_crop,
    "random_resized_crop": _random_resized_crop,
    "random_flip": _random_flip,
    "colorjitter": _colorjitter,
    "randomgrayscale": _randomgrayscale,
    "gaussian_blur": _gaussian_blur,
}
ON_TENSORS: dict[str, Callable[[CfgNode], Step]] = {
    "cutout": _cutout,
    "normalize": _normalize,
    "gaussian_noise": _gaussian_noise,
    "instance_norm": _instance_norm,
}
AT_TEST = ("normalize", "instance_norm")
# center_crop is what the test transform does in any case; naming it changes nothing.
KNOWN = (*ON_IMAGES, *ON_TENSORS, "center_crop")


def build_transform(
    cfg: CfgNode, is_train: bool = True, choices: Sequence[str] | None = None
) -> T.Compose | None:
    """Build the transform from a PIL image to a float tensor (3, height, width).

    Training applies the chosen steps. Testing resizes the shorter edge to max(INPUT.SIZE), crops
    the centre to INPUT.SIZE, and normalises if chosen.

    Args:
        choices: names that replace INPUT.TRANSFORMS.
    Returns:
        The transform; None with INPUT.NO_TRANSFORM.
    Raises:
        ValueError: an unknown transform or interpolation; the message lists the known ones.
    """
    keys = cfg.INPUT
    if keys.NO_TRANSFORM:
        print("Note: no transform is applied!")
        return None
    choices = keys.TRANSFORMS if choices is None else choices
    unknown = [name for name in choices if name not in KNOWN]
    if unknown:
        raise ValueError(
            f"INPUT.TRANSFORMS holds {', '.join(map(repr, unknown))}. Known: {', '.join(KNOWN)}"
        )
    steps = _train_steps(keys, choices) if is_train else _test_steps(keys, choices)
    print("Building transform_train" if is_train else "Building transform_test")
    for line, _ in steps:
        print(f"+ {line}")
    return T.Compose([step for _, step in steps])


def build_plain_transform(cfg: CfgNode) -> T.Compose:
    """Resize to INPUT.SIZE without augmentation; normalised if INPUT.TRANSFORMS says so."""
    keys = cfg.INPUT
    steps = [T.Resize(keys.SIZE, interpolation=_interpolation(keys)), T.ToTensor()]
    if "normalize" in keys.TRANSFORMS:
        steps.append(_normalize(keys)[1])
    return T.Compose(steps)


def _train_steps(keys: CfgNode, choices: Sequence[str]) -> list[Step]:
    steps = []
    if "random_crop" not in choices and "random_resized_crop" not in choices:
        resize = T.Resize(keys.SIZE, interpolation=_interpolation(keys))
        steps.append((f"resize to {_size(keys)}", resize))
    steps += [build(keys) for name, build in ON_IMAGES.items() if name in choices]
    steps.append(_to_tensor())
    steps += [build(keys) for name, build in ON_TENSORS.items() if name in choices]
    return steps


def _test_steps(keys: CfgNode, choices: Sequence[str]) -> list[Step]:
    edge = max(keys.SIZE)
    resize = T.Resize(edge, interpolation=_interpolation(keys))
    steps = [
        (f"resize the smaller edge to {edge}", resize),
        (f"{_size(keys)} center crop", T.CenterCrop(keys.SIZE)),
        _to_tensor(),
    ]
    return steps + [ON_TENSORS[name](keys) for name in AT_TEST if name in choices]


def _to_tensor() -> Step:
    return "to torch tensor of range [0, 1]", T.ToTensor()


def _size(keys: CfgNode) -> str:
    return f"{keys.SIZE[0]}x{keys.SIZE[1]}"


def _interpolation(keys: CfgNode) -> Resampling:
    if keys.INTERPOLATION not in INTERPOLATION_MODES:
        raise ValueError(
            f"INPUT.INTERPOLATION is {keys.INTERPOLATION!r}. Known: "
            f"{', '.join(INTERPOLATION_MODES)}"
        )
    return INTERPOLATION_MODES[keys.INTERPOLATION]
