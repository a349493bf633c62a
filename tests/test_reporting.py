"""results.json, run folders, means over seeds and tables."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_runs import fake_result, write_run

from reporting.base2new import compare
from reporting.paths import TEST_NEW, TRAIN_BASE, RunPlace, parse_run_dir, run_dir
from reporting.plots import base_new_h, region_grid
from reporting.results import (
    ResultError,
    RunResult,
    find_results,
    git_commit,
    library_versions,
    peak_rss_bytes,
)
from reporting.tables import Score, Spread, Table, aggregate, harmonic_mean, render

# --- where a run lives


def test_run_folder_is_the_one_of_the_family():
    path = run_dir(TRAIN_BASE, "oxford_pets", 16, "CoOp", "vit_b32_ctxv1", 1)
    assert str(path) == "output/base2new/train_base/oxford_pets/shots_16/CoOp/vit_b32_ctxv1/seed1"


@pytest.mark.parametrize("root", ["output", ".", "/tmp/with space/out"])
def test_run_folder_parses_back(root):
    place = RunPlace(Path(root), TEST_NEW, "dtd", 4, "FDBPL", "rn50_ctxv1", 12)
    assert parse_run_dir(run_dir(*place[1:], root=place[0])) == place


@pytest.mark.parametrize(
    "path",
    ["output", "output/base2new/train_base/dtd/shots_4/FDBPL/rn50/seed_1", "a/b/c/d/shots_1/e/f/g"],
)
def test_other_folders_are_not_taken_for_runs(path):
    assert parse_run_dir(path) is None


# --- results.json


def test_result_round_trip_keeps_every_digit(tmp_path):
    result = fake_result(accuracy=100 / 3, store={"path": "s", "teacher": "t", "num_regions": 4})
    result.write(tmp_path)
    assert RunResult.read(tmp_path) == result
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("accuracy", "high", "accuracy is 'high', not float or int"),
        ("accuracy", math.nan, "accuracy is nan, not a percentage"),
        ("accuracy", 123.0, "accuracy is 123.0, not a percentage"),
        ("scope", "old", "scope is 'old', not one of all, base, new"),
        ("seed", True, "seed is True, not int"),
        ("seconds", {"setup": 1.0}, "seconds.train is 'absent'"),
        ("format", 2, "format is 2, this code reads 1"),
    ],
)
def test_odd_field_is_refused_by_name(tmp_path, field, value, message):
    with pytest.raises(ResultError, match=message):
        fake_result(**{field: value}).write(tmp_path)
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[]", "holds a list"), ('{"format": 1}', "trainer is absent")],
)
def test_damaged_file_is_refused_with_the_way_out(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ResultError, match=f"results.json.*{message}.*repeat the run"):
        RunResult.read(path)


def test_fields_of_later_versions_are_passed_over(tmp_path):
    path = fake_result().write(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "red"}))
    assert RunResult.read(path) == fake_result()


def test_discovery_lists_readable_and_unreadable(tmp_path):
    folder = write_run(tmp_path, "base", 90.0, 1)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/results.json").write_text("")
    found, unreadable = find_results(tmp_path)
    assert [run.path for run in found] == [folder]
    assert len(unreadable) == 1 and "broken" in str(unreadable[0])
    with pytest.raises(ResultError, match="is not a folder"):
        find_results(tmp_path / "absent")


def test_commit_says_dirty_and_does_not_take_a_surrounding_repository_for_its_own(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    assert git_commit(tmp_path) is None
    git("init")
    (tmp_path / "code.py").write_text("1")
    git("add", "code.py")
    git("commit", "-m", "one")
    clean = git_commit(tmp_path)
    assert clean and len(clean) == 40
    (tmp_path / "untracked").mkdir()
    assert git_commit(tmp_path) == clean
    assert git_commit(tmp_path / "untracked") is None
    (tmp_path / "code.py").write_text("2")
    assert git_commit(tmp_path) == clean + "-dirty"


def test_versions_and_memory_are_plain_values():
    assert library_versions()["python"].startswith("3.")
    assert peak_rss_bytes() is None or peak_rss_bytes() > 2**20


def test_reporting_does_not_load_torch():
    code = (
        "import sys, reporting.base2new, reporting.logs, reporting.plots, reporting.__main__;"
        "print([m for m in ('torch', 'matplotlib', 'dassl', 'models') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert output.stdout.strip() == "[]", output


# --- means


def scores(trainer: str, base: list[float], new: list[float], **more) -> list[Score]:
    settings = dict(dataset="dtd", config="c", backbone="b", shots=16) | more
    return [
        Score(trainer=trainer, seed=seed, base=b, new=n, **settings)
        for seed, (b, n) in enumerate(zip(base, new, strict=True), start=1)
    ]


def test_harmonic_mean_by_hand():
    assert harmonic_mean(60.0, 30.0) == pytest.approx(40.0)
    assert harmonic_mean(0.0, 0.0) == 0.0


def test_mean_std_and_h_by_hand():
    (row,) = aggregate(scores("CoOp", [60.0, 80.0], [30.0, 20.0]))
    assert row.base == Spread(70.0, 10.0)  # population std, as numpy.std
    assert row.new == Spread(25.0, 5.0)
    # H of the means is 2 * 70 * 25 / 95; the seeds' own H are 40 and 32.
    assert row.h.mean == pytest.approx(3500 / 95)
    assert row.h.std == pytest.approx(4.0)


# Mean base, mean new and H of the average row as printed in PromptKD, arXiv:2403.02781, table 1.
PUBLISHED_AVERAGES = {
    "CLIP": (69.34, 74.22, 71.70),
    "CoOp": (82.69, 63.22, 71.66),
    "CoCoOp": (80.47, 71.69, 75.83),
    "MaPLe": (82.28, 75.14, 78.55),
    "PromptSRC": (84.26, 76.10, 79.97),
    "PromptKD": (86.96, 80.73, 83.73),
}
# Base and new of its eleven data sets, ViT-B/16, in the order of the table.
PUBLISHED = {
    "CLIP": [
        (72.43, 68.14), (96.84, 94.00), (91.17, 97.26), (63.37, 74.89), (72.08, 77.80),
        (90.10, 91.22), (27.19, 36.29), (69.36, 75.35), (53.24, 59.90), (56.48, 64.05),
        (70.53, 77.50),
    ],
    "CoOp": [
        (76.47, 67.88), (98.00, 89.81), (93.67, 95.29), (78.12, 60.40), (97.60, 59.67),
        (88.33, 82.26), (40.44, 22.30), (80.60, 65.89), (79.44, 41.18), (92.19, 54.74),
        (84.69, 56.05),
    ],
}  # fmt: skip


@pytest.mark.parametrize("method", PUBLISHED_AVERAGES)
def test_harmonic_mean_of_published_averages(method):
    base, new, h = PUBLISHED_AVERAGES[method]
    assert harmonic_mean(base, new) == pytest.approx(h, abs=0.0051)


@pytest.mark.parametrize(("method", "mean_of_h"), [("CLIP", 71.59), ("CoOp", 70.83)])
def test_average_row_is_h_of_means_as_published_not_mean_of_h(method, mean_of_h):
    *each, average = aggregate(
        score
        for number, (base, new) in enumerate(PUBLISHED[method])
        for score in scores(method, [base], [new], dataset=f"data set {number}")
    )
    assert average.is_average and average.num_datasets == 11
    printed = [round(spread.mean, 2) for spread in (average.base, average.new, average.h)]
    assert printed == list(PUBLISHED_AVERAGES[method])
    assert round(sum(row.h.mean for row in each) / 11, 2) == mean_of_h


def test_average_over_seeds_is_taken_seed_by_seed():
    *_, average = aggregate(
        scores("CoOp", [60.0, 80.0], [40.0, 40.0])
        + scores("CoOp", [80.0, 60.0], [20.0, 40.0], dataset="pets")
    )
    assert average.base == Spread(70.0, 0.0)
    assert average.new == Spread(35.0, 5.0)


def test_configs_backbones_and_shots_are_not_merged():
    rows = aggregate(
        scores("CoOp", [60.0], [40.0])
        + scores("CoOp", [61.0], [41.0], config="d")
        + scores("CoOp", [62.0], [42.0], backbone="RN50")
        + scores("CoOp", [63.0], [43.0], shots=4)
    )
    assert sorted(row.base.mean for row in rows) == [60.0, 61.0, 62.0, 63.0]


def test_average_over_different_configs_names_them_all():
    *_, average = aggregate(
        scores("CoOp", [60.0], [40.0], config="ep200")
        + scores("CoOp", [62.0], [42.0], config="ep50", dataset="imagenet")
    )
    assert average.config == "ep200 + ep50" and average.base.mean == 61.0


def test_missing_half_leaves_a_gap_and_missing_seed_takes_the_std_of_h():
    (row,) = aggregate([Score("dtd", "CoOp", "c", "b", 16, 1, base=60.0)])
    assert row.base.mean == 60.0 and row.new is None and row.h is None
    (row,) = aggregate(
        [*scores("CoOp", [60.0, 80.0], [30.0, 20.0]), Score("dtd", "CoOp", "c", "b", 16, 3, 70.0)]
    )
    assert row.base_seeds == (1, 2, 3) and row.new_seeds == (1, 2)
    assert row.h.mean == pytest.approx(harmonic_mean(70.0, 25.0)) and row.h.std is None


def test_training_time_with_and_without_the_dump():
    settings = dict(train_seconds=10.0)
    with_store, without, unknown, untrained = aggregate(
        scores("FDBPL", [60.0] * 2, [40.0] * 2, dataset="a", dump_seconds=5.0, **settings)
        + scores("FDBPL", [60.0] * 2, [40.0] * 2, dataset="b", **settings)
        + scores("FDBPL", [60.0] * 2, [40.0] * 2, dataset="c", dump_seconds=None, **settings)
        + scores("FDBPL", [60.0] * 2, [40.0] * 2, dataset="d")
    )[:4]
    assert (with_store.train_seconds, with_store.train_and_dump_seconds) == (10.0, 15.0)
    assert (without.train_seconds, without.train_and_dump_seconds) == (10.0, 10.0)
    assert (unknown.train_seconds, unknown.train_and_dump_seconds) == (10.0, None)
    assert (untrained.train_seconds, untrained.train_and_dump_seconds) == (None, None)


# --- the comparison of a result tree


@pytest.fixture
def tree(tmp_path):
    for seed, base, new in [(1, 60.0, 30.0), (2, 80.0, 20.0)]:
        write_run(tmp_path, "base", base, seed)
        write_run(tmp_path, "new", new, seed)
        store = {"path": "s", "spec_id": "x", "teacher": "ViT-L/14", "num_regions": 50}
        seconds = {"setup": 1.0, "train": 20.0, "test": 3.0, "dump": 7.0}
        more = dict(trainer="FDBPL", teacher="ViT-L/14", store=store)
        write_run(tmp_path, "base", base + 1, seed, seconds=seconds, **more)
        write_run(tmp_path, "new", new + 1, seed, **more)
        zero_shot = dict(trainer="ZeroshotCLIP", config="vit_b32", eval_only=True, epochs=0)
        write_run(tmp_path, "base", 50.0, seed, **zero_shot)
        write_run(tmp_path, "new", 50.0, seed, **zero_shot)
    return tmp_path


def test_tree_becomes_one_table(tree):
    table = compare(tree)
    assert table.notes == []
    assert [row.trainer for row in table.rows] == ["ZeroshotCLIP", "CoOp", "FDBPL"]
    zero_shot, coop, fdbpl = table.rows
    assert coop.base == Spread(70.0, 10.0) and coop.h.mean == pytest.approx(3500 / 95)
    assert zero_shot.train_seconds is None
    assert (fdbpl.train_seconds, fdbpl.train_and_dump_seconds) == (20.0, 27.0)


def test_caption_names_what_was_compared(tree):
    caption = "\n".join(compare(tree).caption)
    for fact in (
        "base classes", "oxford_pets (19 base classes with 1881 test images", "ViT-B/32",
        "vit_b32, vit_b32_ctxv1", "shots 16", "seeds 1, 2", "FDBPL ViT-L/14 (50 stored regions)",
        "Epochs: CoOp 50; FDBPL 50.", "cpu", "c0ffee0000",
    ):  # fmt: skip
        assert fact in caption, fact


def test_filters(tree):
    assert [row.trainer for row in compare(tree, trainers=["FDBPL"]).rows] == ["FDBPL"]
    assert len(compare(tree, datasets=["OxfordPets"], configs=["vit_b32"]).rows) == 1
    assert len(compare(tree, datasets=["oxford_pets"], shots=[16]).rows) == 3
    assert compare(tree, shots=[4]).rows == []
    assert "no base-to-new results" in compare(tree, shots=[4]).notes[0]


def test_missing_and_broken_runs_are_named_and_the_rest_is_shown(tree):
    new = tree / "base2new/test_new/oxford_pets/shots_16"
    (new / "CoOp/vit_b32_ctxv1/seed2/results.json").unlink()
    (new / "CoOp/vit_b32_ctxv1/seed2/log.txt").write_text("half")
    (new / "FDBPL/vit_b32_ctxv1/seed1/results.json").write_text("{")
    table = compare(tree)
    notes = "\n".join(table.notes)
    assert "CoOp/vit_b32_ctxv1/seed2: no results.json (crashed or still running)" in notes
    assert "oxford_pets CoOp vit_b32_ctxv1 16 shots seed2: new missing" in notes
    assert "seed1/results.json is not JSON" in notes
    assert len(table.rows) == 3 and "1 new" in render(table, "text")


def test_result_in_the_wrong_folder_is_left_out(tree):
    write_run(tree, "base", 99.0, 3, trainer="CoOp")
    folder = tree / "base2new/train_base/oxford_pets/shots_16/CoOp/vit_b32_ctxv1"
    (folder / "seed3").rename(folder / "seed4")
    table = compare(tree, trainers=["CoOp"])
    assert table.rows[0].base.mean == 70.0
    assert "its seed is 3, not 4; left out" in table.notes[0]


def test_seeds_of_different_making_are_told(tree):
    options = ["DATASET.NUM_SHOTS", "16", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.LR", "1"]
    write_run(tree, "base", 70.0, 3, opts=options, epochs=7)
    write_run(tree, "new", 70.0, 3, num_images=5, finished="2024")
    notes = "\n".join(compare(tree, trainers=["CoOp"]).notes)
    assert "options differ among its runs: DATASET.NUM_SHOTS 16 | DATASET.NUM_SHOTS 16, " in notes
    assert "base is of epoch 7, new of 50" in notes
    assert "new was tested before base was trained" in notes
    assert "different new sets" in notes


# --- the five formats


def test_formats_hold_the_same_numbers(tree):
    table = compare(tree)
    table.notes.append("a note")
    for form in ("text", "markdown", "latex"):
        text = render(table, form)
        assert "70.00 ± 10.00" in text and "36.84 ± 4.00" in text and "27.0" in text
        assert "a note" in text and "c0ffee0000" in text and "—" in text
    assert "| CoOp" in render(table, "markdown")
    assert r"vit\_b32\_ctxv1" in render(table, "latex") and r"\toprule" in render(table, "latex")
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert float(rows[1]["h_mean"]) == 2 * 70 * 25 / 95 and rows[0]["train_seconds"] == ""
    plain = json.loads(render(table, "json"))
    assert plain["rows"][1]["h"]["mean"] == 2 * 70 * 25 / 95 and plain["notes"] == ["a note"]
    with pytest.raises(ValueError, match="choose one of text, markdown"):
        render(table, "word")


def test_columns_that_do_not_vary_stand_in_the_caption_alone():
    rows = aggregate(scores("CoOp", [60.0], [40.0]) + scores("FDBPL", [61.0], [41.0]))
    header = render(Table(rows), "text").splitlines()[0].split()
    assert header == "method backbone seeds base new H train s + dump s".split()
    several = rows + aggregate(scores("CoOp", [60.0], [40.0], dataset="pets", config="d", shots=4))
    header = render(Table(several), "text").splitlines()[0]
    assert header.split()[:5] == ["data", "set", "method", "config", "backbone"]
    assert "shots" in header


# --- the pictures


def png_size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")


def test_bars_are_drawn_with_gaps_where_a_half_or_a_time_is_missing(tree):
    (tree / "base2new/test_new/oxford_pets/shots_16/CoOp/vit_b32_ctxv1/seed1/results.json").unlink()
    (tree / "base2new/test_new/oxford_pets/shots_16/CoOp/vit_b32_ctxv1/seed2/results.json").unlink()
    width, height = png_size(base_new_h(compare(tree).rows, tree / "pictures/bars.png", "title"))
    assert width > height > 300
    with pytest.raises(ValueError, match="no rows"):
        base_new_h([], tree / "none.png")


def test_regions_are_drawn_in_order_of_weight(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    titles, captions = [], []
    monkeypatch.setattr(Axes, "set_title", lambda self, text, **_: titles.append(text))
    monkeypatch.setattr(Axes, "set_xlabel", lambda self, text, **_: captions.append(text))
    regions = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    words = dict(teacher_classes=["a_b", "c", "d"], teacher_probabilities=[0.5, 0.75, 0.25])
    path = tmp_path / "regions.png"
    region_grid(regions, [0.5, 0.9, 0.1], **words, path=path, classes=["x", "c", "d"], columns=2)
    assert titles == ["w 0.90", "w 0.50", "w 0.10"]
    assert captions == ["c\n0.75 ✓", "a b\n0.50 ✗", "d\n0.25 ✓"]
    png_size(path)
    with pytest.raises(ValueError, match="one entry per region"):
        region_grid(regions, [0.5], **words, path=path)
