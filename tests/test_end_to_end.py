"""What a user types: scripts in processes of their own on the full toy world, then the table.

Every trainer runs through the command line in test_trainers.py; here is what only real processes
show: the shell scripts, the folders they agree on, and images drawn on first use.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
METHODS = {"coop": "CoOp", "fdbpl": "FDBPL"}


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """A home with its own data and output folders, and a way to type commands there."""
    home = tmp_path_factory.mktemp("user")
    (home / "data").mkdir()
    places = {name: str(home / folder) for name, folder in
              (("DATA", "data"), ("OUT", "output"), ("STORES", "stores"))}  # fmt: skip
    env = {**os.environ, **places, "SHOTS": "2", "PYTHON": sys.executable}

    def types(*command: str) -> str:
        done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    types.home = home
    return types


@pytest.mark.parametrize("method", METHODS)
def test_base_to_new_by_script(user, method):
    printed = user("bash", "scripts/base2new.sh", method, "toy_shapes", "1", "OPTIM.MAX_EPOCH", "2")
    assert "Base-to-new: trained on the base classes" in printed and " 0 failed." in printed
    for phase, scope in (("train_base", "base"), ("test_new", "new")):
        folder = user.home / "output/base2new" / phase / "toy_shapes/shots_2" / METHODS[method]
        result = json.loads((folder / "toy/seed1/results.json").read_text())
        assert result["scope"] == scope and result["accuracy"] > 20  # chance is 4.2


def test_finished_runs_are_skipped_and_the_table_shows_both(user):
    log = user.home / "output/base2new/train_base/toy_shapes/shots_2/CoOp/toy/seed1/log.txt"
    before = log.read_text()
    user("bash", "scripts/coop/base2new_train.sh", "toy_shapes", "1", "OPTIM.MAX_EPOCH", "2")
    assert log.read_text() == before
    rows = json.loads(
        user(sys.executable, "parse_test_res.py", str(user.home / "output"), "--compare",
             "--format", "json")
    )  # fmt: skip
    assert {name for name in METHODS.values() if name in json.dumps(rows)} == set(METHODS.values())
