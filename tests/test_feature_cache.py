"""Features computed once: the same training and predictions, and no file is trusted unchecked."""

from __future__ import annotations

import os
import re
import shutil

import numpy as np
import pytest
import region_world
import torch
from PIL import Image
from torch.utils.data import DataLoader
from toy_runs import flags, options, run

import dump_teacher_logits
from inputs import image_id
from regions.dataset import RegionDataset
from regions.features import (
    Features,
    RegionFeatures,
    Student,
    complete,
    feature_key,
    features_path,
    read_features,
    student_features,
)
from regions.loader import RegionSampler, as_it_is, collate_regions
from regions.store import RegionStore, RegionStoreError
from regions.store.contents import contents_path
from trainers import feature_cache

WIDTH = 8


def encode(images):
    """Unit features that depend on every pixel."""
    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(images[0].numel(), WIDTH, generator=generator)
    return torch.nn.functional.normalize(images.flatten(1) @ weights, dim=-1)


def student(**changes) -> Student:
    keys = {"digest": "d1", "precision": "fp32", "width": WIDTH, "image_size": region_world.SIZE}
    return Student(
        encode,
        **{**keys, "mean": region_world.MEAN, "std": region_world.STD, "at_once": 10, **changes},
    )


def rows(ids):
    """A feature of each id, (n, WIDTH), and a note of the ids that were asked for."""
    rows.asked.append([int(i) for i in ids])
    return np.stack([np.eye(WIDTH, dtype=np.float32)[int(i) % WIDTH] for i in ids])


@pytest.fixture
def path(tmp_path):
    rows.asked = []
    return tmp_path / "cache" / f"{feature_key({'a': 1})}.safetensors"


# The file


def test_only_what_is_missing_is_computed(path):
    first = complete(path, [9, 2], (WIDTH,), rows)
    assert (first.computed, first.path) == (2, path)
    again = complete(path, [2, 9, 2], (WIDTH,), rows)
    assert again.computed == 0
    more = complete(path, [5, 2], (WIDTH,), rows)
    assert more.computed == 1 and rows.asked == [[2, 9], [5]]
    found = read_features(path, (WIDTH,))
    assert found.ids.tolist() == [2, 5, 9]
    assert found.features.argmax(1).tolist() == [2, 5, 1]
    assert more.kept.places(np.array([9, 2], np.uint64)).tolist() == [2, 0]
    with pytest.raises(KeyError, match="no feature of id 3"):
        found.places(np.array([9, 3], np.uint64))
    with pytest.raises(KeyError, match="no feature of id 11"):
        found.places(np.array([11], np.uint64))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def damage_cut(path):
    os.truncate(path, path.stat().st_size - 4)


def damage_flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # a low bit of the last feature: still a number that could be right
    path.write_bytes(content)


def damage_empty(path):
    path.write_bytes(b"")


def damage_noise(path):
    path.write_bytes(os.urandom(500))


def damage_foreign(path):
    other = path.with_name(f"{feature_key({'a': 2})}.safetensors")
    complete(other, [2, 9], (WIDTH,), lambda ids: -rows(ids))
    shutil.move(other, path)


def damage_shape(path):
    complete(path.with_suffix(".x"), [2, 9], (WIDTH,), rows)
    path.unlink()
    complete(path, [2, 9], (2, WIDTH), lambda ids: np.stack([rows(ids)] * 2, axis=1))


@pytest.mark.parametrize(
    "damage",
    [damage_cut, damage_flip, damage_empty, damage_noise, damage_foreign, damage_shape],
)
def test_a_file_that_is_not_what_it_should_be_counts_as_absent(path, damage):
    whole = complete(path, [2, 9], (WIDTH,), rows).kept
    whole = Features(whole.ids.copy(), whole.features.copy())
    damage(path)
    found = complete(path, [2, 9], (WIDTH,), rows)
    assert found.computed == 2
    assert np.array_equal(found.kept.features, whole.features)
    assert np.array_equal(read_features(path, (WIDTH,)).features, whole.features)  # made anew


def test_a_folder_that_cannot_be_written_costs_the_cache_alone(path):
    path.parent.write_text("a file where the folder should be")
    found = complete(path, [2, 9], (WIDTH,), rows)
    assert found.path is None and found.kept.ids.tolist() == [2, 9]


def test_what_is_not_finite_is_not_kept(path):
    found = complete(path, [2], (WIDTH,), lambda ids: np.full((1, WIDTH), np.nan, np.float32))
    assert found.path is None and not path.exists()


# Features of stored regions


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Root, items and store of seven noise images with five regions each."""
    root = tmp_path_factory.mktemp("data")
    items = region_world.draw_images(root)
    store = region_world.run_dump(root / "store", region_world.make_spec(root, items), root)
    return root, items, store


def batches(dataset, sampler_of, collate):
    torch.manual_seed(7)
    sampler = RegionSampler(sampler_of)
    return list(DataLoader(dataset, batch_size=3, sampler=sampler, collate_fn=collate))


def test_batches_are_those_of_the_images(small):
    root, items, store = small
    few = items[1:]
    regions = RegionDataset(
        few, store, store.columns(("dog", "ant")), 2, region_world.SIZE, region_world.MEAN,
        region_world.STD, root,
    )  # fmt: skip
    kept = student_features(store, regions.places, student(), root).kept
    features = RegionFeatures(regions, kept)
    plain = batches(regions, regions, collate_regions)
    fast = batches(features, features, as_it_is)
    assert len(plain) == len(fast) == 2
    for image_batch, feature_batch in zip(plain, fast, strict=True):
        torch.testing.assert_close(feature_batch["img"], encode(image_batch["img"]))
        assert feature_batch["impath"] == image_batch["impath"]
        for field in ("teacher_logits", "label", "index"):
            assert torch.equal(feature_batch[field], image_batch[field])
    torch.manual_seed(3)
    one = features[2]
    torch.manual_seed(3)
    torch.testing.assert_close(one["img"], encode(regions[2]["img"]))


def test_workers_and_earlier_runs_on_other_images_change_nothing(small):
    root, items, store = small
    paths = {features_path(store, student(digest=digest)) for digest in "ab"}
    assert len(paths) == 2
    whole = student_features(store, np.arange(7), student(digest="a"), root, workers=1).kept
    student_features(store, np.array([5, 1]), student(digest="b"), root)
    found = student_features(store, np.arange(7), student(digest="b"), root)
    assert found.computed == 5
    np.testing.assert_allclose(found.kept.features, whole.features, atol=1e-6)


def test_another_student_or_another_dump_is_another_file(small, tmp_path):
    root, items, store = small
    other = region_world.run_dump(
        tmp_path / "store", region_world.make_spec(root, items, seed=2), root
    )
    changes = [{}, {"digest": "d2"}, {"precision": "bf16"}, {"image_size": 9}, {"mean": (0, 0, 0)}]
    names = [features_path(store, student(**change)).name for change in changes]
    assert len({*names, features_path(other, student()).name}) == len(changes) + 1
    assert features_path(store, student()).parent.name == "store.students"


def test_an_image_that_is_gone_is_named(small, tmp_path):
    _, _, store = small
    with pytest.raises(RegionStoreError, match="0.png is missing. Check --root"):
        student_features(store, np.arange(1), student(digest="gone"), tmp_path, workers=1)


# Training


def close_images(monkeypatch):
    """From here on, opening an image is an error."""

    def refuse(path, *_):
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr("PIL.Image.open", refuse)


TEXT_HOSTS = {
    "FDBPL": {},
    "CoCoOp_FDBPL": {},
    "IVLP_FDBPL": {"TRAINER.IVLP.PROMPT_DEPTH_VISION": 0},
}


@pytest.mark.parametrize("name", TEXT_HOSTS)
def test_training_on_features_equals_training_on_images(world, store, name, monkeypatch, capsys):
    keys = {**TEXT_HOSTS[name], "TRAINER.FDBPL.REGIONS_PER_STEP": 2, "OPTIM.LR": 0.002}
    keys |= {"epochs": 1, "DATALOADER.TRAIN_X.BATCH_SIZE": 16, "OPTIM.WARMUP_CONS_LR": 0.002}
    off = {"TRAINER.FDBPL.CACHE_FEATURES": False, "TEST.CACHE_FEATURES": False}
    plain = run(world, store, name, f"f/{name}_images", **keys, **off)
    assert "Student features" not in capsys.readouterr().out
    first = run(world, store, name, f"f/{name}", **keys)
    files = list(store.with_name("store.students").iterdir())
    assert len(files) == 1  # of all hosts
    close_images(monkeypatch)
    again = run(world, store, name, f"f/{name}_again", **keys)
    log = capsys.readouterr().out
    assert f"read from {files[0]}" in log and "Training opens no image" in log
    for key, value in plain.model.learner.state_dict().items():
        torch.testing.assert_close(first.model.learner.state_dict()[key], value, atol=2e-5, rtol=0)
        assert torch.equal(first.model.learner.state_dict()[key],
                           again.model.learner.state_dict()[key])  # fmt: skip
    assert first.tested.predictions == again.tested.predictions
    assert plain.scores["accuracy"] == pytest.approx(first.scores["accuracy"], abs=1.1)


def test_image_prompts_are_trained_on_images(world, store, capsys):
    run(world, store, "VPT_FDBPL", "f/vpt", epochs=1)
    log = capsys.readouterr().out
    assert "Student features" not in log and "Features of" not in log


@pytest.mark.parametrize("name", ["FDBPL", "VPT_FDBPL"])
def test_training_notices_an_image_that_was_replaced_under_its_name(world, store, name, capsys):
    """As many bytes, the same time of change: only its content and the inode tell."""
    keys = {"epochs": 1, "DATALOADER.TRAIN_X.BATCH_SIZE": 16}
    opened = RegionStore.open(store)
    image = opened.spec.images[5]
    path = world / "data" / image.path
    content, times = path.read_bytes(), os.stat(path)
    Image.new("RGB", (image.width, image.height), "teal").save(path)
    path.write_bytes(path.read_bytes().ljust(len(content), b"\0"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == len(content)
    try:
        message = f"1 of 96 images changed since {store} was dumped: {image.path} .other bytes.*"
        with pytest.raises(RegionStoreError, match=message + "or dump again into another --store"):
            run(world, store, name, f"i/{name}_replaced", **keys)
        if name == "FDBPL":  # whose features are kept: it opens no image
            run(world, store, name, f"i/{name}_trusted", extra=["--trust-mtime"], **keys)
        else:
            with pytest.raises(RegionStoreError, match=f"{path} changed since its regions were"):
                run(world, store, name, f"i/{name}_trusted", extra=["--trust-mtime"], **keys)
        command = [*flags(world, "FDBPL"), *options()]
        capsys.readouterr()
        assert dump_teacher_logits.run(["--store", str(store), *command]) == 1
        assert f"{image.path} (other bytes)" in capsys.readouterr().err
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    run(world, store, name, f"i/{name}_restored", **keys)  # written again, but as it was
    contents_path(store).rename(world / "kept")
    try:
        capsys.readouterr()
        run(world, store, name, f"i/{name}_older", **keys)
        assert "What the bytes of 96 of 96 images were is not kept" in capsys.readouterr().out
    finally:
        (world / "kept").rename(contents_path(store))


# Test images


def test_kept_test_features_give_the_same_predictions(world, store, monkeypatch, tmp_path, capsys):
    keys = {"scope": "new", "TEST.FEATURES_DIR": tmp_path / "kept"}
    plain = run(world, store, "ZeroshotCLIP", "t/plain", **keys, **{"TEST.CACHE_FEATURES": False})
    assert not (tmp_path / "kept").exists()
    first = run(world, store, "ZeroshotCLIP", "t/first", **keys)
    (kept,) = (tmp_path / "kept").iterdir()
    assert kept.name.startswith("ToyShapes-")

    # One image is written again: it alone is computed.
    item = first.test_loader.dataset.data_source[3]
    old = image_id(item.impath)
    content = open(item.impath, "rb").read()
    times = os.stat(item.impath)
    open(item.impath, "wb").write(content)
    os.utime(item.impath, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert image_id(item.impath) != old
    capsys.readouterr()
    third = run(world, store, "ZeroshotCLIP", "t/third", **keys)
    assert "those of 1 image were missing" in capsys.readouterr().out

    close_images(monkeypatch)
    fourth = run(world, store, "ZeroshotCLIP", "t/fourth", **keys)
    for other in (first, third, fourth):
        assert other.tested.predictions == plain.tested.predictions
        assert other.tested.impaths == plain.tested.impaths
        assert other.scores == plain.scores
    assert len(fourth.test_loader.dataset) == 24 * 4


def test_transforms_that_cannot_be_told_apart_are_not_cached(world, store, monkeypatch, tmp_path):
    monkeypatch.setattr(
        feature_cache, "repr", lambda value: "<Transform object at 0x7f>", raising=False
    )
    keys = {"TEST.FEATURES_DIR": tmp_path / "kept"}
    assert run(world, store, "ZeroshotCLIP", "t/unknown", **keys).scores["accuracy"] > 15
    assert not (tmp_path / "kept").exists()


# The dump


def test_a_dump_in_bf16_says_how_far_it_is_from_fp32(world, capsys):
    for precision in ("fp32", "bf16"):
        keys = {"DATASET.NUM_SHOTS": 1, "TRAINER.FDBPL.TEACHER_PREC": precision}
        command = [*flags(world, "FDBPL"), *options(**keys)]
        assert dump_teacher_logits.run(["--store", str(world / precision), *command]) == 0
    log = capsys.readouterr().out
    found = re.search(
        r"logits of 96 regions in bf16 are (\S+) from fp32 on average, (\S+) at most; "
        r"the same class comes first in (\S+) %",
        log,
    )
    mean, most, agree = map(float, found.groups())
    assert 0.005 < mean < 0.5 and mean < most < 5 and agree > 80
    assert re.search(r"Took +\S+ s, loading the teacher included: \d+ regions/s", log)

    exact, rounded = (RegionStore.open(path) for path in (world / "fp32", world / "bf16"))
    everything = [file.read_shard(0).logits for file in (exact, rounded)]
    assert np.abs(everything[0] - everything[1]).mean() == pytest.approx(mean, abs=0.02)
