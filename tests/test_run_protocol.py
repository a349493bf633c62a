"""run_protocol.py: side by side, after failures, on a queue; every protocol on the toy world."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import run_protocol
from protocols.plan import Settings, plan
from protocols.schedule import Cluster, Local, Outcome, _why, execute
from protocols.seeds import join_seeds
from reporting.methods import BASE2NEW, METHODS
from reporting.results import RunResult

REPO = Path(__file__).resolve().parents[1]

# In the place of train.py and of the dump: writes what they would have, or dies as it is told.
WORKER = f"""
import os, sys, time
sys.path[:0] = [{str(REPO)!r}, {str(REPO / "tests")!r}]
from pathlib import Path
from fake_runs import finish
with open("record", "a") as record:
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
    print(sys.argv[0], gpu, time.time(), " ".join(sys.argv[1:]), file=record)
orders = Path("orders").read_text().split() if Path("orders").exists() else []
if any(all(word in sys.argv for word in order.split("+")) for order in orders):
    print("the GPU is on fire")
    sys.exit(3)
time.sleep(float(os.environ.get("NAP", 0)))
finish(Path("."), sys.argv)
"""


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """A repository whose scripts are fakes."""
    for name in ("train.py", "dump_teacher_logits.py"):
        (tmp_path / name).write_text(WORKER)
    (tmp_path / "configs/datasets").mkdir(parents=True)
    (tmp_path / "configs/datasets/toy_shapes.yaml").write_text("{}")
    for trainer in ("CoOp", "FDBPL", "MaPLe_FDBPL", "ZeroshotCLIP"):
        (tmp_path / f"configs/trainers/{trainer}").mkdir(parents=True)
        (tmp_path / f"configs/trainers/{trainer}/toy.yaml").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jobs_of(repo: Path, *folders: str, seeds=(1,), **settings):
    methods = [METHODS[folder] for folder in folders]
    return plan(BASE2NEW, methods, ["toy_shapes"], seeds, [16], Settings(root=repo, **settings))


def run(repo: Path, jobs, backend=None):
    return execute(jobs, backend or Local(), sys.executable, repo / "logs")


def record(repo: Path) -> list[list[str]]:
    path = repo / "record"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


# --- running a plan


def test_everything_runs_in_order_once_and_is_skipped_next_time(repo, capsys):
    jobs = jobs_of(repo, "coop", "fdbpl", "maple_fdbpl")
    outcome = run(repo, jobs)
    assert len(outcome.done) == 7 and not outcome.failed
    kinds = [line[0] for line in record(repo)]
    assert kinds.count("dump_teacher_logits.py") == 1  # one store for both methods
    assert "CoOp train toy_shapes seed 1: " in capsys.readouterr().out
    log = (repo / "logs" / f"{jobs[0].name}.txt").read_text()
    assert log.startswith("$ ") and "train.py --root data --seed 1" in log
    again = run(repo, jobs)
    assert len(again.skipped) == 7 and len(record(repo)) == 7


def test_a_failure_takes_its_followers_with_it_and_nothing_else(repo, capsys):
    (repo / "orders").write_text("FDBPL+base")
    jobs = jobs_of(repo, "fdbpl", "coop", "zsclip")
    outcome = run(repo, jobs)
    assert [str(job) for job, _ in outcome.failed] == [
        "FDBPL dump toy_shapes seed 1", "FDBPL train toy_shapes seed 1",
        "FDBPL test toy_shapes seed 1",
    ]  # fmt: skip
    assert len(outcome.done) == 4
    said = capsys.readouterr().out
    assert "the GPU is on fire" in said and "exit code 3" in said
    assert "not run: it needs FDBPL train toy_shapes seed 1" in said
    (repo / "orders").unlink()
    again = run(repo, jobs)
    assert len(again.done) == 3 and len(again.skipped) == 4 and not again.failed


@pytest.mark.parametrize(
    ("log", "code", "wanted"),
    [
        (["a", "error: no such folder. Make one.", "", "Exception ignored in: x"], 1,
         "error: no such folder. Make one. (exit code 1)"),
        (["Traceback (most recent call last):", '  File "x", line 1', "torch.cuda.SomeError: bad",
          "[rank0]: bye"], 1, "torch.cuda.SomeError: bad (exit code 1)"),
        (["the GPU is on fire", " "], 3, "the GPU is on fire (exit code 3)"),
        ([], 4, "exit code 4"),
        (["epoch [1/2]"], -9, "ended by SIGKILL, perhaps as the memory is full"),
        (["error: \x1b[2Jgone"], 1, "error: \\u001b[2Jgone (exit code 1)"),
    ],
)  # fmt: skip
def test_the_report_of_a_failure_starts_with_its_cause(repo, capsys, log, code, wanted):
    (job, *_), path = jobs_of(repo, "coop"), repo / "the log.txt"
    path.write_text("\n".join(["$ python train.py", *log]))
    why = _why(job, code, path)
    cause, whole, *end = why.splitlines()
    assert (cause, whole) == (f"    {wanted}", f"    the whole log: {path}")
    assert [line[4:] for line in end] == [line.replace("\x1b", "\\u001b") for line in log]
    run_protocol.report(Outcome(failed=[(job, why)]))
    said = capsys.readouterr()
    assert said.out == "0 jobs done, 0 finished before, 1 failed.\n"
    assert said.err == f"FAILED {job}: {wanted}\n    the whole log: {path}\n"


def test_a_full_disk_leaves_no_run_behind(repo, monkeypatch):
    """The second log cannot be written while the first job runs."""
    monkeypatch.setenv("NAP", "60")
    start, started = Local.start, []

    def on_a_full_disk(self, *arguments):
        if started:
            raise OSError(28, "No space left on device", str(arguments[1]))
        started.append(start(self, *arguments))
        return started[0]

    monkeypatch.setattr(Local, "start", on_a_full_disk)
    jobs = [job for job in jobs_of(repo, "coop", seeds=(1, 2)) if job.kind == "train"]
    with pytest.raises(OSError, match=r"No space left on device.*seed2.txt"):
        run(repo, jobs, Local(jobs=2))
    assert started[0].process.poll() == -signal.SIGTERM


def test_a_run_that_ends_without_results_has_failed(repo):
    (repo / "train.py").write_text("print('hm')")
    outcome = run(repo, jobs_of(repo, "zsclip"))
    assert len(outcome.failed) == 2 and "it ended without" in outcome.failed[0][1]


def test_jobs_go_side_by_side_and_each_sees_one_gpu(repo, monkeypatch):
    monkeypatch.setenv("NAP", "0.6")
    jobs = [job for job in jobs_of(repo, "coop", seeds=(1, 2, 3, 4)) if job.kind == "train"]
    run(repo, jobs, Local(gpus=("0", "1")))
    gpus = [line[1] for line in record(repo)]
    assert sorted(gpus) == ["0", "0", "1", "1"]
    starts = sorted(float(line[2]) for line in record(repo))
    assert starts[1] - starts[0] < 0.6 <= starts[2] - starts[0]  # two at a time, not four


def test_without_gpus_the_cores_are_shared_out(repo, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    seen = {}
    monkeypatch.setattr(
        subprocess, "Popen", lambda *a, **keys: seen.update(keys) or subprocess_stub()
    )
    Local(jobs=4).start(["true"], repo / "log", repo, "a")
    assert seen["env"]["OMP_NUM_THREADS"] == "2"


def subprocess_stub():
    return type("Process", (), {"pid": 0, "poll": lambda self: 0})()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_and_kill_stop_the_runs_and_the_same_command_goes_on(repo, stop):
    """In a process of its own, with the signals that a terminal and kill send."""
    code = f"""
import sys; sys.path[:0] = [{str(REPO)!r}, {str(REPO / "tests")!r}]
from pathlib import Path
from entry import run_script
import test_run_protocol as here
sys.exit(run_script(lambda: here.run(Path("."), here.jobs_of(Path("."), "coop"))))
"""
    env = {**os.environ, "NAP": "60"}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=repo, env=env,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    deadline = time.monotonic() + 60
    while not record(repo) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(stop)
    said = process.communicate(timeout=30)[1]
    assert said.endswith("stopped: run the same line again, it continues.\n"), said
    assert "Traceback" not in said and process.returncode == 128 + stop
    time.sleep(0.2)
    with contextlib.suppress(FileNotFoundError):  # the worker napped on: it would have written this
        assert not list((repo / "output").rglob("results.json"))
    assert len(run(repo, jobs_of(repo, "coop")).done) == 2


def test_time_left_follows_the_jobs_that_are_done(repo):
    from protocols.schedule import _Clock

    (train, test, *_), clock = jobs_of(repo, "coop", seeds=(1, 2)), _Clock()
    assert clock.left([train], []) == ""
    clock.note(train, 100.0)
    clock.note(test, 10.0)
    others = jobs_of(repo, "coop", seeds=(2,))
    assert clock.left(others, []) == "about 01:50 left"
    running = [(train, None, time.perf_counter() - 49.9)] * 2
    assert clock.left(others, running) == "about 01:45 left"  # (110 + 2 x 50) / 2


# --- a queue


def test_submitit_runs_the_jobs_on_its_local_queue(repo):
    pytest.importorskip("submitit")
    (repo / "orders").write_text("CoOp+new")
    cluster = Cluster(repo / "slurm", {"cluster": "local", "timeout_min": "5"}, jobs=2)
    outcome = run(repo, jobs_of(repo, "coop", "zsclip"), cluster)
    assert {str(job) for job in outcome.done} == {
        "CoOp train toy_shapes seed 1", "ZeroshotCLIP train toy_shapes seed 1",
        "ZeroshotCLIP test toy_shapes seed 1",
    }  # fmt: skip
    ((job, why),) = outcome.failed
    assert job.kind == "test" and "the GPU is on fire" in why


def test_what_a_queue_does_not_know_is_told(repo):
    pytest.importorskip("submitit")
    with pytest.raises(ValueError, match="--slurm"):
        Cluster(repo / "slurm", {"cluster": "abacus"}, jobs=1)


def test_sbatch_script_holds_what_was_asked_for(repo, monkeypatch):
    """Without a Slurm here: the file that submitit would hand to sbatch."""
    submitit = pytest.importorskip("submitit")
    from submitit.slurm import slurm

    monkeypatch.setattr(slurm.SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    options = {"partition": "gpu", "time": "240", "gres": "gpu:1", "cpus_per_task": "8"}
    cluster = Cluster(repo / "slurm", options, jobs=4)
    inner = cluster.executor._executor
    assert isinstance(inner, submitit.SlurmExecutor)
    text = inner._make_submission_file_text("the command", "uid")
    for line in ("--partition=gpu", "--time=240", "--gres=gpu:1", "--cpus-per-task=8"):
        assert f"#SBATCH {line}" in text


# --- the command line


def test_dry_run_shows_the_plan_and_runs_nothing(capsys, tmp_path):
    code = run_protocol.main(
        ["base2new", "--trainers", "CoOp", "FDBPL", "--datasets", "toy_shapes", "--seeds", "1",
         "--out", str(tmp_path), "--dry-run", "--", "OPTIM.MAX_EPOCH", "2"]
    )  # fmt: skip
    said = capsys.readouterr().out
    assert code == 0 and not list(tmp_path.iterdir())
    assert re.findall(r"to run +(.+)", said) == [
        "CoOp train toy_shapes seed 1", "CoOp test toy_shapes seed 1",
        "FDBPL dump toy_shapes seed 1", "FDBPL train toy_shapes seed 1",
        "FDBPL test toy_shapes seed 1",
    ]  # fmt: skip
    assert said.count("OPTIM.MAX_EPOCH 2") == 5 and '--load-epoch "$(' in said
    commands = [line for line in said.splitlines() if not line.startswith("#")]
    assert commands[0] == f"cd {shlex.quote(str(REPO))}" and len(commands) == 6
    assert all(shlex.split(line)[0] == run_protocol.python() for line in commands[1:])
    assert "5 to run" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["base2new", "--trainers", "CoOpp"], "METHOD is 'CoOpp'"),
        (["base2new", "--trainers", "Coop_FDBPL"], "Do you mean 'CoOp_FDBPL'?"),
        (["base2new", "--trainers", "CoOp", "--datasets", "toyshapes"], "do you mean toy_shapes?"),
        (["few_shot", "--trainers", "PromptKD", "--datasets", "toy_shapes"], "not defined under"),
        (["cross_dataset", "--trainers", "CoOp", "--datasets", "toy_shapes_blur"], "it is of dom"),
        (["base2new", "--trainers", "CoOp", "--datasets", "toy_shapes", "--", "A"], "KEY without"),
        (
            ["base2new", "--trainers", "CoOp", "--datasets", "toy_shapes", "--gpus", "0",
             "--slurm", "partition=gpu"], "--gpus are this machine's",
        ),
        (
            ["base2new", "--trainers", "CoOp", "--datasets", "toy_shapes", "--slurm", "gpu"],
            "--slurm takes NAME=VALUE, not 'gpu'",
        ),
    ],
)  # fmt: skip
def test_usage_errors_are_one_line(capsys, words, message):
    assert run_protocol.main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_protocol_that_is_not_known(capsys):
    with pytest.raises(SystemExit, match="2"):
        run_protocol.main(["base2nwe", "--trainers", "CoOp"])
    assert "'base2nwe', which is not known. Do you mean 'base2new'?" in capsys.readouterr().err


@pytest.mark.parametrize("together", [False, True])
def test_a_dry_run_is_a_script_for_bash(repo, capsys, together):
    """Pasted as it is from anywhere: also the tests, whose trainings end in between."""
    jobs = jobs_of(repo, "coop", "fdbpl", seeds=(1, 2), opts=("TRAINER.COOP.CTX_INIT", "a $x 'y'"))
    jobs = join_seeds(jobs) if together else jobs
    run_protocol.print_plan(jobs, Settings(root=repo))
    said = capsys.readouterr().out
    assert said.count("--load-epoch") == (2 if together else 4) and not record(repo)
    done = subprocess.run(["bash", "-ec", said], cwd="/", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert all(job.decide()[0] == "skip" for job in jobs)
    epochs = {
        line[line.index("--load-epoch") + 1] for line in record(repo) if "--load-epoch" in line
    }
    assert epochs == {str(RunResult.read(repo / jobs[0].folder / ("seed1" * together)).epochs)}
    assert all(" ".join(line).endswith("a $x 'y'") for line in record(repo))


# --- several seeds in one process


def test_seeds_join_where_commands_differ_in_the_seed_alone(repo):
    jobs = jobs_of(repo, "zsclip", "fdbpl", "maple_fdbpl", seeds=(1, 2))
    joined = join_seeds(jobs)
    assert [str(job) for job in joined] == [
        "ZeroshotCLIP train toy_shapes seeds 1 2", "ZeroshotCLIP test toy_shapes seeds 1 2",
        "FDBPL dump toy_shapes seed 1", "FDBPL dump toy_shapes seed 2",
        "FDBPL train toy_shapes seeds 1 2", "FDBPL test toy_shapes seeds 1 2",
        "MaPLe_FDBPL train toy_shapes seeds 1 2", "MaPLe_FDBPL test toy_shapes seeds 1 2",
    ]  # fmt: skip
    outcome = run(repo, joined)
    assert len(outcome.done) == 8 and not outcome.failed
    trained = next(line for line in record(repo) if "--seeds" in line and "FDBPL" in line)
    words = " ".join(trained)
    assert "--seeds 1 2 --dataset-config-file" in words and "FDBPL/toy/seed{seed}" in words
    assert "TRAINER.FDBPL.STORE stores/toy_shapes/shots_16/base/seed{seed}" in words
    again = run(repo, jobs)  # one by one: each is finished
    assert len(again.skipped) == len(jobs) and not again.done


def test_only_the_seeds_that_are_missing_run_again(repo):
    joined = join_seeds(jobs_of(repo, "coop", seeds=(1, 2, 3)))
    run(repo, joined)
    for seed in (1, 3):
        (joined[0].folder / f"seed{seed}" / "results.json").unlink()
    assert joined[0].decide()[0] == "run" and not joined[0].is_finished()
    words = joined[0].command()
    assert words[words.index("--seeds") : words.index("--seeds") + 4] == [
        "--seeds", "1", "3", "--dataset-config-file",
    ]  # fmt: skip
    outcome = run(repo, joined)
    assert joined[0].is_finished() and not outcome.failed


def test_a_seed_that_must_not_be_overwritten_refuses_all(repo):
    run(repo, join_seeds(jobs_of(repo, "coop", seeds=(1,))))
    joined = join_seeds(jobs_of(repo, "coop", seeds=(1, 2), opts=("OPTIM.LR", "1.0")))
    verdict, why = joined[0].decide()
    assert verdict == "refuse" and "seed1 holds another run: OPTIM.LR is 0.0003 there" in why


# --- every protocol on the toy world


class InProcess:
    """A backend that calls the entry scripts here: no process has to load torch."""

    seconds_between_looks = 0.0

    def free(self) -> bool:
        return True

    def start(self, command, log, cwd, name):
        import dump_teacher_logits
        import train

        log.parent.mkdir(parents=True, exist_ok=True)
        script, *flags = command[1:]
        with log.open("w") as file, contextlib.redirect_stdout(file):
            if script == "train.py":
                train.main(flags)
                code = 0
            else:
                code = dump_teacher_logits.run(flags)
        return type("Done", (), {"poll": lambda self: code})()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Toy data sets with few images, drawn on first use, and one output folder for all."""
    from datasets import toy

    patch = pytest.MonkeyPatch()
    for name in ("ToyShapes", "ToyDrawings", "ToyShapesBlur", "ToyShapesDark"):
        counts = {split: 4 for split in toy.TOY_SETS[name].counts}
        patch.setitem(toy.TOY_SETS, name, replace(toy.TOY_SETS[name], counts=counts))
    patch.setattr(run_protocol, "backend_of", lambda *_: InProcess())
    patch.chdir(REPO)
    root = tmp_path_factory.mktemp("world")
    (root / "data").mkdir()
    yield root
    patch.undo()


TRANSFER = ["CoOp", "CoOp_FDBPL", "ZeroshotCLIP"]
TOY_RUNS = {
    "base2new": (["CoOp", "MaPLe_FDBPL", "ZeroshotCLIP"], ["toy_shapes"], ["base", "new", "h"]),
    "cross_dataset": (TRANSFER, ["toy_drawings"], ["toy_shapes", "toy_drawings", "average"]),
    "domain_generalization": (
        TRANSFER, ["toy_shapes_blur", "toy_shapes_dark"],
        ["toy_shapes", "toy_shapes_blur", "toy_shapes_dark", "average"],
    ),
    "few_shot": (["CoOp", "ZeroshotCLIP"], ["toy_shapes"], ["1", "2"]),
}  # fmt: skip


def toy_command(world: Path, protocol: str) -> list[str]:
    trainers, datasets, _ = TOY_RUNS[protocol]
    shots = ["1", "2"] if protocol == "few_shot" else ["2"]
    places = [f"--{name}={world / folder}" for name, folder in
              (("root", "data"), ("out", "output"), ("stores", "stores"))]  # fmt: skip
    return [
        *(protocol, "--trainers", *trainers, "--datasets", *datasets, "--shots", *shots),
        *("--seeds", "1", *places, "--", "OPTIM.MAX_EPOCH", "1", "TRAINER.FDBPL.NUM_REGIONS", "2"),
    ]


@pytest.mark.parametrize("protocol", TOY_RUNS)
def test_protocol_runs_on_the_toy_data_by_its_command(world, protocol, capsys):
    import parse_test_res

    trainers, datasets, columns = TOY_RUNS[protocol]
    assert run_protocol.main(toy_command(world, protocol)) == 0
    said = capsys.readouterr().out
    assert " 0 failed." in said and all(name in said for name in trainers)
    assert run_protocol.main(toy_command(world, protocol)) == 0
    assert " 0 failed." in (again := capsys.readouterr().out) and "0 jobs done" in again

    words = [str(world / "output"), "--compare", "--protocol", protocol, "--baseline", "CoOp"]
    assert parse_test_res.main([*words, "--format", "json"]) == 0
    table = json.loads(capsys.readouterr().out)
    rows = {row["trainer"]: row for row in table["rows"]}
    assert set(rows) == set(trainers) and table["notes"] == []
    for trainer, row in rows.items():
        untrained = trainer == "ZeroshotCLIP" and protocol == "few_shot"
        wanted = ["0"] if untrained else columns
        assert all(2 < row[name]["mean"] < 100 for name in wanted), row  # chance is 2 to 4
        if trainer != "CoOp" and not untrained:
            assert sorted(map(str.lower, row["differences"])) == sorted(wanted)
            assert all(found["error"] is not None for found in row["differences"].values())


@pytest.mark.parametrize("extra", [[], ["--together"]])
def test_an_interrupted_run_is_not_continued_as_another(world, capsys, extra):
    """The checkpoint of epoch 1 is there, results.json is not."""
    from toy_runs import stopped_in

    out = world / f"cut{len(extra)}"
    command = toy_command(world, "base2new")
    command[2 : command.index("--datasets")] = ["CoOp"]
    command = [word.replace(str(world / "output"), str(out)) for word in command]
    command[1:1] = extra
    command += [
        "TRAIN.CHECKPOINT_FREQ",
        "1",
        "OPTIM.MAX_EPOCH",
        "3",
        "DATALOADER.TRAIN_X.BATCH_SIZE",
        "8",
    ]
    with stopped_in("CoOp", epoch=1):
        run_protocol.run(run_protocol.parse_args(command))
    folder = out / "base2new/train_base/toy_shapes/shots_2/CoOp/toy/seed1"
    assert (folder / "identity.json").exists() and not (folder / "results.json").exists()
    assert run_protocol.main([*command, "OPTIM.LR", "0.5"]) == 1
    assert "OPTIM.LR is 0.01 there and 0.5 now. Set another OUT" in capsys.readouterr().err
    assert not (folder / "results.json").exists()
    assert run_protocol.main(command) == 0
    assert RunResult.read(folder).seconds["train"] is None  # it went on
    assert run_protocol.main([*command, "OPTIM.LR", "0.5"]) == 1
    assert "OPTIM.LR is 0.01 there and 0.5 now" in capsys.readouterr().err


def test_seeds_together_reach_what_they_reach_alone(world, capsys):
    command = toy_command(world, "base2new")
    command[2 : command.index("--datasets")] = ["CoOp", "FDBPL"]
    place = command.index("--seeds")
    command[place + 1 : place + 2] = ["4", "5"]
    found = []
    for out, extra in (("alone", []), ("joined", ["--together"])):
        own = [word.replace(str(world / "output"), str(world / out)) for word in command]
        assert run_protocol.main([*own[:1], *extra, *own[1:]]) == 0
        found.append({path.relative_to(world / out): json.loads(path.read_text())
                      for path in (world / out).rglob("results.json")})  # fmt: skip
    said = capsys.readouterr().out
    assert "FDBPL train toy_shapes seeds 4 5: " in said
    alone, joined = found
    assert alone.keys() == joined.keys() and len(alone) == 8
    for path, result in joined.items():
        assert result["together"] == [4, 5] and result["accuracy"] == alone[path]["accuracy"]


def test_a_base_run_learns_from_the_store_of_all_classes(world, capsys):
    """That the transfer above has dumped: the same images, columns of the base classes."""
    if not (world / "stores/toy_shapes/shots_2/all/seed1/manifest.json").exists():
        pytest.skip("needs the cross_dataset run above")
    command = toy_command(world, "base2new")
    place = command.index("--datasets")
    command[2:place] = ["FDBPL"]
    assert run_protocol.main(command) == 0
    folder = world / "output/base2new/train_base/toy_shapes/shots_2/FDBPL/toy/seed1"
    result = RunResult.read(folder)
    assert result.store["path"] == str(world / "stores/toy_shapes/shots_2/all/seed1")
    assert result.num_classes == 24 and result.seconds["dump"] > 0


def test_what_a_transfer_tested_are_the_prompts_of_the_source(world):
    target = world / "output/xd/test/toy_drawings/shots_2/CoOp/toy/seed1"
    if not target.exists():
        pytest.skip("needs the cross_dataset run above")
    result = RunResult.read(target)
    assert result.model_dir == str(world / "output/xd/train/toy_shapes/shots_2/CoOp/toy/seed1")
    assert result.eval_only and result.load_epoch == 1 and result.num_classes == 36
