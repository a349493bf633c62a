"""A dump can be killed anywhere and continued; what goes wrong is told in one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import region_world as world
import torch
from clip.model import CLIP
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from PIL import Image
from torchvision.transforms import functional as TF

from dump_teacher_logits import run
from models.teacher import Teacher
from regions.boxes import cut, sample_boxes
from regions.dump import (
    dump_cost,
    list_images,
)
from regions.store import RegionStore, RegionStoreError
from regions.store.record import dump_record_path, dump_seconds
from regions.store.spec import relative_path

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
    assert list(whole) == ["images.safetensors", "manifest.json", *SHARDS]
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
    assert list(other) == list(whole)
    assert [name for name in whole if other[name] == whole[name]] == ["images.safetensors"]


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


def test_teacher_accuracy_is_the_share_of_regions_whose_label_is_the_likeliest_class(
    root, spec, tmp_path
):
    """Neither of images nor of mean probabilities: one right region of five counts a fifth."""
    said = iter(
        [[1, 0, 0, 0, 0], [1, 1, 0, 2, 3], [2] * 5, [0] * 5, [0, 1, 2, 3, 3], [0] * 5, [2] * 5]
    )
    classes = torch.tensor([guess for image in said for guess in image])
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2]).repeat_interleave(5)  # of region_world's images
    seen = 0

    def teacher(images):
        nonlocal seen
        seen += len(images)
        sure = 9.0 - torch.arange(seen - len(images), seen)[:, None] % 5  # its weight in a mean
        return sure * torch.eye(4)[classes[seen - len(images) : seen]]

    store = world.run_dump(tmp_path / "store", spec, root, teacher)
    expected = 100 * float((classes == labels).float().mean())
    assert expected == pytest.approx(100 * 17 / 35)
    assert store.teacher_accuracy() == pytest.approx(expected)


def teacher_of_plan(labels):
    """A teacher of (regions right, whom the loudest region follows) that no two measures agree on.

    Of images 0 to 2 four regions say the label by 3 and one says another class by 40; of image 3
    it is the other way round; the rest is wrong throughout.
    """
    logits = torch.zeros(7, 5, 4)
    for image, label in enumerate(labels):
        other = (label + 1) % 4
        quiet, loud = (label, other) if image < 3 else (other, label)
        logits[image, 1:, quiet], logits[image, 0, loud if image < 4 else other] = 3.0, 40.0
    waiting = logits.flatten(0, 1)

    def teacher(images):
        nonlocal waiting
        given, waiting = waiting[: len(images)], waiting[len(images) :]
        return given

    return teacher


def test_teacher_accuracy_is_that_of_the_regions(root, spec, tmp_path):
    """3 images with 4 of 5 regions and one with 1 of 5: 13 of 35, over shards of 3, 3 and 1."""
    teacher = teacher_of_plan([image.label for image in spec.images])
    store = world.run_dump(tmp_path / "store", spec, root, teacher)
    assert store.teacher_accuracy() == pytest.approx(100 * 13 / 35)


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
    # Images, in_progress, three shards, the time after each, the images' contents, the manifest.
    assert writes == 11


def test_killed_again_and_again_a_dump_loses_no_finished_shard(root, spec, whole, tmp_path):
    store, kills, finished = tmp_path / "store", 0, 0
    while killed_dump(store, spec, root, writes=3, after=False):  # one shard further each time
        kills += 1
        now = len([name for name in os.listdir(store) if name in SHARDS])
        # The first one writes the list of images besides, the last one the images' contents.
        assert now == min(kills - 1, 3) >= finished
        finished = now
    assert kills >= 3 and world.folder_bytes(store) == whole


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
    assert killed_dump(store, spec, root, writes=4, after=True)  # the first shard's time is noted
    first = json.loads(dump_record_path(store).read_text())
    assert first["regions"] == 15
    world.run_dump(store, spec, root)
    record = json.loads(dump_record_path(store).read_text())
    assert record["format"] == 1 and record["teacher"] == "toy-teacher"
    assert record["device"] == "cpu" and record["regions"] == 35
    assert [session["regions"] for session in record["sessions"]] == [15, 20]
    assert dump_seconds(store, spec.id) == record["seconds"] >= first["seconds"] > 0
    for file in store.iterdir():
        file.unlink()
    world.run_dump(store, spec, root)  # a new dump starts a new record
    assert len(json.loads(dump_record_path(store).read_text())["sessions"]) == 1
    dump_record_path(store).unlink()
    assert dump_seconds(store, spec.id) is None


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
    with pytest.raises(RegionStoreError, match=r"shape \(4, 2\) for 4 regions, .* 4 values"):
        world.run_dump(tmp_path / "store", spec, root, lambda images: torch.zeros(len(images), 2))


def test_a_full_disk_keeps_finished_shards_and_no_partial_file(
    root, spec, whole, tmp_path, monkeypatch
):
    store, sync, count = tmp_path / "store", os.fsync, 0

    def full(file):
        nonlocal count
        count += 1
        if count == 11:  # amid the second shard: file and folder of images, in_progress, ...
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


# --- the script -----------------------------------------------------------------------------


@DATASET_REGISTRY.register()
class NoiseWorld(DatasetBase):
    """The images of region_world as a data set of Dassl."""

    def __init__(self, cfg):
        items = world.draw_images(Path(cfg.DATASET.ROOT))
        data = [Datum(item.impath, item.label, 0, world.CLASSES[item.label]) for item in items]
        super().__init__(train_x=data, test=data)


@pytest.fixture(scope="module")
def tiny_teacher(tmp_path_factory) -> str:
    """Weights of a random CLIP for 12 x 12 pixels."""
    torch.manual_seed(0)
    state = CLIP(16, 12, 1, 64, 6, 77, 49408, 64, 1, 1).state_dict()
    path = tmp_path_factory.mktemp("teacher") / "tiny.pt"
    torch.save(state, path)
    return str(path)


@pytest.fixture
def line(tmp_path, tiny_teacher):
    """A command line that works: flags, then KEY VALUE pairs."""
    values = {
        "DATASET.NAME": "NoiseWorld",
        "DATASET.TEMPLATE": "a photo of a {}.",
        "TRAINER.FDBPL.TEACHER": tiny_teacher,
        "TRAINER.FDBPL.NUM_REGIONS": 5,
        "OPTIM.MAX_EPOCH": 50,
        "VERBOSE": False,
    }

    def build(store: str = str(tmp_path / "store"), seed: int = 1, **changes) -> list[str]:
        given = {**values, **{key.replace("__", "."): value for key, value in changes.items()}}
        flags = ["--root", str(tmp_path), "--seed", str(seed), "--shard-images", "3"]
        flags += ["--store", store] if store else []
        return [*flags, *(str(part) for pair in given.items() for part in pair)]

    return build


def one_error(capsys) -> str:
    """The only line on stderr besides the progress bar."""
    lines = capsys.readouterr().err.splitlines()
    errors = [text for text in lines if not text.startswith("\rdump:")]
    errors = [text for text in errors if text and not text.startswith("dump:")]
    assert len(errors) == 1 and errors[0].startswith("error: "), lines
    return errors[0]


def test_the_script_tells_the_cost_writes_a_store_and_then_has_nothing_to_do(
    line, tmp_path, capsys, monkeypatch
):
    assert run(line()) == 0
    told = capsys.readouterr().out
    assert "Images          7, of 4 classes" in told and "Teacher passes  35, once" in told
    assert "350 passes in each run of 50 epochs: 10.00 times as many" in told
    assert "kB in " in told and "Teacher accuracy" in told and "% of the regions" in told
    store = RegionStore.open(tmp_path / "store")
    assert store.spec.classnames == world.CLASSES and store.spec.image_size == 12
    assert store.spec.images[5].path == "images/bee/5.png"

    # Every stored logit against the plain way: cut, normalise, one region at a time.
    teacher = Teacher.load(store.spec.teacher, world.CLASSES, "a photo of a {}.")
    rows = store.read(4, range(5))
    image = Image.open(tmp_path / store.spec.images[4].path)
    for box, flip, logits in zip(rows.boxes, rows.flips, rows.logits, strict=True):
        pixels = TF.normalize(TF.to_tensor(cut(image, box, flip, 12)), teacher.mean, teacher.std)
        plain = teacher(pixels[None])[0].numpy()
        np.testing.assert_allclose(logits.astype(np.float32), plain, rtol=2e-3, atol=2e-3)

    before = world.folder_bytes(tmp_path / "store")
    monkeypatch.setattr(Teacher, "load", None)  # a finished store needs no teacher
    assert run(line()) == 0
    assert "is complete, and made as asked: nothing to do" in capsys.readouterr().out
    assert world.folder_bytes(tmp_path / "store") == before


def test_the_size_of_features_is_told_once_the_teacher_is_known(line, tmp_path, capsys):
    assert run(line(TRAINER__FDBPL__STORE_KIND="features")) == 0
    told = float(capsys.readouterr().out.split("On disk")[1].split()[0])
    written = sum(file.stat().st_size for file in (tmp_path / "store").iterdir()) / 1000
    assert written / 2 < told < written + 10


def test_the_script_continues_after_ctrl_c(line, tmp_path, capsys, monkeypatch):
    assert run(line(store=str(tmp_path / "whole"))) == 0
    forward, calls = Teacher.forward, 0

    def interrupted(self, images):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return forward(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "forward", interrupted)
        assert run(line()) == 130
    assert "run the same line again" in capsys.readouterr().err
    assert run(line()) == 0
    assert "the dump continues" in capsys.readouterr().out
    assert world.folder_bytes(tmp_path / "store") == world.folder_bytes(tmp_path / "whole")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"DATASET__TEMPLATE": "a {}."}, 'Set DATASET.TEMPLATE "a photo of a {}.", or dump again'),
        ({"TRAINER__FDBPL__NUM_REGIONS": 6}, "Set TRAINER.FDBPL.NUM_REGIONS 5, or dump again"),
        ({"seed": 2}, "Set --seed 1, or dump again"),
    ],
)
def test_the_script_refuses_the_store_of_another_dump(line, capsys, monkeypatch, change, message):
    assert run(line()) == 0
    capsys.readouterr()
    monkeypatch.setattr(Teacher, "load", None)  # refused before the teacher is loaded
    assert run(line(**change)) == 1
    assert message in one_error(capsys)


def test_the_script_tells_each_problem_in_one_line(line, tmp_path, capsys, monkeypatch):
    assert run(line(TRAINER__FDBPL__TEACHER="ViT-Z/99")) == 1
    assert "'ViT-Z/99' is unknown. Known: " in one_error(capsys)
    assert run(line(store="")) == 2
    assert "Give --store FOLDER" in one_error(capsys)
    assert run(line(DATASET__NAME="")) == 2
    assert "Give --dataset-config-file" in one_error(capsys)
    assert run(line(seed=-1)) == 1
    assert "give --seed a number of 0 or more" in one_error(capsys)
    assert run(line(TRAINER__FDBPL__REGION_FLIP=2.0)) == 1
    assert "TRAINER.FDBPL.REGION_FLIP is 2.0" in one_error(capsys)
    assert run(line(TRAINER__FDBPL__FLIP=2.0)) == 1
    assert "configs/defaults.py lists our keys" in one_error(capsys)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
        assert run(line()) == 1
    assert "the disk has 0.0 kB. Free some space" in one_error(capsys)
    (tmp_path / "file").write_text("")
    assert run(line(store=str(tmp_path / "file"))) == 1
    assert "Not a directory" in one_error(capsys)


def test_the_script_tells_an_unreadable_image_and_a_full_disk(line, tmp_path, capsys, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert run(line()) == 1
    message = one_error(capsys)
    assert "No space left on device" in message and "images.safetensors" in message
    assert "What is finished is kept: free some space and run the same line again" in message

    items = world.draw_images(tmp_path)
    monkeypatch.setattr(world, "draw_images", lambda root: items)
    os.truncate(items[6].impath, 400)
    assert run(line()) == 1
    assert "6.png cannot be read" in one_error(capsys)


def test_the_script_itself_ends_with_one_line_and_a_code():
    script = str(HERE.parent / "dump_teacher_logits.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: where to?") and done.stderr.count("\n") == 1
