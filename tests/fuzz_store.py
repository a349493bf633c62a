"""Feed hostile stores to the reader: each is refused with a RegionStoreError, or reads as a store.

    python -m tests.fuzz_store --minutes 10

Hypothesis changes small stores of every kind: values anywhere in the manifest and in the headers
(huge numbers, deep lists, paths with .., wrong types, NaN), tensors, whole files; mostly with all
checksums made to fit again, as one would who means harm. Any other exception, a read that takes
longer than SECONDS or a process that wants more than MEMORY is a finding: the smallest such change
is printed, and the exit code is 1. Needs the package hypothesis.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from regions.store import RegionStore
from regions.store.kinds import KINDS, encode
from regions.store.layout import IMAGES, MANIFEST, find_dump
from regions.store.spec import RegionImage, RegionSpec
from regions.store.tensors import METADATA_KEY, RegionStoreError, canonical_json
from regions.store.writer import StoreWriter
from regions.tools.info import info
from regions.tools.verify import verify

SECONDS = 5.0  # for all that is done with one store
MEMORY = 2 * 2**30  # bytes of address space beyond what the process starts with
WIDTH = 3  # of features, and number of classes
Edit = Callable[["Parts"], None]


# --- small stores, in parts -----------------------------------------------------------------


def write_small(path: Path, kind: str, dtype: str = "float16") -> None:
    """A sound store: three images, two regions each, three classes, two shards."""
    features = {"feature_width": WIDTH, "logit_scale": 10.0} if kind == "features" else {}
    spec = RegionSpec(
        teacher="t",
        teacher_digest="d",
        teacher_precision="fp32",
        template="{}",
        classnames=("a", "b", "c"),
        images=[RegionImage(f"i/{i}.jpg", i, 10 + i, 20) for i in range(3)],
        image_size=8,
        num_regions=2,
        scale=(0.1, 0.9),
        ratio=(0.75, 1.25),
        flip=0.5,
        seed=1,
        kind=kind,
        dtype=dtype,
        top_k=2 if kind == "topk" else 0,
        **features,
    )
    with StoreWriter(path, spec, shard_images=2) as writer:
        for index, (_, count) in enumerate(writer.ranges):
            output = np.linspace(-0.5, 0.5, count * 2 * WIDTH, dtype=np.float32).reshape(-1, WIDTH)
            kept = {
                name: tensor.reshape(count, 2, *tensor.shape[1:])
                for name, tensor in encode(spec, output, ["i"] * len(output)).items()
            }
            boxes = np.full((count, 2, 4), 0.25, np.float32)
            writer.write(index, {"boxes": boxes, "flips": np.zeros((count, 2), np.uint8), **kept})
        if writer.needs_text:
            writer.write_text(np.eye(WIDTH, dtype=np.float32))
        writer.finish()


class Parts:
    """A store taken apart: JSON as values, tensors as bytes. Put together, its checksums fit."""

    def __init__(self, path: Path) -> None:
        self.manifest = json.loads((path / MANIFEST).read_text())
        self.headers: dict[str, Any] = {}  # of each safetensors file
        self.promises: dict[str, Any] = {}  # its metadata
        self.data: dict[str, bytes] = {}
        self.after: list[Callable[[Path], None]] = []  # done to the files, whatever then fits
        for file in sorted(path.glob("*.safetensors")):
            content = file.read_bytes()
            start = 8 + int.from_bytes(content[:8], "little")
            self.headers[file.name] = json.loads(content[8:start])
            metadata = self.headers[file.name].pop("__metadata__")
            self.promises[file.name] = json.loads(metadata[METADATA_KEY])
            self.data[file.name] = content[start:]

    def write(self, path: Path) -> None:
        """Sign and write; from the images over the spec and the shards to the manifest."""
        path.mkdir()
        spec, manifest = self.manifest.get("spec"), self.manifest
        if isinstance(spec, dict) and isinstance(spec.get("images"), dict):
            spec["images"]["sha256"] = self._checksum(IMAGES)
        with contextlib.suppress(ValueError, RecursionError):
            manifest["spec_id"] = _sha256(canonical_json(spec).encode())
        rows = manifest.get("files")
        rows = dict(rows) if isinstance(rows, dict) else {}
        shards = manifest.get("shards")
        for row in shards if isinstance(shards, list) else ():
            if isinstance(row, dict) and isinstance(row.get("file"), str):
                rows[row["file"]] = row
        for name, header in self.headers.items():
            promise = self.promises[name]
            if isinstance(promise, dict):
                if "spec" in promise:
                    promise["spec"] = manifest.get("spec_id")
                promise["sha256"] = self._checksum(name)
            content = _file(header, promise, self.data[name])
            (path / name).write_bytes(content)
            if isinstance(rows.get(name), dict):
                rows[name].update(bytes=len(content), sha256=_sha256(content))
        manifest.pop("sha256", None)
        with contextlib.suppress(ValueError, RecursionError):
            manifest["sha256"] = _sha256(canonical_json(manifest).encode())
        (path / MANIFEST).write_text(_dumps(manifest) + "\n", encoding="ascii")
        for change in self.after:
            change(path)

    def _checksum(self, name: str) -> str:
        """Of the tensors where the header says they are, in the order of their names."""
        data, header = self.data[name], self.headers[name]
        try:
            places = [header[key]["data_offsets"] for key in sorted(header)]
            return _sha256(b"".join(data[start:end] for start, end in places))
        except (TypeError, ValueError, LookupError, AttributeError):
            return _sha256(data)


def _file(header: Any, promise: Any, data: bytes) -> bytes:
    if isinstance(header, dict):
        header = {**header, "__metadata__": {METADATA_KEY: _dumps(promise)}}
    text = _dumps(header).encode("ascii")
    return len(text).to_bytes(8, "little") + text + data


def _dumps(value: Any) -> str:
    """JSON of anything, NaN and what is too deep for json.dumps included."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    except (RecursionError, TypeError):
        return "[" * 5000


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- changes --------------------------------------------------------------------------------

NUMBERS = [0, -1, 1, 2, 2**31, 2**63, 2**64, 10**40, 0.5, -0.0, 1e300, float("inf"), float("nan")]
TEXTS = ["", "..", "../x", "/etc/passwd", "a/../../b", "\0", "\ud800", "x" * 5000, "F64", "F16"]
TEXTS += ["shard_00001.safetensors", "images.safetensors", "logits", "topk", "features", "{}"]
KEYS = ["spec", "images", "sha256", "bytes", "file", "shape", "dtype", "data_offsets", "boxes"]
PLAIN = st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.sampled_from(TEXTS)
PLAIN |= st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
VALUES |= st.integers(1, 3000).map(lambda depth: _deep(depth))


def _deep(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@st.composite
def json_edits(draw) -> Edit:
    """Another value somewhere in the manifest, in a header or in its metadata."""
    where = draw(st.sampled_from(["manifest", "headers", "promises"]))
    steps, value = draw(st.lists(st.integers(0, 30), max_size=5)), draw(VALUES)
    how = draw(st.sampled_from(["set", "set", "delete", "insert", "twice"]))

    def edit(parts: Parts) -> None:
        top = getattr(parts, where)
        if where != "manifest" and not steps:
            return
        holder, key, place = None, None, top
        for number, step in enumerate(steps):
            if not isinstance(place, dict | list) or not place:
                break
            keys = sorted(place) if isinstance(place, dict) else range(len(place))
            holder, key = place, keys[step % len(place)]
            place = holder[key]
            if where != "manifest" and number == 0 and len(steps) > 1:
                holder = None  # a file's name stays
        if holder is None:
            return
        if how == "set" or where != "manifest" and len(steps) == 1:
            holder[key] = value
        elif how == "delete":
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, place if how == "twice" else value)
        else:
            holder[f"{key}2"] = place if how == "twice" else value

    return edit


@st.composite
def tensor_edits(draw) -> Edit:
    """Other bytes in a tensor, or more or fewer of them."""
    which, where = draw(st.integers(0, 9)), draw(st.integers(0, 2000))
    new = draw(st.binary(min_size=1, max_size=16) | st.sampled_from([b"\xff" * 16, b"\0" * 16]))
    how = draw(st.sampled_from(["over", "over", "over", "cut", "append"]))

    def edit(parts: Parts) -> None:
        name = sorted(parts.data)[which % len(parts.data)]
        data = parts.data[name]
        place = where % max(1, len(data))
        parts.data[name] = {
            "over": data[:place] + new[: len(data) - place] + data[place + len(new) :],
            "cut": data[:place],
            "append": data + new,
        }[how]

    return edit


@st.composite
def file_edits(draw) -> Edit:
    """A file as a whole: gone, cut, flipped, something else of its name. Its checksum stays."""
    which, where = draw(st.integers(0, 9)), draw(st.integers(0, 5000))
    how = draw(
        st.sampled_from(["gone", "cut", "flip", "folder", "pipe", "device", "loop", "zeros"])
    )

    def change(path: Path) -> None:
        names = sorted(os.listdir(path))
        file = path / names[which % len(names)]
        if not file.is_file() or file.is_symlink():
            return
        content = file.read_bytes()
        place = where % max(1, len(content))
        file.unlink()
        if how == "cut":
            file.write_bytes(content[:place])
        elif how == "flip":
            flipped = content[place] ^ (1 << where % 8) if content else 0
            file.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
        elif how == "zeros":
            file.write_bytes(bytes(len(content)))
        elif how == "folder":
            file.mkdir()
        elif how == "pipe":
            os.mkfifo(file)
        elif how == "device":
            file.symlink_to("/dev/zero")
        elif how == "loop":
            file.symlink_to(file.name)

    return lambda parts: parts.after.append(change)


EDITS = st.lists(
    json_edits() | json_edits() | tensor_edits() | file_edits(), min_size=1, max_size=3
)


# --- the trial ------------------------------------------------------------------------------


def use(path: Path) -> bool:
    """Read a store in every way there is; whether it could be read. RegionStoreErrors are fine."""
    readable = False
    with contextlib.suppress(RegionStoreError):
        store = RegionStore.open(path)
        shards = [store.read_shard(index) for index in range(len(store.shards))]
        images = list(store.spec.images)
        rows = store.read_batch(np.arange(len(store)), np.zeros((len(store), 1), int))
        for logits in (*(shard.logits for shard in shards), rows.logits):
            assert np.isfinite(logits).all() and logits.shape[-1] == len(store.classnames)
        assert store.image_indices([image.path for image in images]).tolist() == [
            *range(len(store))
        ]
        store.columns(store.classnames)
        readable = True
    for tool in (find_dump, verify, info):
        with contextlib.suppress(RegionStoreError), contextlib.redirect_stderr(io.StringIO()):
            tool(path)
    return readable


@contextlib.contextmanager
def bounds(seconds: float = SECONDS, memory: int = MEMORY) -> Iterator[None]:
    """Raise TimeoutError or MemoryError where these are exceeded."""

    def too_long(*_: object) -> None:
        raise TimeoutError(f"a store kept the reader busy for {seconds:g} s")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, limits[1]))
    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


class Fuzz:
    """Trials on small stores of every kind in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tried = self.readable = 0
        self.sound = {kind: folder / f"sound_{kind}" for kind in KINDS}
        for kind, path in self.sound.items():
            write_small(path, kind)
        self.parts = {kind: Parts(path) for kind, path in self.sound.items()}
        for path in self.sound.values():
            assert use(path), "a sound store cannot be read"
        info(path)  # brings torch now, before the bounds

    def run(self, examples: int, first_seed: int = 0) -> None:
        """Try so many hostile stores. Raises what was found, with the smallest change that does."""

        @seed(first_seed)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(kind=st.sampled_from(sorted(KINDS)), edits=EDITS)
        def trial(kind: str, edits: list[Edit]) -> None:
            parts = copy.deepcopy(self.parts[kind])
            for edit in edits:
                with contextlib.suppress(RecursionError):
                    edit(parts)
            path = self.folder / "hostile"
            shutil.rmtree(path, ignore_errors=True)
            parts.write(path)
            self.tried += 1
            with bounds():
                self.readable += use(path)

        trial()


def main(argv: list[str] | None = None) -> int:
    """Fuzz for a while: 0 when nothing was found."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz_store",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="how long; default 10")
    parser.add_argument("--seed", type=int, default=0, help="of the first round; default 0")
    args = parser.parse_args(argv)
    started, round_ = time.monotonic(), args.seed
    with tempfile.TemporaryDirectory(prefix="region_fuzz_") as folder:
        fuzz = Fuzz(Path(folder))
        while time.monotonic() - started < 60 * args.minutes:
            try:
                fuzz.run(500, round_)
            except BaseException:
                print(f"found with --seed {round_}, kept as {folder}_found", file=sys.stderr)
                shutil.copytree(Path(folder) / "hostile", f"{folder}_found", symlinks=True)
                raise
            round_ += 1
        print(
            f"{fuzz.tried} hostile stores in {time.monotonic() - started:.0f} s: "
            f"{fuzz.readable} read as a store, the others were refused with a RegionStoreError"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
