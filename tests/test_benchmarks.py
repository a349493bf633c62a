"""The benchmarks run at tiny sizes and keep what their readers look for. Times are not judged."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

from benchmarks import dump, end_to_end, report, step_time, table
from benchmarks.clips import TINY, class_names, random_student, random_teacher
from benchmarks.measure import Part, count
from benchmarks.official import FullPrompts
from benchmarks.steps import POSITIVE, Bench
from models.prompted_clip import FrozenCLIP

CPU = torch.device("cpu")
WANTED = (
    "fdbpl_vs_kdpl_online", "fdbpl_vs_coop_official", "coop_vs_official",
    "coop_cached_vs_official", "text_vs_77", "regions_32x8_vs_32", "saved_activations_vs_77",
    "fdbpl_vs_fdbpl_authors",
)  # fmt: skip


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """The JSON of a whole small run."""
    path = tmp_path_factory.mktemp("benchmarks") / "steps.json"
    sizes = ["--student", TINY, "--teacher", TINY, "--classes", "2", "3", "--rounds", "1"]
    step_time.main([*sizes, "--joint-classes", "2", "--json", str(path)])
    return path


def test_step_time_keeps_rows_and_ratios_by_class_count(steps):
    record = json.loads(steps.read_text())
    assert [(found["student"], found["classes"]) for found in record["ratios"]] == [
        (TINY, 2), (TINY, 3)
    ]  # fmt: skip
    for ratios in record["ratios"]:
        assert all(ratios[name] > 0 for name in WANTED)
    for row in record["rows"]:
        assert {"name", "classes", "ms", "flop", "peak_bytes"} <= set(row)
        assert row["note"] if row["ms"] is None else min(row["flop"], row["peak_bytes"]) > 0
    assert record["versions"]["torch"] and record["machine"]["cores"] and "commit" in record
    for part in record["parts"]:
        least, median, most = part["seconds"]["cpu"]
        assert 0 <= least <= median <= most
    names = {row["name"] for row in record["rows"]}
    assert {"CoOp, official", "FDBPL, its authors", "MaPLe here", "PromptSRC here"} <= names


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_step_time_on_a_gpu_has_its_rows(tmp_path, precision):
    path = tmp_path / "steps.json"
    sizes = ["--student", TINY, "--teacher", TINY, "--classes", "3", "--rounds", "2"]
    step_time.main([*sizes, "--device", "cuda", "--precision", precision, "--json", str(path)])
    record = json.loads(path.read_text())
    timed = {row["name"] for row in record["rows"] if row["ms"] is not None}
    assert "KDPL, official, bf16 teacher" in timed
    assert "fdbpl_vs_kdpl_online_bf16" in record["ratios"]["3"]


def test_fewer_tokens_cost_fewer_operations_and_less_memory(steps):
    for ratios in json.loads(steps.read_text())["ratios"]:
        assert ratios["text_flop_vs_77"] > 2 and ratios["saved_activations_vs_77"] > 2


def test_official_prompts_give_the_features_of_the_fast_path():
    clip, names = random_student(TINY, "fp32", CPU), class_names(5)
    bench = Bench(clip)
    model = bench.prompted(5, bench.coop_learner())
    with torch.no_grad():
        official, ours = FullPrompts(clip, names, POSITIVE).text_features(), model.text_features()
    torch.testing.assert_close(official, ours, atol=1e-5, rtol=1e-4)


def test_counting_sees_operations_memory_and_kept_tensors():
    weight, x = torch.nn.Parameter(torch.randn(64, 32)), torch.randn(8, 32)
    part = Part("product", lambda: (x @ weight.T).exp().sum().backward())
    count(part, CPU)
    assert part.flop == 2 * (2 * 8 * 32 * 64)  # forward, and the gradient of the weight
    assert part.saved_bytes == 4 * 8 * 64  # exp, which the step made; not its input, not the weight
    at_the_end = 4 * (8 * 64 + 64 * 32)  # the gradients of exp and of the weight
    assert at_the_end <= part.peak_bytes <= at_the_end + 4 * 8 * 64


def test_whole_run_is_composed_of_measured_pieces(steps, tmp_path):
    """With one second for each piece the composed phases are how often a run does it."""
    record = json.loads(steps.read_text())
    for part in record["parts"]:
        part["seconds"]["cpu"] = [1.0, 1.0, 1.0]
    ones = tmp_path / "ones.json"
    ones.write_text(json.dumps(record))
    sizes = ["--student", TINY, "--classes", "2", "--images", "64", "--epochs", "10"]
    runs = ["--worlds", "composed", "--regions", "4", "--seeds", "1", "2", "--steps", str(ones)]
    out = tmp_path / "whole.json"
    end_to_end.main([*sizes, *runs, "--json", str(out)])
    official, ours, fdbpl = json.loads(out.read_text())["rows"]
    assert official["phases"]["train"] == 2 * (640 * 2.25 + 20 * 2)
    assert ours["phases"]["train"] == 2 * (640 * 2.25 + 20)
    assert fdbpl["phases"]["dump"] == 2 * (64 * 4 + 64 * (1 + 3))
    assert fdbpl["phases"]["train"] == 2 * 20
    assert fdbpl["seconds_without_dump"] == fdbpl["seconds"] - fdbpl["phases"]["dump"]


def test_toy_runs_are_measured_by_phase(world, tmp_path):
    out = tmp_path / "toy.json"
    end_to_end.main([
        *("--worlds", "toy", "--seeds", "1", "2", "--regions", "2", "--json", str(out)),
        *("--toy-options", "OPTIM.MAX_EPOCH", "1", "DATASET.NUM_SHOTS", "4"),
    ])  # fmt: skip
    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    assert list(rows) == ["KDPL here", "FDBPL here, M = 2"]
    for row in rows.values():
        assert ("dump" in row["phases"]) == row["name"].startswith("FDBPL")
        assert min(row["phases"].values()) > 0


def test_dump_tells_regions_per_second_and_shares(tmp_path):
    path = tmp_path / "dump.json"
    sizes = ["--images", "2", "--regions", "3", "--batch-sizes", "2", "4", "--threads", "1"]
    dump.main(["--teacher", TINY, *sizes, "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [row["batch_size"] for row in rows] == [2, 4]
    for row in rows:
        assert row["regions_per_second"] > 0
        assert 0 < row["teacher_share"] < 1 and 0 < row["decode_share"] < 1


def test_a_bf16_teacher_computes_what_the_fp32_one_does():
    images, found = torch.randn(2, 3, 32, 32), []
    for half in (False, True):
        tower = FrozenCLIP(random_teacher(TINY, CPU, half=half))
        found.append(tower.image_features(images).float())
    assert F.cosine_similarity(*found).min() > 0.99


def test_a_result_says_on_which_cpu(steps, monkeypatch, tmp_path):
    """A virtual machine's name hides whether it has bf16 units."""
    assert set(json.loads(steps.read_text())["machine"]["flags"]) <= set(report.CPU_FLAGS)
    text = "processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\nstepping\t: 1\n"
    (tmp_path / "cpuinfo").write_text(f"{text}flags\t\t: fpu avx2 avx512_bf16\n\nprocessor\t: 1\n")
    monkeypatch.setattr(report, "Path", lambda name: tmp_path / "cpuinfo")
    found = {"cpu": "AMD EPYC", "family": "26", "model": "2", "stepping": "1"}
    assert report.cpu() == {**found, "flags": ["avx2", "avx512_bf16"]}
    assert step_time.cpu_has_bf16()


@pytest.mark.parametrize("page", table.PAGES, ids=lambda page: page.parent.name)
def test_the_pages_show_the_kept_results(page):
    """What --write would write is there; with other numbers it would not be."""
    assert table.filled(page, table.PAGES[page]()) == page.read_text(encoding="utf-8")


def kept(folder, benchmark: str, fits, change) -> None:
    """A kept result, changed, as the only one of a folder."""
    record = table._latest(table.RESULTS, benchmark, fits)
    change(record)
    target = folder / "machine" / f"{benchmark}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(record))


def test_the_first_pages_table_is_made_of_the_json(tmp_path):
    def steps(record):
        for row in record["rows"]:
            row["ms"] = 1000.0 if row["name"] == table.OURS else row["ms"] and 7000.0

    def runs(record):
        for row in record["rows"]:
            row["seconds"] = 36_000.0 if row["name"] == "KDPL, official" else 7_200.0

    kept(tmp_path, "step_time", table._has_front_steps, steps)
    kept(tmp_path, "end_to_end", table._has_front_runs, runs)
    made = table.front_table(tmp_path)
    assert "| CoOp, official | 7.00 s\\* (7x) | 7.00 s\\* (7x) |" in made
    assert "| FDBPL here, cached features | 1.00 s (1x) | 1.00 s (1x) |" in made
    assert "| FDBPL here, M = 16 | 2.0 h (5x faster) |" in made
    assert len([line for line in made.splitlines() if line.startswith("| ")]) <= 10 + 2 * 2


def test_results_without_a_row_of_the_first_page_are_told(tmp_path):
    def on_gpu(record):
        record["options"]["device"] = "cuda"

    kept(tmp_path, "step_time", table._has_front_steps, on_gpu)
    with pytest.raises(
        ValueError, match="no step_time.json of a CPU .*python -m benchmarks.step_t"
    ):
        table.front_table(tmp_path)


def test_a_page_that_lost_its_marks_is_told(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="README.md has lost its marks"):
        table.filled(page, "")


def test_unknown_sizes_are_refused_with_the_choices():
    with pytest.raises(ValueError, match="--student 'ViT-X' is unknown; choose one of ViT-B/16"):
        step_time.main(["--student", "ViT-X", "--teacher", TINY, "--classes", "2"])
    with pytest.raises(ValueError, match="text towers differ in size"):
        step_time.main(["--student", TINY, "ViT-B/32", "--teacher", TINY, "--classes", "2"])
