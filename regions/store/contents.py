"""What the bytes of the images were when their regions were cut: <store>.images.jsonl.

It lies beside the store, whose own bytes do not depend on it. A line is JSON with the id of the
spec, records of some images, and a checksum; a dump appends one for each shard, before the shard,
and joins them to a single line when it finishes. So a finished store has one line or no file, and
whatever else is there is refused. Letters: N images.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from files import Lock, write_whole
from regions.store.spec import RegionSpec
from regions.store.tensors import RegionStoreError, canonical_json
from wording import counted, listed

# place: of the image in the store. A state is what changes when a file is written or replaced.
STATE = [("size", "<i8"), ("mtime", "<i8"), ("ctime", "<i8"), ("inode", "<u8")]
RECORD = np.dtype([("place", "<i4"), ("digest", "S32"), *STATE])
SEEN = np.dtype([("state", "<u8"), ("digest", "S32")])
VERSION = b"image contents 1"  # part of the checksum of a memory


def contents_path(store: str | Path) -> Path:
    """Where the contents of a store's images are kept."""
    store = Path(store).expanduser()
    return store.with_name(store.name + ".images.jsonl")


def contents_memory(cfg: Any) -> Path:
    """Where it is remembered which image files were read: beside the features of test images."""
    folder = Path(cfg.TEST.FEATURES_DIR or Path(cfg.DATASET.ROOT, ".features")).expanduser()
    return folder / "contents.bin"


def digest(content: bytes) -> bytes:
    """32 letters that stand for the bytes of a file."""
    return hashlib.blake2b(content, digest_size=16).hexdigest().encode()


def read_image_file(path: str | os.PathLike, place: int = 0) -> tuple[bytes, np.ndarray]:
    """The bytes of an image file, and their record. Raises OSError."""
    with open(path, "rb") as file:
        state = os.fstat(file.fileno())  # first: what is written meanwhile does not fit it
        content = file.read()
    return content, np.array((place, digest(content), *_state(state)), RECORD)


def _state(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


class Contents:
    """Records of a store's images, by their places; those that are not known are absent."""

    def __init__(self, path: Path, records: np.ndarray) -> None:
        self.path = path
        last = records[::-1]  # of several records of an image the last one counts
        _, first = np.unique(last["place"], return_index=True)
        self.records = last[first]

    @classmethod
    def read(cls, store: Path, spec: RegionSpec, finished: bool = True) -> Contents:
        """Those of a store or, unless it is finished, of a dump on its way; without a file, none.

        Raises:
            RegionStoreError: the file is damaged.
        """
        path = contents_path(store)
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return cls(path, np.empty(0, RECORD))
        except OSError as error:
            raise RegionStoreError(f"{path} cannot be read: {error.strerror or error}.") from error
        lines = text.split(b"\n")
        lines.pop()  # what a killed dump has half written
        try:
            if finished and (len(lines) != 1 or not text.endswith(b"\n")):
                raise ValueError
            parts = [_parse(line, spec.id) for line in lines]
            records = np.concatenate([np.empty(0, RECORD), *(p for p in parts if p is not None)])
            if len(records) and not 0 <= records["place"].min() <= records["place"].max() < len(
                spec.images
            ):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RegionStoreError(
                f"{path} is damaged. Copy it again from where the store came from, dump again into "
                "another --store, or delete it: then nothing tells whether the images are still "
                "those that were dumped."
            ) from error
        return cls(path, records)

    def of(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of some images are known, (N,) bool, and the records of these."""
        at = np.searchsorted(self.records["place"], places)
        known = at < len(self.records)
        known[known] = self.records["place"][at[known]] == places[known]
        return known, self.records[at[known]]

    def digest(self, place: int) -> bytes | None:
        """Of the bytes of an image; None where they are not known."""
        known, records = self.of(np.array([place]))
        return bytes(records["digest"][0]) if known[0] else None

    def keys(self, places: np.ndarray) -> np.ndarray:
        """A number for each image that is another one for other bytes: (N,) uint64.

        Of images whose bytes are not known it is the place.
        """
        keys = np.asarray(places).astype(np.uint64)
        known, records = self.of(np.asarray(places))
        texts = (b"%d %b" % (record["place"], record["digest"]) for record in records)
        keys[known] = [_number(text) for text in texts]
        return keys

    def changed(
        self,
        spec: RegionSpec,
        places: np.ndarray,
        root: str | Path,
        trust_mtime: bool = False,
        memory: Path | None = None,
    ) -> dict[str, str]:
        """Images that are no longer those whose regions were cut: path -> what changed.

        The bytes of an image are read where its size and times or inode are not as in the dump, and
        not as when they were read last.

        Args:
            root: the data root.
            trust_mtime: read no image whose size and time of change are as in the dump.
            memory: a file that remembers what was read.
        """
        known, records = self.of(np.asarray(places))
        changed, unread = {}, []
        seen: dict[int, bytes] | None = None
        for record in records:
            name = spec.images[int(record["place"])].path
            path = os.path.join(os.path.expanduser(root), name)
            try:
                state = _state(os.stat(path))
            except OSError as error:
                changed[name] = "missing" if isinstance(error, FileNotFoundError) else str(error)
                continue
            then = tuple(record[field].item() for field, _ in STATE)
            if state[0] != then[0]:
                changed[name] = f"{state[0]:,} bytes instead of {then[0]:,}"
            elif state != then and not (trust_mtime and state[1] == then[1]):
                seen = _remembered(memory) if seen is None else seen
                key = _key(path, state)
                if seen.get(key) != bytes(record["digest"]):
                    unread.append((name, path, bytes(record["digest"])))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found = pool.map(_read, (path for _, path, _ in unread))
            for (name, path, wanted), (state, now) in zip(unread, found, strict=True):
                if now == wanted:
                    seen[_key(path, state)] = now
                else:
                    changed[name] = "other bytes" if state else now.decode()
        if unread and memory:
            _remember(memory, seen)
        return dict(sorted(changed.items()))

    def require_unchanged(
        self,
        spec: RegionSpec,
        places: np.ndarray,
        root: str | Path,
        trust_mtime: bool = False,
        memory: Path | None = None,
    ) -> None:
        """Refuse images that are not those whose regions were cut; arguments as of changed.

        Raises:
            RegionStoreError: some changed; it names them and the ways out.
        """
        changed = self.changed(spec, places, root, trust_mtime, memory)
        if changed:
            store = self.path.with_name(self.path.name.removesuffix(".images.jsonl"))
            names = listed(f"{name} ({why})" for name, why in changed.items())
            raise RegionStoreError(
                f"{len(changed)} of {counted(len(places), 'image')} changed since {store} was "
                f"dumped: {names}. Restore them, or dump again into another --store."
            )


def append(store: Path, spec_id: str, records: Sequence[np.ndarray]) -> None:
    """Note the contents of some images of a dump, safe on disk. Raises OSError."""
    path, line = contents_path(store), _line(np.array(records, RECORD), spec_id)
    try:
        with _locked(path), path.open("ab+") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            if file.read() not in (b"", b"\n"):  # half a line of a killed dump
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk says which file it refused
        raise


def join(store: Path, spec: RegionSpec) -> None:
    """Make one line of all, when a dump is finished; one whose images are not known has none."""
    path = contents_path(store)
    with _locked(path):
        if path.exists():
            line = _line(Contents.read(store, spec, finished=False).records, spec.id)
            if line != path.read_bytes():
                write_whole(path, line)


def forget(store: Path) -> None:
    """Remove what an earlier store of that name has left."""
    contents_path(store).unlink(missing_ok=True)


def _locked(path: Path) -> Lock:
    return Lock(path.with_name(path.name + ".lock"), f"writing {path}", "Try again.", wait=60)


def _line(records: np.ndarray, spec_id: str) -> bytes:
    row: dict[str, Any] = {"format": 1, "spec": spec_id}
    row["images"] = base64.b64encode(records.tobytes()).decode()
    row["sha256"] = hashlib.sha256(canonical_json(row).encode()).hexdigest()
    return canonical_json(row).encode() + b"\n"


def _parse(line: bytes, spec_id: str) -> np.ndarray | None:
    """The records of a line; None of another dump. Raises ValueError and the like."""
    row = json.loads(line)
    checksum = row.pop("sha256")
    if hashlib.sha256(canonical_json(row).encode()).hexdigest() != checksum or row["format"] != 1:
        raise ValueError
    if canonical_json({**row, "sha256": checksum}).encode() != line:
        raise ValueError
    if row["spec"] != spec_id:
        return None
    return np.frombuffer(base64.b64decode(row["images"], validate=True), RECORD)


# --- what was read ---------------------------------------------------------------------------


def _key(path: str, state: tuple[int, ...]) -> int:
    return _number(f"{os.path.abspath(path)}\n{state}".encode("utf-8", "surrogateescape"))


def _number(text: bytes) -> int:
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


def _read(path: str) -> tuple[tuple[int, ...] | None, bytes]:
    """The state and digest of a file, or None and why it cannot be read."""
    try:
        record = read_image_file(path)[1]
    except OSError as error:
        return None, str(error.strerror or error).encode()
    return tuple(record[field].item() for field, _ in STATE), bytes(record["digest"])


def _remembered(memory: Path | None) -> dict[int, bytes]:
    try:
        content = memory.read_bytes() if memory else b""
    except OSError:
        return {}
    if not content:
        return {}
    if hashlib.sha256(VERSION + content[32:]).digest() != content[:32]:
        print(f"{memory} is damaged or of another version: images are read again.")
        return {}
    kept = np.frombuffer(content[32:], SEEN)
    return dict(zip(kept["state"].tolist(), kept["digest"].tolist(), strict=True))


def _remember(memory: Path, seen: dict[int, bytes]) -> None:
    data = np.array(sorted(seen.items()), SEEN).tobytes()
    with contextlib.suppress(OSError):  # a folder that cannot be written: they are read each time
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_whole(memory, hashlib.sha256(VERSION + data).digest() + data)
