"""docs/REPRODUCE.md: its commands are understood, its published numbers are those of the file."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import export
import parse_test_res
import predict
import run_protocol
from reporting.methods import find_method
from reporting.published import read_published

REPO = Path(__file__).resolve().parents[1]
PAGE = (REPO / "docs/REPRODUCE.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.S | re.M)
LINES = [line for kind, block in BLOCKS if not kind for line in block.splitlines()]
COMMANDS = [
    shlex.split(line.rpartition(" | ")[2], comments=True) for line in LINES if "python " in line
]
PARSERS = {
    "run_protocol.py": run_protocol.parse_args,
    "parse_test_res.py": lambda words: parse_test_res.build_parser().parse_args(words),
    "predict.py": predict.parse_args,
    "export.py": export.parse_args,
}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_of_the_page_are_understood(command):
    python, script, *words = command
    assert python == "python"
    args = PARSERS[script](words)
    for name in getattr(args, "trainers", []):
        assert find_method(name).trainer == name


def test_scripts_of_the_page_exist():
    named = set(re.findall(r"`(\w+\.sh)`", PAGE))
    there = {path.name for path in (REPO / "scripts").glob("*/*.sh")}
    assert named == there


def test_published_averages_of_the_page_are_in_the_file():
    known: dict[str, set[str]] = {}
    for entry in read_published():
        average = entry.get("average")
        if average is not None:
            shown = average if isinstance(average, list) else [average]
            known.setdefault(entry["protocol"], set()).add(" / ".join(f"{v:.2f}" for v in shown))
    wanted = {
        "base2new": r"\d+\.\d+ / \d+\.\d+ / \d+\.\d+",
        "cross_dataset": r"(?<!\d)\d\d\.\d\d(?!\d)",
        "domain_generalization": r"(?<!\d)\d\d\.\d\d(?!\d)",
    }
    titles = ["Base-to-new", "Cross-data-set transfer", "Domain generalisation", "Few-shot"]
    for protocol, pattern in wanted.items():
        start = titles[list(wanted).index(protocol)]
        end = titles[list(wanted).index(protocol) + 1]
        section = PAGE[PAGE.index(f"## {start}") : PAGE.index(f"## {end}")]
        section = " ".join(section[section.index("Published") :].split())
        numbers = re.findall(pattern, section)
        assert len(numbers) >= 5 and set(numbers) <= known[protocol], protocol
