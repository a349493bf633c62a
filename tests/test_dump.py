"""A dump can be killed anywhere and continued; what goes wrong is told in one line."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import region_world as world
import torch

from regions.boxes import sample_boxes
from regions.dump import dump_cost, dump_record_path, list_images, stored_teacher_accuracy
from regions.spec import relative_path
from regions.store import RegionStore, RegionStoreError

HERE = Path(__file__).parent
SHARDS = [f"shard_0000{index}.safetensors" for index in range(3)]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    world.draw_images(root)
    return root


@pytest.fixture(scope="module")
def spec(root):
    return world.make_spec(root, world.draw_images(root))


@pytest.fixture(scope="module")
def whole(root, spec):
    """The bytes of an uninterrupted dump."""
    world.run_dump(root / "whole", spec, root)
    return world.folder_bytes(root / "whole")


# --- what is written ------------------------------------------------------------------------


def test_a_dump_holds_the_drawn_boxes_and_the_teachers_logits(root, spec, whole):
    assert list(whole) == ["manifest.json", *SHARDS]
    store = RegionStore.open(root / "whole")
    assert store.spec == spec
    for index, image in enumerate(spec.images):
        rows = store.read(index, range(spec.num_regions))
        boxes, flips = sample_boxes(spec, image)
        assert (rows.boxes == boxes).all() and (rows.flips == flips).all()
        assert rows.logits.std() > 0


@pytest.mark.parametrize("options", [{"workers": 2}, {"batch_size": 1}, {"batch_size": 1000}])
def test_the_bytes_do_not_depend_on_workers_or_batches(root, spec, whole, tmp_path, options):
    world.run_dump(tmp_path / "store", spec, root, **options)
    assert world.folder_bytes(tmp_path / "store") == whole


def test_another_seed_gives_other_regions(root, spec, whole, tmp_path):
    world.run_dump(tmp_path / "store", replace(spec, seed=2), root)
    other = world.folder_bytes(tmp_path / "store")
    assert list(other) == list(whole) and all(other[name] != whole[name] for name in whole)


def test_no_batch_spans_two_shards_or_exceeds_its_size(root, spec, tmp_path):
    sizes = []

    def counting_teacher(images):
        sizes.append(len(images))
        return world.teacher(images)

    world.run_dump(tmp_path / "store", spec, root, counting_teacher, batch_size=4)
    assert sizes == [4, 4, 4, 3, 4, 4, 4, 3, 4, 1]  # shards of 3, 3 and 1 images, 5 regions each


def test_a_finished_store_is_left_alone(root, spec, whole, tmp_path):
    def no_teacher(images):
        raise AssertionError("the teacher was called")

    world.run_dump(tmp_path / "store", spec, root)
    record = dump_record_path(tmp_path / "store").read_bytes()
    world.run_dump(tmp_path / "store", spec, root, no_teacher)
    assert world.folder_bytes(tmp_path / "store") == whole
    assert dump_record_path(tmp_path / "store").read_bytes() == record


def test_the_cost_is_told_before(root, spec, whole):
    cost = dump_cost(spec)
    assert cost.images == 7 and cost.passes == 35
    written = sum(len(content) for content in whole.values())
    assert 35 * (16 + 1 + 2 * 4) < written < cost.bytes < written + 10000


def test_teacher_accuracy_counts_regions_and_images(root, spec, tmp_path):
    """A teacher that always says class 1 is right where the label is 1."""
    store = world.run_dump(
        tmp_path / "store", spec, root, lambda images: torch.eye(4)[1].expand(len(images), 4)
    )
    accuracy = stored_teacher_accuracy(store)
    assert accuracy.regions == accuracy.images == pytest.approx(100 * 2 / 7)


# --- killed ---------------------------------------------------------------------------------


def killed_dump(store: Path, spec, root: Path, writes: int, after: bool) -> bool:
    """Dump in a child that SIGKILLs itself before or after its n-th rename; False: it finished."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            rename, count = os.replace, 0

            def deadly_rename(source, target):
                nonlocal count
                count += 1
                if count == writes and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                rename(source, target)
                if count == writes:
                    os.kill(os.getpid(), signal.SIGKILL)

            os.replace = deadly_rename
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            world.run_dump(store, spec, root)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_rename_it_continues_to_the_same_bytes(root, spec, whole, tmp_path, after):
    writes = 0
    while True:
        writes += 1
        store = tmp_path / f"store{writes}"
        if not killed_dump(store, spec, root, writes, after):
            break
        files = os.listdir(store)
        finished = [name for name in SHARDS if name in files]
        assert all((store / name).read_bytes() == whole[name] for name in finished)
        assert ("manifest.json" in files) <= (len(finished) == 3)
        world.run_dump(store, spec, root)
        assert world.folder_bytes(store) == whole
    assert writes == 9  # in_progress, three shards, the time after each, the manifest; then none


def test_killed_again_and_again_a_dump_loses_no_finished_shard(root, spec, whole, tmp_path):
    store, kills, finished = tmp_path / "store", 0, 0
    while killed_dump(store, spec, root, writes=3, after=False):  # one shard further each time
        kills += 1
        now = len([name for name in os.listdir(store) if name in SHARDS])
        assert now == finished + 1 == kills
        finished = now
    assert kills >= 2 and world.folder_bytes(store) == whole


SLOW_DUMP = """
import sys, time
from pathlib import Path
sys.path[:0] = [{main!r}, {tests!r}]
import region_world as world
def teacher(images):
    time.sleep(0.1)
    return world.teacher(images)
root = Path({root!r})
world.run_dump({store!r}, world.make_spec(root, world.draw_images(root)), root, teacher, workers=1)
"""


def test_a_killed_process_with_workers_leaves_no_lock_and_no_half_shard(root, whole, tmp_path):
    store = tmp_path / "store"
    code = SLOW_DUMP.format(
        main=str(HERE.parent), tests=str(HERE), root=str(root), store=str(store)
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not (store / SHARDS[0]).exists():
            time.sleep(0.01)
        time.sleep(0.05)
    finally:
        process.kill()  # SIGKILL
        process.wait()
    assert not (store / "manifest.json").exists()
    spec = world.make_spec(root, world.draw_images(root))
    world.run_dump(store, spec, root)
    assert world.folder_bytes(store) == whole


def test_the_time_of_a_dump_adds_up_over_its_restarts(root, spec, tmp_path):
    store = tmp_path / "store"
    assert killed_dump(store, spec, root, writes=3, after=True)  # the first shard's time is noted
    first = json.loads(dump_record_path(store).read_text())
    assert first["regions"] == 15
    world.run_dump(store, spec, root)
    record = json.loads(dump_record_path(store).read_text())
    assert record["format"] == 1 and record["teacher"] == "toy-teacher"
    assert record["device"] == "cpu" and record["regions"] == 35
    assert [session["regions"] for session in record["sessions"]] == [15, 20]
    assert record["seconds"] >= first["seconds"] > 0
    for file in store.iterdir():
        file.unlink()
    world.run_dump(store, spec, root)  # a new dump starts a new record
    assert len(json.loads(dump_record_path(store).read_text())["sessions"]) == 1


# --- what goes wrong ------------------------------------------------------------------------


def test_an_unreadable_image_is_named_and_finished_shards_stay(tmp_path):
    items = world.draw_images(tmp_path)
    spec, store = world.make_spec(tmp_path, items), tmp_path / "store"
    broken = Path(items[5].impath)
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    for workers in (0, 1):
        with pytest.raises(RegionStoreError, match="5.png cannot be read") as refusal:
            world.run_dump(store, spec, tmp_path, workers=workers)
        assert "\n" not in str(refusal.value) and (store / SHARDS[0]).exists()
    broken.write_bytes(content)
    world.run_dump(store, spec, tmp_path)
    world.run_dump(tmp_path / "other", spec, tmp_path)
    assert world.folder_bytes(store) == world.folder_bytes(tmp_path / "other")


def test_a_file_that_is_no_image_is_named_before_the_dump_starts(tmp_path):
    items = world.draw_images(tmp_path)
    Path(items[2].impath).write_text("hello")
    with pytest.raises(RegionStoreError, match="2.png cannot be read"):
        list_images(items, tmp_path)
    os.unlink(items[2].impath)
    with pytest.raises(RegionStoreError, match="2.png is missing. Check --root"):
        list_images(items, tmp_path)
    with pytest.raises(ValueError, match="does not lie under the data root"):
        relative_path(tmp_path / "a.png", tmp_path / "elsewhere")


def test_nan_logits_name_the_image_and_finished_shards_stay(root, spec, tmp_path):
    calls = 0

    def failing_teacher(images):
        nonlocal calls
        calls += 1
        logits = world.teacher(images)
        return logits.fill_(np.nan) if calls == 6 else logits

    with pytest.raises(RegionStoreError, match="a region of images/dog/3.png is nan"):
        world.run_dump(tmp_path / "store", spec, root, failing_teacher)
    assert (tmp_path / "store" / SHARDS[0]).exists()


def test_a_teacher_of_other_classes_is_refused(root, spec, tmp_path):
    with pytest.raises(RegionStoreError, match=r"shape \(4, 2\) for 4 regions and 4 classes"):
        world.run_dump(tmp_path / "store", spec, root, lambda images: torch.zeros(len(images), 2))


def test_a_full_disk_keeps_finished_shards_and_no_partial_file(
    root, spec, whole, tmp_path, monkeypatch
):
    store, sync, count = tmp_path / "store", os.fsync, 0

    def full(file):
        nonlocal count
        count += 1
        if count == 9:  # amid the second shard: file and folder of in_progress, shard, time, ...
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError) as refusal:
            world.run_dump(store, spec, root)
    assert refusal.value.errno == errno.ENOSPC
    assert not [name for name in os.listdir(store) if name.endswith(".partial")]
    assert (store / SHARDS[0]).exists() and not (store / "manifest.json").exists()
    world.run_dump(store, spec, root)
    assert world.folder_bytes(store) == whole
