"""Every command ends in one line: signals, closed pipes, full disks, terminals that are poor."""

from __future__ import annotations

import errno
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import entry
import train
from datasets import prepare
from entry import UsageError, explain, run_script
from wording import counted, nearest, printable, unknown

REPO = Path(__file__).resolve().parents[1]
NAMES = "Café 猫 50.0 ± 1.5 — \x1b[31mred\u202e\U0001f600"  # of a class, say
AGAIN = "stopped: run the same line again, it continues.\n"


def script(tmp_path: Path, body: str) -> list[str]:
    """A command that runs `body` as its main."""
    path = tmp_path / "script.py"
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    path.write_text(
        f"import os, sys, time\nsys.path.insert(0, {str(REPO)!r})\nfrom entry import run_script\n"
        f"def main():\n{lines}\nsys.exit(run_script(main))\n"
    )
    return [sys.executable, str(path)]


def stop_at(command: list[str], sign: str, number: int, **keys) -> tuple[int, str]:
    """Exit code and stderr of a command that is sent a signal once it has printed `sign`."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **keys
    )
    for line in process.stdout:
        if sign in line:
            break
    process.send_signal(number)
    try:
        return (process.wait(timeout=60), process.communicate()[1])
    finally:
        process.kill()


# --- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_in_one_line_and_its_exit_code(tmp_path, number):
    command = script(tmp_path, "print('here', flush=True)\ntime.sleep(60)")
    assert stop_at(command, "here", number) == (128 + number, f"\n{AGAIN}")


@pytest.mark.parametrize(
    "name", ["train.py", "dump_teacher_logits.py", "predict.py", "export.py", "-m datasets.prepare"]
)
def test_a_signal_during_the_imports_does_so_too(tmp_path, name):
    """A torch that takes a minute to import stands in for the real one."""
    (tmp_path / "torch.py").write_text("import time; print('here', flush=True); time.sleep(60)")
    env = {**os.environ, "PYTHONPATH": f"{REPO / 'dassl-lite'}{os.pathsep}{tmp_path}"}
    code, said = stop_at([sys.executable, *name.split()], "here", signal.SIGTERM, cwd=REPO, env=env)
    assert (code, said) == (143, "\nstopped before it started.\n")


def test_several_signals_at_once_do_not_break_into_the_cleaning_up(tmp_path):
    body = """\
try:
    print('here', flush=True); time.sleep(60)
finally:
    os.kill(os.getpid(), 1); os.kill(os.getpid(), 15); print('cleaned', file=sys.stderr)"""
    code, said = stop_at(script(tmp_path, body), "here", signal.SIGHUP)
    assert (code, said) == (129, f"cleaned\n\n{AGAIN}")


def test_a_signal_that_falls_into_a_callback_is_not_lost(tmp_path):
    body = """\
class Held:
    def __del__(self):
        print('here', flush=True); time.sleep(60)
Held(); time.sleep(60)"""
    assert stop_at(script(tmp_path, body), "here", signal.SIGTERM) == (143, f"\n{AGAIN}")


def test_what_is_started_is_known_before_a_signal_raises(tmp_path):
    body = """\
import entry
with entry.unbroken():
    print('here', flush=True)
    until = time.monotonic() + 3  # a second raise, after SECONDS_TO_HEAR, waits as well
    while time.monotonic() < until: pass
    print('known', file=sys.stderr)
time.sleep(60)"""
    code, said = stop_at(script(tmp_path, body), "here", signal.SIGTERM)
    assert (code, said) == (143, f"known\n\n{AGAIN}")


def test_a_child_ends_with_its_parent_and_is_the_one_that_tells(tmp_path):
    child = tmp_path / "child"
    child.mkdir()
    inner = script(child, "print(os.getpid(), 'here', flush=True)\ntime.sleep(60)")
    outer = script(tmp_path, f"import entry\nentry.call({inner!r})")
    process = subprocess.Popen(outer, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline().split()[0])
    process.terminate()
    said = process.communicate(timeout=30)[1]
    assert (process.returncode, said) == (143, f"\n{AGAIN}")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_training_with_workers_leaves_a_checkpoint_and_no_process(world):
    """A process of its own, stopped as Slurm does it, in the midst of an epoch."""
    from toy_runs import flags, options

    code = (  # a small world, as the fixture has it in this process
        "from dataclasses import replace; from datasets import toy; import sys, entry, train; "
        "counts = {'train': 4, 'val': 2, 'test': 4}; "
        "toy.TOY_SETS['ToyShapes'] = replace(toy.TOY_SETS['ToyShapes'], counts=counts); "
        "sys.exit(entry.run_script(train.main))"
    )
    out = world / "stopped"
    keys = options(epochs=400, **{"DATALOADER.NUM_WORKERS": 2, "DATALOADER.TRAIN_X.BATCH_SIZE": 4})
    command = [sys.executable, "-c", code, *flags(world, "CoOp"), "--output-dir", str(out), *keys]
    env = {**os.environ, "FDBPL_TEST_OF_SIGNALS": str(out)}
    code, said = stop_at(command, "epoch [2/400]", signal.SIGTERM, cwd=REPO, env=env)
    *bar, last = said.splitlines(keepends=True)
    assert (code, last) == (143, AGAIN) and not [line for line in bar if line[0] not in "\nD"], said
    assert processes_with(f"FDBPL_TEST_OF_SIGNALS={out}") == []
    kept = out / "prompt_learner" / (out / "prompt_learner/checkpoint").read_text().strip()
    assert kept.is_file() and not list(out.rglob("*.partial")) and not list(out.rglob("*.tmp"))


def processes_with(setting: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if setting.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text())
        except OSError:  # it has ended, or is another's
            continue
    return found


# --- pipes and disks


@pytest.mark.parametrize("ending", ["", "; print('x' * 10**7)"])
def test_a_reader_that_goes_ends_it_in_one_line(tmp_path, ending):
    """At a print, or on the way out."""
    body = f"print('first', flush=True); sys.stdin.readline(); print('second'){ending}"
    command = shlex.join(script(tmp_path, body))
    line = f"(sleep 1; echo) | {command} | head -n 1; echo ${{PIPESTATUS[1]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.stdout == "first\n141\n"
    assert done.stderr == f"stopped, since nobody reads the output any more: {entry.AGAIN}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_under_the_output_is_named(tmp_path):
    line = f"{shlex.join(script(tmp_path, 'print(1)'))} >/dev/full"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "error: No space left on device (standard output)." in done.stderr


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0: file write"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_with_a_place_whoever_finds_it(tmp_path, monkeypatch, error):
    monkeypatch.setattr(sys, "argv", ["train.py", "--output-dir", str(tmp_path / "a/b"), "1"])
    free = {str(REPO): 9e12, str(tmp_path): 1.5e6}
    monkeypatch.setattr(entry.shutil, "disk_usage", lambda p: Usage(free.get(str(p), 9e12)))
    assert entry.is_told(error)
    said = explain(error)
    assert f"No space left on device ({tmp_path}/a/b, 1.5 MB free on its disk)." in said
    named = explain(OSError(errno.ENOSPC, "No space left on device", "out/log.txt"))
    assert named.startswith("No space left on device (out/log.txt).") and entry.AGAIN in named


class Usage:
    def __init__(self, free: float):
        self.free = free


# --- poor terminals


@pytest.mark.parametrize(
    ("encoding", "wanted"),
    [
        ("utf-8", "Café 猫 50.0 ± 1.5 — \\u001b[31mred\\u202e\U0001f600"),
        ("cp1252", "Café \\u732b 50.0 ± 1.5 — \\u001b[31mred\\u202e\\ud83d\\ude00"),
        ("gbk", "Caf\xe9 猫 50.0 ± 1.5 — \\u001b[31mred\\u202e\\ud83d\\ude00"),
        ("ascii", "Caf\\u00e9 \\u732b 50.0 +- 1.5 - \\u001b[31mred\\u202e\\ud83d\\ude00"),
    ],
)
def test_every_encoding_takes_every_name(monkeypatch, encoding, wanted):
    raw, errors = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(errors, encoding))

    def main():
        print(NAMES)
        raise ValueError(NAMES)

    stdout = sys.stdout
    assert run_script(main) == 1 and sys.stdout is stdout
    stdout.flush()
    assert raw.getvalue().decode(encoding) == f"{wanted}\n"
    assert errors.getvalue().decode(encoding) == f"error: {wanted}\n"


def test_a_line_of_json_stays_one():
    out = io.TextIOWrapper(io.BytesIO(), "ascii", errors="plainer")
    out.write(json.dumps({"image": "\udcff 猫 \U0001f600 \x85"}, ensure_ascii=False))
    out.flush()
    assert json.loads(out.buffer.getvalue()) == {"image": "\udcff 猫 \U0001f600 \x85"}


def test_what_moves_a_terminal_is_shown_and_does_nothing():
    assert printable("a\x1b[2J\nb\x9b\u2028c\x7f") == "a\\u001b[2J\\u000ab\\u009b\\u2028c\\u007f"
    assert printable("a\n\tb", keep="\n\t") == "a\n\tb"
    assert printable("Ünï — 猫") == "Ünï — 猫"


# --- words


def test_one_image_and_two():
    assert counted(1, "image") == "1 image" and counted(0, "class") == "0 classes"
    assert counted(1, "base class") == "1 base class" and counted(1200, "box", ",") == "1,200 boxes"


def test_the_nearest_name_is_found_whatever_its_capitals():
    assert nearest("Coop", ["CoCoOp", "CoOp", "FDBPL"]) == "CoOp"
    assert nearest("FDBLP", ["CoCoOp", "CoOp", "FDBPL"]) == "FDBPL"
    assert nearest("zebra", ["CoCoOp", "CoOp", "FDBPL"]) == ""
    assert unknown("--trainer", "", ["CoOp"]) == "--trainer is not given. Known: CoOp."


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer", "Coop"], "--trainer is 'Coop', which is not known. Do you mean 'CoOp'?"),
        ([], "--trainer is not given. Known: CoCoOp, CoOp, "),
        (["--trainer", "CoOp"], "configs/datasets/<data set>.yaml, is not given. Known: Calt"),
        (["--trainer", "CoOp", "DATASET.NAME", "toyShape"], "Do you mean 'ToyShapes'?"),
    ],
)
def test_train_names_the_nearest_of_what_it_does_not_know(words, message):
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        train.main(words)


def test_prepare_names_the_nearest_and_takes_its_root_from_the_environment(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv("DATA", raising=False)
    assert prepare.run(["eurosatt", "--root", str(tmp_path)]) == 2
    assert "eurosatt: not known. Do you mean 'eurosat'?" in capsys.readouterr().err
    assert prepare.run(["eurosat", "--verify"]) == 2
    assert "where to? Give --root FOLDER, or set DATA" in capsys.readouterr().err
    monkeypatch.setenv("DATA", str(tmp_path))
    assert prepare.run(["eurosat", "--verify"]) == 1
    assert f"--root {tmp_path}" in capsys.readouterr().out
