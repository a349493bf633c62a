"""How long a dump took: <store>.dump.json, beside the store, whose bytes do not depend on it."""

from __future__ import annotations

import hashlib
import json
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from files import Busy, Lock, write_whole
from regions.store.tensors import canonical_json
from regions.store.writer import StoreWriter


def dump_record_path(store: str | Path) -> Path:
    """Where the time of a dump is kept."""
    store = Path(store).expanduser()
    return store.with_name(store.name + ".dump.json")


def dump_seconds(store: str | Path, spec_id: str) -> float | None:
    """Wall time that the store of a spec took to dump, or None where its record is lost."""
    try:
        record = _read(dump_record_path(store))
        return float(record["seconds"]) if record["spec_id"] == spec_id else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _read(path: Path) -> dict[str, Any]:
    """Raises OSError, ValueError or TypeError when a record is lost or damaged."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.pop("sha256", None) not in (None, _checksum(record)):  # older ones have none
        raise ValueError(f"{path} is damaged")
    return record


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(record).encode()).hexdigest()


class DumpClock:
    """Wall time of a dump, summed over its sessions and processes."""

    def __init__(self, writer: StoreWriter, device: str, threads: int, started: float) -> None:
        """
        Args:
            threads: that the teacher computes with; the last bit of a logit may depend on it.
            started: time.perf_counter() when the work began.
        """
        self.path, self.started = dump_record_path(writer.path), started
        spec = writer.spec
        self.head = {"format": 1, "spec_id": spec.id, "teacher": spec.teacher, "device": device}
        now = datetime.now(timezone.utc).isoformat(timespec="microseconds")
        self.session: dict[str, Any] = {"started": now, "seconds": 0.0, "regions": 0}
        self.session |= {"device": device, "threads": threads, "rank": writer.rank}
        if writer.is_new and writer.world == 1:
            self.path.unlink(missing_ok=True)  # of an earlier store of that name

    def add(self, regions: int) -> None:
        """Note that so many more regions are safe on disk."""
        before = dict(self.session)
        self.session["regions"] += regions
        self.session["seconds"] = round(time.perf_counter() - self.started, 3)
        lock = self.path.with_name(self.path.name + ".lock")
        try:
            with Lock(lock, "noting its time", "", wait=10):
                sessions = [s for s in self._sessions() if s != before] + [self.session]
                self._write(sessions)
        except Busy:
            pass  # a hung process: only the time is lost

    def _write(self, sessions: list[dict[str, Any]]) -> None:
        record = {
            **self.head,
            "seconds": round(sum(s["seconds"] for s in sessions), 3),
            "regions": sum(s["regions"] for s in sessions),
            "sessions": sessions,
        }
        record["sha256"] = _checksum(record)
        write_whole(self.path, json.dumps(record, indent=1) + "\n")

    def _sessions(self) -> list[dict[str, Any]]:
        """What is noted so far, in the order of the starts."""
        try:
            record = _read(self.path)
            sessions = record["sessions"] if record["spec_id"] == self.head["spec_id"] else []
            return [s for s in sessions if s["seconds"] >= 0 and s["regions"] >= 0]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return []  # lost or foreign: only the time is lost
