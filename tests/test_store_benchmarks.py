"""The benchmarks of the region store run, and their small versions show what the large ones do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import store_io
from regions.store import RegionStore
from regions.store.kinds import encode
from regions.store.writer import StoreWriter

REPO = Path(__file__).resolve().parents[1]


def test_the_store_is_read_many_times_faster_than_a_file_per_image(tmp_path):
    """The full run asks for 40 times; a busy machine and 200 images are given half of it."""
    found = store_io.measure_rates(tmp_path, images=200, rounds=3)
    for size in ("32 x 1", "32 x 8"):
        assert found[size]["times_torch_save"]["read_batch"] > 20
    assert found["bytes"]["store"] < found["bytes"]["pickles"]


def test_a_readers_memory_does_not_grow_with_a_large_store(tmp_path, monkeypatch):
    """Both stores count as large here; one is four times the other."""
    monkeypatch.setattr("regions.store.reader.VERIFY_AT_OPEN", 0)
    monkeypatch.setattr("regions.store.reader.READS_KEPT", 64)
    most = []
    for images in (400, 1600):
        path = tmp_path / str(images)
        store_io.write_store(path, images)
        (found,) = store_io.in_process("fork", path, batches=200)
        most.append(found["most_mb"]["own"])
    assert abs(most[1] - most[0]) < 3 < found["store_mb"]


def test_the_large_store_can_be_tried_in_part(tmp_path):
    found = store_io.measure_large(tmp_path, images=2000)
    assert found["shards"] == 25 and found["open_seconds"] < 1 and found["part_of_imagenet"] < 1


def test_the_kept_numbers_are_of_a_clean_commit_and_as_promised():
    (file,) = REPO.glob("benchmarks/results/*/store_io.json")
    record = json.loads(file.read_text())
    assert record["commit"] and not record["commit"].endswith("-dirty")
    for size in ("32 x 1", "32 x 8"):
        assert min(record["reads"][size]["times_torch_save"].values()) >= 40
    assert record["large"]["open_seconds"] < 1


# What a store loses, as a run reads it: errors of the teacher's probabilities.


def _softmax(logits_BC: np.ndarray) -> np.ndarray:
    powers_BC = np.exp(logits_BC - logits_BC.max(axis=-1, keepdims=True))
    return powers_BC / powers_BC.sum(axis=-1, keepdims=True)


def clip_like(regions: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit image features (B, D), text features (C, D) and logits (B, C), certain to hopeless."""
    rng = np.random.default_rng(classes)
    text_CD = unit(rng.normal(size=(classes, 1024)))
    nearness_B1 = rng.uniform(0, 0.35, (regions, 1))  # cosine with the text of its class
    image_BD = unit(rng.normal(size=(regions, 1024)))
    image_BD = unit(image_BD + nearness_B1 * text_CD[rng.integers(0, classes, regions)])
    found = image_BD, text_CD, 100 * image_BD @ text_CD.T
    return tuple(array.astype(np.float32) for array in found)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("kind", "dtype", "most"),
    [("logits", "float32", 2e-6), ("logits", "float16", 5e-4), ("topk", "float16", 5e-4),
     ("features", "float16", 2e-3)],
)  # fmt: skip
def test_a_store_keeps_probabilities_to_this(tmp_path, kind, dtype, most):
    """Of kind topk, those of the classes that are kept."""
    features, regions = kind == "features", store_io.REGIONS
    image_BD, text_CD, logits_BC = clip_like(8 * regions, 20)
    spec = replace(
        store_io.make_spec(8, "topk" if kind == "topk" else "logits", 20),
        kind=kind, dtype=dtype, feature_width=1024 * features, logit_scale=100.0 * features,
    )  # fmt: skip
    with StoreWriter(tmp_path / "store", spec, shard_images=8) as writer:
        kept = encode(spec, image_BD if features else logits_BC, [""] * len(image_BD))
        shaped = {name: rows.reshape(8, regions, *rows.shape[1:]) for name, rows in kept.items()}
        boxes = np.full((8, regions, 4), 0.25, np.float32)
        writer.write(0, {"boxes": boxes, "flips": np.zeros((8, regions), np.uint8), **shaped})
        if features:
            writer.write_text(text_CD)
        writer.finish()
    found_BC = RegionStore.open(tmp_path / "store").read_shard(0).logits.reshape(logits_BC.shape)
    error_BC = np.abs(_softmax(found_BC) - _softmax(logits_BC))
    if kind == "topk":
        best_BK = np.argsort(-logits_BC, axis=-1, kind="stable")[:, : store_io.TOP_K]
        error_BC = np.take_along_axis(error_BC, best_BK, 1)
    assert error_BC.max() < most
