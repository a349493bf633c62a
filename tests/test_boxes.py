"""Regions are drawn as random resized crops are, and replayed to the pixel."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as TF

from regions.boxes import box_to_pixels, cut, cut_all, sample_boxes
from regions.store.spec import RegionImage, RegionSpec, region_settings

SIDES = (1, 2, 3, 7, 64, 97, 333, 500, 1023, 1024, 5000, 7001)


def spec_of(*images: RegionImage, **changes) -> RegionSpec:
    values = {
        "teacher": "t",
        "teacher_digest": "",
        "teacher_precision": "fp32",
        "template": "a photo of a {}.",
        "classnames": ("a", "b"),
        "images": images or (RegionImage("x.jpg", 0, 90, 120),),
        "image_size": 8,
        "num_regions": 50,
        "scale": (0.08, 0.936),
        "ratio": (0.75, 4 / 3),
        "flip": 0.5,
        "seed": 1,
    }
    return RegionSpec(**{**values, **changes})


def fractions(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    return (pixels / (height, width, height, width)).astype(np.float32)


@pytest.mark.parametrize("side", [1, 2, 3, 7, 29, 100, 255])
def test_every_interval_of_a_small_side_survives_float32(side):
    for top in range(side):
        for height in range(1, side - top + 1):
            box = fractions(np.array([top, 0, height, 1]), side, 1)
            assert box_to_pixels(box, side, 1) == (top, 0, height, 1)


@pytest.mark.parametrize("height", SIDES)
@pytest.mark.parametrize("width", SIDES)
def test_random_boxes_of_any_image_survive_float32(height, width):
    rng = np.random.default_rng(height * 10007 + width)
    top, left = rng.integers(0, height, 50), rng.integers(0, width, 50)
    tall, wide = rng.integers(1, height - top + 1), rng.integers(1, width - left + 1)
    pixels = np.stack([top, left, tall, wide], axis=1)
    for box, wanted in zip(fractions(pixels, height, width), pixels.tolist(), strict=True):
        assert box_to_pixels(box, height, width) == tuple(wanted)


@pytest.mark.parametrize("height", SIDES)
@pytest.mark.parametrize("width", SIDES)
def test_drawn_boxes_are_whole_pixels_inside_the_image(height, width):
    image = RegionImage("x.jpg", 0, height, width)
    boxes, flips = sample_boxes(spec_of(image), image)
    assert boxes.dtype == np.float32 and boxes.shape == (50, 4) and flips.shape == (50,)
    for box in boxes:
        top, left, tall, wide = pixels = box_to_pixels(box, height, width)
        assert top >= 0 and left >= 0 and tall >= 1 and wide >= 1
        assert top + tall <= height and left + wide <= width
        assert (fractions(np.array(pixels), height, width) == box).all()


def test_areas_and_shapes_are_those_of_random_resized_crop():
    image = RegionImage("x.jpg", 0, 900, 1200)
    boxes, flips = sample_boxes(spec_of(image, num_regions=4000), image)
    height, width = boxes[:, 2] * 900, boxes[:, 3] * 1200
    area, ratio = height * width / (900 * 1200), width / height
    assert 0.079 < area.min() < 0.09 and 0.87 < area.max() < 0.94
    assert 0.745 < ratio.min() < 0.77 and 1.30 < ratio.max() < 1.34
    # Our quantiles against torchvision's own draws: areas, shapes and positions.
    torch.manual_seed(0)
    blank = Image.new("1", (1200, 900))
    theirs = np.array(
        [RandomResizedCrop.get_params(blank, [0.08, 0.936], [0.75, 4 / 3]) for _ in range(4000)]
    )
    ours = boxes * (900, 1200, 900, 1200)
    quantiles = np.linspace(0.05, 0.95, 10)
    gap = np.abs(np.quantile(ours, quantiles, axis=0) - np.quantile(theirs, quantiles, axis=0))
    assert (gap < 30).all(), gap  # pixels
    assert abs(flips.mean() - 0.5) < 0.03


def test_an_image_too_narrow_for_the_shape_gives_its_centre_as_in_torchvision():
    for height, width in ((1, 50), (50, 1), (9, 400), (1, 1)):
        image = RegionImage("x.jpg", 0, height, width)
        spec = spec_of(image, scale=(1.0, 1.0), num_regions=3)
        boxes, _ = sample_boxes(spec, image)
        blank = Image.new("1", (width, height))
        wanted = RandomResizedCrop.get_params(blank, [1.0, 1.0], [0.75, 4 / 3])
        for box in boxes:
            assert box_to_pixels(box, height, width) == tuple(wanted)


def test_a_draw_depends_on_seed_and_path_alone():
    first, second = RegionImage("a/x.jpg", 0, 90, 120), RegionImage("a/y.jpg", 1, 90, 120)
    spec = spec_of(first, second)
    boxes, flips = sample_boxes(spec, first)
    again, flips_again = sample_boxes(spec_of(second, first._replace(label=1)), first)
    assert (boxes == again).all() and (flips == flips_again).all()
    assert (sample_boxes(spec, second)[0] != boxes).any()
    assert (sample_boxes(replace(spec, seed=2), first)[0] != boxes).any()


def test_fewer_regions_are_the_first_of_more():
    image = RegionImage("x.jpg", 0, 90, 120)
    many, many_flips = sample_boxes(spec_of(image, num_regions=50), image)
    few, few_flips = sample_boxes(spec_of(image, num_regions=4), image)
    assert (many[:4] == few).all() and (many_flips[:4] == few_flips).all()


@pytest.mark.parametrize("flip, wanted", [(0.0, 0), (1.0, 50)])
def test_flip_can_be_switched_off_and_on(flip, wanted):
    spec = spec_of(flip=flip)
    assert sample_boxes(spec, spec.images[0])[1].sum() == wanted


def test_a_cut_is_torchvisions_resized_crop():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (91, 53, 3), np.uint8))
    stored = RegionImage("x.png", 0, 91, 53)
    spec = spec_of(stored, num_regions=6)
    boxes, flips = sample_boxes(spec, stored)
    regions = cut_all(image, boxes, flips, 24)
    for box, flip, region in zip(boxes, flips, regions, strict=True):
        plain = TF.resized_crop(
            image, *box_to_pixels(box, 91, 53), [24, 24], TF.InterpolationMode.BICUBIC
        )
        wanted = TF.hflip(plain) if flip else plain
        assert (region == np.asarray(wanted)).all()
        assert (region == np.asarray(cut(image, box, flip, 24))).all()


@pytest.mark.parametrize(
    "box", [(0.5, 0, 0.6, 1), (-0.1, 0, 0.5, 1), (float("nan"), 0, 1, 1), (0, float("nan"), 1, 1)]
)
def test_a_box_outside_the_image_is_refused(box):
    with pytest.raises(ValueError, match="leaves the image"):
        box_to_pixels(box, 10, 10)


@pytest.mark.parametrize(
    "key, value",
    [
        ("NUM_REGIONS", 0),
        ("REGION_SCALE", (0.0, 1.0)),
        ("REGION_SCALE", (0.9, 0.1)),
        ("REGION_SCALE", (0.1, 1.1)),
        ("REGION_RATIO", (2.0, 0.5)),
        ("REGION_FLIP", 1.5),
    ],
)
def test_a_senseless_value_is_refused_with_its_key(key, value):
    keys = {
        "NUM_REGIONS": 4,
        "REGION_SCALE": (0.08, 0.936),
        "REGION_RATIO": (0.75, 4 / 3),
        "REGION_FLIP": 0.5,
        key: value,
    }
    cfg = SimpleNamespace(TRAINER=SimpleNamespace(FDBPL=SimpleNamespace(**keys)), SEED=1)
    with pytest.raises(ValueError, match=f"TRAINER.FDBPL.{key} is"):
        region_settings(cfg)


def test_an_unseeded_dump_is_refused():
    keys = SimpleNamespace(
        NUM_REGIONS=4, REGION_SCALE=(0.1, 1.0), REGION_RATIO=(1.0, 1.0), REGION_FLIP=0.5
    )
    with pytest.raises(ValueError, match="give --seed a number"):
        region_settings(SimpleNamespace(TRAINER=SimpleNamespace(FDBPL=keys), SEED=-1))
