"""The benchmarks of the region store run, and their small versions show what the large ones do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import store_io, store_sizes

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


def test_the_table_of_sizes_and_errors(tmp_path, capsys):
    json_file = tmp_path / "sizes.json"
    rows = store_sizes.main(["--classes", "20", "--json", str(json_file)])
    by_kind = {(row["kind"], row["dtype"]): row for row in rows}
    assert by_kind["logits", "float32"]["p_error_most"] < 2e-6
    assert by_kind["logits", "float16"]["p_error_most"] < 5e-4
    assert by_kind["topk", "float16"]["p_error_most_of_kept"] < 5e-4
    assert by_kind["features", "float16"]["p_error_most"] < 2e-3
    assert "| `topk` | float16 | 20 |" in capsys.readouterr().out
    record = json.loads(json_file.read_text())
    assert record["results"] == rows and record["versions"]["numpy"] and "commit" in record


@pytest.mark.parametrize("name", ["store_sizes", "store_io"])
def test_the_documented_numbers_are_the_kept_ones(name):
    """docs/REGION_STORE.md quotes benchmarks/results/: the table there is made of the file."""
    (file,) = REPO.glob(f"benchmarks/results/*/{name}.json")
    record, document = json.loads(file.read_text()), (REPO / "docs/REGION_STORE.md").read_text()
    assert record["commit"] and not record["commit"].endswith("-dirty")
    if name == "store_sizes":
        assert store_sizes.table(record["results"]) in document
    else:
        for size in ("32 x 1", "32 x 8"):
            times = record["results"]["reads"][size]["times_torch_save"]
            assert min(times.values()) >= 40
            assert f"{times['read_batch']:g}x" in document and f"{times['read']:g}x" in document
        assert record["results"]["large"]["open_seconds"] < 1
