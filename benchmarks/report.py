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


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    cpu = platform.processor() or platform.machine()
    info, memory = Path("/proc/cpuinfo"), None
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
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


def dump_rows(rows: Iterable[dict[str, Any]]) -> str:
    """What benchmarks.dump measured, as a table."""

    def share(row: dict[str, Any], name: str) -> str:
        return f"{100 * row[name]:.1f} %" if name in row else "-"

    head = ("batch", "threads", "workers", "regions / s", "per CPU second")
    return markdown(
        (*head, "teacher", "decode", "cut"),
        [
            (
                *(str(row[name]) for name in ("batch_size", "threads", "workers")),
                f"{row['regions_per_second']:.2f}",
                f"{1000 / row['cpu_ms']:.2f}",
                *(share(row, f"{name}_share") for name in ("teacher", "decode", "cut")),
            )
            for row in rows
        ],
    )


def whole_rows(rows: Sequence[dict[str, Any]], against: str) -> str:
    """Whole runs of one world as a table: seconds by phase, and how many times faster than one."""
    online = next(row["seconds"] for row in rows if row["name"] == against)
    names = list(dict.fromkeys(phase for row in rows for phase in row["phases"]))
    return markdown(
        ("run", *(f"{name}, s" for name in names), "whole, s", "faster", "without dump"),
        [
            (
                row["name"],
                *(f"{row['phases'][n]:,.0f}" if n in row["phases"] else "-" for n in names),
                f"{row['seconds']:,.0f}",
                f"{online / row['seconds']:.2f}x",
                f"{online / row['seconds_without_dump']:.2f}x",
            )
            for row in rows
        ],
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="also keep the numbers there")


def keep(
    path: Path | None,
    benchmark: str,
    options: dict[str, Any],
    results: Any = None,
    **sections: Any,
) -> None:
    """Write a benchmark's numbers with all that they depend on; no path, no file.

    Numbers are under "results", or under names of their own at the top ("rows", "ratios").
    """
    if path is None:
        return
    versions = {"python": platform.python_version()}
    versions.update({name: metadata.version(name) for name in PACKAGES})
    record = {
        "benchmark": benchmark,
        "options": options,
        **({"results": results} if results is not None else {}),
        **sections,
        "machine": machine(),
        "versions": versions,
        "commit": commit(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
