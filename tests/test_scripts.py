"""The shell scripts, with a Python that writes down what it was asked instead of training."""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_runs import finish, flag

from protocols.__main__ import main
from protocols.plan import STEPS
from reporting.methods import METHODS
from reporting.paths import TEST_NEW, TRAIN_BASE, XD_TEST, XD_TRAIN, run_dir
from reporting.results import RunResult

REPO = Path(__file__).resolve().parents[1]
SHOWN = {"zsclip": "vit_b16", "coop": "vit_b16_ctxv1", "fdbpl": "vit_b32_ctxv1"}  # and recipes

# Passes -m protocols and the parser on to the real Python; records anything else, one run a line.
STUB = """#!/usr/bin/env bash
case $1 in -m | parse_test_res.py) exec {python} "$@" ;; esac
printf '%q ' "$@" >>{record}
echo >>{record}
"""


class Copy:
    """The scripts in a folder with a space in its name, beside a stub Python."""

    def __init__(self, tmp_path: Path):
        self.root = tmp_path / "the repo"
        self.record = tmp_path / "record"
        for name in ("scripts", "protocols", "reporting"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPO / name, self.root / name, ignore=ignore)
        for name in ("parse_test_res.py", "run_protocol.py", "entry.py", "files.py", "wording.py"):
            shutil.copy(REPO / name, self.root)
        files = ["datasets/oxford_pets", "datasets/toy_shapes", "datasets/imagenet"]
        files += [
            f"trainers/{METHODS[m].trainer}/{stem}"
            for m in SHOWN
            for stem in ("toy", "vit_b16", "vit_b16_ctxv1", "vit_b16_ep50_ctxv1", "vit_b32_ctxv1")
        ]
        for file in files:
            path = self.root / "configs" / f"{file}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        for path in (REPO / "configs").glob("*.py"):
            shutil.copy(path, self.root / "configs")
        self.stub = tmp_path / "python stub"
        paths = dict(python=shlex.quote(sys.executable), record=shlex.quote(str(self.record)))
        self.stub.write_text(STUB.format(**paths))
        self.stub.chmod(0o755)

    def run(self, script: str, *arguments: object, cwd: Path | None = None, **env: str):
        return subprocess.run(
            ["bash", str(self.root / "scripts" / script), *map(str, arguments)],
            cwd=cwd or self.root,
            env={"PATH": os.environ["PATH"], "PYTHON": str(self.stub), **env},
            capture_output=True,
            text=True,
        )

    def calls(self) -> list[list[str]]:
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        return [shlex.split(line) for line in lines]

    def finish(self, call: list[str], accuracy: float = 50.0) -> None:
        finish(self.root, call, accuracy)


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path)


# --- the scripts that are checked in


# The folders of the official repositories; of few-shot, those that have a script for it. And ours.
FAMILY = ("zsclip", "coop", "cocoop", "vpt", "independent-vlp", "language-prompting", "maple",
          "promptsrc", "promptkd", "coop_kdpl", "cocoop_kdpl", "vpt_kdpl", "maple_kdpl",
          "promptsrc_kdpl")  # fmt: skip
FEW_SHOT = ("coop", "promptsrc", "fdbpl")


def wanted_scripts(folder: str) -> dict[str, str]:
    """Script -> step of scripts/run.sh."""
    steps = {f"{step}.sh": step for step in steps_of(folder)}
    if "base2new_dump" in steps_of(folder):
        steps["dump.sh"] = steps.pop("base2new_dump.sh")
    if folder not in FEW_SHOT:
        steps.pop("few_shot.sh", None)
    return steps


def steps_of(folder: str) -> list[str]:
    """Steps that a method has, as the table of methods says."""
    method, steps = METHODS[folder], dict(STEPS)
    if not method.needs_dump:
        del steps["base2new_dump"], steps["xd_dump"]
    if method.transductive:
        del steps["xd_train"]  # it learns from each target
    if method.few_shot.default is None:
        del steps["few_shot"]
    return list(steps)


@pytest.mark.parametrize("folder", [*FAMILY, "fdbpl"])
def test_the_family_and_fdbpl_have_scripts_by_name(folder):
    there = {path.name: path for path in (REPO / "scripts" / folder).iterdir()}
    assert set(there) == set(wanted_scripts(folder))
    for name, step in wanted_scripts(folder).items():
        shebang, about, call = there[name].read_text().splitlines()
        assert shebang == "#!/usr/bin/env bash" and about.endswith("Settings: scripts/run.sh.")
        assert about.startswith(
            "# DATASET SHOTS [SEED ...] [KEY" if step == "few_shot" else "# DATASET SEED [KEY"
        )
        assert call == (
            f'METHOD_SCRIPT={folder}/{name} exec bash "$(dirname "${{BASH_SOURCE[0]}}")/../run.sh" '
            f'{folder} {step} "$@"'
        )


def test_no_script_is_of_a_method_that_is_not_in_the_table():
    folders = {path.name for path in (REPO / "scripts").iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == {*FAMILY, "fdbpl"}


@pytest.mark.parametrize("folder", METHODS)
def test_run_sh_takes_every_step_of_every_method(folder, tmp_path, monkeypatch, capsys):
    """As scripts/run.sh calls it, on the recipes and data sets that are checked in."""
    monkeypatch.setenv("DRY_RUN", "1")
    monkeypatch.setenv("OUT", str(tmp_path))
    method = METHODS[folder]
    for step in steps_of(folder):
        dataset = {"xd_dump": "imagenet", "xd_train": "imagenet"}.get(step, "oxford_pets")
        reads_training = STEPS[step][1] == "test" and method.trained
        if method.transductive and step == "xd_test":
            reads_training = False  # it trains on the target
        code, (out, err) = main(["run", folder, step, dataset, "1"]), capsys.readouterr()
        if reads_training:
            train = f"bash scripts/run.sh {folder} {step.replace('test', 'train')} "
            assert code == 2 and f"nothing to test yet: {train}" in err
        else:
            script = "dump_teacher_logits.py" if step.endswith("dump") else "train.py"
            last = shlex.split(out.splitlines()[-1])
            assert (code, err, last[2], last[4]) == (0, "", "&&", script)
            assert flag(last, "--trainer") == method.trainer


# --- what they run


@pytest.mark.parametrize("method", SHOWN)
def test_train_and_test_agree_on_every_folder(copy, method):
    trainer, config = METHODS[method].trainer, SHOWN[method]
    where = ["oxford_pets", 16, trainer, config, 2]
    result = copy.run(f"{method}/base2new_train.sh", "oxford_pets", 2)
    assert result.returncode == 0, result.stderr
    (train,) = copy.calls()
    base_dir = run_dir(TRAIN_BASE, *where)
    assert flag(train, "--output-dir") == str(base_dir)
    assert flag(train, "--trainer") == trainer
    assert flag(train, "--root") == "data" and flag(train, "--seed") == "2"
    assert flag(train, "--config-file") == f"configs/trainers/{trainer}/{config}.yaml"
    assert flag(train, "--dataset-config-file") == "configs/datasets/oxford_pets.yaml"
    assert flag(train, "DATASET.SUBSAMPLE_CLASSES") == "base"
    assert flag(train, "DATASET.NUM_SHOTS") == "16"
    assert ("--eval-only" in train) == (method == "zsclip")

    copy.finish(train)
    result = copy.run(f"{method}/base2new_test.sh", "oxford_pets", 2)
    assert result.returncode == 0, result.stderr
    test = copy.calls()[1]
    assert flag(test, "--output-dir") == str(run_dir(TEST_NEW, *where))
    assert flag(test, "DATASET.SUBSAMPLE_CLASSES") == "new" and "--eval-only" in test
    if method == "zsclip":
        assert "--model-dir" not in test
    else:
        assert flag(test, "--model-dir") == str(base_dir)
        assert flag(test, "--load-epoch") == "10"  # what the training run says it reached


def test_transfer_reads_the_prompts_of_the_source(copy):
    assert copy.run("coop/xd_train.sh", "imagenet", 1).returncode == 0
    (train,) = copy.calls()
    where = [16, "CoOp", "vit_b16_ep50_ctxv1", 1]
    assert flag(train, "--output-dir") == str(run_dir(XD_TRAIN, "imagenet", *where))
    assert flag(train, "DATASET.SUBSAMPLE_CLASSES") == "all"
    copy.finish(train)
    assert copy.run("coop/xd_test.sh", "oxford_pets", 1).returncode == 0
    test = copy.calls()[1]
    assert flag(test, "--output-dir") == str(run_dir(XD_TEST, "oxford_pets", *where))
    assert flag(test, "--model-dir") == flag(train, "--output-dir")
    assert flag(test, "--dataset-config-file") == "configs/datasets/oxford_pets.yaml"


def test_few_shot_dumps_and_trains_for_every_seed(copy):
    assert copy.run("fdbpl/few_shot.sh", "toy_shapes", 4, "OPTIM.LR", 1).returncode == 0
    calls = copy.calls()
    assert [call[0] for call in calls] == ["dump_teacher_logits.py", "train.py"] * 3
    assert [flag(call, "--seed") for call in calls[::2]] == ["1", "2", "3"]
    assert all(flag(call, "DATASET.NUM_SHOTS") == "4" for call in calls)
    assert flag(calls[0], "--store") == flag(calls[1], "TRAINER.FDBPL.STORE")
    assert calls[1][-2:] == ["OPTIM.LR", "1"]
    assert copy.run("fdbpl/few_shot.sh", "toy_shapes", 2, 5, 6).returncode == 0
    assert [flag(call, "--seed") for call in copy.calls()[6::2]] == ["5", "6"]


def test_dump_and_training_agree_on_the_store(copy):
    assert copy.run("fdbpl/dump.sh", "oxford_pets", 1, "TRAINER.FDBPL.NUM_REGIONS", 4).stderr == ""
    assert copy.run("fdbpl/base2new_train.sh", "oxford_pets", 1).returncode == 0
    dump, train = copy.calls()
    assert dump[0] == "dump_teacher_logits.py" and train[0] == "train.py"
    store = "stores/oxford_pets/shots_16/base/seed1"
    assert flag(dump, "--store") == flag(train, "TRAINER.FDBPL.STORE") == store
    assert flag(dump, "DATASET.SUBSAMPLE_CLASSES") == "base" and flag(dump, "--seed") == "1"
    assert flag(dump, "TRAINER.FDBPL.NUM_REGIONS") == "4"


def test_whole_method_ends_in_a_table(copy):
    """Stand in for the trainer by finishing each recorded call before asking again."""
    for _ in range(4):  # stops at the dump; the training; the test; finds nothing to do
        before = len(copy.calls())
        result = copy.run("base2new.sh", "fdbpl", "oxford_pets", 4, "OPTIM.LR", "1", SHOTS="8")
        new = copy.calls()[before:]
        for call in new:
            copy.finish(call, accuracy=60.0 if "base" in call else 30.0)
    assert result.returncode == 0, result.stderr
    assert new == [] and "0 jobs done, 3 finished before, 0 failed" in result.stdout
    assert "60.00" in result.stdout and "40.00" in result.stdout
    for call in copy.calls():
        assert flag(call, "--seed") == "4" and call[-2:] == ["OPTIM.LR", "1"]
        assert flag(call, "DATASET.NUM_SHOTS") == "8"


def test_toy_data_takes_the_toy_recipe_and_cfg_and_backbone_override(copy):
    copy.run("coop/base2new_train.sh", "toy_shapes", 1)
    copy.run("coop/base2new_train.sh", "toy_shapes", 1, CFG="vit_b32_ctxv1", SHOTS="4")
    copy.run("fdbpl/base2new_train.sh", "oxford_pets", 1, BACKBONE="vit_b16")
    toy, other, backbone = copy.calls()
    assert flag(toy, "--config-file") == "configs/trainers/CoOp/toy.yaml"
    assert flag(other, "--config-file") == "configs/trainers/CoOp/vit_b32_ctxv1.yaml"
    assert "/toy_shapes/shots_4/CoOp/vit_b32_ctxv1/seed1" in flag(other, "--output-dir")
    assert flag(backbone, "--config-file") == "configs/trainers/FDBPL/vit_b16_ctxv1.yaml"


def test_finished_run_is_skipped_and_a_crashed_or_damaged_one_is_not(copy):
    def train(*extra: str):
        before = len(copy.calls())
        result = copy.run("coop/base2new_train.sh", "oxford_pets", 1, *extra)
        return result, copy.calls()[before:]

    _, (call,) = train()
    folder = copy.root / flag(call, "--output-dir")
    (folder / "prompt_learner").mkdir(parents=True)
    (folder / "log.txt").write_text("half")
    assert len(train()[1]) == 1  # crashed: again
    copy.finish(call)
    result, calls = train()
    assert calls == [] and result.returncode == 0
    assert "is finished (50.00 %" in result.stderr and "skipped" in result.stderr
    result, calls = train("OPTIM.LR", "0.1")
    assert calls == [] and result.returncode == 2
    assert "OPTIM.LR is 0.0003 there and 0.1 now. Set another OUT, or delete" in result.stderr
    (folder / "results.json").write_text('{"format": 1')
    result, calls = train()
    assert len(calls) == 1 and "repeated now" in result.stderr


def test_evaluation_older_than_its_training_is_repeated(copy):
    copy.run("coop/base2new_train.sh", "oxford_pets", 1)
    copy.finish(copy.calls()[0])
    copy.run("coop/base2new_test.sh", "oxford_pets", 1)
    copy.finish(copy.calls()[1])
    copy.run("coop/base2new_test.sh", "oxford_pets", 1)
    assert len(copy.calls()) == 2
    folder = copy.root / flag(copy.calls()[0], "--output-dir")
    result = RunResult.read(folder)
    result.finished = "2999-01-01T00:00:00.000+00:00"
    result.write(folder)
    copy.run("coop/base2new_test.sh", "oxford_pets", 1)
    assert len(copy.calls()) == 3


def test_test_without_training_names_the_command(copy):
    result = copy.run("coop/base2new_test.sh", "oxford_pets", 1)
    assert result.returncode == 2 and copy.calls() == []
    assert "bash scripts/run.sh coop base2new_train oxford_pets 1" in result.stderr
    result = copy.run("coop/xd_test.sh", "oxford_pets", 1)
    assert "bash scripts/run.sh coop xd_train imagenet 1" in result.stderr


def test_other_working_directory_and_paths_with_spaces(copy, tmp_path):
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    env = {"DATA": "my data", "OUT": str(tmp_path / "my out")}
    result = copy.run("coop/base2new_train.sh", "oxford_pets", 1, cwd=elsewhere, **env)
    assert result.returncode == 0, result.stderr
    (call,) = copy.calls()
    assert flag(call, "--root") == str(elsewhere / "my data")
    assert flag(call, "--output-dir").startswith(str(tmp_path / "my out/base2new/train_base"))
    copy.run("coop/base2new_train.sh", "oxford_pets", 1, cwd=elsewhere)
    assert flag(copy.calls()[1], "--root") == "data"  # in the repository, not in `elsewhere`


def test_dry_run_prints_a_command_that_can_be_pasted(copy):
    result = copy.run("coop/base2new_train.sh", "oxford_pets", 1, DRY_RUN="1", DATA="my data")
    assert copy.calls() == []
    command = shlex.split(result.stdout)
    assert command[3] == str(copy.stub) and flag(command, "--root").endswith("my data")
    done = subprocess.run(["bash", "-c", result.stdout], cwd="/", capture_output=True)
    assert done.returncode == 0 and copy.calls() == [command[4:]]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("coop/base2new_train.sh", [], "usage: bash scripts/coop/base2new_train.sh DATASET SEED"),
        ("coop/few_shot.sh", [], "usage: bash scripts/coop/few_shot.sh DATASET SHOTS [SEED ...]"),
        ("coop/base2new_train.sh", ["oxford_pets", "one"], "SEED is 'one', not a whole number"),
        ("coop/base2new_train.sh", ["oxford_pets", 1, 2], "one SEED at a time"),
        ("coop/base2new_train.sh", ["oxford_pets", 1, "A"], "a KEY without a VALUE among: A"),
        ("coop/base2new_train.sh", ["pets", 1], "holds: imagenet oxford_pets toy_shapes"),
        ("coop/base2new_train.sh", ["oxford_pets", 1, "DATASET.NUM_SHOTS", 4], "and the shots"),
        ("coop/xd_train.sh", ["oxford_pets", 1], "oxford_pets is a target"),
        ("run.sh", ["kdpl", "xd_train", "imagenet", 1], "METHOD is 'kdpl', not one of zsclip, "),
        ("run.sh", ["coop", "xd_dump", "imagenet", 1], "coop reads no region store"),
        ("run.sh", ["coop", "play", "oxford_pets", 1], "STEP is 'play'"),
        ("base2new.sh", ["coop"], "usage: bash scripts/base2new.sh METHOD DATASET [SEED ...]"),
    ],
)
def test_usage_errors_are_one_line(copy, script, arguments, message):
    result = copy.run(script, *arguments)
    assert result.returncode == 2 and copy.calls() == []
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_scripts_are_clean_shell():
    scripts = [str(path) for path in (REPO / "scripts").rglob("*.sh")]
    assert len(scripts) >= 11
    # They have one form (see above), so a few stand for all.
    some = [path for path in scripts if Path(path).parent.name in ("scripts", "coop", "fdbpl")]
    for script in some:
        subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", *scripts], check=True)


# --- the demo


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "scripts"))
    monkeypatch.delenv("DATA", raising=False)
    return importlib.import_module("demo")


def test_demo_runs_every_phase_of_its_methods(demo, tmp_path):
    args = demo.parse_args(["--out", str(tmp_path), "--seeds", "3", "--", "OPTIM.LR", "1"])
    jobs = demo.jobs_of(args)
    kinds = [(job.method.folder, job.kind) for job in jobs]
    assert kinds == [
        ("fdbpl", "dump"), ("fdbpl", "train"), ("fdbpl", "test"),
        ("coop_kdpl", "train"), ("coop_kdpl", "test"), ("coop", "train"), ("coop", "test"),
        ("zsclip", "train"), ("zsclip", "test"),
    ]  # fmt: skip
    for job in jobs:
        command = job.command(epochs="1")
        recipe = f"configs/trainers/{job.method.trainer}/toy.yaml"
        assert flag(command, "--config-file") == recipe and (REPO / recipe).exists()
        assert flag(command, "--root") == str(REPO / "data") and flag(command, "--seed") == "3"
        assert flag(command, "OPTIM.LR") == "1"
        assert str(tmp_path) in flag(command, "--store" if job.kind == "dump" else "--output-dir")


def test_demo_all_has_every_trainer_once(demo, tmp_path):
    from trainers.registry import OBJECTIVES, PROMPT_MODELS

    hosts = [cls.__name__ for cls in PROMPT_MODELS]
    wanted = {*hosts, *(f"{host}_{suffix}" for host in hosts for suffix in OBJECTIVES)}
    wanted |= {"FDBPL", "PromptKD", "ZeroshotCLIP", "ZeroshotCLIP2"}
    jobs = demo.jobs_of(demo.parse_args(["--all", "--out", str(tmp_path), "--seeds", "1"]))
    trained = [job.method.trainer for job in jobs if job.kind == "test"]
    assert sorted(trained) == sorted(wanted - {"CoOp_FDBPL"})


def test_a_failed_run_of_the_demo_leaves_its_log(demo, tmp_path):
    log = tmp_path / "logs" / "a.txt"
    assert demo.work(["train.py", "--no-such-flag"], log) == 2
    assert "unrecognized arguments: --no-such-flag" in log.read_text()
    assert log.read_text().startswith("$ python train.py --no-such-flag\n")


def test_jobs_of_the_demo_run_in_its_workers(demo, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        workers = demo.Workers(pool, 1)
        call = workers.start(["python", "train.py", "--no-such-flag"], tmp_path / "a", REPO, "a")
        assert not workers.free()
        while (code := call.poll()) is None:
            pass
    assert code == 2 and workers.free()
