"""What a script never uses it does not import: the check is on what is loaded, not on a clock."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
HEAVY = ("clip", "dassl", "matplotlib", "open_clip", "pandas", "scipy", "torch", "torchvision")


def loaded_of(names: tuple[str, ...], code: str) -> list[str]:
    """Which modules are loaded after some code, told by a process of its own."""
    code += f"; import json; print(json.dumps(sorted(set({names!r}) & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_tables_and_plans_start_without_anything_heavy():
    assert loaded_of(HEAVY, "import sys, parse_test_res, run_protocol, reporting.tables") == []


def test_training_imports_no_other_hosts_clip():
    assert loaded_of(("open_clip", "matplotlib", "pandas", "submitit"), "import sys, train") == []
