"""Try on a disk of yours what a store promises: killed, cut, flipped, on a full or read-only disk.

    python -m tests.stress_store --folder /shared/tmp --kills 50

A small dump (noise images, a teacher that is one matrix product) is killed at random moments, alone
and as one of several processes; its files are cut and flipped at every place; two dumps want one
folder; a reader opens while a writer works; the disk is full or read-only (on a tmpfs of its own,
where unshare allows one). Each trial prints a line; the exit code is 1 when a promise was broken.

What is promised: a store that opens is whole, byte for byte that of an undisturbed dump; a finished
shard is never lost; everything else is one of the documented errors.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from files import Busy
from regions.dump import dump
from regions.store import RegionStore
from regions.store.layout import IN_PROGRESS, MANIFEST
from regions.store.spec import RegionImage, RegionSpec
from regions.store.tensors import RegionStoreError
from regions.store.writer import LOCK, StoreWriter
from regions.tools.verify import verify

CLASSES = 6
SIDE = 16  # pixels of a region
IMAGES = 24
SHARD_IMAGES = 2
SPAN = 0.4  # seconds; kills come at random within it, the dump alone takes about as long
PATIENCE = 60.0  # seconds that a process may take for what takes one


class Broken(AssertionError):
    """A promise of the store that was not kept."""


# --- a small dump ---------------------------------------------------------------------------


class World:
    """Images in a folder, the spec over them, and the bytes of an undisturbed dump."""

    def __init__(self, folder: Path, kind: str = "logits") -> None:
        self.folder, self.data = folder, folder / "data"
        self.data.mkdir(parents=True, exist_ok=True)
        rng, images = np.random.default_rng(0), []
        for index in range(IMAGES):
            height, width = 18 + index, 40 - index
            path = self.data / f"{index}.png"
            if not path.exists():
                Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
            images.append(RegionImage(path.name, index % CLASSES, height, width))
        features = {"feature_width": CLASSES, "logit_scale": 9.0} if kind == "features" else {}
        self.spec = RegionSpec(
            teacher="noise",
            teacher_digest="0",
            teacher_precision="fp32",
            template="{}",
            classnames=tuple(f"class {label}" for label in range(CLASSES)),
            images=images,
            image_size=SIDE,
            num_regions=4,
            scale=(0.08, 0.936),
            ratio=(0.75, 4 / 3),
            flip=0.5,
            seed=1,
            kind=kind,
            top_k=3 if kind == "topk" else 0,
            **features,
        )
        self.whole = folder / f"whole_{kind}"
        self.dump(self.whole)
        self.bytes = content_of(self.whole)

    def dump(self, store: Path, pause: float = 0.0, **options) -> RegionStore | None:
        """pause: seconds that the teacher takes for a batch."""

        def teacher(images: Tensor) -> Tensor:
            time.sleep(pause)
            output = images.flatten(1)[:, :CLASSES]
            return output / output.norm(dim=1, keepdim=True)

        given = {"batch_size": 3, "shard_images": SHARD_IMAGES, "progress": False, **options}
        given |= {"mean": (0.5,) * 3, "std": (0.5,) * 3, "text": np.eye(CLASSES, dtype=np.float32)}
        return dump(store, self.spec, self.data, teacher, **given)

    def require(self, store: Path, before: set[str] = frozenset()) -> set[str]:
        """Refuse a folder that breaks a promise; returns the names of its finished shards.

        before: shards that were finished earlier. Raises Broken.
        """
        found = content_of(store)
        shards = {name for name in found if name.startswith("shard_") and name in self.bytes}
        for name in shards:
            if found[name] != self.bytes[name]:
                raise Broken(f"{store / name} has its name, but not its bytes")
        if before - shards:
            raise Broken(f"{store} lost {sorted(before - shards)}, which were finished")
        if MANIFEST in found and any(found.get(name) != self.bytes[name] for name in self.bytes):
            raise Broken(f"{store} has a manifest, but is not whole")
        try:
            RegionStore.open(store)
        except RegionStoreError as error:
            says_how = "Run it again" in str(error) or "or make one" in str(error)
            if MANIFEST in found or not says_how:
                raise Broken(f"{store} is told wrongly: {error}") from error
        else:
            if MANIFEST not in found:
                raise Broken(f"{store} opens without a manifest")
        return shards

    def require_whole(self, store: Path) -> None:
        """Refuse whatever is not byte for byte the undisturbed dump. Raises Broken."""
        found, wanted = content_of(store), self.bytes
        wrong = {name for name in {*found, *wanted} if found.get(name) != wanted.get(name)}
        if wrong:
            raise Broken(f"{store} differs from an undisturbed dump in {sorted(wrong)}")


def content_of(store: Path) -> dict[str, bytes]:
    """The files of a folder by name, locks aside."""
    found = {}
    for path in sorted(store.iterdir()) if store.is_dir() else ():
        if not path.name.startswith(LOCK):
            with suppress(FileNotFoundError):  # a writer took it away
                found[path.name] = path.read_bytes()
    return found


# --- processes ------------------------------------------------------------------------------


class Child:
    """A forked process that runs something, and what went wrong in it."""

    def __init__(self, run: Callable[[], object]) -> None:
        self.code: int | None = None  # negative: the signal that ended it
        self._log = tempfile.TemporaryFile()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # workers that lose their parent
                torch.set_num_threads(1)
                run()
                code = 0
            except Exception:
                self._log.write(traceback.format_exc().encode())
                self._log.flush()
            finally:
                os._exit(code)

    def has_ended(self) -> bool:
        if self.code is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if found else None
        return self.code is not None

    def wait(self, seconds: float = PATIENCE) -> None:
        """Wait until it has done its work. Raises Broken when it takes too long, or failed."""
        deadline = time.monotonic() + seconds
        while not self.has_ended():
            if time.monotonic() > deadline:
                raise Broken(f"a process has not ended after {seconds:.0f} s")
            time.sleep(0.002)
        if self.code:
            self._log.seek(0)
            raise Broken(f"a process ended with {self.code}: {self._log.read().decode()}")

    def kill(self, after: float = 0.0) -> None:
        """kill -9 it after so many seconds, unless it has ended by itself."""
        deadline = time.monotonic() + after
        while not self.has_ended() and time.monotonic() < deadline:
            time.sleep(0.001)
        if not self.has_ended():
            os.kill(self.pid, signal.SIGKILL)
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@contextmanager
def running(*runs: Callable[[], object]) -> Iterator[list[Child]]:
    """Forked processes, killed when the with statement ends."""
    children = [Child(run) for run in runs]
    try:
        yield children
    finally:
        for child in children:
            child.kill()


# --- trials ---------------------------------------------------------------------------------


def kills(world: World, folder: Path, count: int, rng: random.Random) -> str:
    """kill -9 of a dump at random moments, again and again until it is through, many times."""
    killed = dumps = 0
    kept: list[int] = []
    while killed < count:
        dumps += 1
        store, shards = folder / f"killed_{dumps}", set()

        def run(store=store, workers=dumps % 2) -> None:
            world.dump(store, workers=workers, pause=0.002)

        span = SPAN
        while True:
            with running(run) as (child,):
                if killed < count:
                    child.kill(after=rng.uniform(0, span))
                if child.code != -signal.SIGKILL:
                    child.wait()
                    break
            killed += 1
            span *= 1.2  # a busy machine gets further each time
            shards = world.require(store, shards)
            kept.append(len(shards))
        world.require_whole(store)
    return f"{killed} kills of {dumps} dumps, after {min(kept)} to {max(kept)} finished shards"


def rank_kills(world: World, folder: Path, count: int, rng: random.Random) -> str:
    """Several processes write a dump, one is killed: the next start finishes, with any number."""
    finished = 0
    for trial in range(count):
        store, ranks = folder / f"ranks_{trial}", 2 + trial % 2

        def take_part(rank: int, store=store, ranks=ranks) -> None:
            world.dump(store, pause=0.004, rank=rank, world=ranks)

        with running(*(partial(take_part, rank) for rank in range(ranks))) as (victim, *others):
            victim.kill(after=rng.uniform(0, SPAN / 2))
            for other in others:
                other.wait()
        world.require(store)
        finished += (store / MANIFEST).exists()
        ranks = rng.choice([1, 2, 5])
        for rank in range(ranks):
            world.dump(store, rank=rank, world=ranks)
        world.require_whole(store)
    return f"{count} dumps, one process killed in each; {finished} were finished before it died"


def damage(world: World, folder: Path, every: int, rng: random.Random) -> str:
    """Flip bits and cut files at every place: refused, or the very same values; then repaired.

    every: only each n-th place, for a quick look.
    """
    store = folder / "damaged"
    shutil.copytree(world.whole, store, dirs_exist_ok=True)
    wanted, tried, harmless = values_of(store), 0, 0
    for name, whole in world.bytes.items():
        for place in range(rng.randrange(every), len(whole), every):
            flips = [whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :]
                     for bit in (1 << place % 8, 0xFF)]  # fmt: skip
            for damaged in (*flips, whole[:place]):
                (store / name).write_bytes(damaged)
                tried += 1
                try:
                    if values_of(store) != wanted:
                        raise Broken(f"byte {place} of {name} changes what is read")
                    harmless += 1
                except RegionStoreError as error:
                    if name not in str(error):
                        raise Broken(f"byte {place} of {name} is told as: {error}") from error
        (store / name).write_bytes(whole)
    repaired = repair(world, store)
    return (
        f"{tried} flips and cuts, {harmless} of them harmless; {repaired} damaged files "
        "made again by the dump"
    )


def repair(world: World, store: Path) -> int:
    """Cut and flip each file of a finished and of an unfinished dump, and run the dump again."""
    repaired = 0
    for unfinished in (False, True):
        names = [name for name in world.bytes if not (unfinished and name == MANIFEST)]
        for name in [*names, *([IN_PROGRESS] if unfinished else [])]:
            for cut in (0, 1, 0.5, -1):
                restore(world, store, unfinished)
                path = store / name
                whole = path.read_bytes()
                end = int(len(whole) * cut) if isinstance(cut, float) else cut
                path.write_bytes(whole[:end])
                try:
                    world.dump(store)
                except RegionStoreError as error:
                    # Only a manifest is not repaired without being asked: it says what to do.
                    if name not in (MANIFEST, IN_PROGRESS) or "delete it and run" not in str(error):
                        raise Broken(f"{name} cut at {cut} is told as: {error}") from error
                    path.unlink()
                    world.dump(store)
                world.require_whole(store)
                repaired += 1
    return repaired


def restore(world: World, store: Path, unfinished: bool) -> None:
    """A whole store, or one whose dump was killed just before its manifest."""
    shutil.rmtree(store, ignore_errors=True)
    shutil.copytree(world.whole, store)
    if unfinished:
        (store / MANIFEST).unlink()
        StoreWriter(store, world.spec, SHARD_IMAGES).close()


def values_of(store: Path) -> list[bytes]:
    """Everything that a reader gives."""
    opened = RegionStore.open(store)
    shards = [opened.read_shard(index) for index in range(len(opened.shards))]
    values = [array.tobytes() for rows in shards for array in rows]
    return [*values, repr(list(opened.spec.images)).encode(), opened.spec.id.encode()]


def two_dumps(world: World, folder: Path) -> str:
    """A second dump into the folder of a running one is told to wait, and harms nothing."""
    store = folder / "two"
    with running(lambda: world.dump(store, pause=0.02)) as (child,):
        while not (store / IN_PROGRESS).exists():
            if child.has_ended():
                child.wait()
            time.sleep(0.001)
        try:
            world.dump(store)
        except Busy as error:
            if f"process {child.pid} on " not in str(error):
                raise Broken(f"a second dump is told: {error}") from error
        else:
            raise Broken("two dumps wrote into one folder")
        child.wait()
    world.require_whole(store)
    return "the second one was refused, the first one finished"


def reader_meanwhile(world: World, folder: Path) -> str:
    """A reader that opens while a dump is written: refused, or whole."""
    store, opened, refused = folder / "read", 0, 0
    with running(lambda: world.dump(store, pause=0.001)) as (child,):
        while not opened:
            try:
                found = values_of(store)
            except RegionStoreError:
                refused += 1
                if child.has_ended() and child.code:
                    child.wait()
                continue
            opened += 1
            if found != values_of(world.whole):
                raise Broken("a reader saw a store that is not whole")
        child.wait()
    return f"refused {refused} times, then whole"


def small_disk(world: World, disk: Path) -> str:
    """A dump onto disks that are full after each page more; disk: a tmpfs that may be remounted."""
    tried = 0
    for workers in (0, 1):
        store, shards, pages = disk / f"store_{workers}", set(), 1
        while True:
            free = shutil.disk_usage(disk)
            remount(disk, f"size={(free.used // 4096 + pages) * 4096}")
            try:
                world.dump(store, workers=workers)
                break
            except OSError as error:
                if error.errno != errno.ENOSPC or not str(error.filename).startswith(str(disk)):
                    raise Broken(f"a full disk is told as: {error}") from error
                tried += 1
            shards = world.require(store, shards)
            half = [name for name in content_of(store) if name.endswith(".partial")]
            if half:
                raise Broken(f"a full disk keeps {half}")
            pages += 1
        world.require_whole(store)
    return f"full {tried} times, each time with the finished shards kept, and then continued"


def read_only(world: World, disk: Path) -> str:
    """Folders that cannot be written: a reader does not care, a dump says so."""
    remount(disk, "size=16m")
    whole, begun = disk / "whole", disk / "begun"
    shutil.copytree(world.whole, whole)
    restore(world, begun, unfinished=True)
    (begun / "shard_00003.safetensors").unlink()
    remount(disk, "ro")
    if values_of(whole) != values_of(world.whole) or verify(whole).damages:
        raise Broken("a store on a read-only disk does not read")
    world.dump(whole)  # nothing to do
    for store in (begun, disk / "new"):
        try:
            world.dump(store)
        except OSError as error:
            if error.errno != errno.EROFS or not error.filename:
                raise Broken(f"a read-only disk is told as: {error}") from error
        else:
            raise Broken("a dump wrote to a read-only disk")
    remount(disk, "rw")
    world.dump(begun)
    world.require_whole(begun)
    return "reads, refuses to dump, and continues once it can be written"


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def on_small_disk(folder: Path) -> str | None:
    """Run small_disk and read_only in a process with a tmpfs of its own; None: not possible."""
    disk = folder / "disk"
    disk.mkdir(exist_ok=True)
    script = 'mount -t tmpfs -o size=16k tmpfs "$1" || exit 77; shift; exec "$@"'
    again = [sys.executable, __file__, "--folder", str(folder), "--disk", str(disk)]
    command = ["unshare", "-rm", "sh", "-c", script, "sh", str(disk), *again]
    try:
        env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        done = subprocess.run(command, capture_output=True, text=True, env=env)
    except FileNotFoundError:
        return None
    if "unshare" in done.stderr and done.returncode or done.returncode == 77:
        return None
    if done.returncode:
        raise Broken(done.stderr.strip() or done.stdout.strip())
    return done.stdout.strip()


# --- the command ----------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.stress_store",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, help="on the disk to try; default: a temporary one")
    parser.add_argument("--kills", type=int, default=50, help="of single dumps; default 50")
    parser.add_argument(
        "--ranks", type=int, default=20, help="dumps of 2 or 3 processes; default 20"
    )
    parser.add_argument("--every", type=int, default=1, help="try each n-th byte; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default 0")
    parser.add_argument("--disk", type=Path, help=argparse.SUPPRESS)  # a tmpfs to fill
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run all trials: 0 when every promise was kept, 1 otherwise."""
    args = parse_args(argv)
    torch.set_num_threads(1)
    if args.folder is None:
        with tempfile.TemporaryDirectory(prefix="region_stress_") as folder:
            return run(Path(folder), args)
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.disk:
        return run(args.folder, args)
    with tempfile.TemporaryDirectory(prefix="region_stress_", dir=args.folder) as folder:
        return run(Path(folder), args)


def run(folder: Path, args: argparse.Namespace) -> int:
    world = World(folder)
    rng = random.Random(args.seed)
    trials: dict[str, Callable[[], str | None]] = {
        "kill -9": lambda: kills(world, folder, args.kills, rng),
        "kill -9, ranks": lambda: rank_kills(world, folder, args.ranks, rng),
        "two dumps": lambda: two_dumps(world, folder),
        "reader meanwhile": lambda: reader_meanwhile(world, folder),
        **{
            f"damage, {kind}": lambda kind=kind: damage(
                World(folder / kind, kind), folder / kind, args.every, rng
            )
            for kind in ("logits", "topk", "features")
        },
        "full, read-only": lambda: on_small_disk(folder),
    }
    if args.disk:
        trials = {
            "full disk": lambda: small_disk(world, args.disk),
            "read-only": lambda: read_only(world, args.disk),
        }
    failed = 0
    for name, trial in trials.items():
        started = time.perf_counter()
        try:
            told = trial()
        except Broken as error:
            failed += 1
            print(f"{name}: BROKEN: {error}", file=sys.stderr, flush=True)
            continue
        told = told or "not tried: unshare cannot give this user a tmpfs of its own"
        print(f"{name}: {told} ({time.perf_counter() - started:.1f} s)", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
