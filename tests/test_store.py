"""The region store: what is written is read, and what does not fit or is damaged is refused."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import region_world as world
import safetensors.numpy

import regions.store
from files import Busy
from regions.store import RegionStore, RegionStoreError, RunNeeds
from regions.store.fit import require_same_spec
from regions.store.kinds import encode
from regions.store.layout import encode_manifest, find_dump
from regions.store.spec import RegionImage, RegionSpec
from regions.store.writer import StoreWriter

GOLDEN = Path(__file__).parent / "golden" / "region_store_v1"
GOLDEN_ID = "b6c3d68739f94bddf636dcfc207d318235319d4f648be60137585ea3fe5d1e77"


@pytest.fixture
def golden(tmp_path) -> Path:
    """A copy of the golden store that a test may damage."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "store"))


def golden_needs(**changes) -> RunNeeds:
    spec = world.golden_spec()
    same = ("teacher", "teacher_digest", "template", "classnames", "num_regions")
    same += ("scale", "ratio", "flip", "seed")
    values = {name: getattr(spec, name) for name in same}
    return RunNeeds(**{**values, "images": tuple(im.path for im in spec.images), **changes})


# --- the format -----------------------------------------------------------------------------


def test_golden_store_of_version_1_reads_as_ever():
    store = RegionStore.open(GOLDEN)
    assert store.spec == world.golden_spec() and store.spec.id == GOLDEN_ID
    assert len(store) == 3
    boxes, flips, logits = world.golden_arrays()
    for image in range(3):
        rows = store.read(image, [1, 0])
        assert (rows.boxes == boxes[image, ::-1]).all() and rows.boxes.dtype == np.float32
        assert (rows.flips == flips[image, ::-1]).all() and rows.flips.dtype == bool
        assert rows.logits.dtype == np.float32
        np.testing.assert_allclose(rows.logits, logits[image, ::-1], atol=2e-3)
    assert store.image_index("oxford_pets/images/ünïcode 3.jpg") == 2
    assert store.columns(["pug", "Abyssinian"]).tolist() == [2, 0]


@pytest.mark.parametrize("name", world.GOLDEN_KINDS)
def test_golden_stores_are_what_is_written_today(tmp_path, name):
    world.write_golden(tmp_path / "store", **world.GOLDEN_KINDS[name])
    assert world.folder_bytes(tmp_path / "store") == world.folder_bytes(GOLDEN.parent / name)


def test_a_reader_needs_nothing_but_safetensors_and_json():
    manifest = json.loads((GOLDEN / "manifest.json").read_text())
    assert manifest["format"] == 1
    checksum = manifest.pop("sha256")
    for value, wanted in ((manifest, checksum), (manifest["spec"], manifest["spec_id"])):
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
        assert hashlib.sha256(text.encode()).hexdigest() == wanted
    boxes, flips, logits = world.golden_arrays()
    for shard in manifest["shards"]:
        content = (GOLDEN / shard["file"]).read_bytes()
        assert len(content) == shard["bytes"]
        assert hashlib.sha256(content).hexdigest() == shard["sha256"]
        part = slice(shard["first_image"], shard["first_image"] + shard["num_images"])
        arrays = safetensors.numpy.load(content)
        assert (arrays["boxes"] == boxes[part]).all()
        assert (arrays["flips"] == flips[part]).all()
        found = arrays["logits"].astype(np.float32) + arrays["lse"][..., None]
        np.testing.assert_allclose(found, logits[part], atol=2e-3)


def test_spec_survives_json_and_its_id_sees_every_field():
    spec = world.golden_spec()
    plain = json.loads(json.dumps(spec.to_json()))
    assert RegionSpec.from_json(plain, lambda *_: spec.images) == spec
    changes = {
        "teacher": "other",
        "teacher_digest": "cd" * 32,
        "teacher_precision": "bf16",
        "template": "a {}.",
        "classnames": ("pug", "café cat", "Abyssinian"),
        "images": spec.images[::-1],
        "image_size": 336,
        "num_regions": 3,
        "scale": (0.08, 1.0),
        "ratio": (0.5, 2.0),
        "flip": 0.0,
        "seed": 4,
        "image_seeds": (3, 4),
        "dtype": "float32",
    }
    ids = {replace(spec, **{field: value}).id for field, value in changes.items()}
    assert len(ids | {spec.id}) == len(changes) + 1


@pytest.mark.parametrize(
    "field, value",
    [
        ("num_regions", 2.0),
        ("num_regions", True),
        ("seed", "1"),
        ("scale", [0.1]),
        ("flip", 1),
        ("classnames", ["a", 3]),
        ("images", []),
        ("images", {"count": 3}),
        ("images", {"count": True, "sha256": ""}),
        ("images", {"count": 10**30, "sha256": ""}),
        ("kind", "pictures"),
        ("kind", "topk"),
        ("top_k", 2),
        ("feature_width", 2),
        ("logit_scale", 1),
        ("image_seeds", 3),
        ("unknown", 1),
    ],
)
def test_a_spec_of_wrong_types_is_refused(field, value):
    with pytest.raises(ValueError):
        spec = world.golden_spec()
        RegionSpec.from_json({**spec.to_json(), field: value}, lambda *_: spec.images)


# --- does it fit the run? -------------------------------------------------------------------


def test_a_run_that_fits_is_served_whole_or_in_part():
    store = RegionStore.open(GOLDEN)
    store.check_run(golden_needs())
    store.check_run(golden_needs(teacher_digest=None, classnames=("pug",)))
    store.check_run(golden_needs(images=("oxford_pets/images/pug_7.jpg",)))


@pytest.mark.parametrize(
    "change, found, wanted, way_out",
    [
        (
            {"teacher": "ViT-L/14"},
            "ViT-H-14-quickgelu",
            "TRAINER.FDBPL.TEACHER is ViT-L/14",
            "Set TRAINER.FDBPL.TEACHER ViT-H-14-quickgelu, or dump again into another --store",
        ),
        (
            {"teacher_digest": "cd" * 32},
            "ab" * 32,
            "cd" * 32,
            "Use the teacher the store was made with, or dump again into another --store",
        ),
        (
            {"template": "a photo of a {}."},
            "'a photo of a {}, a type of pet.'",
            "DATASET.TEMPLATE is a photo of a {}.",
            'Set DATASET.TEMPLATE "a photo of a {}, a type of pet.", or dump again',
        ),
        ({"seed": 2}, "seed 3", "--seed is 2", "Set --seed 3, or dump again"),
        (
            {"num_regions": 50},
            "2 regions per image",
            "TRAINER.FDBPL.NUM_REGIONS is 50",
            "Set TRAINER.FDBPL.NUM_REGIONS 2, or dump again",
        ),
        (
            {"scale": (0.08, 1.0)},
            "(0.08, 0.936)",
            "TRAINER.FDBPL.REGION_SCALE is (0.08, 1.0)",
            'Set TRAINER.FDBPL.REGION_SCALE "(0.08, 0.936)", or dump again',
        ),
        (
            {"ratio": (1.0, 1.0)},
            "(0.75, 1.3333333333333333)",
            "TRAINER.FDBPL.REGION_RATIO is (1.0, 1.0)",
            'Set TRAINER.FDBPL.REGION_RATIO "(0.75, 1.3333333333333333)", or dump again',
        ),
        (
            {"flip": 0.0},
            "probability 0.5",
            "TRAINER.FDBPL.REGION_FLIP is 0.0",
            "Set TRAINER.FDBPL.REGION_FLIP 0.5, or dump again",
        ),
        (
            {"classnames": ("pug", "Beagle")},
            "3 classes",
            "'Beagle'",
            "Set DATASET.SUBSAMPLE_CLASSES",
        ),
        (
            {"images": ("oxford_pets/images/pug_7.jpg", "oxford_pets/images/pug_8.jpg")},
            "3 images",
            "of 1 of the 2 asked for it holds none: oxford_pets/images/pug_8.jpg. The split moved",
            "Restore the images or set these as in the dump, or dump again into another --store",
        ),
    ],
)
def test_a_run_that_does_not_fit_is_refused_with_both_values_and_the_way_out(
    change, found, wanted, way_out
):
    with pytest.raises(RegionStoreError) as refusal:
        RegionStore.open(GOLDEN).check_run(golden_needs(**change))
    for part in (str(GOLDEN), found, wanted, way_out):
        assert part in str(refusal.value)


def test_run_needs_are_read_from_a_config():
    keys = SimpleNamespace(
        TEACHER="T", NUM_REGIONS=4, REGION_SCALE=[0.1, 1], REGION_RATIO=[1, 2], REGION_FLIP=0
    )
    cfg = SimpleNamespace(TRAINER=SimpleNamespace(FDBPL=keys), SEED=0)
    needs = RunNeeds.from_cfg(cfg, template="a {}.", classnames=["b", "a"], images=["x"])
    assert needs == RunNeeds(
        "T", None, "a {}.", 4, (0.1, 1.0), (1.0, 2.0), 0.0, 0, ("b", "a"), ("x",)
    )


def test_columns_of_repeated_names_match_in_order(tmp_path):
    store = world.make_store(tmp_path, tmp_path / "s", classnames=("bee", "ant", "bee", "cat"))
    assert store.columns(["cat", "bee", "bee"]).tolist() == [3, 0, 2]
    with pytest.raises(RegionStoreError, match="not of 'bee'"):
        store.columns(["bee", "bee", "bee"])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"teacher": "other"}, "Set TRAINER.FDBPL.TEACHER ViT-H-14-quickgelu"),
        ({"teacher_precision": "bf16"}, "computed in fp32, but TRAINER.FDBPL.TEACHER_PREC is bf16"),
        ({"image_size": 336}, "regions of 224 pixels a side, but this run has regions of 336"),
        ({"classnames": ("Abyssinian", "pug")}, "3 classes, but this call has 2"),
        (
            {"classnames": ("Abyssinian", "dog", "pug")},
            "number 2 being 'café cat', but this call has 3 classes, number 2 being 'dog'",
        ),
        ({"images": (RegionImage("x.jpg", 0, 1, 1),)}, "3 images, but this call has 1"),
    ],
)
def test_a_dump_is_not_continued_under_another_spec(golden, change, message):
    before = world.folder_bytes(golden)
    spec = world.golden_spec()
    if "classnames" in change:  # keep the labels valid
        change = {**change, "images": tuple(im._replace(label=0) for im in spec.images)}
    with pytest.raises(RegionStoreError) as refusal:
        StoreWriter(golden, replace(spec, **change))
    assert message in str(refusal.value)
    assert world.folder_bytes(golden) == before


def test_an_image_of_another_size_is_named():
    spec = world.golden_spec()
    images = (spec.images[0], spec.images[1]._replace(height=334), spec.images[2])
    with pytest.raises(RegionStoreError, match=r"pug_7.jpg \(label 2, 333 x 500\).* 334 x 500"):
        require_same_spec(GOLDEN, spec, replace(spec, images=images))
    require_same_spec(GOLDEN, spec, replace(spec, images=images), ignore=["images"])


# --- damage ---------------------------------------------------------------------------------


def forge_manifest(store: Path, **change) -> None:
    """Change fields of a manifest and give it the checksum that fits."""
    path = store / "manifest.json"
    fields = {**json.loads(path.read_text()), **change}
    fields.pop("sha256")
    path.write_bytes(encode_manifest(fields))


def read_all(path: Path) -> list[bytes]:
    store = RegionStore.open(path)
    rows = [store.read(image, range(2)) for image in range(3)]
    return [array.tobytes() for row in rows for array in row] + [store.spec.id.encode()]


@pytest.mark.parametrize("name", sorted(os.listdir(GOLDEN)))
def test_every_flipped_byte_and_every_truncation_is_refused(golden, name):
    whole = (GOLDEN / name).read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        for damaged in (bytes(flipped), whole[:place]):
            (golden / name).write_bytes(damaged)
            try:
                read_all(golden)
                raise AssertionError(f"byte {place}: read as if nothing had happened")
            except RegionStoreError as error:
                assert name in str(error)


@pytest.mark.parametrize("name", ["shard_00000.safetensors", "shard_00001.safetensors"])
def test_a_missing_shard_is_named_at_open(golden, name):
    (golden / name).unlink()
    with pytest.raises(RegionStoreError, match=f"{name} is missing. .* run the dump again"):
        RegionStore.open(golden)


def test_sizes_are_checked_at_open_and_checksums_at_first_touch_of_a_large_store(
    golden, monkeypatch
):
    monkeypatch.setattr(regions.store.reader, "VERIFY_AT_OPEN", 0)
    shard = golden / "shard_00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    store = RegionStore.open(golden)
    store.read(0, [0])
    with pytest.raises(RegionStoreError, match="shard_00001.safetensors is damaged: its checksum"):
        store.read(2, [0])
    shard.write_bytes(content[:-1])
    with pytest.raises(RegionStoreError, match="has 549 bytes instead of 550"):
        store.read(2, [0])
    with pytest.raises(RegionStoreError, match="has 549 bytes instead of 550"):
        RegionStore.open(golden)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": 2}, "has format 2, but this code reads up to format 1. Update the code"),
        ({"format": "1"}, "is damaged"),
        ({"format": True}, "is damaged"),
        ({"spec_id": "0"}, "is damaged"),
        ({"shard_images": 0}, "is damaged"),
        ({"shard_images": 10**30}, "is damaged"),
        ({"shards": []}, "is damaged"),
        ({"shards": [1, 2]}, "is damaged"),
        ({"shards": None}, "is damaged"),
        ({"spec": []}, "is damaged"),
        ({"extra": 1}, "is damaged"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(golden, change, message):
    forge_manifest(golden, **change)
    with pytest.raises(RegionStoreError, match=message):
        RegionStore.open(golden)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100000, '{"format": NaN}', "\ufeff{}"])
def test_a_manifest_that_is_no_manifest_is_refused(golden, text):
    (golden / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(RegionStoreError, match="manifest.json is damaged"):
        RegionStore.open(golden)


def test_shards_outside_the_folder_are_refused(golden):
    shards = json.loads((golden / "manifest.json").read_text())["shards"]
    forge_manifest(golden, shards=[{**shards[0], "file": "../shard_00000.safetensors"}, shards[1]])
    with pytest.raises(RegionStoreError, match="the shards do not cover the images"):
        RegionStore.open(golden)


def test_a_hostile_shard_header_is_refused(golden):
    """Even when the manifest's checksum fits: huge shapes, overlaps, wrong types, another shard."""
    name = "shard_00000.safetensors"
    whole = (GOLDEN / name).read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    boxes, flips = header["boxes"], header["flips"]
    other = (GOLDEN / "shard_00001.safetensors").read_bytes()
    hostile = [
        {**header, "boxes": {**boxes, "shape": [2**62, 2, 4]}},
        {**header, "boxes": {**boxes, "shape": [2, 2, 4.5]}},
        {**header, "flips": {**flips, "data_offsets": boxes["data_offsets"]}},
        {**header, "flips": {**flips, "data_offsets": [10**9, 10**9 + 4]}},
        {**header, "flips": {**flips, "data_offsets": "ab"}},
        {**header, "flips": 3},
        {**header, "more": flips},
        {name: value for name, value in header.items() if name != "logits"},
        {**header, "__metadata__": {"region_store": "[]"}},
        {**header, "__metadata__": None},
        [],
    ]
    encoded = [json.dumps(value).encode() for value in hostile]
    files = [len(text).to_bytes(8, "little") + text + data for text in encoded]
    files += [other, b"\xff" * 8 + whole[8:], whole[:7], (2**40).to_bytes(8, "little"), b"[" * 9000]
    manifest = json.loads((GOLDEN / "manifest.json").read_text())
    for content in files:
        (golden / name).write_bytes(content)
        row = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest["shards"][0].update(row)
        forge_manifest(golden, shards=manifest["shards"])
        with pytest.raises(RegionStoreError, match="is not shard 0|damaged header"):
            RegionStore.open(golden)


def test_a_folder_without_a_store_says_how_to_make_one(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(RegionStoreError, match="holds no region store. Check TRAINER.FDBPL"):
            RegionStore.open(path)


# --- writing --------------------------------------------------------------------------------


def test_an_unfinished_dump_cannot_be_read_and_says_so(tmp_path):
    StoreWriter(tmp_path / "store", world.golden_spec()).close()
    with pytest.raises(RegionStoreError, match="is not finished. Run it again"):
        RegionStore.open(tmp_path / "store")


def test_a_second_dump_into_the_same_folder_is_refused(tmp_path):
    with StoreWriter(tmp_path / "store", world.golden_spec()):
        with pytest.raises(Busy, match="this process itself is dumping into .* another --store"):
            StoreWriter(tmp_path / "store", world.golden_spec())
    StoreWriter(tmp_path / "store", world.golden_spec()).close()


def test_a_folder_with_other_files_is_not_written_into(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RegionStoreError, match="thesis.tex. Give --store a folder of its own"):
        StoreWriter(tmp_path, world.golden_spec())
    assert find_dump(tmp_path / "absent") is None


def test_shards_outlive_a_lost_manifest_but_not_under_another_spec(golden):
    whole = world.folder_bytes(golden)
    (golden / "manifest.json").unlink()
    with pytest.raises(RegionStoreError, match="its shards are not of this dump"):
        StoreWriter(golden, replace(world.golden_spec(), seed=9), shard_images=2)
    with StoreWriter(golden, world.golden_spec(), shard_images=2) as writer:
        assert writer.missing == []
        writer.finish()
    assert world.folder_bytes(golden) == whole


@pytest.mark.parametrize("name", ["shard_00000.safetensors", "shard_00001.safetensors"])
def test_a_continued_dump_keeps_whole_shards_and_redoes_every_damaged_one(golden, name):
    """Without a manifest to compare with: the shard's own checksum has to find the damage."""
    manifest = json.loads((golden / "manifest.json").read_text())
    fields = {key: manifest[key] for key in ("format", "spec", "spec_id", "shard_images")}
    (golden / "in_progress.json").write_bytes(encode_manifest(fields))
    (golden / "manifest.json").unlink()
    whole, index = (golden / name).read_bytes(), int(name[6:11])
    with StoreWriter(golden, world.golden_spec()) as writer:
        assert writer.missing == []
        for place in range(len(whole)):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << place % 8
            for damaged in (bytes(flipped), whole[:place]):
                (golden / name).write_bytes(damaged)
                assert writer._whole_shard(index) is None
    with StoreWriter(golden, world.golden_spec()) as writer:
        assert writer.missing == [index]


def test_a_damaged_shard_of_a_finished_store_is_redone(golden):
    whole = world.folder_bytes(golden)
    shard = golden / "shard_00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])
    with StoreWriter(golden, world.golden_spec()) as writer:
        assert writer.missing == [1] and not writer.is_finished
        assert not (golden / "manifest.json").exists()
        writer.write(1, world.golden_shard(writer.spec, slice(2, 3)))
        writer.finish()
    assert world.folder_bytes(golden) == whole


@pytest.mark.parametrize(
    "value, message",
    [
        (np.nan, "value 1 of the teacher's logits for a region of b.jpg is nan. Set TRAINER.FDBPL"),
        (-np.inf, "b.jpg is -inf"),
        (70000.0, "b.jpg is 70000.0. float16 ends at 65504"),
    ],
)
def test_a_logit_that_no_store_can_hold_is_refused_with_its_image(value, message):
    logits = np.zeros((2, 3), np.float32)
    logits[1, 1] = value
    with pytest.raises(RegionStoreError, match=message):
        encode(world.golden_spec(), logits, ["a.jpg", "b.jpg"])


def test_a_writer_refuses_values_out_of_their_range(tmp_path):
    with StoreWriter(tmp_path / "store", world.golden_spec(), shard_images=2) as writer:
        for name, value in (("boxes", 1.5), ("flips", 2), ("logits", np.nan), ("lse", np.inf)):
            tensors = world.golden_shard(writer.spec, slice(0, 2))
            tensors[name] = tensors[name].copy()
            tensors[name].flat[0] = value
            with pytest.raises(RegionStoreError, match=f"holds {name} from"):
                writer.write(0, tensors)
        assert writer.missing == [0, 1]


@pytest.mark.parametrize("small", [True, False])
def test_a_process_compares_each_file_with_its_checksum_once(golden, monkeypatch, small):
    module, compared, checked = sys.modules[RegionStore.__module__], [], []
    checksum, check_shard = module.file_checksum, module.check_shard
    monkeypatch.setattr(
        module, "file_checksum", lambda path: compared.append(path.name) or checksum(path)
    )
    monkeypatch.setattr(
        module,
        "check_shard",
        lambda path, *rest: checked.append(path.name) or check_shard(path, *rest),
    )
    if not small:
        monkeypatch.setattr(module, "VERIFY_AT_OPEN", 0)
    store = RegionStore.open(golden)
    shards = [f"shard_0000{index}.safetensors" for index in range(2)]
    if not small:
        assert not set(shards) & set(compared)
    for _ in range(3):
        for image in range(3):
            store.read(image, [0, 1])
        store.verify()
    copied = pickle.loads(pickle.dumps(store))  # as a worker gets it: what is known goes along
    copied.read(0, [0]), copied.read(2, [1]), copied.verify()
    assert sorted(compared) == ["images.safetensors", *shards] and sorted(checked) == shards


def test_a_large_store_lets_its_pages_go_and_a_small_one_keeps_them(golden, monkeypatch):
    """Each shard's after its check, and those of all shards after every so many reads."""
    module, dropped = sys.modules[RegionStore.__module__], []
    monkeypatch.setattr(module, "_let_go", lambda content: dropped.append(len(content)))
    monkeypatch.setattr(module, "READS_KEPT", 3)
    store = RegionStore.open(golden)
    sizes = [shard.bytes for shard in store.shards]
    for _ in range(7):
        store.read(0, [0])
    assert dropped == []
    monkeypatch.setattr(module, "VERIFY_AT_OPEN", 0)
    store, told = RegionStore.open(golden), []
    for image in (0, 1, 2, 0, 0, 2, 1):
        store.read(image, [0])
        told.append(dropped[:])
        dropped.clear()
    first, second = sizes
    assert told == [[first], [], [second, first, second], [], [], [first, second], []]
    for image in (0, 1):
        store.read_batch(np.array([image]), np.array([[0]]))
    assert sorted(dropped) == sorted(sizes)  # reads 8 and 9


@pytest.mark.parametrize("name", ["images.safetensors", "text.safetensors"])
def test_files_beside_the_shards_of_a_large_store_are_checked_too(tmp_path, monkeypatch, name):
    whole = GOLDEN.with_name("region_store_v1_features")
    store = Path(shutil.copytree(whole, tmp_path / "store"))
    monkeypatch.setattr(sys.modules[RegionStore.__module__], "VERIFY_AT_OPEN", 0)
    content = (store / name).read_bytes()
    (store / name).write_bytes(content[:-1])
    with pytest.raises(RegionStoreError, match=f"{name} has .* bytes instead of"):
        RegionStore.open(store)
    (store / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(RegionStoreError, match=f"{name} is damaged"):
        RegionStore.open(store).verify()
    if name == "text.safetensors":
        with pytest.raises(RegionStoreError, match=f"{name} is damaged: its checksum"):
            RegionStore.open(store).read(0, [0])


def test_text_that_no_teacher_gives_is_refused_although_its_checksum_fits(tmp_path):
    store = Path(shutil.copytree(GOLDEN.with_name("region_store_v1_features"), tmp_path / "store"))
    content = (store / "text.safetensors").read_bytes()
    content = content[:-4] + np.float32(np.nan).tobytes()
    (store / "text.safetensors").write_bytes(content)
    manifest = json.loads((store / "manifest.json").read_text())
    files = manifest["files"]
    files["text.safetensors"]["sha256"] = hashlib.sha256(content).hexdigest()
    forge_manifest(store, files=files)
    with pytest.raises(RegionStoreError, match="text.safetensors.*text"):
        RegionStore.open(store)


# --- processes ------------------------------------------------------------------------------


def _read_elsewhere(store: RegionStore, results: multiprocessing.SimpleQueue) -> None:
    results.put([row.tobytes() for image in range(3) for row in store.read(image, [0, 1])])


def test_a_store_travels_to_other_processes_without_its_maps():
    store = RegionStore.open(GOLDEN)
    assert store._arrays and not pickle.loads(pickle.dumps(store))._arrays
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=_read_elsewhere, args=(store, results))
    process.start()
    rows = [row.tobytes() for image in range(3) for row in store.read(image, [0, 1])]
    assert results.get() == rows
    process.join()


def test_images_that_a_store_lacks_are_counted_and_named():
    store = RegionStore.open(GOLDEN)
    there = "oxford_pets/images/Abyssinian_1.jpg"
    assert store.image_indices([there]).tolist() == [0]
    with pytest.raises(RegionStoreError, match="of 2 of the 3 asked for .*: a.jpg.*b.jpg"):
        store.image_indices(["a.jpg", there, "b.jpg"])


def test_batches_of_one_image_and_reads_at_the_ends():
    store = RegionStore.open(GOLDEN)
    for image in range(3):
        for region in (0, 1):
            batch = store.read_batch(np.array([image]), np.array([[region]]))
            assert (batch.logits[0] == store.read(image, [region]).logits).all()
    for images, chosen in (([0, 3], [[0], [0]]), ([-1, 0], [[0], [0]]), ([0], [[0, 2]])):
        with pytest.raises(IndexError, match=" of 3| of 2"):
            store.read_batch(np.array(images), np.array(chosen))
    with pytest.raises(IndexError, match="image 3 of 3"):
        store.read(3, [0])
    empty = store.read_batch(np.array([], int), np.empty((0, 2), int))
    assert empty.logits.shape == (0, 2, 3)


def test_reads_outside_the_store_are_errors():
    store = RegionStore.open(GOLDEN)
    for image, region in ((-1, 0), (3, 0), (0, 2)):
        with pytest.raises(IndexError):
            store.read(image, [region])
