"""The family's summary of logs, and the command line of the comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_runs import fake_result, write_run

import parse_test_res
from reporting.logs import LogError, read_log

RESULT = """=> result
* total: 100
* correct: 92
* accuracy: {accuracy}%
* error: 8.0%
* macro_f1: {f1}%
"""


def log(accuracy: float, f1: float = 50.0, end: str | None = "Finish training") -> str:
    """A log with a result of 1.0 % before the end of training, which must not count."""
    lines = ["epoch [1/2] batch [1/5]", RESULT.format(accuracy=1.0, f1=1.0)]
    if end:
        lines += [end, RESULT.format(accuracy=accuracy, f1=f1), "Elapsed: 0:00:23"]
    return "\n".join(lines)


def write_logs(directory: Path, **logs: str) -> Path:
    for folder, text in logs.items():
        (directory / folder).mkdir(parents=True)
        (directory / folder / "log.txt").write_text(text)
    return directory


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = parse_test_res.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def three_seeds(tmp_path):
    """CoOp, Caltech101, RN50, 16 shots: 92.00 +- 0.15 in CoOp's documentation."""
    return write_logs(tmp_path / "run", seed1=log(91.81), seed2=log(92.01), seed3=log(92.17))


def test_summary_has_the_shape_of_the_family(capsys, three_seeds):
    code, out, _ = run(capsys, three_seeds)
    assert code == 0
    assert out.splitlines() == [
        f"Parsing files in {three_seeds}",
        f"file: {three_seeds}/seed1/log.txt. accuracy: 91.81%.",
        f"file: {three_seeds}/seed2/log.txt. accuracy: 92.01%.",
        f"file: {three_seeds}/seed3/log.txt. accuracy: 92.17%.",
        "===",
        f"Summary of directory: {three_seeds}",
        "* accuracy: 92.00% +- 0.15%",
        "seeds: 3",
        "===",
    ]


def test_confidence_interval(capsys, three_seeds):
    # sigma = 0.14728, 1.96 sigma / sqrt(3) = 0.16666
    assert "* accuracy: 92.00% +- 0.17%" in run(capsys, three_seeds, "--ci95")[1]


@pytest.mark.parametrize("end", ["Finish training", "Finished training", "  Finish training  "])
def test_both_end_signals_count_and_the_result_before_does_not(tmp_path, end):
    write_logs(tmp_path, seed1=log(80.0, end=end))
    assert read_log(tmp_path / "seed1").value == 80.0


def test_the_last_result_wins(tmp_path):
    write_logs(tmp_path, seed1=log(80.0) + "\n" + RESULT.format(accuracy=81.5, f1=0))
    assert read_log(tmp_path / "seed1").value == 81.5


def test_log_of_an_evaluation_needs_test_log_and_says_so(tmp_path):
    write_logs(tmp_path, seed1=RESULT.format(accuracy=70.1, f1=66.6))
    assert read_log(tmp_path / "seed1", test_log=True).value == 70.1
    with pytest.raises(LogError, match="a log of --eval-only needs --test-log"):
        read_log(tmp_path / "seed1")


@pytest.mark.parametrize(("keyword", "value"), [("macro_f1", 55.5), ("error", 8.0)])
def test_keyword(tmp_path, keyword, value):
    write_logs(tmp_path, seed1=log(80.0, f1=55.5))
    assert read_log(tmp_path / "seed1", keyword).value == value
    with pytest.raises(LogError, match="no '\\* recall: ...%' after 'Finish training'"):
        read_log(tmp_path / "seed1", "recall")


def test_number_in_scientific_form(tmp_path):
    write_logs(tmp_path, seed1="Finish training\n* accuracy: 1.5e+01%")
    assert read_log(tmp_path / "seed1").value == 15.0


def test_one_log_that_goes_on_counts_the_last_finished_run(tmp_path):
    """dassl-lite appends: looks at validation images in a later, killed start do not count."""
    again = "\n=== log continued on 2026-11-24 ===\n"
    killed = again + log(70.0, end=None)
    finished = again + log(93.0)
    folder = write_logs(tmp_path, seed1=log(92.0) + killed, seed2=log(92.0) + killed + finished)
    assert read_log(folder / "seed1").value == 92.0
    assert read_log(folder / "seed2").value == 93.0


def test_second_log_of_a_resumed_run_is_read(tmp_path):
    folder = write_logs(tmp_path, seed1=log(0.0, end=None)) / "seed1"
    (folder / "log.txt-2025-01-02-03-04-05").write_text(log(80.0))
    assert read_log(folder).value == 80.0
    # A third start that crashed does not hide the result; one that finished replaces it.
    (folder / "log.txt-2025-01-03-00-00-00").write_text(log(0.0, end=None))
    assert read_log(folder).file.name == "log.txt-2025-01-02-03-04-05"
    (folder / "log.txt-2025-01-04-00-00-00").write_text(log(82.0))
    assert read_log(folder).value == 82.0


def test_missing_seed_is_reported_and_left_out(capsys, three_seeds):
    (three_seeds / "seed2/log.txt").write_text(log(0.0, end=None))
    (three_seeds / "seed10").mkdir()
    code, out, _ = run(capsys, three_seeds)
    lines = out.splitlines()
    assert code == 0
    assert lines[3].startswith("seed2: no result found (no line 'Finish training' in log.txt: cra")
    assert lines[4] == "seed10: no result found (no log.txt); left out"
    assert lines[-3:] == ["* accuracy: 91.99% +- 0.18%", "seeds: 2 of 4", "==="]


def test_nothing_found_says_why(capsys, tmp_path):
    write_logs(tmp_path / "run", seed1=log(0.0, end=None))
    code, _, error = run(capsys, tmp_path / "run")
    assert code == 1 and "Nothing found in" in error and "seed1: no result found" in error
    code, _, error = run(capsys, tmp_path / "run" / "seed1")
    assert code == 1 and "it is itself the folder of a run; give the folder above it" in error
    code, _, error = run(capsys, tmp_path / "absent")
    assert code == 1 and "is not a folder" in error


def test_several_experiments_average_their_means(capsys, tmp_path):
    write_logs(tmp_path / "a", seed1=log(80.0), seed2=log(90.0))
    write_logs(tmp_path / "b", seed1=log(60.0))
    (tmp_path / "c").mkdir()
    code, out, _ = run(capsys, tmp_path, "--multi-exp")
    assert code == 0
    assert out.splitlines()[-3:] == ["Average performance", "* accuracy: 72.50%", "experiments: 2"]
    assert "c: left out of the average" in out


def test_directory_is_required_without_compare(capsys):
    with pytest.raises(SystemExit):
        parse_test_res.main([])
    assert "or --compare" in capsys.readouterr().err


def test_compare_prints_or_writes_the_table(capsys, tmp_path):
    write_run(tmp_path / "out", "base", 60.0, 1)
    write_run(tmp_path / "out", "new", 30.0, 1)
    code, out, _ = run(capsys, tmp_path / "out", "--compare")
    assert code == 0 and "40.00" in out and "Base-to-new" in out
    target = tmp_path / "tables" / "table.json"
    code, out, _ = run(
        capsys, tmp_path / "out", "--compare", "--format", "json", "--out", target,
        "--trainers", "CoOp", "--datasets", "oxford_pets", "--shots", 16,
    )  # fmt: skip
    assert out == f"wrote {target}\n"
    assert json.loads(target.read_text())["rows"][0]["h"]["mean"] == pytest.approx(40.0)
    _, out, error = run(capsys, tmp_path / "out", "--compare", "--format", "csv")
    assert out.startswith("dataset,") and "Base-to-new" in error
    assert run(capsys, tmp_path / "absent", "--compare")[0] == 1


def test_compare_shows_every_protocol_there_is(capsys, tmp_path):
    from reporting.paths import XD_TEST, XD_TRAIN, run_dir

    write_run(tmp_path, "base", 60.0, 1)
    write_run(tmp_path, "new", 30.0, 1)
    for phase, dataset in ((XD_TRAIN, "imagenet"), (XD_TEST, "dtd")):
        folder = run_dir(phase, dataset, 16, "CoOp", "vit_b32_ctxv1", 1, tmp_path)
        fake_result(scope="all", dataset=dataset, accuracy=44.0).write(folder)
    code, out, _ = run(capsys, tmp_path, "--compare")
    assert code == 0 and "Base-to-new: " in out and "Cross-data-set transfer: " in out
    code, out, _ = run(capsys, tmp_path, "--compare", "--protocol", "cross_dataset")
    assert code == 0 and "44.00" in out and "Base-to-new" not in out
    code, _, error = run(capsys, tmp_path, "--compare", "--format", "csv")
    assert code == 1 and "csv takes one table, choose by --protocol" in error
    code, out, _ = run(
        capsys, tmp_path, "--compare", "--protocol", "base2new", "--pictures", tmp_path / "p",
        "--ci95", "--published", "--baseline", "CoOp",
    )  # fmt: skip
    assert code == 0 and "95 % confidence interval" in out
    assert {path.name for path in (tmp_path / "p").glob("*.png")} == {
        "base2new_oxford_pets.png", "base2new_time.png",
    }  # fmt: skip
