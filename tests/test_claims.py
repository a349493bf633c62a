"""Claims: one owner at a time, dead owners are found out, and nobody's clock is believed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import regions.claims
from regions.claims import Claims

REPO = Path(__file__).resolve().parents[1]
HOLD = """
import sys, time
from pathlib import Path
from regions.claims import Claims
claims = Claims(Path(sys.argv[1]), beat=0.02)
print(claims.take("a"), flush=True)
time.sleep(60)
"""


def foreign(folder: Path, name: str = "a", **changes) -> Path:
    """A claim of a process on another machine, which touches it only when told."""
    path = folder / f"{name}.claim"
    path.write_text(
        json.dumps({"host": "elsewhere", "pid": 7, "started": 7, "token": "t"} | changes)
    )
    return path


def test_a_claim_has_one_owner_until_it_is_given_back(tmp_path):
    with Claims(tmp_path) as one, Claims(tmp_path) as two:
        assert one.take("a") and one.take("a") and not two.take("a")
        assert two.take("b")
        one.release("a")
        assert two.take("a")
    assert not tmp_path.exists()


def test_the_claim_of_a_killed_process_is_free_at_once(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=REPO, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "True\n"
        with Claims(tmp_path) as claims:
            assert not claims.take("a") and claims.is_alive("a")
            process.send_signal(signal.SIGKILL)
            deadline = time.monotonic() + 20
            while not claims.take("a"):  # not yet reaped is dead too
                assert time.monotonic() < deadline
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_number_that_another_process_has_now_is_no_owner(tmp_path):
    with Claims(tmp_path) as claims:
        home = {**claims._home, "pid": os.getpid(), "started": 1}  # reused since
        foreign(tmp_path, **home)
        assert claims.take("a")


@pytest.mark.parametrize("clock", [0, 4e9])
def test_an_owner_elsewhere_is_alive_while_its_claim_is_touched(tmp_path, monkeypatch, clock):
    """By the asking process's clock alone: the touches may carry any time."""
    now = 100.0
    monkeypatch.setattr(regions.claims.time, "monotonic", lambda: now)
    path = foreign(tmp_path)
    os.utime(path, (clock, clock))
    with Claims(tmp_path, stale=60) as claims:
        assert claims.is_alive("a") is None and not claims.take("a")
        now += 50
        os.utime(path, (clock - 5, clock - 5))  # a clock may even go back
        assert claims.is_alive("a") is True
        now += 59
        assert not claims.take("a")
        now += 1
        assert claims.is_alive("a") is False and claims.take("a")


def test_a_claim_that_was_cut_short_goes_stale_too(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(regions.claims.time, "monotonic", lambda: now)
    for index, text in enumerate(("", "[]", "{", "\xff", '{"token": []}')):
        (tmp_path / f"{index}.claim").write_text(text, encoding="latin-1")
    with Claims(tmp_path) as claims:
        assert not any(claims.take(str(index)) for index in range(5))
        now += 60
        assert all(claims.take(str(index)) for index in range(5))


def test_who_lost_a_claim_does_not_take_it_from_its_new_owner(tmp_path):
    with Claims(tmp_path) as slow, Claims(tmp_path) as other:
        assert slow.take("a")
        (tmp_path / "a.claim").unlink()
        assert other.take("a")
        slow.release("a")
        assert not slow.take("a") and other.is_alive("a")


def test_of_many_who_find_a_dead_claim_one_gets_it(tmp_path):
    claims = [Claims(tmp_path) for _ in range(8)]
    for attempt in range(20):
        foreign(tmp_path, str(attempt), **{**claims[0]._home, "pid": 2**22 + 1})
        assert sum(each.take(str(attempt)) for each in claims) == 1
    for each in claims:
        each.close()
    assert not tmp_path.exists()


def test_touches_go_on_while_work_is_done_and_a_lost_folder_is_made_again(tmp_path):
    with Claims(tmp_path / "claims", beat=0.01) as claims, Claims(tmp_path / "claims") as other:
        assert claims.take("a")
        path = tmp_path / "claims" / "a.claim"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 20
        while path.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        path.unlink()
        path.parent.rmdir()
        assert other.take("b")
