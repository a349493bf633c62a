"""Regions cut on the device agree with the dump's cut by Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import region_world
import torch
from PIL import Image
from torch.utils.data import DataLoader
from toy_runs import run

from datasets.toy import TOY_SETS
from regions import pixels
from regions.boxes import cut_all, sample_boxes
from regions.dataset import RegionDataset, RegionSampler, as_it_is, collate_regions
from regions.pixels import DecodedImages, RegionPixels, decoded_bytes, scale_regions
from regions.spec import RegionImage, RegionSpec

CPU = torch.device("cpu")


def noise(height, width, seed=0):
    """The hardest image: neighbours have nothing in common."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def photo(height, width):
    """Like a photograph: strong at low frequencies, with edges and sensor noise."""
    rng = np.random.default_rng(1)
    layers = [
        np.asarray(noise(side, side, side).resize((width, height), Image.Resampling.BICUBIC))
        for side in (2, 4, 8, 16, 32, 64)
    ]
    weights = np.array([8, 4, 2, 1, 0.5, 0.25])
    mixed = np.tensordot(weights / weights.sum(), np.stack(layers).astype(float), 1)
    mixed[height // 3 :, width // 4 : width // 2] *= 0.4
    noisy = (mixed - 128) * 2.5 + 128 + rng.normal(0, 3, mixed.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


IMAGES = {
    "noise 48": lambda: noise(48, 48),
    "noise 31 x 257": lambda: noise(31, 257),
    "noise 333 x 500": lambda: noise(333, 500),
    "photo 375 x 500": lambda: photo(375, 500),
    "photo 900 x 640": lambda: photo(900, 640),
    "photo 224": lambda: photo(224, 224),
    "toy": lambda: TOY_SETS["ToyShapesStrong"].picture("train", 3, 0),
}


@pytest.mark.parametrize("size", [48, 224])
@pytest.mark.parametrize("name", IMAGES)
def test_agrees_with_pillow_to_a_grey_level(name, size):
    """Within one level on average, 99.9 % of the pixels within 3; small, large, mirrored."""
    image = IMAGES[name]().convert("RGB")
    stored = RegionImage(name, 0, image.height, image.width)
    spec = region_world.golden_spec(
        images=(stored,), image_size=size, num_regions=12, scale=(0.02, 1.0)
    )
    boxes, flips = sample_boxes(spec, stored)
    boxes[0], flips[0] = (0, 0, 1, 1), False
    assert flips.any()
    wanted = cut_all(image, boxes, flips, size).astype(int)
    found = scale_regions(
        [np.asarray(image)[_slices(box, image)] for box in boxes], flips, size, CPU
    )
    gap = np.abs(found.permute(0, 2, 3, 1).numpy() - wanted)
    assert gap.mean() <= 1 and (gap <= 3).mean() >= 0.999
    assert gap.mean() <= 0.06 and gap.max() <= 4  # what it is here: no order of Pillow's missed


def _slices(box, image):
    top, left, height, width = pixels.box_to_pixels(box, image.height, image.width)
    return slice(top, top + height), slice(left, left + width)


def test_a_region_does_not_depend_on_the_rest_of_its_batch(monkeypatch):
    regions = [np.asarray(noise(height, 60 - height, height)) for height in (9, 41, 20, 2)]
    flips = np.array([0, 1, 0, 1], bool)
    together = scale_regions(regions, flips, 24, CPU)
    monkeypatch.setattr(pixels, "GROUP", 1)
    shapes = np.array([region.shape[:2] for region in regions])
    assert len(pixels._groups(shapes, pixels.rows_first(shapes, 24))) == 4
    apart = scale_regions(regions, flips, 24, CPU)
    assert (together - apart).abs().max() <= 1  # sums of another order: a level at a tie


def test_batches_are_those_of_the_loader(tmp_path):
    items = region_world.draw_images(tmp_path)
    spec: RegionSpec = region_world.make_spec(tmp_path, items)
    store = region_world.run_dump(tmp_path / "store", spec, tmp_path)
    regions = RegionDataset(
        items, store, store.columns(("cat", "bee")), 2, region_world.SIZE, region_world.MEAN,
        region_world.STD, tmp_path,
    )  # fmt: skip
    sizes = spec.images.sizes[regions.places]
    images = DecodedImages([item.impath for item in items], sizes, tmp_path)
    assert decoded_bytes(sizes) == sum(3 * height * width for height, width in sizes.tolist())
    assert np.array_equal(images[4], np.asarray(Image.open(items[4].impath)))
    found = epoch(RegionPixels(regions, images, CPU), regions, as_it_is)
    for ours, plain in zip(found, epoch(regions, regions, collate_regions), strict=True):
        assert ours["img"].shape == plain["img"].shape
        assert (ours["img"] - plain["img"]).abs().max() <= 8.01 / 255 / min(region_world.STD)
        assert ours["impath"] == plain["impath"]
        for field in ("teacher_logits", "label", "index"):
            assert torch.equal(ours[field], plain[field])


def epoch(dataset, regions, collate):
    torch.manual_seed(7)
    return list(
        DataLoader(dataset, batch_size=3, sampler=RegionSampler(regions), collate_fn=collate)
    )


def test_a_host_with_image_prompts_trains_on_it(world, store, capsys):
    keys = {"epochs": 2, "TEST.NO_TEST": True}
    states, side = {}, TOY_SETS["ToyShapes"].picture("train", 0, 0).height
    for cut in ("pil", "device"):
        trainer = run(world, store, "VPT_FDBPL", f"px/{cut}", **keys, **{"TRAINER.FDBPL.CUT": cut})
        states[cut] = trainer.model.learner.state_dict()
    assert f"Decoded images: {96 * 3 * side**2 / 1e6:.1f} MB in " in capsys.readouterr().out
    for key, value in states["pil"].items():
        torch.testing.assert_close(states["device"][key], value, atol=3e-3, rtol=0)
    for keys, message in (
        ({"TRAINER.FDBPL.CUT": "gpu"}, r"TRAINER.FDBPL.CUT is 'gpu'; choose one of"),
        ({"TRAINER.FDBPL.DECODED_DIR": "/nowhere"}, "DECODED_DIR is /nowhere, which is no folder"),
    ):
        with pytest.raises(ValueError, match=message):
            run(world, store, "VPT_FDBPL", "px/wrong", **keys)
