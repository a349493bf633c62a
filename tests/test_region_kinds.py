"""What a store keeps of the teacher: every kind gives p back, and features serve any classes."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import region_world as world
import safetensors.numpy
import torch
from safetensors import safe_open

import dump_teacher_logits
import regions.store.writer
import train
from datasets import toy
from models.prompted_clip import HandwrittenCLIP
from regions.store import RegionStore, RegionStoreError, RunNeeds
from regions.store.images import ImageTable, RegionImage
from regions.store.kinds import KINDS, decode, encode
from regions.store.layout import shard_tensors
from regions.store.teacher_text import (
    kept_variants,
    read_text,
    text_path,
    with_text_of_run,
    write_text,
)
from regions.store.writer import StoreWriter

GOLDEN = Path(__file__).parent / "golden"
REPO = Path(__file__).resolve().parents[1]


def kind_spec(kind: str = "logits", num_classes: int = 40, **changes):
    values = {"top_k": 10} if kind == "topk" else {}
    if kind == "features":
        values = {"feature_width": 512, "logit_scale": 100.0}
    names = tuple(f"class {i}" for i in range(num_classes))
    return world.golden_spec(kind=kind, classnames=names, **{**values, **changes})


def clip_like(regions: int, num_classes: int, width: int = 512, seed: int = 0):
    """Unit image features, unit text features, and the logits of scale 100 that they give."""
    rng = np.random.default_rng(seed)
    text_CD = rng.normal(size=(num_classes, width))
    text_CD /= np.linalg.norm(text_CD, axis=1, keepdims=True)
    labels = rng.integers(0, num_classes, regions)
    image_BD = rng.normal(size=(regions, width)) / np.sqrt(width) + 0.25 * text_CD[labels]
    image_BD /= np.linalg.norm(image_BD, axis=1, keepdims=True)
    logits_BC = 100 * image_BD @ text_CD.T
    return image_BD.astype(np.float32), text_CD.astype(np.float32), logits_BC.astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(np.asarray(logits, np.float64)).softmax(-1).numpy()


# --- values ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, dtype, bound",
    [
        ("logits", "float16", 3e-4),
        ("logits", "float32", 1e-6),
        ("features", "float16", 1e-3),
        ("features", "float32", 1e-5),
    ],
)
def test_probabilities_come_back(kind, dtype, bound):
    image_BD, text_CD, logits_BC = clip_like(500, 40)
    spec = kind_spec(kind, dtype=dtype)
    output = image_BD if kind == "features" else logits_BC
    kept = encode(spec, output, ["x"] * 500)
    found = decode(spec, kept, None, text_CD)
    assert found.dtype == np.float32 and found.shape == (500, 40)
    assert np.abs(softmax(found) - softmax(logits_BC)).max() < bound
    np.testing.assert_allclose(found, logits_BC, atol=0.07)  # at the teacher's own scale
    columns = np.array([7, 0, 31])
    some = decode(spec, kept, columns, text_CD)
    np.testing.assert_allclose(some, found[:, columns], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype, bound", [("float16", 3e-4), ("float32", 1e-6)])
def test_the_best_k_are_exact_and_the_rest_share_what_is_left(dtype, bound):
    _, _, logits_BC = clip_like(500, 40)
    spec = kind_spec("topk", dtype=dtype)
    kept = encode(spec, logits_BC, ["x"] * 500)
    p_BC = softmax(logits_BC)
    found_BC = softmax(decode(spec, kept))
    best_BK = np.argsort(-logits_BC, kind="stable")[:, :10]
    assert (kept["classes"] == best_BK).all() and kept["classes"].dtype == np.uint16
    assert (np.diff(kept["values"].astype(np.float64)) <= 0).all()
    for found in (found_BC, np.zeros((500, 40))):
        if not found.any():  # as the format says it: exp(values) alone, without the rest
            np.put_along_axis(found, best_BK, np.exp(kept["values"].astype(np.float64)), 1)
        difference = np.take_along_axis(found - p_BC, best_BK, 1)
        assert np.abs(difference).max() < bound
    rest_BC = found_BC.copy()
    np.put_along_axis(rest_BC, best_BK, np.nan, 1)
    spread = np.nanmax(rest_BC, 1) - np.nanmin(rest_BC, 1)
    assert (spread < 1e-9).all()
    assert (np.nanmax(rest_BC, 1) <= np.take_along_axis(found_BC, best_BK[:, -1:], 1)[:, 0]).all()
    wide = logits_BC.astype(np.float64)
    np.testing.assert_allclose(kept["lse"], np.log(np.exp(wide).sum(1)), rtol=1e-6)


def test_topk_of_all_classes_is_the_logits():
    _, _, logits_BC = clip_like(100, 12)
    kept = encode(kind_spec("topk", 12, top_k=12), logits_BC, ["x"] * 100)
    found = decode(kind_spec("topk", 12, top_k=12), kept)
    wanted = decode(
        kind_spec("logits", 12), encode(kind_spec("logits", 12), logits_BC, ["x"] * 100)
    )
    assert (found == wanted).all()


def test_many_classes_need_wide_ids():
    spec = kind_spec("topk", 2**16 + 1, top_k=2)
    logits_BC = np.zeros((1, 2**16 + 1), np.float32)
    logits_BC[0, 2**16] = 5
    kept = encode(spec, logits_BC, ["x"])
    assert kept["classes"].dtype == np.int32 and kept["classes"].tolist() == [[2**16, 0]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_of_another_width_is_refused(kind):
    with pytest.raises(RegionStoreError, match=r"of shape \(2, 3\) for 2 regions, but"):
        encode(kind_spec(kind), np.zeros((2, 3), np.float32), ["a", "b"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_every_kind_refuses_values_out_of_range_where_they_are_read(tmp_path, kind, value):
    """Even when all checksums fit: the damage was there before they were taken."""
    name = "region_store_v1" + ("" if kind == "logits" else f"_{kind}")
    spec = world.golden_spec(**world.GOLDEN_KINDS[name])
    field = {"logits": "logits", "topk": "values", "features": "features"}[kind]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regions.store.writer, "check_shard", lambda *_: None)
        with StoreWriter(tmp_path / "store", spec) as writer:
            tensors = world.golden_shard(spec)
            tensors[field] = tensors[field].astype(np.float32)
            tensors[field].flat[1] = value
            with np.errstate(over="ignore"):
                writer.write(0, tensors)
            if writer.needs_text:
                writer.write_text(world.golden_features()[1])
            writer.finish()
    with pytest.raises(RegionStoreError, match=f"shard_00000.safetensors holds {field} from"):
        RegionStore.open(tmp_path / "store")


# --- the documented format ------------------------------------------------------------------


def read_by_the_book(folder: Path, relative_path: str) -> tuple[np.ndarray, ...]:
    """docs/REGION_STORE.md, followed with json and safetensors alone: boxes, flips, logits."""
    manifest = json.loads((folder / "manifest.json").read_text())
    spec, files = manifest["spec"], manifest["files"]
    assert manifest["format"] == 1

    def tensors(name: str, size: int, sha256: str) -> dict[str, np.ndarray]:
        content = (folder / name).read_bytes()
        assert len(content) == size and hashlib.sha256(content).hexdigest() == sha256
        return safetensors.numpy.load(content)

    images = tensors("images.safetensors", **_renamed(files["images.safetensors"]))
    joined = b"".join(images[name].tobytes() for name in sorted(images))
    assert hashlib.sha256(joined).hexdigest() == spec["images"]["sha256"]
    key = int.from_bytes(hashlib.sha256(relative_path.encode()).digest()[:8], "little")
    index = int(images["order"][np.searchsorted(images["hashes"], np.uint64(key))])
    start, end = ([0, *images["ends"].tolist()][index + place] for place in (0, 1))
    assert images["paths"][start:end].tobytes().decode() == relative_path

    row = manifest["shards"][index // manifest["shard_images"]]
    shard = tensors(row["file"], row["bytes"], row["sha256"])
    place = index - row["first_image"]
    kept = {name: tensor[place].astype(np.float32) for name, tensor in shard.items()}
    if spec["kind"] == "logits":
        logits = kept["logits"] + kept["lse"][:, None]
    elif spec["kind"] == "topk":
        missing = len(spec["classnames"]) - spec["top_k"]
        rest = np.maximum(1 - np.exp(kept["values"]).sum(1), 1e-7) / max(1, missing)
        share = np.minimum(np.log(rest), kept["values"][:, -1])
        logits = np.tile(share[:, None], len(spec["classnames"]))
        for region, classes in enumerate(kept["classes"].astype(int)):
            logits[region, classes] = kept["values"][region]
        logits = logits + kept["lse"][:, None]
    else:
        text = tensors("text.safetensors", **_renamed(files["text.safetensors"]))["text"]
        logits = spec["logit_scale"] * kept["features"] @ text.T
    return shard["boxes"][place], shard["flips"][place], logits


def _renamed(row: dict) -> dict:
    return {"size": row["bytes"], "sha256": row["sha256"]}


@pytest.mark.parametrize("name", world.GOLDEN_KINDS)
def test_a_reader_written_from_the_documentation_reads_every_kind(name):
    store = RegionStore.open(GOLDEN / name)
    for index, image in enumerate(store.spec.images):
        boxes, flips, logits = read_by_the_book(GOLDEN / name, image.path)
        rows = store.read(index, [0, 1])
        assert (rows.boxes == boxes).all() and (rows.flips == flips).all()
        np.testing.assert_allclose(rows.logits, logits, rtol=1e-6, atol=1e-5)
        if store.spec.kind != "features":
            best = np.argsort(-logits)[:, :2]
            wanted = world.golden_arrays()[2][index]
            np.testing.assert_allclose(
                np.take_along_axis(logits, best, 1), np.take_along_axis(wanted, best, 1), atol=2e-3
            )


@pytest.mark.parametrize("name", world.GOLDEN_KINDS)
@pytest.mark.parametrize("columns", [None, [2, 0]])
def test_a_batch_is_what_single_reads_give(name, columns):
    store = RegionStore.open(GOLDEN / name)
    images_B, regions_BR = np.array([2, 0, 2]), np.array([[1, 0], [0, 0], [0, 1]])
    columns = None if columns is None else np.array(columns)
    batch = store.read_batch(images_B, regions_BR, columns)
    for place in range(3):
        rows = store.read(int(images_B[place]), regions_BR[place], columns)
        for found, wanted in zip(batch, rows, strict=True):
            assert found.dtype == wanted.dtype and np.array_equal(found[place], wanted)
    for images, places in (([3], [[0]]), ([-1], [[0]]), ([0], [[2]]), ([0], [[-1]])):
        with pytest.raises(IndexError):
            store.read_batch(np.array(images), np.array(places))


@pytest.mark.parametrize("name", world.GOLDEN_KINDS)
def test_the_shapes_on_disk_are_the_documented_ones(name):
    """And the table of tensors in the document names every one of them."""
    spec = RegionStore.open(GOLDEN / name).spec
    document = (REPO / "docs" / "REGION_STORE.md").read_text()
    with safe_open(GOLDEN / name / "shard_00000.safetensors", "np") as file:
        assert set(file.metadata()) == {"region_store"}
        for tensor, wanted in shard_tensors(spec, 2).items():
            part = file.get_slice(tensor)
            assert (part.get_dtype(), tuple(part.get_shape())) == (wanted.dtype, wanted.shape)
            assert f"| `{tensor}` |" in document


# --- the list of images ---------------------------------------------------------------------


def test_images_are_found_by_path_even_when_hashes_collide(monkeypatch):
    import regions.store.images

    images = [RegionImage(f"a/{i}.jpg", i % 3, 10 + i, 20) for i in range(50)]
    monkeypatch.setattr(
        regions.store.images, "_hashes", lambda paths: np.array([len(p) for p in paths], "<u8")
    )
    table = ImageTable.of(images)
    wanted = [image.path for image in images[::-1]] + ["a/50.jpg", "a/1.jpeg", "b"]
    assert table.find(wanted).tolist() == [*range(49, -1, -1), -1, -1, -1]
    assert list(table) == images and table[-1] == images[-1] and table[1:3] == tuple(images[1:3])


def test_paths_are_bytes_as_the_file_system_has_them(tmp_path):
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")  # Latin-1 on a UTF-8 system
    spec = replace(world.golden_spec(), images=(RegionImage(name, 0, 2, 2),))
    with StoreWriter(tmp_path / "store", spec) as writer:
        writer.write(0, {k: v[:1] for k, v in world.golden_shard(world.golden_spec()).items()})
        writer.finish()
    store = RegionStore.open(tmp_path / "store")
    assert store.image_index(name) == 0 and store.spec.images[0].path == name


@pytest.mark.parametrize("path", ["/etc/passwd", "a/../../b", "..", "", "a//b", "a/\0", "./a"])
def test_a_path_that_leaves_the_root_is_refused(path, monkeypatch):
    with pytest.raises(ValueError, match="is not a path below the data root"):
        ImageTable.of([RegionImage(path, 0, 1, 1)])
    if path:
        import regions.store.images

        with monkeypatch.context() as patch:  # someone else wrote the list
            patch.setattr(regions.store.images, "_is_inside", lambda _: True)
            table = ImageTable.of([RegionImage(path, 0, 1, 1)])
        with pytest.raises(RegionStoreError, match="an image of the store has the path"):
            table[0]


def test_a_table_travels_as_the_place_of_its_file():
    table = RegionStore.open(GOLDEN / "region_store_v1").spec.images
    assert len(pickle.dumps(table)) < 1000
    assert list(pickle.loads(pickle.dumps(table))) == list(table)


# --- features: any classes, any prompt ------------------------------------------------------


def features_store() -> RegionStore:
    return RegionStore.open(GOLDEN / "region_store_v1_features")


def needs_of(store: RegionStore, **changes) -> RunNeeds:
    same = ("teacher", "teacher_digest", "template", "classnames", "num_regions")
    values = {name: getattr(store.spec, name) for name in (*same, "scale", "ratio", "flip", "seed")}
    return RunNeeds(**{**values, "images": (store.spec.images[0].path,), **changes})


def no_tower(classnames, template):
    raise AssertionError("the teacher was asked")


def test_classes_of_the_store_need_no_text_tower():
    store = features_store()
    for names in (store.classnames, store.classnames[::-1], store.classnames[1:2]):
        assert with_text_of_run(store, needs_of(store, classnames=names), no_tower) is store
    logits = store.read(0, [0, 1]).logits
    backwards = store.read(0, [0, 1], store.columns(store.classnames[::-1])).logits
    assert (backwards == logits[:, ::-1]).all()


def test_other_classes_and_prompts_are_computed_once_and_kept_beside(tmp_path, capsys):
    world.write_golden(tmp_path / "s", **world.GOLDEN_KINDS["region_store_v1_features"])
    before = world.folder_bytes(tmp_path / "s")
    store = RegionStore.open(tmp_path / "s")
    text_CD, calls = np.eye(4, dtype=np.float32)[:2], []

    def tower(classnames, template):
        calls.append((classnames, template))
        return text_CD, store.spec.teacher_digest

    needs = needs_of(store, classnames=("yak", "zebra"), template="a drawing of a {}.")
    for _ in range(2):
        seen = with_text_of_run(store, needs, tower)
        seen.check_run(needs)
        assert seen.columns(["zebra"]).tolist() == [1]
        images = world.golden_features()[0]
        np.testing.assert_allclose(
            seen.read(1, [0, 1]).logits, 50 * images[1] @ text_CD.T, atol=0.02
        )
    assert calls == [(needs.classnames, needs.template)]
    path = text_path(store, needs.classnames, needs.template)
    assert capsys.readouterr().out.count(f"once, and kept as {path}") == 1
    assert path.parent == tmp_path / "s.text" and world.folder_bytes(tmp_path / "s") == before
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with_text_of_run(store, needs, tower)  # damage costs a computation, no more
    assert len(calls) == 2
    with pytest.raises(RegionStoreError, match="weights abab.* this run has .* weights other"):
        with_text_of_run(
            store, needs_of(store, template="{}!"), lambda *_: (np.eye(4)[:3], "other")
        )
    with pytest.raises(RegionStoreError, match="Set TRAINER.FDBPL.TEACHER ViT-H"):
        with_text_of_run(store, needs_of(store, template="{}!", teacher="T"), no_tower)


def test_a_tuned_set_of_text_features_is_kept_beside_the_raw_one(tmp_path):
    world.write_golden(tmp_path / "s", **world.GOLDEN_KINDS["region_store_v1_features"])
    before = world.folder_bytes(tmp_path / "s")
    store = RegionStore.open(tmp_path / "s")
    about = (store.classnames, store.template)
    raw_CD, tuned_CD = np.eye(4, dtype=np.float32)[:3], np.eye(4, dtype=np.float32)[1:]
    assert read_text(store, *about, "tuned-ep5") is None and kept_variants(store) == []
    path = write_text(store, *about, tuned_CD, "tuned-ep5")
    raw_path = write_text(store, *about, raw_CD)
    assert path != raw_path == text_path(store, *about)
    assert (read_text(store, *about, "tuned-ep5") == tuned_CD).all()
    assert (read_text(store, *about) == raw_CD).all()
    assert read_text(store, *about, "tuned-ep6") is None
    assert read_text(store, store.classnames[::-1], store.template, "tuned-ep5") is None
    assert kept_variants(store) == [("tuned-ep5", store.template, 3, path.name)]
    seen = store.with_text(*about, tuned_CD, "tuned-ep5")
    assert (seen.variant, store.variant) == ("tuned-ep5", "")
    images = world.golden_features()[0]
    np.testing.assert_allclose(seen.read(1, [0]).logits, 50 * images[1, :1] @ tuned_CD.T, atol=0.02)
    assert world.folder_bytes(tmp_path / "s") == before  # the store itself has not changed
    write_text(store, *about, raw_CD[::-1], "tuned-ep5")  # tuned anew: the last one counts
    assert (read_text(store, *about, "tuned-ep5") == raw_CD[::-1]).all()
    shutil.copy(path, raw_path)  # a tuned set is never taken for the raw one
    assert read_text(store, *about) is None


def test_text_features_that_do_not_fit_are_refused(tmp_path):
    world.write_golden(tmp_path / "s", **world.GOLDEN_KINDS["region_store_v1_features"])
    store, text = RegionStore.open(tmp_path / "s"), np.eye(4, dtype=np.float32)
    with pytest.raises(ValueError, match=r"shape \(4, 4\) are not \(3, 4\)"):
        write_text(store, store.classnames, store.template, text, "tuned")
    with pytest.raises(RegionStoreError, match="holds text from nan to nan"):
        write_text(store, store.classnames, store.template, text[:3] * np.nan, "tuned")
    with pytest.raises(ValueError, match="more than 100 characters"):
        write_text(store, store.classnames, store.template, text[:3], "x" * 101)
    logits = RegionStore.open(GOLDEN / "region_store_v1")
    with pytest.raises(ValueError, match="holds logits: only kind features takes text"):
        write_text(logits, logits.classnames, logits.template, text[:3], "tuned")
    assert not (tmp_path / "s.text").exists()


def test_only_features_serve_another_prompt():
    store = RegionStore.open(GOLDEN / "region_store_v1_topk")
    needs = needs_of(store, template="a drawing of a {}.")
    assert with_text_of_run(store, needs, no_tower) is store
    with pytest.raises(RegionStoreError, match="DATASET.TEMPLATE is a drawing of a {}."):
        store.check_run(needs)


def test_one_store_serves_every_seed_whose_images_it_holds(tmp_path):
    spec = world.golden_spec(seed=1, image_seeds=(1, 2, 3))
    with StoreWriter(tmp_path / "store", spec) as writer:
        writer.write(0, world.golden_shard(spec))
        writer.finish()
    store = RegionStore.open(tmp_path / "store")
    for seed in (1, 2, 3):
        store.check_run(needs_of(store, seed=seed))
    with pytest.raises(RegionStoreError, match=r"images of seed 1, 2, 3, but --seed is 4. Set --s"):
        store.check_run(needs_of(store, seed=4))


# --- in a trainer ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy_root(tmp_path_factory):
    """Two training images of each toy class."""
    patch = pytest.MonkeyPatch()
    small = replace(toy.TOY_SETS["ToyShapes"], counts={"train": 2, "val": 1, "test": 1})
    patch.setitem(toy.TOY_SETS, "ToyShapes", small)
    patch.chdir(REPO)
    root = tmp_path_factory.mktemp("toy")
    (root / "data").mkdir()
    yield root
    patch.undo()


def command(root: Path, kind: str, scope: str, seed: int = 1, **keys) -> list[str]:
    given = {
        "DATASET.NUM_SHOTS": 2,
        "DATASET.SUBSAMPLE_CLASSES": scope,
        "OPTIM.MAX_EPOCH": 2,
        "TRAINER.FDBPL.NUM_REGIONS": 4,
        "TRAINER.FDBPL.STORE": root / kind,
        **keys,
    }
    return [
        *("--root", str(root / "data"), "--trainer", "FDBPL", "--seed", str(seed)),
        *("--dataset-config-file", "configs/datasets/toy_shapes.yaml"),
        *("--config-file", "configs/trainers/FDBPL/toy.yaml"),
        *(str(part) for pair in given.items() for part in pair),
    ]


@pytest.fixture(scope="module")
def toy_stores(toy_root) -> Path:
    """One store of every kind over all classes; features under another prompt, of base classes."""
    for kind in KINDS:
        keys = {"TRAINER.FDBPL.STORE_KIND": kind, "TRAINER.FDBPL.TOP_K": 30}
        assert dump_teacher_logits.run(command(toy_root, kind, "all", **keys)) == 0
    return toy_root


def trained(root: Path, kind: str, out: str, scope: str = "base", **keys):
    keys["TRAINER.FDBPL.CASCADE_WEIGHT"] = 0.0  # a near tie of two classes would switch its pairs
    return train.main(["--output-dir", str(root / out), *command(root, kind, scope, **keys)])


def teacher_probabilities(trainer) -> torch.Tensor:
    samples = trainer.train_loader_x.dataset
    every = torch.arange(4)
    return torch.cat([samples[i, every]["teacher_logits"] for i in range(len(samples))]).softmax(-1)


@pytest.fixture(scope="module")
def trained_on_logits(toy_stores):
    return trained(toy_stores, "logits", "by_logits")


@pytest.mark.parametrize("kind, bound", [("features", 1e-3), ("topk", 0.05)])
def test_training_from_any_kind_equals_training_from_logits(
    toy_stores, trained_on_logits, kind, bound
):
    """A base-class run reads the columns of an all-class store; p of the teacher, q of the student.

    With k of all classes kept, the rest of the probability is spread evenly: p is near, not equal.
    """
    found = trained(toy_stores, kind, f"by_{kind}")
    wanted = trained_on_logits
    p, wanted_p = teacher_probabilities(found), teacher_probabilities(wanted)
    assert p.shape == wanted_p.shape == (48 * 4, 24)
    assert (p - wanted_p).abs().max() < bound
    images = torch.cat([wanted.train_loader_x.dataset[i]["img"] for i in range(8)])
    with torch.no_grad():
        q, wanted_q = (run.model_inference(images).softmax(-1) for run in (found, wanted))
    assert (q - wanted_q).abs().max() < min(bound, 1e-2)


def test_features_serve_an_ensemble_of_prompts_without_a_new_dump(toy_stores, capsys):
    """The teacher is loaded for its text alone, once; p is that of a dump with that prompt."""
    template = "a photo of a {}. | a drawing of a {}."
    keys = {"DATASET.TEMPLATE": template, "OPTIM.MAX_EPOCH": 1}
    found = trained(toy_stores, "features", "ensemble", **keys)
    assert "with the text tower of toy-teacher, once" in capsys.readouterr().out
    again = trained(toy_stores, "features", "ensemble_again", **keys)
    assert "text tower" not in capsys.readouterr().out
    assert torch.equal(teacher_probabilities(found), teacher_probabilities(again))

    assert dump_teacher_logits.run(command(toy_stores, "by_ensemble", "base", **keys)) == 0
    wanted = trained(toy_stores, "by_ensemble", "by_ensemble_run", **keys)
    difference = teacher_probabilities(found) - teacher_probabilities(wanted)
    assert difference.abs().max() < 1e-3


def test_an_ensemble_is_the_mean_of_unit_text_features(trained_on_logits):
    clip, names = trained_on_logits.model.clip, ["red circle", "blue square"]
    parts = ["a photo of a {}.", "a drawing of a {}."]
    one, two = (HandwrittenCLIP(clip, names, part).text_features() for part in parts)
    both = HandwrittenCLIP(clip, names, " | ".join(parts)).text_features()
    torch.testing.assert_close(both, torch.nn.functional.normalize(one + two, dim=-1))
