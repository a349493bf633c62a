"""results.json, run folders, means over seeds and tables."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import fields, replace
from datetime import datetime
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from fake_runs import answer, fake_identity, fake_result, write_run

from reporting import compare as tables_of
from reporting.paired import (
    Difference,
    read_predictions,
    standard_error,
    write_predictions,
)
from reporting.paths import (
    FEW_SHOT_TRAIN,
    SCOPE_OF_PHASE,
    TRAIN_BASE,
    XD_TEST,
    XD_TRAIN,
    RunPlace,
    parse_run_dir,
    run_dir,
    store_dir,
)
from reporting.plots import (
    accuracy_against_time,
    base_new_h,
    draw_all,
    few_shot_curves,
    transfer_bars,
)
from reporting.published import read_published
from reporting.results import (
    ResultError,
    RunResult,
    find_results,
    git_commit,
    library_versions,
    now,
    peak_rss_bytes,
)
from reporting.tables import (
    Row,
    Score,
    Spread,
    Table,
    aggregate,
    aggregate_with_keys,
    harmonic_mean,
    render,
    with_ci95,
)


def compare(root, **choices) -> Table:
    return tables_of.compare("base2new", root, **choices)


# --- where a run lives


def test_run_folder_is_the_one_of_the_family():
    path = run_dir(TRAIN_BASE, "oxford_pets", 16, "CoOp", "vit_b32_ctxv1", 1)
    assert str(path) == "output/base2new/train_base/oxford_pets/shots_16/CoOp/vit_b32_ctxv1/seed1"


def test_store_belongs_to_data_shots_scope_and_seed_and_to_no_method():
    assert str(store_dir("dtd", 4, "all", 2)) == "stores/dtd/shots_4/all/seed2"


@pytest.mark.parametrize("phase", SCOPE_OF_PHASE)
@pytest.mark.parametrize("root", ["output", ".", "/tmp/with space/out"])
def test_run_folder_parses_back(root, phase):
    place = RunPlace(Path(root), phase, "dtd", 4, "FDBPL", "rn50_ctxv1", 12)
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
    values = json.loads(path.read_text())
    del values["sha256"]  # a later version's is of all its fields
    path.write_text(json.dumps({**values, "colour": "red"}))
    assert RunResult.read(path) == fake_result()


def fits(annotation: str, value: object) -> bool:
    """Whether a JSON value is of an annotated type; an int serves as a float, a bool as neither."""
    kinds = {"str": str, "int": int, "float": (int, float), "bool": bool, "None": type(None),
             "list": list, "dict": dict}  # fmt: skip
    names = re.sub(r"\[.*\]", "", annotation).split(" | ")
    if isinstance(value, bool):
        return "bool" in names
    return any(isinstance(value, kinds[name]) for name in names)


FIELDS = {spec.name: spec.type for spec in fields(RunResult)}
LATER = ("together", "identity")  # results of older versions have none


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_of_its_type_or_refused(tmp_path, field):
    path = fake_result().write(tmp_path)
    values = json.loads(path.read_text())
    del values["sha256"]  # as a version without checksums wrote it
    for value in (None, "x", 1.5, 1, True, [1], {"a": 1}):
        path.write_text(json.dumps({**values, field: value}))
        if not fits(FIELDS[field], value):
            with pytest.raises(ResultError, match=f"results.json: {field} is .*repeat the run"):
                RunResult.read(path)
        elif field not in ("scope", "split", "seconds", "peak_memory_bytes"):
            assert getattr(RunResult.read(path), field) == value
    del values[field]
    path.write_text(json.dumps(values))
    if field in LATER:
        assert getattr(RunResult.read(path), field) in (None, [])
        return
    with pytest.raises(ResultError, match=f"{field} is (absent|None)"):
        RunResult.read(path)


def test_a_result_that_was_changed_is_refused_and_its_order_is_nothing(tmp_path):
    result = fake_result(accuracy=81.25)
    path = result.write(tmp_path)
    values = json.loads(path.read_text())
    checksum = values.pop("sha256")
    text = json.dumps(values, sort_keys=True)  # what the checksum is of
    assert checksum == hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps({"sha256": checksum, **dict(reversed(values.items()))}))
    assert RunResult.read(path) == result
    path.write_text(json.dumps({**values, "accuracy": 81.5, "sha256": checksum}))
    with pytest.raises(ResultError, match="results.json is damaged: its checksum .*repeat the run"):
        RunResult.read(path)


def test_a_result_of_an_older_version_lacks_what_it_did_not_know_and_nothing_else(tmp_path):
    path = fake_result().write(tmp_path)
    values = json.loads(path.read_text())
    for field in ("sha256", "identity", "together"):
        del values[field]
    path.write_text(json.dumps(values))
    assert RunResult.read(path) == fake_result()
    del values["finished"]
    path.write_text(json.dumps(values))
    with pytest.raises(ResultError, match="finished is absent"):
        RunResult.read(path)


@pytest.mark.parametrize("field", ["accuracy", "macro_f1", "error_rate"])
def test_percentages_go_from_0_to_100(tmp_path, field):
    for value in (0.0, 0, 100.0):
        fake_result(**{field: value}).write(tmp_path)
    for value in (-0.001, 100.001, math.inf, math.nan):
        with pytest.raises(ResultError, match=f"{field} is .*, not a percentage"):
            fake_result(**{field: value}).write(tmp_path)


@pytest.mark.parametrize(
    "field, key",
    [("seconds", key) for key in ("setup", "train", "test", "dump")]
    + [("peak_memory_bytes", key) for key in ("rss", "device")],
)
def test_times_and_memory_are_0_or_more_or_unknown(tmp_path, field, key):
    known = getattr(fake_result(), field)
    for value in (None, 0, 0.0, 10**12):
        fake_result(**{field: {**known, key: value}}).write(tmp_path)
    for value in (-1, -0.1, math.inf, math.nan, True, "1"):
        with pytest.raises(ResultError, match=f"{field}.{key} is .*at least 0, or null"):
            fake_result(**{field: {**known, key: value}}).write(tmp_path)


def test_a_result_is_whole_or_as_it_was(tmp_path, monkeypatch):
    folder = tmp_path / "a" / "b"
    path = fake_result(accuracy=1.0).write(folder)
    assert path == folder / "results.json" and RunResult.read(folder) == RunResult.read(path)
    assert '\n "seed": 1,\n' in path.read_text()  # a field a line, for eyes and diffs
    with pytest.raises(ValueError):  # no JSON for it, wherever it stands
        fake_result(sweep=[{"alpha": 0.0, "accuracy": math.nan}]).write(folder)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        fake_result(accuracy=2.0).write(folder)
    assert RunResult.read(folder).accuracy == 1.0
    fake_result(accuracy=3.0).write(folder)
    assert RunResult.read(folder).accuracy == 3.0
    with pytest.raises(ResultError, match="c/results.json|c cannot be read .*; run it first"):
        RunResult.read(tmp_path / "c")


def test_results_are_found_in_order_of_path(tmp_path):
    names = ["m/2", "b", "m/10", "z", "a/x/y", "c"]
    for name in names:
        fake_result().write(tmp_path / name)
    found, unreadable = find_results(tmp_path)
    assert [str(run.path.relative_to(tmp_path)) for run in found] == sorted(names)
    assert unreadable == []


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
    assert git_commit(tmp_path) is None  # nothing is committed yet
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


def test_the_commit_is_that_of_the_code_unless_another_repository_is_named():
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    assert not head or git_commit().removesuffix("-dirty") == head


def test_versions_and_memory_are_plain_values():
    versions = library_versions()
    assert versions["python"].startswith("3.")
    for name in ("torch", "pillow", "open_clip_torch"):  # first, middle and last, past absent ones
        assert versions[name] == metadata.version(name)
    peak = peak_rss_bytes()
    assert peak is None or peak > 2**20
    status = Path("/proc/self/status")
    if status.exists():
        (kilobytes,) = re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())
        assert peak == pytest.approx(1024 * int(kilobytes), rel=0.1)


def test_now_is_this_moment_in_utc_to_the_millisecond():
    text = now()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", text)
    assert abs(datetime.fromisoformat(text).timestamp() - time.time()) < 60


def test_reporting_does_not_load_torch():
    code = (
        "import sys, reporting.compare, reporting.logs, reporting.plots, protocols.schedule;"
        "import run_protocol;"
        "print([m for m in ('torch', 'matplotlib', 'dassl', 'models') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert output.stdout.strip() == "[]", output


# --- means


def scores(trainer: str, base: list[float], new: list[float], **more) -> list[Score]:
    settings = dict(dataset="dtd", config="c", backbone="b", shots=16) | more
    times = {key: settings.pop(key) for key in ("train_seconds", "dump_seconds") if key in settings}
    return [
        Score(trainer=trainer, seed=seed, column=column, value=value, **settings, **own)
        for column, values, own in (("base", base, times), ("new", new, {}))
        for seed, value in enumerate(values, start=1)
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


def test_average_of_data_sets_with_other_seeds_is_the_mean_of_their_means():
    """Seeds 1, 2 of one and 2, 3 of the other: no seed by seed, hence no std."""
    other = [
        replace(score, dataset="pets", seed=score.seed + 1)
        for score in scores("CoOp", [50.0, 90.0], [10.0, 30.0])
    ]
    *_, average = aggregate(scores("CoOp", [60.0, 80.0], [40.0, 60.0]) + other)
    assert average.is_average and average.base_seeds == average.new_seeds == (2,)
    assert (average.base.mean, average.base.std) == (70.0, None)  # of 70 and 70; of seed 2: 65
    assert (average.new.mean, average.new.std) == (35.0, None)  # of 50 and 20; of seed 2: 35
    assert average.h.mean == pytest.approx(2 * 70 * 35 / 105) and average.h.std is None


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
    (row,) = aggregate([Score("dtd", "CoOp", "c", "b", 16, "base", 1, 60.0)])
    assert row.base.mean == 60.0 and row.new is None and row.h is None
    (row,) = aggregate(
        [
            *scores("CoOp", [60.0, 80.0], [30.0, 20.0]),
            Score("dtd", "CoOp", "c", "b", 16, "base", 3, 70.0),
        ]
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


def with_option(scope: str, *pair: str) -> list[str]:
    return ["DATASET.NUM_SHOTS", "16", "DATASET.SUBSAMPLE_CLASSES", scope, *pair]


def test_runs_with_other_options_are_a_row_of_their_own_named_by_them(tree):
    """Seeds 1 and 2 as in the tree; 3 and 4 with another learning rate."""
    for seed in (3, 4):
        for scope, accuracy in (("base", 90.0), ("new", 80.0)):
            write_run(tree, scope, accuracy, seed, opts=with_option(scope, "OPTIM.LR", "0.5"))
    table = compare(tree, trainers=["CoOp"])
    plain, other = table.rows
    assert (plain.knobs, plain.base_seeds, plain.base.mean) == ((), (1, 2), 70.0)
    assert (other.knobs, other.new_seeds, other.new.mean) == (("OPTIM.LR 0.5",), (3, 4), 80.0)
    assert table.notes == [] and "OPTIM.LR 0.5" in render(table, "text")


def test_seeds_without_identity_are_told_apart_by_their_options_and_from_those_with_one(tree):
    for seed, more in ((3, ()), (4, ("OPTIM.LR", "0.5"))):
        for scope in ("base", "new"):
            write_run(tree, scope, 90.0, seed, opts=with_option(scope, *more), identity=None)
    table = compare(tree, trainers=["CoOp"])
    assert [(row.knobs, row.base_seeds) for row in table.rows] == [
        ((), (1, 2)), (("identity unknown",), (3,)), (("identity unknown", "OPTIM.LR 0.5"), (4,)),
    ]  # fmt: skip
    assert "4 runs have no identity: their options alone tell what they are" in table.notes


def test_base_and_new_of_a_row_are_of_one_training(tree):
    """Another epoch of the same training, and a base part that was trained again since."""
    write_run(tree, "base", 70.0, 3)
    write_run(tree, "new", 70.0, 3, load_epoch=20)
    early, whole = compare(tree, trainers=["CoOp"]).rows
    assert (whole.knobs, whole.base_seeds, whole.new_seeds) == (("epoch 50",), (1, 2, 3), (1, 2))
    assert (early.knobs, early.new_seeds, early.h) == (("epoch 20",), (3,), None)

    write_run(tree, "new", 70.0, 3)
    result = RunResult.read(write_run(tree, "base", 70.0, 3))
    result.identity["train images"] = "another draw"
    folder = tree / "base2new/train_base/oxford_pets/shots_16/CoOp/vit_b32_ctxv1/seed3"
    result.write(folder)
    table = compare(tree, trainers=["CoOp"])
    assert table.rows[0].base_seeds == (1, 2, 3) and table.rows[0].new_seeds == (1, 2)
    assert "its prompts are not those of" in table.notes[0]
    assert "train images is another draw there and absent now" in table.notes[0]


def test_other_test_images_are_another_row(tree):
    write_run(tree, "base", 70.0, 3)
    write_run(tree, "new", 70.0, 3, num_images=5, finished="2024")
    table = compare(tree, trainers=["CoOp"])
    assert {row.new_seeds for row in table.rows} == {(), (1, 2), (3,)}
    assert ("test images 5 images",) in {row.knobs for row in table.rows}
    assert "runs were tested on different new sets" in "\n".join(table.notes)


def test_an_average_over_data_sets_is_of_one_recipe(tree):
    for stem, pair in (("dtd", ()), ("eurosat", ("OPTIM.LR", "0.5"))):
        for scope in ("base", "new"):
            options = with_option(scope, *pair)
            write_run(tree, scope, 40.0, 1, stem=stem, dataset=stem, opts=options)
    rows = compare(tree, trainers=["CoOp"]).rows
    (average,) = [row for row in rows if row.is_average]
    assert average.num_datasets == 2 and average.knobs == ()
    assert {row.knobs for row in rows if row.dataset == "eurosat"} == {("OPTIM.LR 0.5",)}


def test_a_table_is_of_one_output_folder_and_names_the_others(tree):
    for root in ("demo", "mine"):
        for scope in ("base", "new"):
            write_run(tree / root, scope, 99.0, 1)
    table = compare(tree, trainers=["CoOp"])
    assert table.rows[0].base.mean == 70.0 and table.rows[0].base_seeds == (1, 2)
    assert [f"{tree / root} holds runs of its own" in note for root, note in
            zip(("demo", "mine"), table.notes, strict=True)] == [True, True]  # fmt: skip
    assert f"python parse_test_res.py {tree / 'mine'} --compare" in table.notes[1]
    (alone,) = compare(tree / "mine").rows
    assert alone.base.mean == 99.0 and compare(tree / "mine").notes == []
    shutil.rmtree(tree / "base2new")  # nothing but folders below: the last one, and it says so
    write_run(tree / "mine", "new", 98.0, 1, finished="2026-01-01T00:00:00.000+00:00")
    table = compare(tree)
    assert table.rows[0].new.mean == 98.0 and table.notes[0].endswith(f"runs of {tree / 'mine'}")


def test_an_evaluation_older_than_its_training_is_told(tree):
    write_run(tree, "new", 20.0, 2, finished="2024")
    notes = "\n".join(compare(tree, trainers=["CoOp"]).notes)
    assert "seed2: new was tested before base was trained" in notes
    write_run(tree, "base", 80.0, 2, identity=None, epochs=7)
    write_run(tree, "new", 20.0, 2, identity=None)
    assert "base is of epoch 7, new of 50" in "\n".join(compare(tree, trainers=["CoOp"]).notes)


def test_knobs_and_transductive_rows_stand_apart_and_say_so(tree):
    for seed in (1, 2):
        write_run(tree, "base", 90.0, seed, trainer="FDBPL", knobs=["LABEL_LOGIT 16.0"])
        write_run(tree, "new", 80.0, seed, trainer="PromptKD", transductive=True)
    table = compare(tree, trainers=["FDBPL", "PromptKD"])
    assert [(row.method, row.knobs) for row in table.rows] == [
        ("FDBPL", ()), ("FDBPL", ("LABEL_LOGIT 16.0",)), ("PromptKD (transductive)", ()),
    ]  # fmt: skip
    text = render(table, "text")
    assert "PromptKD (transductive)" in text and "LABEL_LOGIT 16.0" in text
    assert any("Transductive: learned from unlabelled images" in line for line in table.caption)


def test_a_sweep_has_a_row_per_share(tree):
    sweep = [{"alpha": 0.0, "accuracy": 60.0}, {"alpha": 0.5, "accuracy": 64.0}]
    for seed in (1, 2):
        write_run(tree, "base", 60.0, seed, sweep=sweep)
        write_run(tree, "new", 60.0, seed, sweep=sweep)
    assert len(compare(tree, trainers=["CoOp"]).rows) == 1
    plain, mixed = compare(tree, trainers=["CoOp"], sweep=True).rows
    assert plain.base.mean == 60.0 and mixed.base.mean == mixed.h.mean == 64.0
    assert mixed.knobs == ("TEXT_INTERPOLATION 0.5",)


def test_ci95_is_that_of_the_family(tree):
    (row,) = tables_of.compare("base2new", tree, ci95=True, trainers=["CoOp"]).rows
    assert row.base.std == pytest.approx(1.96 * 10.0 / math.sqrt(2)) and row.base.mean == 70.0
    (row,) = aggregate(scores("CoOp", [60.0], [40.0]))  # one seed: no interval
    assert row.base.std is None


# --- transfer and few-shot


def put(root: Path, phase: str, dataset: str, accuracy: float, seed: int = 1, **changes) -> Path:
    values = dict(trainer="CoOp", shots=16, config="c", opts=[]) | changes
    result = fake_result(scope=SCOPE_OF_PHASE[phase], dataset=dataset, accuracy=accuracy,
                         seed=seed, eval_only=phase == XD_TEST, **values)  # fmt: skip
    where = (dataset, result.shots, result.trainer, result.config, seed, root)
    source = run_dir(XD_TRAIN, "imagenet", *where[1:])
    trained = phase == XD_TEST and (source / "results.json").exists()
    result.load_epoch = result.epochs if trained else None
    result.identity = fake_identity(result, RunResult.read(source).identity if trained else None)
    folder = run_dir(phase, *where)
    result.write(folder)
    return folder


def test_transfer_averages_the_targets_and_not_the_source(tmp_path):
    for seed, shift in ((1, 0.0), (2, 2.0)):
        put(tmp_path, XD_TRAIN, "imagenet", 70.0 + shift, seed)
        put(tmp_path, XD_TEST, "dtd", 40.0 + shift, seed)
        put(tmp_path, XD_TEST, "eurosat", 50.0 - shift, seed)
        put(tmp_path, XD_TEST, "imagenet_r", 10.0, seed)
    table = tables_of.compare("cross_dataset", tmp_path)
    assert table.columns == ("imagenet", "dtd", "eurosat", "average") and table.notes == []
    (row,) = table.rows
    assert row.cells["imagenet"] == Spread(71.0, 1.0)
    assert row.cells["average"] == Spread(45.0, 0.0)  # seed by seed
    assert row.train_seconds == 60.0
    (row,) = tables_of.compare("domain_generalization", tmp_path).rows
    assert row.cells["average"] == Spread(10.0, 0.0) and "dtd" not in row.cells
    assert tables_of.protocols_below(tmp_path) == ["cross_dataset", "domain_generalization"]


def test_transfer_without_a_target_has_no_average_and_says_so(tmp_path):
    put(tmp_path, XD_TRAIN, "imagenet", 70.0)
    put(tmp_path, XD_TRAIN, "imagenet", 70.0, 2)
    put(tmp_path, XD_TEST, "dtd", 40.0)
    put(tmp_path, XD_TRAIN, "imagenet", 70.0, trainer="MaPLe")
    put(tmp_path, XD_TEST, "dtd", 41.0, trainer="MaPLe")
    put(tmp_path, XD_TEST, "eurosat", 51.0, trainer="MaPLe")
    table = tables_of.compare("cross_dataset", tmp_path)
    coop, maple = table.rows
    assert coop.cells.get("average") is None and maple.cells["average"].mean == 46.0
    notes = "\n".join(table.notes)
    assert "CoOp c 16 shots: no average, eurosat missing" in notes
    assert "CoOp c 16 shots: dtd has no seed 2" in notes
    assert len(tables_of.compare("cross_dataset", tmp_path, datasets=["dtd"]).columns) == 3


def test_published_transfer_means_are_those_of_their_targets():
    """The printed mean of every complete row is the mean of its printed cells."""
    checked = 0
    for entry in read_published():
        numbers = entry.get("numbers", {})
        if entry["protocol"] == "cross_dataset":
            targets, complete = [v for k, v in numbers.items() if k != "imagenet"], 10
        elif entry["protocol"] == "domain_generalization":
            targets, complete = [v for k, v in numbers.items() if k != "imagenet"], 4
        else:
            continue
        if len(targets) == complete and "average" in entry:
            assert sum(targets) / complete == pytest.approx(entry["average"], abs=0.0101), entry
            checked += 1
    assert checked > 30


def evil_table() -> Table:
    """Names that would act in a terminal, a page, a spreadsheet or a paper."""
    names = ['=HYPERLINK("x")', "a|b<script>&amp;", "\x1b[2Jgone\nline", "50%_$x$ \\input{y}"]
    scored = [
        replace(score, dataset=name) for name in names for score in scores("CoOp", [50], [40])
    ]
    return Table(aggregate(scored), [f"Of {', '.join(names)}"], [f"a note: {names[2]}"])


@pytest.mark.parametrize("form", ["text", "markdown", "latex", "csv"])
def test_names_act_in_no_format(form):
    text = render(evil_table(), form)
    assert "\x1b" not in text and "\nline" not in text
    if form == "text":
        assert "\\u001b[2Jgone\\u000aline" in text and "a|b<script>" in text
    if form == "markdown":
        assert "<script>" not in text and "a\\|b&lt;script>&amp;amp;" in text
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
    if form == "latex":
        assert r"50\%\_\$x\$ \textbackslash{}input\{y\}" in text
        head = text[: text.index("\\begin")].strip().splitlines()
        assert all(line.startswith("% ") for line in head)
    if form == "csv":
        found = [row["dataset"] for row in csv.DictReader(io.StringIO(text))]
        assert '\'=HYPERLINK("x")' in found and not [n for n in found if n[0] in "=+-@"]


def test_numbers_below_zero_stay_numbers_in_a_spreadsheet():
    text = render(Table(aggregate(scores("CoOp", [-1.5], [40.0]))), "csv")
    assert next(csv.DictReader(io.StringIO(text)))["base_mean"] == "-1.5"


@pytest.fixture
def few_shot(tmp_path):
    for seed in (1, 2):
        for dataset, level in (("dtd", 40.0), ("eurosat", 60.0)):
            for shots in (1, 16):
                for trainer, gain in (("CoOp", 0.0), ("MaPLe", 5.0)):
                    # CoOp trains longer with more images: another recipe, the same row.
                    config = f"ep{shots}" if trainer == "CoOp" else "c"
                    accuracy = level + gain + shots + 2 * seed
                    more = dict(trainer=trainer, config=config, shots=shots)
                    put(tmp_path, FEW_SHOT_TRAIN, dataset, accuracy, seed, **more)
            zero_shot = dict(trainer="ZeroshotCLIP", shots=0, epochs=0)
            put(tmp_path, FEW_SHOT_TRAIN, dataset, level, seed, **zero_shot)
    return tmp_path


def test_few_shot_has_a_column_per_number_of_shots_and_an_average(few_shot):
    table = tables_of.compare("few_shot", few_shot)
    assert table.columns == ("0", "1", "16") and table.notes == []
    rows = {(row.dataset, row.trainer): row for row in table.rows}
    assert len(rows) == 9
    assert rows["dtd", "CoOp"].cells["16"] == Spread(59.0, 1.0)
    assert rows["dtd", "CoOp"].config == "ep1 + ep16"
    average = rows["average", "MaPLe"]
    assert average.num_datasets == 2 and average.cells["1"] == Spread(59.0, 1.0)
    assert average.cells.get("0") is None and rows["average", "ZeroshotCLIP"].cells["0"].mean == 50
    text = render(table, "text")
    assert "average of 2" in text and "ep1 + ep16" in text


def test_two_recipes_with_the_same_shots_are_two_rows(few_shot):
    put(few_shot, FEW_SHOT_TRAIN, "dtd", 99.0, 1, config="other", shots=16)
    rows = tables_of.compare("few_shot", few_shot, trainers=["CoOp"], datasets=["dtd"]).rows
    assert sorted(row.cells["16"].mean for row in rows) == [59.0, 99.0]


# --- predictions and paired differences


def test_predictions_round_trip_in_the_order_of_the_paths(tmp_path):
    write_predictions(tmp_path, ["/d/b/1.jpg", "/d/a/2.jpg", "/d/a/10.jpg"], [3, 1, 0], [3, 2, 0])
    found = read_predictions(tmp_path)
    assert found.labels_I.tolist() == [0, 1, 3] and found.correct_I.tolist() == [True, False, True]
    # The same images elsewhere are the same images; others are not.
    write_predictions(tmp_path, ["/e/b/1.jpg", "/e/a/2.jpg", "/e/a/10.jpg"], [3, 1, 0], [3, 2, 0])
    assert read_predictions(tmp_path).same_images(found)
    write_predictions(tmp_path, ["/e/c/1.jpg", "/e/a/2.jpg", "/e/a/10.jpg"], [3, 1, 0], [3, 2, 0])
    assert not read_predictions(tmp_path).same_images(found)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.npz"]


def test_predictions_are_compact(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 1000, 50_000)
    paths = [f"/imagenet/val/n{label:08d}/{i}.JPEG" for i, label in enumerate(labels)]
    path = write_predictions(tmp_path, paths, labels.tolist(), rng.permutation(labels).tolist())
    assert path.stat().st_size < 4 * 50_000


def test_damaged_or_missing_predictions_are_told(tmp_path):
    with pytest.raises(ResultError, match="predictions.npz is absent; test the run again"):
        read_predictions(tmp_path)
    (tmp_path / "predictions.npz").write_bytes(b"PK half a file")
    with pytest.raises(ResultError, match="cannot be read"):
        read_predictions(tmp_path)
    np.savez(tmp_path / "predictions.npz", images=np.array([{"a": 1}]), labels=0, predictions=0)
    with pytest.raises(ResultError, match="cannot be read"):  # a pickle is not opened
        read_predictions(tmp_path)
    with pytest.raises(ValueError, match="2 images, 1 labels"):
        write_predictions(tmp_path, ["a", "b"], [0], [0])


def test_standard_error_with_one_seed_is_that_of_the_mean_over_images():
    values = np.array([[0.0, 100.0, 100.0, -100.0, 0.0]])
    textbook = values.std(ddof=1) / math.sqrt(5)
    assert standard_error([values]) == pytest.approx(textbook)


def test_standard_error_covers_seeds_and_images():
    """Against the spread of the mean over many draws of seeds and images."""
    rng = np.random.default_rng(0)
    seeds, images, sigma = 4, 60, (3.0, 10.0, 20.0)  # of a seed, of an image, of both

    def draw():
        return (rng.normal(0, sigma[0], (seeds, 1)) + rng.normal(0, sigma[1], (1, images))
                + rng.normal(0, sigma[2], (seeds, images)))  # fmt: skip

    drawn = [draw() for _ in range(1500)]
    true = np.std([values.mean() for values in drawn])
    found = math.sqrt(np.mean([standard_error([values]) ** 2 for values in drawn]))
    assert found == pytest.approx(true, rel=0.06)
    # Seeds alone, or images alone, say too little.
    blind = np.mean([values.mean(axis=1).std(ddof=1) / 2 for values in drawn])
    assert blind < 0.9 * true


@pytest.fixture
def answered(tmp_path):
    """CoOp and FDBPL on two seeds, with their answers on 100 images; FDBPL's are a few better."""
    rng = np.random.default_rng(1)
    for dataset in ("dtd", "eurosat"):
        for scope in ("base", "new"):
            for seed in (1, 2):
                right = rng.random(100) < 0.6
                better = right | (rng.random(100) < 0.2)
                for trainer, correct in (("CoOp", right), ("FDBPL", better)):
                    more = dict(stem=dataset, trainer=trainer, dataset=dataset, num_images=100)
                    folder = write_run(tmp_path, scope, float(100 * correct.mean()), seed, **more)
                    answer(folder, correct.tolist())
    return tmp_path


def test_paired_differences_and_their_error(answered):
    table = compare(answered, baseline="CoOp")
    assert table.notes == []
    rows = {(row.dataset, row.trainer): row for row in table.rows}
    assert rows["dtd", "CoOp"].differences == {}
    for name in ("dtd", "eurosat", "average"):
        ours, theirs = rows[name, "FDBPL"], rows[name, "CoOp"]
        for column in ("base", "new", "H"):
            found = ours.differences[column]
            gap = ours.cells[column].mean - theirs.cells[column].mean
            assert found.mean == pytest.approx(gap) and found.seeds == 2
            assert 0.5 < found.error < found.mean  # eight points better: that is real
    folder = answered / "base2new/train_base/dtd/shots_16"
    pair = [
        [read_predictions(folder / f"{name}/vit_b32_ctxv1/seed{seed}").correct_I for seed in (1, 2)]
        for name in ("FDBPL", "CoOp")
    ]
    by_hand = standard_error([100.0 * (np.array(pair[0], float) - np.array(pair[1], float))])
    assert rows["dtd", "FDBPL"].differences["base"].error == pytest.approx(by_hand)
    # Of two data sets the average moves less.
    assert rows["average", "FDBPL"].differences["H"].error < 0.9 * max(
        rows[name, "FDBPL"].differences["H"].error for name in ("dtd", "eurosat")
    )


def test_error_of_h_by_finite_differences(answered):
    """H is not linear: its error is that of its linear part at the means."""
    row = next(
        r for r in compare(answered, baseline="CoOp", datasets=["dtd"]).rows if r.differences
    )

    def arrays(trainer):
        return [
            np.array([read_predictions(
                answered / f"base2new/{phase}/dtd/shots_16/{trainer}/vit_b32_ctxv1/seed{seed}"
            ).correct_I for seed in (1, 2)], float) * 100
            for phase in ("train_base", "test_new")
        ]  # fmt: skip

    def slopes(base, new, step=1e-4):
        at = harmonic_mean(base, new)
        return (harmonic_mean(base + step, new) - at) / step, (
            harmonic_mean(base, new + step) - at) / step  # fmt: skip

    ours, theirs = arrays("FDBPL"), arrays("CoOp")
    own, other = (slopes(*(part.mean() for part in side)) for side in (ours, theirs))
    parts = [own[i] * ours[i] - other[i] * theirs[i] for i in range(2)]
    assert row.differences["H"].error == pytest.approx(standard_error(parts), rel=1e-3)


def test_differences_are_shown_in_every_format(answered):
    table = compare(answered, baseline="CoOp", datasets=["dtd"])
    found = table.rows[1].differences["H"]
    shown = f"{found.mean:+.2f} ± {found.error:.2f}"
    for form in ("text", "markdown", "latex"):
        assert shown in render(table, form) and "minus CoOp" in render(table, form)
    (_, row) = csv.DictReader(io.StringIO(render(table, "csv")))
    assert float(row["h_difference"]) == found.mean
    assert json.loads(render(table, "json"))["rows"][1]["differences"]["H"]["error"] == found.error


def test_what_cannot_be_paired_is_told(answered):
    folder = answered / "base2new/train_base/dtd/shots_16/FDBPL/vit_b32_ctxv1/seed2"
    (folder / "predictions.npz").unlink()
    table = compare(answered, baseline="CoOp", datasets=["dtd"])
    row = table.rows[1]
    assert row.differences["base"].error is None and row.differences["new"].error is not None
    assert "FDBPL: no standard error" in table.notes[0] and "is absent" in table.notes[0]
    answer(folder, [True] * 99)
    assert "tested on other images" in compare(answered, baseline="CoOp").notes[0]
    assert "no MaPLe to compare with" in compare(answered, baseline="MaPLe").notes[0]


def test_differences_of_transfer_and_few_shot(tmp_path):
    for seed in (1, 2):
        for trainer, right in (("CoOp", 40), ("FDBPL", 60)):
            for phase, dataset in (
                (XD_TRAIN, "imagenet"), (XD_TEST, "dtd"), (XD_TEST, "eurosat"),
                (FEW_SHOT_TRAIN, "dtd"),
            ):  # fmt: skip
                correct = [index < right + seed for index in range(100)]
                folder = put(tmp_path, phase, dataset, right + seed, seed, trainer=trainer)
                answer(folder, correct)
    coop, fdbpl = tables_of.compare("cross_dataset", tmp_path, baseline="CoOp").rows
    assert coop.differences == {} and set(fdbpl.differences) == set(fdbpl.cells)
    single = fdbpl.differences["dtd"]
    assert single.mean == 20.0 and single.error == pytest.approx(fdbpl.differences["eurosat"].error)
    # Both targets were drawn with the same answers: two of them halve the variance over images.
    assert fdbpl.differences["average"].mean == 20.0
    assert fdbpl.differences["average"].error == pytest.approx(
        single.error / math.sqrt(2), rel=0.05
    )
    _, fdbpl = tables_of.compare("few_shot", tmp_path, baseline="CoOp").rows
    assert fdbpl.differences["16"].error == pytest.approx(single.error)


# --- published numbers


def test_published_averages_are_h_of_the_means():
    for entry in read_published():
        if entry["protocol"] == "base2new" and len(entry.get("average", ())) == 3:
            base, new, h = entry["average"]
            # The list of zhengli97 and DePT's re-runs round, or average their own H.
            close = (
                0.0151 if entry["source"].startswith(("PromptKD", "MaPLe", "PromptSRC")) else 0.3
            )
            assert harmonic_mean(base, new) == pytest.approx(h, abs=close), entry
        assert entry["source"] and entry["backbone"]


@pytest.mark.parametrize("method", PUBLISHED)
def test_published_cells_are_those_of_the_table(method):
    name = {"CLIP": "ZeroshotCLIP"}.get(method, method)
    entry = next(e for e in read_published() if e["method"] == name and "Table 1" in e["source"])
    assert [tuple(pair) for pair in entry["numbers"].values()] == PUBLISHED[method]
    assert tuple(entry["average"]) == PUBLISHED_AVERAGES[method]


def test_published_rows_are_marked_and_stand_beside_ours(tmp_path):
    for dataset, stem in (("DescribableTextures", "dtd"), ("EuroSAT", "eurosat")):
        for scope in ("base", "new"):
            write_run(tmp_path, scope, 60.0, 1, dataset=dataset, stem=stem, backbone="ViT-B/16")
    table = tables_of.compare("base2new", tmp_path, published=True, trainers=["CoOp"])
    dtd = [row for row in table.rows if row.dataset == "dtd"]
    assert {row.dataset for row in table.rows} == {"dtd", "eurosat", "average"}
    printed = next(row for row in dtd if "Table 1" in row.published)
    assert (printed.base.mean, printed.new.mean) == (79.44, 41.18)
    text = render(table, "text")
    assert "CoOp (published) [1]" in text and "[1] published: PromptKD (arXiv:2403.02781)" in text
    assert [row.published for row in table.rows if row.method == "CoOp"] == ["", "", ""]
    assert "average of 11" in text and "average of 2" in text


def test_published_rows_need_our_student_and_data(tree):
    table = tables_of.compare("base2new", tree, published=True)  # ViT-B/32 on oxford_pets
    assert not any(row.published for row in table.rows)
    assert "nothing published is known for oxford_pets with ViT-B/32" in table.notes
    for protocol in ("cross_dataset", "domain_generalization", "few_shot"):
        rows = tables_of.compare(protocol, tree, published=True).rows
        assert rows and all(row.published for row in rows)  # none of ours: all there are
    kept = tables_of.compare("cross_dataset", tree, published=True, trainers=["PromptKD"]).rows
    assert [row.method for row in kept] == ["PromptKD (transductive, published)"]


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


def hand_made_table() -> Table:
    backbone, halves = "ViT-B/16", ("base", "new", "H")

    def cells(*values):
        given = [value if value is None else Spread(*value) for value in values]
        return dict(zip(halves, given, strict=True))

    paper = cells((72.433, None), (68.14, None), (70.219, None))
    one_half = cells((70.0, 10.0, 2), None, None)
    both = cells((71.014, 0.5, 3), (60.0, 1.25, 3), (65.04, 0.75, 3))
    minus = {"base": Difference(1.006, 0.5, 2), "new": Difference(-2.0, None, 2)}
    rows = [
        Row("pets", "CLIP", "", backbone, 16, paper, {}, published="a paper, table 3"),
        Row(
            *("pets", "CoOp", "1e3", backbone, 16, one_half, {"base": (1, 2), "new": ()}, 12.34),
            knobs=("A 1", "B"),
            transductive=True,
        ),
        Row(
            *("pets", "FDBPL", "1e3", backbone, 16, both),
            *({"base": (1, 2, 3), "new": (1, 2, 3)}, 10.0, 15.06),
            differences=minus,
        ),
        Row(
            *("average", "FDBPL", "1e3 + é", backbone, 4, cells((0.0, 0.0), None, None)),
            {"base": (7,)},
            num_datasets=2,
            is_average=True,
        ),
    ]
    caption, notes = ["First line.", "mean ± std over seeds."], ["a note", "another"]
    return Table(rows, caption, notes, baseline="CoOp")


HAND_MADE = [  # what is to be read in it, however it is laid out
    "data set|method|config|knobs|backbone|shots|seeds|base|new|H|train s|+ dump s",
    "pets|CLIP (published) [1]|||ViT-B/16|16||72.43|68.14|70.22|—|—",
    "pets|CoOp (transductive)|1e3|A 1, B|ViT-B/16|16|2 base, 0 new|70.00 ± 10.00|—|—|12.3|—",
    "pets|FDBPL|1e3||ViT-B/16|16|3|71.01 ± 0.50|60.00 ± 1.25|65.04 ± 0.75|10.0|15.1",
    "|minus CoOp||||||+1.01 ± 0.50|-2.00|—||",
    "average of 2|FDBPL|1e3 + é||ViT-B/16|4|1|0.00 ± 0.00|—|—|—|—",
]


def test_a_table_as_text_is_read_cell_by_cell():
    lines = render(hand_made_table(), "text").splitlines()
    assert lines[:3] == ["First line.", "mean ± std over seeds.", ""]
    assert lines[-3:] == ["", "a note", "another"] and len(lines) == 3 + 7 + 3
    head, rule, *body = lines[3:-3]
    starts = [match.start() for match in re.finditer("-+", rule)]
    ends = [match.end() for match in re.finditer("-+", rule)]
    for line, wanted in zip([head, *body], HAND_MADE, strict=True):
        cells = [line[start:end] for start, end in zip(starts, ends, strict=True)]
        assert [cell.strip() for cell in cells] == wanted.split("|")
        for place, cell in enumerate(cells):  # words begin alike, numbers end alike
            text = cell.strip()
            if text:
                assert cell.rstrip().endswith(text) if place < 5 else cell.endswith(text)
                assert place > 4 or cell.startswith((text, f"  {text}"))


def test_a_table_as_markdown_and_latex_holds_the_same_cells():
    text = render(hand_made_table(), "markdown")
    assert text.startswith("First line.  \nmean ± std over seeds.\n\n| data set")
    assert text.endswith("|\n\n- a note\n- another\n")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    found = ["|".join(cell.strip() for cell in line[1:-1].split("|")) for line in lines]
    assert [found[0], *found[2:]] == HAND_MADE
    text = render(hand_made_table(), "latex")
    start = "% First line.\n% mean ± std over seeds.\n% a note\n% another\n\\begin{tabular}{lllll"
    assert text.startswith(start + "rrrrrrr}\n") and text.endswith("\\end{tabular}\n")
    lines = [line[:-2] for line in text.splitlines() if line.endswith("\\\\")]
    assert ["|".join(c.strip() for c in line.split("&")) for line in lines] == HAND_MADE


def test_a_table_as_csv_and_json_keeps_every_digit():
    text = render(hand_made_table(), "csv")
    assert text.endswith("\n") and "\r" not in text
    assert text.splitlines() == [
        "dataset,trainer,config,backbone,shots,base_seeds,new_seeds,base_mean,base_std,new_mean,"
        "new_std,h_mean,h_std,train_seconds,train_and_dump_seconds,num_datasets,knobs,"
        "transductive,published,base_difference,base_difference_error,new_difference,"
        "new_difference_error,h_difference,h_difference_error",
        'pets,CLIP,,ViT-B/16,16,,,72.433,,68.14,,70.219,,,,1,,False,"a paper, table 3",,,,,,',
        "pets,CoOp,1e3,ViT-B/16,16,1 2,,70.0,10.0,,,,,12.34,,1,A 1 B,True,,,,,,,",
        "pets,FDBPL,1e3,ViT-B/16,16,1 2 3,1 2 3,71.014,0.5,60.0,1.25,65.04,0.75,10.0,15.06,1,,"
        "False,,1.006,0.5,-2.0,,,",
        "average,FDBPL,1e3 + é,ViT-B/16,4,7,,0.0,0.0,,,,,,,2,,False,,,,,,,",
    ]
    text = render(hand_made_table(), "json")
    assert text.startswith('{\n "rows": [\n  {\n   "dataset": "pets"') and text.endswith("}\n")
    assert '"1e3 + é"' in text
    plain = json.loads(text)
    assert plain["caption"] == ["First line.", "mean ± std over seeds."]
    assert plain["columns"] == ["base", "new", "H"] and plain["baseline"] == "CoOp"
    clip, coop, fdbpl, average = plain["rows"]
    assert clip["base"] == {"mean": 72.433, "std": None, "count": 1} and "cells" not in clip
    assert coop["new"] is None and coop["knobs"] == ["A 1", "B"] and coop["transductive"] is True
    assert fdbpl["h"] == {"mean": 65.04, "std": 0.75, "count": 3}
    assert fdbpl["differences"]["new"] == {"mean": -2.0, "error": None, "seeds": 2}
    assert average["is_average"] is True and average["num_datasets"] == 2
    bad = replace(hand_made_table().rows[0], train_seconds=math.nan)
    with pytest.raises(ValueError):
        render(Table([bad]), "json")


def test_ci95_stands_in_the_place_of_every_std_and_in_the_caption():
    table = with_ci95(hand_made_table())
    clip, coop, fdbpl, average = table.rows
    assert clip == hand_made_table().rows[0] and coop.new is None  # nothing to widen
    assert coop.base == Spread(70.0, pytest.approx(1.96 * 10 / 2**0.5))
    assert fdbpl.h == Spread(65.04, pytest.approx(1.96 * 0.75 / 3**0.5))
    assert average.base.std == 0.0
    assert table.caption == ["First line.", "mean ± 95 % confidence interval over seeds."]


def test_rows_that_share_all_and_rows_without_seeds():
    """One data set, config and number of shots are left to the caption; ranges of seeds shown."""
    backbone, given = "b", {"4": Spread(50.0, None), "8": Spread(60.0, None)}
    rows = [
        Row("pets", "CoOp", "c", backbone, None, given, {"4": (1, 2, 3), "8": (1,)}),
        Row("pets", "FDBPL", "c", backbone, None, given, {"4": (1, 2), "8": (3, 4)}),
        Row("pets", "MaPLe", "c", backbone, None, given, {}),
    ]
    head, _, *body = render(Table(rows, columns=("4", "8")), "text").splitlines()
    assert re.split(r"\s{2,}", head) == ["method", "backbone", "seeds", "4", "8", "train s",
                                         "+ dump s"]  # fmt: skip
    assert [re.split(r"\s{2,}", line.strip())[2] for line in body] == ["1-3", "2", "0"]
    assert render(Table([], ["nothing"]), "text") == "nothing\n"
    numbers = [replace(row, config=name) for row, name in zip(rows, ("1e3", "007"), strict=False)]
    body = render(Table(numbers, columns=("4",)), "text").splitlines()[2:]
    assert [line.split()[1] for line in body] == ["1e3", "007"]  # names, not numbers


def test_rows_stand_by_data_set_shots_and_method():
    given = [
        ("pets", "FDBPL", 4), ("pets", "CoOp_KDPL", 4), ("pets", "Zzz", 4), ("dtd", "CoOp", 16),
        ("pets", "MaPLe", 4), ("dtd", "CoOp", 4), ("pets", "CoOp_FDBPL", 4), ("pets", "CoOp", 4),
        ("dtd", "FDBPL", 4), ("pets", "MaPLe", 16), ("dtd", "MaPLe", 16),
    ]  # fmt: skip
    rows = aggregate(
        score
        for dataset, trainer, shots in given
        for score in scores(trainer, [60.0], [40.0], dataset=dataset, shots=shots)
    )
    assert [(row.dataset, row.trainer, row.shots) for row in rows] == [
        ("dtd", "CoOp", 4), ("dtd", "FDBPL", 4), ("dtd", "CoOp", 16), ("dtd", "MaPLe", 16),
        ("pets", "CoOp", 4), ("pets", "MaPLe", 4), ("pets", "Zzz", 4), ("pets", "CoOp_KDPL", 4),
        ("pets", "CoOp_FDBPL", 4), ("pets", "FDBPL", 4), ("pets", "MaPLe", 16),
        ("average", "CoOp", 4), ("average", "FDBPL", 4), ("average", "MaPLe", 16),
    ]  # fmt: skip
    pets = scores("CoOp", [3.0], [3.0], dataset="pets")
    keys = aggregate_with_keys(pets + scores("CoOp", [1.0], [1.0]))
    assert [(row.dataset, [key[0] for key in of]) for row, of in keys] == [
        ("dtd", ["dtd"]), ("pets", ["pets"]), ("average", ["dtd", "pets"]),
    ]  # fmt: skip
    assert len(aggregate(scores("CoOp", [1.0], [1.0]), over_datasets=False)) == 1


def test_an_average_lacks_what_one_of_its_data_sets_lacks():
    both, half = scores("CoOp", [60.0, 80.0], [40.0, 60.0]), scores("CoOp", [50.0], [10.0])
    half = [replace(score, dataset="pets") for score in half if score.column == "base"]
    *_, average = aggregate(both + half)
    assert average.base == Spread(60.0, None) and average.new is None and average.h is None
    assert average.base_seeds == (1,) and average.new_seeds == ()


def test_an_average_has_seeds_and_h_where_all_its_data_sets_do():
    """New of seeds 1, 2 and of 2, 3: base has a std, new and H have none."""
    one, other = (
        scores("CoOp", [60.0, 80.0], [40.0, 60.0], dataset=name) for name in ("dtd", "pets")
    )
    later = {1: 2, 2: 3}
    other = [
        replace(score, seed=later[score.seed]) if score.column == "new" else score
        for score in other
    ]
    *_, average = aggregate(one + other)
    assert average.base == Spread(70.0, 10.0) and average.new == Spread(50.0, None)
    assert average.h.mean == pytest.approx(2 * 70 * 50 / 120) and average.h.std is None
    assert (average.base_seeds, average.new_seeds) == ((1, 2), (2,))
    shots = [
        Score(name, "CoOp", "c", "b", None, column, seed, 10.0 * seed)
        for name, columns in (("dtd", ("4", "8")), ("pets", ("4",)))
        for column in columns
        for seed in (1, 2)
    ]
    *_, average = aggregate(shots)
    assert average.cells == {"4": Spread(15.0, 5.0), "8": None}
    assert average.seeds == {"4": (1, 2)}


def test_times_of_an_average_are_means_or_unknown():
    def average(first: float | None, second: float | None, dump: float | None) -> Row:
        return aggregate(
            scores("FDBPL", [1.0], [1.0], train_seconds=first, dump_seconds=5.0)
            + scores(
                *("FDBPL", [1.0], [1.0]), dataset="pets", train_seconds=second, dump_seconds=dump
            )
        )[-1]

    assert average(10.0, 20.0, 7.0).train_seconds == 15.0
    assert average(10.0, 20.0, 7.0).train_and_dump_seconds == (15.0 + 27.0) / 2
    assert average(10.0, 20.0, None).train_and_dump_seconds is None
    assert average(10.0, None, 7.0).train_seconds is None


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


def test_pictures_of_every_protocol_as_png_and_pdf(tree, few_shot):
    for dataset, accuracy in (("imagenet", 70.0), ("dtd", 40.0)):
        put(tree, XD_TRAIN if dataset == "imagenet" else XD_TEST, dataset, accuracy)
    wanted = {
        "base2new": {"base2new_oxford_pets", "base2new_time"},
        "few_shot": {"few_shot", "few_shot_time"},
        "cross_dataset": {"cross_dataset", "cross_dataset_time"},
        "domain_generalization": set(),
    }
    for protocol, names in wanted.items():
        drawn = draw_all(protocol, tables_of.compare(protocol, tree), tree / "pictures")
        assert {path.stem for path in drawn} == names and len(drawn) == 2 * len(names)
        for path in drawn:
            if path.suffix == ".png":
                assert min(png_size(path)) > 300
            else:
                assert path.read_bytes().startswith(b"%PDF")


def test_pictures_need_something_to_draw(tree):
    for draw in (few_shot_curves, transfer_bars):
        with pytest.raises(ValueError, match="no rows"):
            draw(Table([]), tree / "none.png")
    with pytest.raises(ValueError, match="no row has a training time and H"):
        accuracy_against_time(compare(tree, trainers=["ZeroshotCLIP"]).rows, "H", tree / "none.png")


def test_a_method_has_one_colour_whoever_measured_it(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn, bar = {}, Axes.bar

    def note(self, *places, **keys):
        drawn[keys["label"]] = keys["color"]
        return bar(self, *places, **keys)

    monkeypatch.setattr(Axes, "bar", note)
    put(tmp_path, XD_TRAIN, "imagenet", 70.0, backbone="ViT-B/16")
    put(tmp_path, XD_TEST, "dtd", 40.0, backbone="ViT-B/16")
    table = tables_of.compare("cross_dataset", tmp_path, published=True, trainers=["CoOp"])
    transfer_bars(table, tmp_path / "bars.png")
    assert set(drawn) == {"CoOp (published) [1]", "CoOp (published) [2]", "CoOp"}
    assert len(set(drawn.values())) == 1
