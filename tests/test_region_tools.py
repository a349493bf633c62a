"""Tools for stores: every damage is named, a merge loses nothing, a conversion makes nothing up."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import region_world as world
import torch

from losses import region_weight
from regions.__main__ import main
from regions.dump import dump_record_path, dump_seconds
from regions.layout import IMAGES
from regions.store import RegionStore, RegionStoreError
from regions.summary import confidence, probabilities, survey
from regions.tools import convert, verify
from regions.tools_merge import merge
from regions.tools_text import diff
from regions.writer import StoreWriter

REPO = Path(__file__).resolve().parents[1]
WIDTH = 6  # of the image features
GENERATOR = torch.Generator().manual_seed(8)
TEXT = torch.nn.functional.normalize(torch.randn(4, WIDTH, generator=GENERATOR), dim=-1)
PROJECTION = torch.randn(3 * world.SIZE**2, WIDTH, generator=GENERATOR)
SCALE = 20.0


def features(images: torch.Tensor) -> torch.Tensor:
    found = (images.flatten(1)[:, :, None] * PROJECTION).sum(1)
    return torch.nn.functional.normalize(found, dim=-1)


def logits(images: torch.Tensor) -> torch.Tensor:
    return SCALE * (features(images)[:, :, None] * TEXT.T).sum(1)


def make(root: Path, name: str, kind: str = "logits", items: slice = slice(None), **changes):
    """A store of one kind, of some of seven images, with three images per shard."""
    spec = {"kind": kind, "top_k": 2 if kind == "topk" else 0}
    options = {}
    teacher = logits
    if kind == "features":
        spec |= {"feature_width": WIDTH, "logit_scale": SCALE}
        teacher, options = features, {"text": TEXT.numpy()}
    spec = world.make_spec(root, world.draw_images(root)[items], **{**spec, **changes})
    return world.run_dump(root / name, spec, root, teacher, **options)


def every(store: RegionStore) -> np.ndarray:
    regions = np.arange(store.spec.num_regions)
    return np.stack([store.read(index, regions).logits for index in range(len(store))])


def call(capsys, *words: object) -> tuple[int, str, str]:
    """The exit code of a tool, its output and its errors."""
    capsys.readouterr()  # what was printed before
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


def flip_bit(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


# --- what the logits say --------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [1, 2, 37, 1000])
def test_confidence_is_the_weight_that_training_uses(num_classes):
    rng = np.random.default_rng(0)
    logits_RC = rng.normal(0, [[0.0], [1.0], [30.0], [3000.0]], (4, num_classes)).astype(np.float32)
    expected_R = region_weight(torch.from_numpy(logits_RC)).numpy()
    np.testing.assert_allclose(confidence(logits_RC), expected_R, atol=1e-6)


def test_a_survey_counts_what_the_teacher_gets_right(tmp_path):
    store = make(tmp_path, "store")
    found = survey(store)
    p_NMC = torch.from_numpy(every(store)).softmax(-1)
    labels_N = torch.tensor([image.label for image in store.spec.images])
    right_NM = p_NMC.argmax(-1) == labels_N[:, None]
    assert found.region_accuracy == pytest.approx(100 * float(right_NM.float().mean()))
    image_right_N = p_NMC.mean(1).argmax(-1) == labels_N
    assert found.image_accuracy == pytest.approx(100 * float(image_right_N.float().mean()))
    part = survey(store, max_images=3)
    assert part.images_N.tolist() == [0, 1, 2] and (part.weights_NM == found.weights_NM[:3]).all()


# --- verify ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["logits", "topk", "features"])
def test_a_whole_store_is_called_whole(tmp_path, capsys, kind):
    store = make(tmp_path, "store", kind)
    (store.path / "notes.txt").write_text("mine")
    code, output, _ = call(capsys, "verify", store.path)
    files = 1 + 1 + 3 + (kind == "features")  # manifest, images, shards, text
    assert code == 0 and f"{store.path} is whole: {files} files" in output
    assert "not part of the store: notes.txt" in output


def test_verify_names_every_damaged_file(tmp_path, capsys):
    store = make(tmp_path, "store", "features").path
    flip_bit(store / "shard_00000.safetensors")
    (store / "shard_00001.safetensors").write_bytes(b"short")
    (store / IMAGES).unlink()
    flip_bit(store / "text.safetensors")
    code, output, errors = call(capsys, "verify", store)
    told = [line for line in errors.splitlines() if line.startswith("damaged: ")]
    names = [line.split(": ")[1] for line in told]
    assert names == ["images.safetensors", "shard_00000.safetensors", "shard_00001.safetensors",
                     "text.safetensors"]  # fmt: skip
    assert "is missing. Copy the file again" in told[0]
    assert "has 5 bytes instead of" in told[2]
    assert code == 1 and "4 of 6 files" in output


def test_every_file_counts(tmp_path):
    """One damaged file at a time, at its first byte, in its middle and at its last."""
    store = make(tmp_path, "store", "features").path
    for file in sorted(store.glob("*.safetensors")):
        whole = file.read_bytes()
        for place in (0, len(whole) // 2, -1):
            flip_bit(file, place)
            assert [damage.file for damage in verify(store, threads=2).damages] == [file.name]
            file.write_bytes(whole)
    flip_bit(store / "manifest.json", 100)
    with pytest.raises(RegionStoreError, match="manifest.json is damaged"):
        verify(store)


def test_an_unfinished_dump_is_not_whole(tmp_path, capsys):
    spec = world.make_spec(tmp_path, world.draw_images(tmp_path))
    StoreWriter(tmp_path / "store", spec, 3).close()
    code, _, error = call(capsys, "verify", tmp_path / "store")
    assert code == 1 and "is not finished. Run it again" in error


# --- info -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, kept",
    [
        ("logits", "logits (of every class) in float16"),
        ("topk", "topk (of the 2 likeliest classes) in float16"),
        ("features", "features (6 numbers, logit scale 20) in float16"),
    ],
)
def test_info_says_what_a_store_holds(tmp_path, capsys, kind, kept):
    store = make(tmp_path, "store", kind)
    code, output, _ = call(capsys, "info", store.path)
    assert code == 0
    seconds, accuracy = dump_seconds(store.path), survey(store).region_accuracy
    for line in (
        "Teacher         toy-teacher, fp32",
        "Weights         d1",
        "Classes         4: ant, bee, cat, ...",
        "Images          7, 1 to 2 of each class, e.g. images/ant/0.png",
        "Regions         5 per image, 35 in all, 12 x 12 pixels",
        "Serves          runs of --seed 1",
        f"Kept            {kept}",
        f"Teacher top-1   {accuracy:.1f} % of the regions",
        f"Dump took       {seconds:.1f} s",
    ):
        assert line in output, line


def test_info_of_a_dump_on_its_way(tmp_path, capsys):
    store = make(tmp_path, "store")
    part_of(store, tmp_path / "part", [0])
    code, output, _ = call(capsys, "info", tmp_path / "part")
    assert code == 0 and "not finished: 1 of 3 shards" in output


# --- merge ----------------------------------------------------------------------------------


def part_of(store: RegionStore, path: Path, shards: list[int]) -> Path:
    """An unfinished dump of the same spec with some of the shards."""
    with StoreWriter(path, store.spec, store.shard_images) as writer:
        for shard in shards:
            writer.write(shard, store.arrays(shard))
        if writer.needs_text:
            writer.write_text(store.stored_text)
    return path


@pytest.mark.parametrize("kind", ["logits", "topk", "features"])
def test_shards_of_two_machines_become_the_store_of_one(tmp_path, kind):
    whole = make(tmp_path, "whole", kind)
    one, two = part_of(whole, tmp_path / "1", [0, 2]), part_of(whole, tmp_path / "2", [1, 2])
    flip_bit(one / "shard_00002.safetensors")  # the other has it whole
    merge([one, two], tmp_path / "out")
    assert world.folder_bytes(tmp_path / "out") == world.folder_bytes(whole.path)
    merge([one, two], tmp_path / "out")  # again: nothing to do
    assert world.folder_bytes(tmp_path / "out") == world.folder_bytes(whole.path)


def test_a_shard_that_no_machine_has_is_named_and_can_follow(tmp_path, capsys):
    whole = make(tmp_path, "whole")
    one, two = part_of(whole, tmp_path / "1", [0]), part_of(whole, tmp_path / "2", [0])
    out = tmp_path / "out"
    code, _, error = call(capsys, "merge", one, two, "--out", out)
    assert code == 1
    assert f"no store has shard 1, 2 of 3 whole. What there is lies in {out}" in error
    with pytest.raises(RegionStoreError, match="not finished"):
        RegionStore.open(out)
    merge([one, part_of(whole, tmp_path / "3", [1, 2])], out)
    assert world.folder_bytes(out) == world.folder_bytes(whole.path)


@pytest.mark.parametrize("kind", ["logits", "features"])
def test_stores_of_different_images_become_one(tmp_path, capsys, kind):
    make(tmp_path, "a", kind, slice(0, 4))
    make(tmp_path, "b", kind, slice(2, 7), image_seeds=(1, 2))
    whole, out = make(tmp_path, "whole", kind, image_seeds=(1, 2)), tmp_path / "out"
    stores = [tmp_path / name for name in "ab"]
    code, output, _ = call(capsys, "merge", *stores, "--out", out)
    assert (
        code == 0
        and "2 images were in several stores" in output
        and "differ by at most 0." in output
    )
    merged = RegionStore.open(out)
    assert merged.spec == whole.spec  # all images, in order, and the seeds of both
    np.testing.assert_array_equal(every(merged), every(whole))
    took = [dump_seconds(store) for store in stores]
    assert dump_seconds(out) == pytest.approx(sum(took), abs=1e-3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"template": "a {}."}, "differ in template: a photo of a {}. and a {}.. Only stores"),
        ({"seed": 2}, "differ in seed: 1 and 2. Only stores"),
        ({"kind": "topk"}, "differ in kind: logits and topk. Convert one of them first"),
        (
            {"classnames": ("ant", "wasp", "cat", "dog")},
            "differ in classnames: 4 classes, number 2 being 'bee' and 4 classes, number 2 being "
            "'wasp'. Dump both",
        ),
        (
            {"classnames": (*world.CLASSES, "elk")},
            "differ in classnames: 4 classes and 5 classes. Dump both",
        ),
    ],
)
def test_stores_that_do_not_fit_are_refused(tmp_path, capsys, changes, message):
    one = make(tmp_path, "a", items=slice(0, 4))
    two = tmp_path / "b"
    spec = world.make_spec(tmp_path, world.draw_images(tmp_path)[4:],
                           **{"top_k": 2 * ("kind" in changes), **changes})  # fmt: skip
    StoreWriter(two, spec).close()
    code, _, error = call(capsys, "merge", one.path, two, "--out", tmp_path / "out")
    assert code == 1 and message in error and str(one.path) in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_image_with_other_boxes_is_refused(tmp_path):
    one, two = make(tmp_path, "a", items=slice(0, 4)), make(tmp_path, "b", items=slice(3, 7))
    with StoreWriter(tmp_path / "c", two.spec, two.shard_images) as writer:
        for shard in writer.missing:
            moved = np.zeros_like(two.arrays(shard)["boxes"])
            writer.write(shard, {**two.arrays(shard), "boxes": moved})
        writer.finish()
    with pytest.raises(RegionStoreError, match="3.png has boxes .* but .* Dump one of them again"):
        merge([one.path, tmp_path / "c"], tmp_path / "out")


def test_a_store_is_not_written_into_itself(tmp_path):
    one, two = make(tmp_path, "a", items=slice(0, 4)), make(tmp_path, "b", items=slice(4, 7))
    before = world.folder_bytes(one.path)
    with pytest.raises(RegionStoreError, match="is a store to read from"):
        merge([one.path, two.path], one.path)
    with pytest.raises(RegionStoreError, match="is a store to read from"):
        convert(one.path, one.path, "topk")
    assert world.folder_bytes(one.path) == before


# --- convert --------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [2, 4])
def test_logits_become_the_topk_that_a_dump_gives(tmp_path, top_k):
    store, straight = make(tmp_path, "a"), make(tmp_path, "b", "topk", top_k=top_k)
    convert(store.path, tmp_path / "out", "topk", top_k=top_k)
    assert world.folder_bytes(tmp_path / "out") == world.folder_bytes(straight.path)
    assert dump_seconds(tmp_path / "out") == dump_seconds(store.path)
    record = json.loads(dump_record_path(tmp_path / "out").read_text())
    assert record["spec_id"] == straight.spec.id


def test_topk_of_all_classes_becomes_logits_again(tmp_path):
    store = make(tmp_path, "a")
    convert(store.path, tmp_path / "all", "topk", top_k=4)
    convert(tmp_path / "all", tmp_path / "back", "logits")
    assert world.folder_bytes(tmp_path / "back") == world.folder_bytes(store.path)
    convert(tmp_path / "all", tmp_path / "fewer", "topk", top_k=2)
    convert(store.path, tmp_path / "two", "topk", top_k=2)
    assert world.folder_bytes(tmp_path / "fewer") == world.folder_bytes(tmp_path / "two")


@pytest.mark.parametrize("kind, top_k", [("logits", 0), ("topk", 4)])
def test_features_become_what_their_teacher_says(tmp_path, kind, top_k):
    store = make(tmp_path, "a", "features")
    expected = probabilities(every(make(tmp_path, "b", dtype="float32")))
    found = probabilities(every(convert(store.path, tmp_path / "out", kind, top_k=top_k)))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_allclose(found, probabilities(every(store)), atol=3e-4)


@pytest.mark.parametrize("kind", ["logits", "features"])
def test_float32_can_be_rounded_to_float16(tmp_path, kind):
    store, straight = make(tmp_path, "a", kind, dtype="float32"), make(tmp_path, "b", kind)
    convert(store.path, tmp_path / "out", kind, dtype="float16")
    assert world.folder_bytes(tmp_path / "out") == world.folder_bytes(straight.path)


@pytest.mark.parametrize(
    "kind, options, message",
    [
        ("logits", ["--to", "features"], "features cannot be found again from logits"),
        ("logits", ["--to", "logits"], "holds logits in float16 already: nothing to convert."),
        ("logits", ["--to", "logits", "--dtype", "float32"], "float16 rounded away"),
        ("logits", ["--to", "topk", "--top-k", "5"], "TOP_K is 5 for a store of topk"),
        ("topk", ["--to", "logits"], "2 likeliest of 4 classes: the other logits were not kept"),
        ("topk", ["--to", "topk", "--top-k", "3"], "the other logits were not kept"),
        ("features", ["--to", "features", "--dtype", "float32"], "float16 rounded away"),
    ],
)
def test_what_cannot_be_known_is_refused(tmp_path, capsys, kind, options, message):
    store = make(tmp_path, "store", kind)
    code, _, error = call(capsys, "convert", store.path, *options, "--out", tmp_path / "out")
    assert code == 1 and message in error and error.startswith("error: ") and error.count("\n") == 1
    if "already" not in message and "TOP_K" not in message:
        assert f"STORE_KIND {options[1]}" in error  # the way out
    assert not (tmp_path / "out").exists()


# --- diff -----------------------------------------------------------------------------------


def test_equal_stores_do_not_differ(tmp_path, capsys):
    store = make(tmp_path, "a")
    shutil.copytree(store.path, tmp_path / "b")
    code, output, _ = call(capsys, "diff", store.path, tmp_path / "b")
    assert (code, output) == (0, "no difference\n")


def test_differing_fields_are_told_one_by_one(tmp_path):
    items = world.draw_images(tmp_path)
    changes = {"seed": 2, "image_seeds": (1, 2), "template": "a {}."}
    changes["classnames"] = ("ant", "wasp", "cat", "dog", "elk")
    StoreWriter(tmp_path / "a", world.make_spec(tmp_path, items[:5])).close()
    StoreWriter(tmp_path / "b", world.make_spec(tmp_path, items[3:], **changes)).close()
    assert diff(tmp_path / "a", tmp_path / "b") == [
        "template: a photo of a {}. | a {}.",
        "classes: 4 | 5",
        "classes: 1 on the left only, bee",
        "classes: 2 on the right only, wasp, elk",
        "images: 5 | 4",
        "images: 3 on the left only, images/ant/0.png, images/bee/1.png, images/cat/2.png",
        "images: 2 on the right only, images/bee/5.png, images/cat/6.png",
        "seed: 1 | 2",
        "image_seeds: 1 | 1, 2",
        f"values: not compared, the dump in {tmp_path / 'a'} is not finished",
    ]


def test_differing_labels_and_orders_are_told(tmp_path):
    items = world.draw_images(tmp_path)
    other = [world.Item(items[0].impath, 3), *items[1:]]
    for name, chosen, changes in (
        ("a", items, {}),
        ("b", other, {}),
        ("c", items[::-1], {"classnames": world.CLASSES[::-1]}),
    ):
        StoreWriter(tmp_path / name, world.make_spec(tmp_path, chosen, **changes)).close()
    unfinished = f"values: not compared, the dump in {tmp_path / 'a'} is not finished"
    assert diff(tmp_path / "a", tmp_path / "b") == [
        "images: 1 with another label, height or width, e.g. images/ant/0.png: "
        "0, 20, 41 | 3, 20, 41",
        unfinished,
    ]
    assert diff(tmp_path / "a", tmp_path / "c") == [
        "classes: in another order, first at 1: ant | dog",
        "images: in another order, first at 1: images/ant/0.png | images/cat/6.png",
        unfinished,
    ]


def test_differing_values_of_equal_specs_are_measured(tmp_path, capsys):
    store = make(tmp_path, "a", dtype="float32")
    with StoreWriter(tmp_path / "b", store.spec, store.shard_images) as writer:
        for shard in writer.missing:
            arrays = dict(store.arrays(shard))
            arrays["lse"] = arrays["lse"] + np.float32(0.25)  # all logits rise: p stays
            writer.write(shard, arrays)
        writer.finish()
    code, line, _ = call(capsys, "diff", store.path, tmp_path / "b")
    assert code == 1 and line.startswith("values: logits differ by at most 0.25, p by ")
    assert float(line.split("p by ")[1].split()[0]) < 1e-6 and line.endswith(" on 7 images\n")


# --- the command ----------------------------------------------------------------------------


def test_the_command_tells_an_error_in_one_line(tmp_path):
    command = [sys.executable, "-m", "regions", "verify", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"error: {tmp_path / 'none'} holds no region store.")
    assert done.stderr.count("\n") == 1


def test_wrong_usage_is_told_apart_from_errors(capsys):
    for words in ([], ["verify"], ["convert", "store", "--to", "pickle", "--out", "x"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2
    capsys.readouterr()


def test_names_that_are_no_text_of_the_terminal_are_printed_escaped(tmp_path):
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    items = world.draw_images(tmp_path, 2)
    Path(items[0].impath).rename(Path(items[0].impath).with_name(name))
    items[0] = world.Item(str(Path(items[0].impath).with_name(name)), 0)
    world.run_dump(tmp_path / "s", world.make_spec(tmp_path, items), tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "regions", "info", str(tmp_path / "s")],
        cwd=REPO, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "caf\\udce9.png" in done.stdout, done.stderr
