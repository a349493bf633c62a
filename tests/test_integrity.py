"""Whatever is kept is whole, this run's own, or not used: kept files x ways in which they go wrong.

Each kept file is made, damaged in a generated way, and asked for again. It is refused with a
message of ours, or what it gives is what it gave: made anew, or untouched by the damage.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import region_world as world
import stress_store as stress
from fake_runs import fake_result
from PIL import Image

from datasets import prepare
from datasets.fewshot import Entry, Split, cached_few_shot
from files import Busy, Lock
from regions.features import Student, complete, features_path, student_features
from regions.store import RegionStore, RegionStoreError
from regions.store.contents import Contents, contents_path
from regions.store.record import dump_record_path, dump_seconds
from regions.store.spec import relative_path
from regions.store.teacher_text import read_text, text_path, write_text
from reporting.results import ResultError, RunResult

FLIPS = 40  # bytes of a file that are flipped, spread over it


@dataclass
class Kept:
    """A kept file: where it lies, and how it is made and asked for."""

    path: Path
    ask: Callable[[], object]  # what it gives, making it anew if need be; ours to raise
    rebuilt: bool  # a cache; else it is refused


def _store(root: Path, count: int = 7, **changes) -> RegionStore:
    spec = world.make_spec(root, world.draw_images(root, count), **changes)
    width = {"feature_width": 6} if spec.kind == "features" else {}
    text = np.eye(4, 6, dtype=np.float32) if width else None
    return world.run_dump(root / "store", spec, root, _unit if width else world.teacher, text=text)


def _unit(images):
    flat = images.flatten(1)[:, :6]
    return flat / flat.norm(dim=1, keepdim=True)


FEATURES = {"kind": "features", "feature_width": 6, "logit_scale": 9.0}


def _read_store(path: Path) -> object:
    store = RegionStore.open(path)
    shards = [store.read_shard(index) for index in range(len(store.shards))]
    return [array.tobytes() for rows in shards for array in rows], list(store.spec.images)


def of_store(name: str) -> Callable[[Path, str], Kept]:
    def make(root: Path, template: str) -> Kept:
        store = _store(root, count=6 + len(template), **FEATURES, template=template)
        return Kept(store.path / name, partial(_read_store, store.path), rebuilt=False)

    return make


def contents(root: Path, template: str) -> Kept:
    store = _store(root, template=template)

    def ask() -> object:
        opened = RegionStore.open(store.path)
        known, records = opened.contents.of(np.arange(7))
        # Of another dump: nothing is known, which a run is told; never something else.
        return records.tolist() if known.all() else whole

    whole = store.contents.of(np.arange(7))[1].tolist()
    return Kept(contents_path(store.path), ask, rebuilt=False)


def contents_memory(root: Path, template: str) -> Kept:
    """A file that remembers the bytes of images which look changed."""
    store, memory = _store(root, template=template), root / "memory.bin"
    for image in store.spec.images:
        os.utime(root / image.path, ns=(1, 1))
    replaced = root / store.spec.images[2].path
    _replace(replaced, "red" if template == "a" else "blue")

    def ask() -> object:
        return Contents.read(store.path, store.spec).changed(
            store.spec, np.arange(7), root, memory=memory
        )

    ask()
    return Kept(memory, ask, rebuilt=True)


def record(root: Path, template: str) -> Kept:
    store = _store(root, template=template)
    seconds = dump_seconds(store.path, store.spec.id)

    def ask() -> object:
        return dump_seconds(store.path, store.spec.id) or seconds  # lost: not another time

    return Kept(dump_record_path(store.path), ask, rebuilt=True)


def teacher_text(root: Path, template: str) -> Kept:
    store = _store(root, **FEATURES, template=template)
    text = np.roll(np.eye(2, 6, dtype=np.float32), len(template), axis=1)

    def ask() -> object:
        found = read_text(store, ["x", "y"], template)
        if found is None:
            write_text(store, ["x", "y"], template, text)
            found = read_text(store, ["x", "y"], template)
        return found.tolist()

    ask()
    return Kept(text_path(store, ["x", "y"], template), ask, rebuilt=True)


def region_features(root: Path, template: str) -> Kept:
    store = _store(root, template=template)
    student = Student(_unit, "d", "fp32", 6, world.SIZE, world.MEAN, world.STD, at_once=10)

    def ask() -> object:
        found = student_features(store, np.arange(7), student, root)
        return found.kept.features[found.kept.places(store.contents.keys(np.arange(7)))].tolist()

    ask()
    return Kept(features_path(store, student), ask, rebuilt=True)


def few_shot(root: Path, template: str) -> Kept:
    shift = len(template)
    entries = [Entry(f"{c}/{i}.png", c, f"c{c}") for c in range(3) for i in range(shift, 9 + shift)]
    split = Split(entries, entries[:9], entries)
    (root / "data").mkdir(exist_ok=True)

    def ask() -> object:
        return cached_few_shot(root / "data", split, 2, seed=1)

    ask()
    (path,) = (root / "data" / "split_fewshot").iterdir()
    return Kept(path, ask, rebuilt=True)


def results(root: Path, template: str) -> Kept:
    result = fake_result(accuracy=50.0 + len(template))
    path = result.write(root)
    return Kept(path, lambda: RunResult.read(path), rebuilt=False)


KEPT = {
    "manifest": of_store("manifest.json"),
    "images": of_store("images.safetensors"),
    "shard": of_store("shard_00001.safetensors"),
    "text": of_store("text.safetensors"),
    "contents": contents,
    "memory of contents": contents_memory,
    "time of the dump": record,
    "teacher text": teacher_text,
    "region features": region_features,
    "few-shot draw": few_shot,
    "results": results,
}


def truncations(content: bytes, _: bytes) -> Iterator[bytes]:
    for end in sorted({0, 1, len(content) // 3, len(content) // 2, len(content) - 1}):
        yield content[:end]
    yield content + b"x"


def flips(content: bytes, _: bytes) -> Iterator[bytes]:
    rng = random.Random(5)
    for place in sorted(rng.sample(range(len(content)), min(FLIPS, len(content)))):
        bit = 1 << rng.randrange(8)
        yield content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def strangers(content: bytes, other: bytes) -> Iterator[bytes]:
    """The same file of another dump, split or run; and one of another version."""
    yield other
    yield os.urandom(len(content))
    for old, new in (
        (b'"format":1', b'"format":2'),
        (b'"format": 1', b'"format": 2'),
        (b"F32", b"F16"),
    ):
        if old in content:
            yield content.replace(old, new, 1)


TRIED: dict[str, int] = {}


@pytest.mark.parametrize("how", [truncations, flips, strangers], ids=lambda how: how.__name__)
@pytest.mark.parametrize("what", KEPT)
def test_what_is_kept_is_whole_and_its_own_or_not_used(tmp_path, what, how, capsys):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    kept, other = (
        KEPT[what](folder, name) for folder, name in zip(folders, ("a", "bb"), strict=True)
    )
    content, wanted = kept.path.read_bytes(), kept.ask()
    assert content and other.path.read_bytes() != content
    for damaged in how(content, other.path.read_bytes()):
        if what == "results" and damaged == other.path.read_bytes():
            continue  # whole: identity.json beside it says of which run it has to be
        kept.path.write_bytes(damaged)
        TRIED[what] = TRIED.get(what, 0) + 1
        try:
            found = kept.ask()
        except (RegionStoreError, ResultError) as error:
            assert not kept.rebuilt, error
            assert "\n" not in str(error) and str(kept.path.parent) in str(error)
        else:
            assert found == wanted, f"{what}: something else was used"
            if kept.rebuilt:
                assert kept.ask() == wanted
        kept.path.write_bytes(content)
    assert kept.ask() == wanted


# --- two at once ----------------------------------------------------------------------------


def test_of_two_that_lack_the_same_features_one_computes_and_the_other_waits(tmp_path):
    path, ids = tmp_path / "kept" / "k.safetensors", [3, 1, 2]

    def compute(missing: np.ndarray) -> np.ndarray:
        with (tmp_path / "computed").open("a") as file:
            file.write(f"{os.getpid()} {missing.tolist()}\n")
        time.sleep(0.3)
        return np.eye(4, dtype=np.float32)[missing.astype(int)]

    def work() -> None:
        found = complete(path, ids, (4,), compute)
        assert found.kept.features.argmax(1).tolist() == [1, 2, 3]

    with stress.running(work, work, work) as processes:
        for process in processes:
            process.wait()
    assert len((tmp_path / "computed").read_text().splitlines()) == 1
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_second_preparation_of_a_folder_is_told_who_is_at_it(tmp_path):
    folder = tmp_path / "dtd"

    def at_work(*_: object) -> None:
        (tmp_path / "at_it").touch()
        time.sleep(60)

    def slow() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                prepare, "prepare", lambda *_: (tmp_path / "at_it").touch() or time.sleep(60)
            )
            prepare.prepare_alone("DescribableTextures", tmp_path)

    with stress.running(slow) as (first,):
        while not (tmp_path / "at_it").exists():
            assert not first.has_ended()
            time.sleep(0.002)
        with pytest.raises(Busy, match=f"process {first.pid} on .* is preparing Describable"):
            prepare.prepare_alone("DescribableTextures", tmp_path)
    with Lock(folder / ".prepare.lock", "", ""):  # a killed process holds nothing
        pass


@pytest.mark.parametrize("trial", range(3))
def test_a_lock_is_held_by_one_at_a_time_whoever_dies(tmp_path, trial):
    """Twelve processes add one to a number, four of them are killed meanwhile."""
    number, rng = tmp_path / "number", random.Random(trial)
    number.write_text("0")

    def add() -> None:
        for _ in range(5):
            with Lock(tmp_path / "lock", "adding", "", wait=60):
                value = int(number.read_text())
                time.sleep(0.001)
                draft = tmp_path / f"{os.getpid()}"
                draft.write_text(str(value + 1))
                os.replace(draft, number)
                with (tmp_path / "done").open("a") as file:
                    file.write("1")

    with stress.running(*[add] * 12) as processes:
        for process in processes[:4]:
            process.kill(after=rng.uniform(0, 0.05))
        for process in processes[4:]:
            process.wait()
    done = len((tmp_path / "done").read_text())
    assert done <= int(number.read_text()) <= done + 4 and done >= 40


# --- images that changed underneath ----------------------------------------------------------


def _replace(path: Path, colour: str) -> None:
    """Another image under the same name, of as many pixels, bytes and nanoseconds."""
    before, size = os.stat(path), path.stat().st_size
    with Image.open(path) as image:
        Image.new("RGB", image.size, colour).save(path)
    assert path.stat().st_size <= size
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = os.stat(path)
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.fixture
def own(tmp_path):
    """Root, items and store of noise images."""
    items = world.draw_images(tmp_path)
    return tmp_path, items, world.run_dump(
        tmp_path / "store", world.make_spec(tmp_path, items), tmp_path
    )  # fmt: skip


def check(root: Path, store: RegionStore, **options) -> None:
    opened = RegionStore.open(store.path)
    opened.contents.require_unchanged(opened.spec, np.arange(7), root, **options)


def test_a_replaced_image_is_named_whatever_its_size_and_time(own):
    root, items, store = own
    check(root, store)
    _replace(Path(items[3].impath), "teal")
    message = (
        f"1 of 7 images changed since {store.path} was dumped: images/dog/3.png \\(other bytes\\). "
        "Restore them, or dump again into another --store"
    )
    with pytest.raises(RegionStoreError, match=message):
        check(root, store)
    check(root, store, trust_mtime=True)  # as it says
    os.utime(items[3].impath)
    with pytest.raises(RegionStoreError, match="other bytes"):
        check(root, store, trust_mtime=True)
    Path(items[5].impath).write_bytes(b"short")
    Path(items[6].impath).unlink()
    with pytest.raises(RegionStoreError, match=r"5.png \(5 bytes instead of .*6.png \(missing\)"):
        check(root, store, trust_mtime=True)


def test_bytes_are_read_only_when_a_file_was_touched_and_once(own, monkeypatch):
    root, items, store = own
    read, original = [], Path.read_bytes
    from regions.store import contents as module

    look = module.read_image_file
    monkeypatch.setattr(module, "read_image_file", lambda path: read.append(path) or look(path))
    memory = root / "memory.bin"
    check(root, store, memory=memory)
    assert read == []
    for item in items[:2]:  # written again with the same bytes, and copied over
        content = original(Path(item.impath))
        Path(item.impath + ".new").write_bytes(content)
        os.replace(item.impath + ".new", item.impath)
    check(root, store, memory=memory)
    assert sorted(read) == sorted(item.impath for item in items[:2])
    check(root, store, memory=memory)
    assert len(read) == 2
    moved = root / "moved"
    shutil.copytree(root / "images", moved / "images")
    check(moved, store, memory=memory)
    check(moved, store, memory=memory)
    assert len(read) == 9


def test_a_dump_does_not_go_on_with_replaced_images_nor_call_itself_complete(own):
    root, items, store = own
    spec = world.make_spec(root, items)
    _replace(Path(items[0].impath), "teal")
    with pytest.raises(RegionStoreError, match=r"images/ant/0.png \(other bytes\)"):
        world.run_dump(store.path, spec, root)
    (store.path / "manifest.json").unlink()
    (store.path / "shard_00002.safetensors").unlink()
    with pytest.raises(RegionStoreError, match=r"images/ant/0.png \(other bytes\)"):
        world.run_dump(store.path, spec, root)
    (store.path / "shard_00000.safetensors").unlink()  # what was made of it is gone
    again = world.run_dump(store.path, spec, root)
    check(root, again)
    assert again.read(0, range(5)).logits.tolist() != store.read(0, range(5)).logits.tolist()


def test_images_that_change_between_their_cut_and_training_are_noticed_when_they_are_read(own):
    root, items, store = own
    regions = world_dataset(root, items, store)
    regions[2]
    _replace(Path(items[3].impath), "teal")
    with pytest.raises(RegionStoreError, match="3.png changed since its regions were drawn"):
        regions[3]
    student = Student(_unit, "d", "fp32", 6, world.SIZE, world.MEAN, world.STD, at_once=10)
    with pytest.raises(RegionStoreError, match="3.png changed since its regions were drawn"):
        student_features(store, np.arange(7), student, root)


def world_dataset(root, items, store):
    from regions.dataset import RegionDataset

    return RegionDataset(
        items, store, np.arange(4), 2, world.SIZE, world.MEAN, world.STD, root
    )  # fmt: skip


def test_features_of_an_earlier_image_are_not_those_of_the_store_that_is_dumped_anew(own):
    """The same folder, the same spec, the same student: only the bytes of an image differ."""
    root, items, store = own
    student = Student(_unit, "d", "fp32", 6, world.SIZE, world.MEAN, world.STD, at_once=10)
    before = student_features(store, np.arange(7), student, root)
    shutil.rmtree(store.path)
    _replace(Path(items[0].impath), "teal")
    again = world.run_dump(store.path, world.make_spec(root, items), root)
    assert again.spec.id == store.spec.id
    after = student_features(again, np.arange(7), student, root)
    assert (before.computed, after.computed) == (7, 1)
    places = after.kept.places(again.contents.keys(np.arange(7)))
    old = before.kept.places(store.contents.keys(np.arange(7)))
    same = (after.kept.features[places] == before.kept.features[old]).all(axis=(1, 2))
    assert same.tolist() == [False] + [True] * 6


def test_a_store_without_contents_opens_and_knows_that_it_cannot_compare(own):
    root, items, store = own
    contents_path(store.path).unlink()
    _replace(Path(items[0].impath), "teal")
    opened = RegionStore.open(store.path)
    known, _ = opened.contents.of(np.arange(7))
    assert not known.any()
    check(root, store)  # nothing is known, so nothing is refused: trainers say so
    assert opened.contents.keys(np.arange(7)).tolist() == list(range(7))


def test_a_moved_split_is_called_one(own):
    root, items, store = own
    paths = [relative_path(item.impath, root) for item in items]
    with pytest.raises(RegionStoreError) as refusal:
        store.image_indices([*paths, "images/ant/new.png", "images/bee/newer.png"])
    told = str(refusal.value)
    assert "holds regions of 7 images, but of 2 of the 9 asked for it holds none" in told
    assert "images/ant/new.png, images/bee/newer.png. The split moved" in told
    assert "--root" not in told
    other = world.make_spec(root, [*items[1:], world.Item(_copy(items[0].impath), 0)])
    with pytest.raises(RegionStoreError) as refusal:
        world.run_dump(store.path, other, root)
    told = str(refusal.value)
    assert "the split moved (images/ant/copy.png added; images/ant/0.png removed)" in told
    assert json.dumps(told).count("\\n") == 0


def _copy(path: str) -> str:
    return shutil.copy(path, Path(path).with_name("copy.png"))
