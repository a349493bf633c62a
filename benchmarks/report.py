"""What a benchmark keeps beside its numbers: machine, versions and commit."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
PACKAGES = ("numpy", "safetensors", "torch")
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # that matrix products depend on


def cpu() -> dict[str, Any]:
    """Name, family, model and stepping, since a virtual machine's name alone says little; flags."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().split("\n\n")[0].splitlines() if info.exists() else []
    found = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    flags = found.get("flags", "").split()
    return {
        "cpu": found.get("model name") or platform.processor() or platform.machine(),
        **{key.replace("cpu ", ""): found.get(key) for key in ("cpu family", "model", "stepping")},
        "flags": [flag for flag in CPU_FLAGS if flag in flags],
    }


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    memory = None
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        **cpu(),
        "cores": os.cpu_count(),
        "memory_bytes": memory,
        "system": platform.system(),
    }


def commit() -> str | None:
    """The commit of the code, with -dirty when files of it were changed since."""
    try:
        ask = ["git", "-C", str(REPO), "describe", "--always", "--dirty", "--abbrev=40"]
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="also keep the numbers there")


def keep(path: Path | None, benchmark: str, options: dict[str, Any], **sections: Any) -> None:
    """Write a benchmark's numbers ("rows", "ratios") with all that they depend on.

    No path, no file.
    """
    if path is None:
        return
    versions = {"python": platform.python_version()}
    versions.update({name: metadata.version(name) for name in PACKAGES})
    record = {
        "benchmark": benchmark,
        "options": options,
        **sections,
        "machine": machine(),
        "versions": versions,
        "commit": commit(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(one_line_each(record), encoding="utf-8")


def one_line_each(record: dict[str, Any]) -> str:
    """JSON with a line for every section, and for every row of a section of rows."""

    def section(value: Any) -> str:
        if isinstance(value, list):
            return "[\n" + ",\n".join(f"  {json.dumps(row)}" for row in value) + "\n ]"
        return json.dumps(value)

    lines = (f" {json.dumps(name)}: {section(value)}" for name, value in record.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"
