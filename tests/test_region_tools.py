"""Tools for stores: every damage is named, and the numbers are right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import region_world as world
import torch

from losses import region_weight
from regions.__main__ import main
from regions.store import RegionStore, RegionStoreError
from regions.store.layout import IMAGES
from regions.store.record import dump_seconds
from regions.store.writer import StoreWriter
from regions.tools.survey import survey
from regions.tools.verify import verify

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


def test_a_survey_counts_what_the_teacher_gets_right_and_weighs_as_training_does(tmp_path):
    store = make(tmp_path, "store")
    found = survey(store)
    logits_NMC = torch.from_numpy(every(store))
    labels_N = torch.tensor([image.label for image in store.spec.images])
    right_NM = logits_NMC.argmax(-1) == labels_N[:, None]
    assert (
        found.images_N.tolist() == list(range(7)) and found.labels_N.tolist() == labels_N.tolist()
    )
    assert found.teacher_accuracy == pytest.approx(100 * float(right_NM.float().mean()))
    assert found.teacher_accuracy == pytest.approx(store.teacher_accuracy())
    np.testing.assert_array_equal(found.weights_NM, region_weight(logits_NMC).numpy())
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
    seconds, accuracy = dump_seconds(store.path, store.spec.id), store.teacher_accuracy()
    for line in (
        "Teacher          toy-teacher, fp32",
        "Weights          d1",
        "Classes          4: ant, bee, cat, ...",
        "Images           7, 1 to 2 of each class, e.g. images/ant/0.png",
        "Regions          5 per image, 35 in all, 12 x 12 pixels",
        "Serves           runs of --seed 1",
        f"Kept             {kept}",
        f"Teacher accuracy {accuracy:.1f} % of the regions",
        f"Dump took        {seconds:.1f} s",
    ):
        assert line in output, line


def test_info_of_a_dump_on_its_way(tmp_path, capsys):
    store = make(tmp_path, "store")
    part_of(store, tmp_path / "part", [0])
    code, output, _ = call(capsys, "info", tmp_path / "part")
    assert code == 0 and "not finished: 1 of 3 shards" in output


def part_of(store: RegionStore, path: Path, shards: list[int]) -> Path:
    """An unfinished dump of the same spec with some of the shards."""
    with StoreWriter(path, store.spec, store.shard_images) as writer:
        for shard in shards:
            writer.write(shard, store.arrays(shard))
        if writer.needs_text:
            writer.write_text(store.stored_text)
    return path


# --- the command ----------------------------------------------------------------------------


def test_the_command_tells_an_error_in_one_line(tmp_path):
    command = [sys.executable, "-m", "regions", "verify", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"error: {tmp_path / 'none'} holds no region store.")
    assert done.stderr.count("\n") == 1


def test_wrong_usage_is_told_apart_from_errors(capsys):
    for words in ([], ["verify"], ["convert", "store"]):
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
