"""Training sees the pixels and the logits of the dump, the same for any number of workers."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter

import numpy as np
import pytest
import region_world as world
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import functional as TF

import regions.dataset
from regions.boxes import cut
from regions.dataset import RegionDataset, to_input
from regions.loader import RegionSampler, collate_regions
from regions.store import RegionStore, RegionStoreError

FIELDS = ("img", "teacher_logits", "label", "index")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def items(root):
    return world.draw_images(root)


@pytest.fixture(scope="module")
def store(root, items):
    return world.run_dump(root / "store", world.make_spec(root, items), root)


def make_dataset(root, items, store, classes=world.CLASSES, regions_per_step=2, size=world.SIZE):
    return RegionDataset(
        items, store, store.columns(classes), regions_per_step, size, world.MEAN, world.STD, root
    )


def epoch(dataset, workers=0, context=None, seed=7):
    torch.manual_seed(seed)
    loader = DataLoader(
        dataset,
        batch_size=3,
        sampler=RegionSampler(dataset),
        collate_fn=collate_regions,
        num_workers=workers,
        multiprocessing_context=context,
    )
    return list(loader)


def assert_equal_batches(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch["impath"] == other["impath"]
        assert all(torch.equal(batch[field], other[field]) for field in FIELDS)


def test_training_sees_the_very_pixels_that_the_teacher_saw(tmp_path):
    items, seen = world.draw_images(tmp_path), []

    def watching_teacher(images):
        seen.append(images.clone())
        return world.teacher(images)

    spec = world.make_spec(tmp_path, items)
    store = world.run_dump(tmp_path / "store", spec, tmp_path, watching_teacher)
    seen = torch.cat(seen).view(len(items), spec.num_regions, 3, world.SIZE, world.SIZE)
    dataset = make_dataset(tmp_path, items, store)
    for index in range(len(items)):
        sample = dataset[index, torch.arange(spec.num_regions)]
        assert torch.equal(sample["img"], seen[index])
        found, wanted = sample["teacher_logits"], world.teacher(seen[index])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.softmax(-1), wanted.softmax(-1), atol=1e-3, rtol=0)
        assert sample["label"] == items[index].label and sample["impath"] == items[index].impath


def test_a_sample_is_the_plain_pipeline_of_pil_and_torchvision(root, items, store):
    dataset = make_dataset(root, items, store, size=9)  # a student of another size than the teacher
    sample = dataset[4, torch.tensor([3, 0])]
    rows = store.read(4, [3, 0])
    image = Image.open(items[4].impath).convert("RGB")
    for place in range(2):
        region = cut(image, rows.boxes[place], rows.flips[place], 9)
        wanted = TF.normalize(TF.to_tensor(region), world.MEAN, world.STD)
        assert torch.equal(sample["img"][place], wanted)


def test_a_run_on_some_classes_reads_their_columns(root, items, store):
    few = [world.Item(item.impath, item.label - 2) for item in items if item.label >= 2]
    dataset = make_dataset(root, few, store, classes=("cat", "dog"))
    sample = dataset[1, torch.tensor([0])]
    place = store.image_index(store.spec.images[3].path)
    assert sample["index"] == 1 and sample["impath"] == items[3].impath
    logits = store.read(place, [0]).logits[:, 2:].astype(np.float32)
    assert torch.equal(sample["teacher_logits"], torch.from_numpy(logits))


def test_regions_of_a_step_differ_and_follow_torchs_generator(root, items, store):
    dataset = make_dataset(root, items, store, regions_per_step=5)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = dataset[0]
    assert len({tuple(region.flatten().tolist()) for region in first["img"]}) == 5
    second = dataset[0]
    assert not torch.equal(first["teacher_logits"], second["teacher_logits"])
    torch.set_rng_state(state)
    assert torch.equal(dataset[0]["img"], first["img"])


def test_every_order_of_regions_is_drawn_alike_often(root, items, store):
    """60 orders of 3 out of 5; sorted ones would be 10."""
    dataset = make_dataset(root, items, store, regions_per_step=3)
    generator = torch.Generator().manual_seed(0)
    alone = [tuple(dataset.draw_regions(generator).tolist()) for _ in range(6000)]
    torch.manual_seed(0)
    sampled = [tuple(regions.tolist()) for _ in range(858) for _, regions in RegionSampler(dataset)]
    for drawn in (alone, sampled[:6000]):
        counts = Counter(drawn)
        assert len(counts) == 60
        assert all(60 < count < 140 for count in counts.values())


@pytest.mark.parametrize("some", [False, True], ids=["all", "two"])
def test_regions_come_in_the_order_asked_for(root, items, store, some):
    classes = ("dog", "ant") if some else world.CLASSES
    dataset = make_dataset(root, items, store, classes)
    keys = [(4, torch.tensor([3, 0, 2])), (1, torch.tensor([4, 1, 0]))]
    batch, rows = dataset.read_batch(keys)
    logits = batch["teacher_logits"].unflatten(0, (2, 3))
    for place, (image, chosen) in enumerate(keys):
        sample = dataset[image, chosen]
        for slot, region in enumerate(chosen.tolist()):
            alone = dataset[image, torch.tensor([region])]
            assert torch.equal(sample["img"][slot], alone["img"][0])
            assert torch.equal(sample["teacher_logits"][slot], alone["teacher_logits"][0])
            assert torch.equal(logits[place, slot], alone["teacher_logits"][0])
            plain = store.read(image, [region])
            assert (rows.boxes[place, slot] == plain.boxes[0]).all()
            assert rows.flips[place, slot] == plain.flips[0]
            columns = [3, 0] if some else [0, 1, 2, 3]
            assert (logits[place, slot].numpy() == plain.logits[0, columns]).all()


def test_batches_lay_the_regions_of_an_image_side_by_side(root, items, store):
    dataset = make_dataset(root, items, store)
    samples = [dataset[index, torch.tensor([1, 2])] for index in (0, 3)]
    batch = collate_regions(samples)
    assert batch["img"].shape == (4, 3, world.SIZE, world.SIZE)
    assert batch["label"].tolist() == [0, 0, 3, 3] and batch["label"].dtype == torch.int64
    assert batch["index"].tolist() == [0, 0, 3, 3]
    assert batch["impath"] == [items[0].impath] * 2 + [items[3].impath] * 2
    assert torch.equal(batch["teacher_logits"][2:], samples[1]["teacher_logits"])


def test_an_epoch_visits_every_image_once_and_two_epochs_differ(root, items, store):
    dataset = make_dataset(root, items, store)
    batches = epoch(dataset)
    visited = torch.cat([batch["index"] for batch in batches])[::2]
    assert sorted(visited.tolist()) == list(range(len(items)))
    again = torch.cat([batch["index"] for batch in epoch(dataset, seed=8)])[::2]
    assert visited.tolist() != again.tolist()


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_change_nothing(root, items, store, context):
    if context not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {context}")
    dataset = make_dataset(root, items, store)
    assert_equal_batches(epoch(dataset), epoch(dataset, workers=2, context=context))


def test_the_cache_of_decoded_images_changes_nothing(root, items, store, monkeypatch):
    cached = make_dataset(root, items, store)
    monkeypatch.setattr(regions.dataset, "CACHE_BYTES", 0)
    uncached = make_dataset(root, items, store)
    assert cached._cache is not None and uncached._cache is None
    epoch(cached)
    assert len(cached._cache) == len(items)
    assert_equal_batches(epoch(cached), epoch(uncached))


def test_pixels_are_scaled_and_normalised_per_channel():
    white = np.full((1, 2, 2, 3), 255, np.uint8)
    pixels = to_input(white, (0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    assert pixels.shape == (1, 3, 2, 2) and pixels.dtype == torch.float32
    assert pixels[0, :, 0, 0].tolist() == [1.0, 3.0, 0.5]


@pytest.mark.parametrize("number", [0, 6])
def test_more_regions_per_step_than_stored_are_refused(root, items, store, number):
    with pytest.raises(ValueError, match="REGIONS_PER_STEP is .* set it to a number from 1 to 5"):
        make_dataset(root, items, store, regions_per_step=number)


def test_an_image_that_is_not_in_the_store_is_refused(root, items, store):
    stranger = world.Item(str(root / "images" / "new.png"), 0)
    with pytest.raises(RegionStoreError, match="holds none: images/new.png. The split moved"):
        make_dataset(root, [*items, stranger], store)
    outside = world.Item(str(root.parent / "x.png"), 0)
    with pytest.raises(ValueError, match="does not lie under the data root"):
        make_dataset(root, [outside], store)


def test_a_changed_missing_or_broken_image_is_named(tmp_path):
    items = world.draw_images(tmp_path)
    store = world.run_dump(tmp_path / "store", world.make_spec(tmp_path, items), tmp_path)
    dataset = make_dataset(tmp_path, items, store)
    Image.new("RGB", (41, 21)).save(items[0].impath)
    with pytest.raises(RegionStoreError, match="0.png is 21 x 41 pixels, .* drawn at 20 x 41"):
        dataset[0]
    os.truncate(items[1].impath, os.path.getsize(items[1].impath) // 2)
    with pytest.raises(RegionStoreError, match="1.png cannot be read .*Fetch it again"):
        dataset[1]
    os.unlink(items[2].impath)
    with pytest.raises(RegionStoreError, match="2.png is missing. Check --root"):
        dataset[2]


def test_a_moved_data_root_is_served(tmp_path):
    items = world.draw_images(tmp_path / "here")
    spec = world.make_spec(tmp_path / "here", items)
    world.run_dump(tmp_path / "store", spec, tmp_path / "here")
    os.rename(tmp_path / "here", tmp_path / "there")
    moved = [world.Item(i.impath.replace("/here/", "/there/"), i.label) for i in items]
    store = RegionStore.open(tmp_path / "store")
    assert len(make_dataset(tmp_path / "there", moved, store)[0]["img"]) == 2
