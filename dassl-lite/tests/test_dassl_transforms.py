"""Transforms: sizes, order, the test transform, names."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T

from dassl.config import get_cfg_default
from dassl.data.transforms import INTERPOLATION_MODES, build_transform
from dassl.data.transforms.transforms import KNOWN, Cutout

PIXELS = np.random.RandomState(0).randint(0, 256, (40, 60, 3), dtype=np.uint8)
IMAGE = Image.fromarray(PIXELS)


def input_cfg(*names: str, size=(24, 32), mode="bicubic"):
    cfg = get_cfg_default()
    cfg.merge_from_list(["INPUT.SIZE", size, "INPUT.TRANSFORMS", names])
    cfg.INPUT.INTERPOLATION = mode
    return cfg


def test_test_transform_is_resize_crop_normalise():
    cfg = input_cfg("random_resized_crop", "random_flip", "normalize")
    expected = T.Compose(
        [
            T.Resize(32, interpolation=T.InterpolationMode.BICUBIC),
            T.CenterCrop((24, 32)),
            T.ToTensor(),
            T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )(IMAGE)
    assert torch.equal(build_transform(cfg, is_train=False)(IMAGE), expected)


def test_train_transform_of_the_family_equals_torchvision(capsys):
    cfg = input_cfg("random_resized_crop", "random_flip", "normalize")
    torch.manual_seed(0)
    found = build_transform(cfg)(IMAGE)
    torch.manual_seed(0)
    crop = T.RandomResizedCrop((24, 32), (0.08, 1.0), interpolation=T.InterpolationMode.BICUBIC)
    image = T.ToTensor()(T.RandomHorizontalFlip()(crop(IMAGE)))
    assert torch.equal(found, T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)(image))
    assert capsys.readouterr().out.splitlines() == [
        "Building transform_train",
        "+ random resized crop (size=(24, 32), scale=(0.08, 1.0))",
        "+ random flip",
        "+ to torch tensor of range [0, 1]",
        "+ normalization (mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])",
    ]


def test_a_transform_tells_all_that_it_does():
    """Features that were kept of a test transform are found by its repr()."""
    changes = [{"size": (24, 33)}, {"mode": "bilinear"}, {}]
    told = {repr(build_transform(input_cfg(**keys), is_train=False)) for keys in changes}
    told.add(repr(build_transform(input_cfg("normalize"), is_train=False)))
    assert len(told) == 4 and not any(" at 0x" in text for text in told)


def test_a_deviation_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"INPUT.PIXEL_STD is \[0.2, 0.0, 0.2\]"):
        cfg = input_cfg("normalize")
        cfg.INPUT.PIXEL_STD = [0.2, 0.0, 0.2]
        build_transform(cfg)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("mode", INTERPOLATION_MODES)
def test_every_transform_gives_the_size(name, mode):
    transform = build_transform(input_cfg(name, mode=mode))
    for seed in range(4):
        random.seed(seed)
        assert transform(IMAGE).shape == (3, 24, 32)


def test_order_in_the_config_does_not_matter():
    names = ["normalize", "cutout", "random_flip", "random_crop"]
    kinds = [type(step) for step in build_transform(input_cfg(*names)).transforms]
    flip, to_tensor, normalize = T.RandomHorizontalFlip, T.ToTensor, T.Normalize
    assert kinds == [T.RandomCrop, flip, to_tensor, Cutout, normalize]


def test_choices_replace_the_config():
    transform = build_transform(input_cfg("normalize"), choices=["random_flip"])
    kinds = [type(step) for step in transform.transforms]
    assert kinds == [T.Resize, T.RandomHorizontalFlip, T.ToTensor]


def test_instance_norm_and_cutout():
    plain = build_transform(input_cfg("instance_norm"), is_train=False)(IMAGE)
    torch.testing.assert_close(plain.mean(dim=(1, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.std(dim=(1, 2)), torch.ones(3), atol=1e-5, rtol=0)
    np.random.seed(0)
    full = torch.ones(3, 24, 32)
    holed = Cutout(n_holes=1, length=6)(full)
    assert 0 < (holed == 0).sum() <= 3 * 36 and full.min() == 1


def test_no_transform():
    cfg = input_cfg()
    cfg.INPUT.NO_TRANSFORM = True
    assert build_transform(cfg) is None


def test_unknown_names_are_told_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'random_flipp'. Known: .*random_flip.*normalize"):
        build_transform(input_cfg("random_flipp"))
    message = "INPUT.INTERPOLATION is 'cubic'. Known: bilinear, bicubic, nearest"
    with pytest.raises(ValueError, match=re.escape(message)):
        build_transform(input_cfg(mode="cubic"))
