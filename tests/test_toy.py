"""The toy world: the same pictures everywhere, unseen classes, and a student worth teaching."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dassl.config import get_cfg_default
from dassl.data.datasets import build_dataset
from PIL import Image

from configs.defaults import extend_cfg
from datasets import toy, toy_images
from datasets.toy_images import HELD_OUT, SEEN, SHAPES, Look, Thing, draw
from models.clip import load_clip
from models.templates import DEFAULT, fill

ROOT = Path(__file__).parent.parent
PIXELS = "23404a757595ebd54ae6d1653410daa43d228a677cc13a143261da7529e7f2c7"  # Pillow 11.2 and later
SMALL = {"train": 3, "val": 1, "test": 2}


@pytest.fixture
def small_sets(monkeypatch):
    """All toy data sets with few classes and images."""
    for name, toy_set in toy.TOY_SETS.items():
        counts = {split: SMALL[split] for split in toy_set.counts}
        small = replace(toy_set, classes=toy_set.classes[:6], counts=counts)
        monkeypatch.setitem(toy.TOY_SETS, name, small)


def config(root, name: str = "ToyShapes", **keys):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.VERBOSE = name, str(root), False
    for key, value in keys.items():
        setattr(cfg if key == "SEED" else cfg.DATASET, key, value)
    return cfg


def pixels_digest() -> str:
    """One number for a sample of pictures: every domain, damage and shape."""
    looks = [Look(domain=domain, scene=i % 2 == 0) for i, domain in enumerate(toy_images.DOMAINS)]
    looks += [Look(cast=0.5, damage=damage) for damage in toy_images.DAMAGES]
    digest = hashlib.sha256()
    for i, shape in enumerate(SHAPES):
        thing = Thing(toy_images.TEXTURES[i % 5], list(toy_images.COLOURS)[i % 10], shape)
        digest.update(draw(thing, looks[i % len(looks)], (9, i)).tobytes())
    return digest.hexdigest()


# Pictures


def test_pictures_are_those_of_version_1():
    assert toy_images.VERSION == 1, "a new version needs new numbers below"
    assert pixels_digest() == PIXELS


def test_another_process_draws_the_same_pictures():
    code = "import hashlib, toy_images\nfrom toy_images import *\n"  # torch-free, so quick to start
    code += inspect.getsource(pixels_digest) + "print(pixels_digest())"
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "datasets"), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == pixels_digest()


def test_pictures_of_one_class_differ_and_shifts_share_their_scenes():
    sets = [toy.TOY_SETS[name] for name in ("ToyShapesNone", "ToyShapes", "ToyShapesStrong")]
    pictures = [toy_set.picture("test", 0, 0) for toy_set in sets]
    none, half, strong = (np.asarray(picture, dtype=float).mean((0, 1)) for picture in pictures)
    assert none[2] > half[2] > strong[2] + 10  # a warm cast takes blue away
    assert sets[0].picture("test", 0, 1).tobytes() != pictures[0].tobytes()
    assert sets[0].picture("train", 0, 0).tobytes() != pictures[0].tobytes()


# Classes


def test_no_class_was_seen_in_pretraining_and_data_sets_do_not_share_classes():
    assert len(SEEN) == 480 and len(HELD_OUT) == len(set(HELD_OUT)) == 120
    assert not set(SEEN) & set(HELD_OUT)
    shapes, drawings = toy.SHAPES_CLASSES, toy.DRAWINGS_CLASSES
    assert len(set(shapes)) == 48 and len(set(drawings)) == 36
    assert not set(shapes) & set(drawings)
    assert set(shapes) | set(drawings) <= set(HELD_OUT)


def test_each_pair_of_attributes_of_a_held_out_thing_was_seen():
    seen = {(i, j, t[i], t[j]) for t in SEEN for i, j in combinations(range(3), 2)}
    assert {(i, j, t[i], t[j]) for t in HELD_OUT for i, j in combinations(range(3), 2)} <= seen


def test_base_and_new_classes_use_every_shape_equally_often():
    for half in (toy.SHAPES_CLASSES[:24], toy.SHAPES_CLASSES[24:]):
        assert sorted(thing.shape for thing in half) == sorted(2 * list(SHAPES))


def test_pretraining_shows_only_seen_things(script, monkeypatch):
    drawn, clutter = [], []
    paint = toy_images._thing
    monkeypatch.setattr(
        toy_images, "draw", lambda thing, look, seed: drawn.append(thing) or blank()
    )
    script.draw_pretraining(300, seed=0)
    monkeypatch.undo()
    monkeypatch.setattr(toy_images, "_thing", lambda *args: clutter.append(args[3]) or paint(*args))
    for i in range(50):
        draw(HELD_OUT[0], Look(), (3, i))
    assert set(drawn) <= set(SEEN) and len(set(drawn)) > 200
    assert set(clutter) <= {HELD_OUT[0], *SEEN} and len(set(clutter)) > 30


def test_captions_know_the_prompt_of_the_tables_and_never_say_no(script):
    phrasings = [p for d in toy_images.DOMAINS for p in script.captions_of(d)] + list(script.LONG)
    assert DEFAULT in phrasings
    words = " ".join(phrasings).lower().replace(".", " ").replace(",", " ").split()
    assert not {"no", "not", "without"} & set(words)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("toy_clip", ROOT / "scripts/train_toy_clip.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules["toy_clip"] = script  # dataclasses look their module up
    spec.loader.exec_module(script)
    return script


def blank() -> Image.Image:
    return Image.new("RGB", (toy_images.SIZE, toy_images.SIZE))


# Data sets


def test_enough_test_images_are_declared():
    for name, toy_set in toy.TOY_SETS.items():
        assert toy_set.counts["test"] >= 200, name
        if "train" in toy_set.counts:
            assert toy_set.counts["train"] >= 16 and toy_set.counts["val"] >= 4, name


def test_every_data_set_has_its_yaml_and_loads(tmp_path, small_sets):
    found = {}
    for path in sorted((ROOT / "configs/datasets").glob("toy_*.yaml")):
        cfg = config(tmp_path)
        cfg.merge_from_file(str(path))
        dataset = build_dataset(cfg)
        found[cfg.DATASET.NAME] = path.stem
        assert dataset.num_classes == len(dataset.classnames) == 6
        assert len(dataset.test) == 12
        assert all(Path(item.impath).is_absolute() for item in dataset.test)
        with Image.open(dataset.test[-1].impath) as image:
            assert image.size == (toy_images.SIZE, toy_images.SIZE) and image.mode == "RGB"
    assert found == {name: toy_set.folder for name, toy_set in toy.TOY_SETS.items()}


def test_scopes_cut_all_splits_and_share_the_drawn_images(tmp_path, small_sets):
    runs = {
        scope: build_dataset(config(tmp_path, SUBSAMPLE_CLASSES=scope, NUM_SHOTS=2, SEED=5))
        for scope in ("all", "base", "new")
    }
    names = [thing.name for thing in toy.TOY_SETS["ToyShapes"].classes]
    assert runs["all"].classnames == names
    assert runs["base"].classnames == names[:3] and runs["new"].classnames == names[3:]
    for split in ("train_x", "val", "test"):
        parts = {scope: [i.impath for i in getattr(run, split)] for scope, run in runs.items()}
        assert parts["base"] + parts["new"] == parts["all"]
        labels = {item.label for item in getattr(runs["new"], split)}
        assert labels == {0, 1, 2}
    assert len(runs["all"].train_x) == 12 and len(runs["all"].val) == 6


def test_damaged_sets_are_for_evaluation_only(tmp_path, small_sets):
    dataset = build_dataset(config(tmp_path, "ToyShapesNoise", NUM_SHOTS=2, SEED=1))
    assert [i.impath for i in dataset.train_x] == [i.impath for i in dataset.test]
    assert not dataset.val


@pytest.mark.parametrize("root", ["", "/does/not/exist"])
def test_missing_root_is_refused_with_the_way_out(root):
    with pytest.raises(ValueError, match=f"DATASET.ROOT is '{root}', .*mkdir -p data"):
        build_dataset(config(root))


def test_unwritable_root_is_refused_with_the_way_out(tmp_path, small_sets, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(ValueError, match="DATASET.ROOT is .*No space left.*--root"):
        build_dataset(config(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_unknown_scope_is_refused(tmp_path, small_sets):
    with pytest.raises(ValueError, match="SUBSAMPLE_CLASSES is 'half'"):
        build_dataset(config(tmp_path, SUBSAMPLE_CLASSES="half"))


# Drawing into folders

TINY = toy.ToySet("tiny", toy.SHAPES_CLASSES[:2], Look(), 1, {"train": 2, "test": 3})


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_second_use_draws_nothing_and_another_version_draws_again(tmp_path, monkeypatch):
    first = contents(toy.ensure_drawn(tmp_path, TINY))
    assert len(first) == 2 * 5 + 1
    monkeypatch.setattr(toy.ToySet, "picture", lambda *_: pytest.fail("drawn again"))
    toy.ensure_drawn(tmp_path, TINY)
    monkeypatch.undo()
    monkeypatch.setattr(toy, "VERSION", toy.VERSION + 1)
    again = contents(toy.ensure_drawn(tmp_path, TINY))
    assert json.loads(again[toy.STAMP])["version"] == toy.VERSION
    assert again.keys() == first.keys() and os.listdir(tmp_path) == ["tiny"]


def test_interrupted_drawing_is_never_used(tmp_path, monkeypatch):
    calls = []

    def stop_at_third(self, split, label, index):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return blank()

    monkeypatch.setattr(toy.ToySet, "picture", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        toy.ensure_drawn(tmp_path, TINY)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    # A folder without a stamp, as no process of ours leaves it, is not trusted either.
    (tmp_path / "tiny" / "train").mkdir(parents=True)
    assert len(contents(toy.ensure_drawn(tmp_path, TINY))) == 11


def test_killed_drawing_leaves_no_folder_of_that_name_and_is_swept_away(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=draw_and_die, args=(tmp_path,))
    process.start()
    process.join()
    (draft,) = tmp_path.iterdir()
    assert draft.name.startswith(".tiny.drawing-")
    old = time.time() - 2 * toy.ABANDONED
    os.utime(draft, (old, old))
    toy.ensure_drawn(tmp_path, TINY)
    assert os.listdir(tmp_path) == ["tiny"]


def draw_and_die(root: Path) -> None:
    toy.ToySet.picture = lambda *_: os._exit(9)  # as SIGKILL does: no clean-up
    toy.ensure_drawn(root, TINY)


def test_two_processes_may_draw_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    with context.Pool(3, initializer=_meet, initargs=(barrier,)) as pool:
        folders = pool.map(_draw_together, [tmp_path] * 3, chunksize=1)
    assert set(folders) == {tmp_path / "tiny"}
    assert os.listdir(tmp_path) == ["tiny"]
    assert len(contents(tmp_path / "tiny")) == 11


def _meet(barrier) -> None:
    global _barrier
    _barrier = barrier


def _draw_together(root: Path) -> Path:
    put = toy._put_in_place

    def put_together(*args) -> None:
        _barrier.wait(timeout=60)  # all have drawn, none has renamed
        put(*args)

    toy._put_in_place = put_together
    return toy.ensure_drawn(root, TINY)


# The training script


def test_training_computes_what_clip_computes(script):
    torch.manual_seed(0)
    model = script.build(script.RECIPES["teacher"], vocabulary=80).eval()
    images, tokens = torch.randn(3, 3, 48, 48), torch.randint(1, 70, (3, 32))
    tokens[torch.arange(3), torch.tensor([5, 9, 7])] = 79  # end-of-text; what follows is nothing
    with torch.no_grad():
        close = {"atol": 1e-5, "rtol": 1e-4}
        text = script.encode_text(model, tokens[:, :12])
        torch.testing.assert_close(text, model.encode_text(tokens), **close)
        image = script.encode_image(model, images)
        torch.testing.assert_close(image, model.encode_image(images), **close)
        script.use_silu(model)
        trained = script.encode_image(model, images)
        assert (trained - image).abs().max() > 1e-3
        script.fold_silu(model)
        torch.testing.assert_close(model.encode_image(images), trained, **close)


def test_training_repeats_bit_for_bit_and_its_file_loads_as_a_clip(script, tmp_path, monkeypatch):
    recipe = replace(script.RECIPES["student"], steps=2, batch=8)
    few = {domain: phrasings[:1] for domain, phrasings in script.CAPTIONS.items()}
    for name, value in {"CAPTIONS": few, "ANY": (), "LONG": script.LONG[:1]}.items():
        monkeypatch.setattr(script, name, value)  # tokenising all takes ten seconds
    captions, data = script.Captions(), script.draw_pretraining(16, seed=0)
    first, again = (script.train(recipe, data, captions).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    path = tmp_path / "student.safetensors"
    model = script.train(recipe, data, captions)
    script.save(path, model, captions.ids, {"seed": 1})
    monkeypatch.setitem(script.TOY_FILES, "toy-student", path)
    loaded = load_clip("toy-student")
    tokens = loaded.tokenize(["a photo of a dotted teal moon."])
    with torch.no_grad():
        expected = model.encode_text(torch.searchsorted(captions.ids, tokens))
        assert F.cosine_similarity(loaded.model.encode_text(tokens), expected) > 0.9999


# The pair


@pytest.fixture(scope="module")
def zero_shot() -> dict[str, dict[str, float]]:
    """Accuracy of both models on a few images of every ToyShapes class, by half."""
    toy_set = toy.TOY_SETS["ToyShapes"]
    result = {}
    for name in ("toy-student", "toy-teacher"):
        loaded, result[name] = load_clip(name), {}
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (loaded.mean, loaded.std))
        size = (loaded.image_size, loaded.image_size)
        for half, start in (("base", 0), ("new", 24)):
            labels = [label for label in range(24) for _ in range(12)]
            pictures = [
                toy_set.picture("test", start + label, i % 12).resize(size, Image.BICUBIC)
                for i, label in enumerate(labels)
            ]
            arrays = torch.from_numpy(np.stack([np.asarray(p) for p in pictures]))
            images = (arrays.permute(0, 3, 1, 2) / 255 - mean) / std
            names = [thing.name for thing in toy_set.classes[start : start + 24]]
            with torch.no_grad():
                image_BD = F.normalize(loaded.model.encode_image(images), dim=-1)
                tokens = loaded.tokenize(fill(DEFAULT, names))
                text_CD = F.normalize(loaded.model.encode_text(tokens), dim=-1)
            right = (image_BD @ text_CD.T).argmax(1) == torch.tensor(labels)
            result[name][half] = 100 * right.float().mean().item()
    return result


@pytest.mark.parametrize("half", ["base", "new"])
def test_shipped_pair_beats_chance_and_the_teacher_leads(zero_shot, half):
    student, teacher = zero_shot["toy-student"][half], zero_shot["toy-teacher"][half]
    assert student > 25  # chance is 4.2
    assert teacher > student + 8
    assert student < 75  # room to learn


@pytest.mark.parametrize("name", ["student", "teacher"])
def test_shipped_files_are_small_and_say_what_they_are(name):
    from safetensors import safe_open

    path = ROOT / f"models/toy/{name}.safetensors"
    assert path.stat().st_size < 2_000_000
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["json"])
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16", "I32"}
    assert about["command"] == "python scripts/train_toy_clip.py"
    rows = about["zero_shot"]["ToyShapes"]
    assert set(rows) == {"base", "new", "H"}


def test_shipped_lead_is_what_the_training_measured():
    from safetensors import safe_open

    measured = []
    for name in ("student", "teacher"):
        with safe_open(ROOT / f"models/toy/{name}.safetensors", "pt") as file:
            measured.append(json.loads(file.metadata()["json"])["zero_shot"])
    student, teacher = measured
    for name in ("ToyShapesNone", "ToyShapes", "ToyShapesStrong"):
        assert teacher[name]["H"] - student[name]["H"] >= 15, name
    for name in student:
        assert teacher[name]["H"] > student[name]["H"], name


def test_every_word_of_classes_and_prompts_has_an_embedding():
    words = ["a photo of a .", "a photo of no", "X", *(thing.name for thing in HELD_OUT)]
    for name in ("toy-student", "toy-teacher"):
        loaded = load_clip(name)
        rows = loaded.model.token_embedding(loaded.tokenize(words).unique())
        present = rows.abs().sum(dim=1) > 0
        assert present.sum() >= len(present) - 1  # all but the padding
