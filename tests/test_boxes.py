"""Regions are drawn as random resized crops are, and replayed to the pixel."""

from __future__ import annotations

import hashlib
import math
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


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("side", [1, 10])
def test_a_box_as_high_as_the_image_lies_anywhere_along_it(side, upright):
    """A square of the image's shorter side fits: 21 places of 10 x 10 in 10 x 30, all alike."""
    long = 3 * side if side > 1 else 30
    height, width = (long, side) if upright else (side, long)
    image = RegionImage("x.jpg", 0, height, width)
    spec = spec_of(image, scale=(side / long,) * 2, ratio=(1.0, 1.0), num_regions=6000)
    boxes, _ = sample_boxes(spec, image)
    pixels = np.array([box_to_pixels(box, height, width) for box in boxes])
    assert (pixels[:, 2:] == side).all()
    along, across = pixels[:, 1 - upright], pixels[:, int(upright)]
    assert (across == 0).all()
    counts = np.bincount(along)
    assert len(counts) == long - side + 1
    assert abs(counts / 6000 * len(counts) - 1).max() < 0.35  # 200 to 286 draws of each place


@pytest.mark.parametrize("ratio, wanted", [(2.0, (50, 100)), (0.5, (100, 50)), (1.0, (71, 71))])
def test_the_ratio_is_width_over_height(ratio, wanted):
    """Half of 100 x 100 pixels in a given shape: 5000 = h * (ratio h)."""
    image = RegionImage("x.jpg", 0, 100, 100)
    boxes, _ = sample_boxes(spec_of(image, scale=(0.5, 0.5), ratio=(ratio, ratio)), image)
    assert {box_to_pixels(box, 100, 100)[2:] for box in boxes} == {wanted}


def test_boxes_of_an_image_are_those_of_stores_that_are_there():
    """Pinned: other draws would not be those that a teacher has answered."""
    image = RegionImage("a/x.jpg", 0, 375, 500)
    boxes, flips = sample_boxes(spec_of(image, num_regions=4), image)
    assert [box_to_pixels(box, 375, 500) for box in boxes] == [
        (29, 8, 334, 355),
        (11, 65, 363, 414),
        (50, 9, 154, 123),
        (0, 30, 373, 358),
    ]
    assert flips.tolist() == [False, False, True, True]


def slow_draw(spec: RegionSpec, image: RegionImage) -> list[tuple[int, ...]]:
    """torchvision's loop, region by region, on the numbers of our generator: pixels and flips."""
    digest = hashlib.sha256(f"{spec.seed}\n{image.path}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "little"))
    drawn = []
    for _ in range(spec.num_regions):
        flip, *numbers = rng.random(41).tolist()
        found = None
        for area, shape, down, right in zip(*[iter(numbers)] * 4, strict=True):
            share = spec.scale[0] * (1 - area) + spec.scale[1] * area
            aspect = spec.ratio[0] ** (1 - shape) * spec.ratio[1] ** shape
            width = round(math.sqrt(share * image.height * image.width * aspect))
            height = round(math.sqrt(share * image.height * image.width / aspect))
            if 0 < width <= image.width and 0 < height <= image.height:
                found = (
                    int(down * (image.height - height + 1)),
                    int(right * (image.width - width + 1)),
                    height,
                    width,
                )
                break
        if found is None:
            aspect = min(max(image.width / image.height, spec.ratio[0]), spec.ratio[1])
            width = max(1, min(image.width, round(image.height * aspect)))
            height = max(1, min(image.height, round(image.width / aspect)))
            found = (image.height - height) // 2, (image.width - width) // 2, height, width
        drawn.append((*found, flip < spec.flip))
    return drawn


@pytest.mark.parametrize(
    "height, width", [(90, 120), (1, 1), (2, 2), (3, 5), (1, 50), (50, 1), (9, 400), (400, 9)]
)
def test_a_draw_equals_the_plain_loop(height, width):
    image = RegionImage("x.jpg", 0, height, width)
    common, flat, upright = (0.75, 4 / 3), (3.0, 4.0), (0.2, 0.3)
    for scale, ratio in (
        *(((0.08, 0.936), ratio) for ratio in (common, flat, upright)),
        ((1.0, 1.0), common),
        ((0.0001, 0.001), common),
    ):
        spec = spec_of(image, scale=scale, ratio=ratio, num_regions=30, flip=0.3)
        boxes, flips = sample_boxes(spec, image)
        found = [
            (*box_to_pixels(box, height, width), flip)
            for box, flip in zip(boxes, flips.tolist(), strict=True)
        ]
        assert found == slow_draw(spec, image)


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
    "box, height, width, wanted",
    [
        ((1.0, 1.0, 0.0, 0.0), 10, 20, (9, 19, 1, 1)),  # nothing at the far corner
        ((0.0, 0.0, 0.0, 0.0), 10, 20, (0, 0, 1, 1)),
        ((0.5, 0.5, 0.5, 0.5), 3, 3, (2, 2, 1, 1)),  # 1.5 and 1.5 pixels, both rounded up
        ((0.5, 0.0, 0.5 + 9.5e-7, 1.0), 10, 20, (5, 0, 5, 20)),  # beyond the edge by rounding
    ],
)
def test_a_box_is_at_least_a_pixel_and_ends_with_the_image(box, height, width, wanted):
    assert box_to_pixels(box, height, width) == wanted


@pytest.mark.parametrize(
    "box",
    [
        *((0.5, 0, 0.6, 1), (0, 0.5, 1, 0.6), (-0.1, 0, 0.5, 1), (0, -0.1, 1, 0.5)),
        *((0.5, 0.5, -0.1, 0.2), (0.5, 0.5, 0.2, -0.1), (0.5, 0, 0.5 + 2e-6, 1)),
        *((float("nan"), 0, 1, 1), (0, float("nan"), 1, 1), (0, 0, float("nan"), 1)),
    ],
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
