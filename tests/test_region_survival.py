"""What a store survives: a little of `python -m tests.stress_store` and `tests.fuzz_store`."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import stress_store as stress
from fuzz_store import Fuzz, bounds

from regions.store import RegionStore
from regions.store.layout import MANIFEST
from regions.store.record import dump_record_path
from regions.store.tensors import RegionStoreError
from regions.store.writer import LOCK, StoreWriter

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> stress.World:
    return stress.World(tmp_path_factory.mktemp("stress"))


# --- killed ---------------------------------------------------------------------------------


def test_killed_at_random_moments_it_loses_nothing(world, tmp_path):
    assert stress.kills(world, tmp_path, 6, random.Random(1)).startswith("6 kills")


def test_a_trial_that_finds_a_broken_promise_says_so(world, tmp_path):
    """The trials can fail: a lost shard, other bytes, a manifest that is there too early."""
    stress.restore(world, tmp_path / "s", unfinished=True)
    shards = world.require(tmp_path / "s")
    assert len(shards) == 12
    shard = tmp_path / "s" / "shard_00003.safetensors"
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(stress.Broken, match="lost .*00003"):
        world.require(tmp_path / "s", shards)
    shard.write_bytes(content[:-1])
    with pytest.raises(stress.Broken, match="has its name, but not its bytes"):
        world.require(tmp_path / "s")
    shard.unlink()
    (tmp_path / "s" / MANIFEST).write_bytes(world.bytes[MANIFEST])
    with pytest.raises(stress.Broken, match="has a manifest, but is not whole"):
        world.require(tmp_path / "s")
    with pytest.raises(stress.Broken, match=r"differs .* \['in_progress.json', 'shard_00003"):
        world.require_whole(tmp_path / "s")


# --- several processes ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3, 30])
def test_the_bytes_do_not_depend_on_the_number_of_processes(world, tmp_path, number):
    """And all of them work: the record of the time has a session of each that had a shard."""
    store = tmp_path / "store"

    def take_part(rank: int) -> None:
        world.dump(store, pause=0.01, rank=rank, world=number)

    with stress.running(*(partial(take_part, rank) for rank in range(number))) as processes:
        for process in processes:
            process.wait()
    world.require_whole(store)
    record = json.loads(dump_record_path(store).read_text())
    assert record["regions"] == 96 and len(record["sessions"]) == min(number, 12)
    assert sorted(os.listdir(tmp_path)) == ["store", "store.dump.json", "store.images.jsonl"]


def test_one_process_after_the_other_is_enough(world, tmp_path):
    """RANK=0 WORLD_SIZE=2 and then RANK=1: nobody waits, the last one finishes."""
    store = tmp_path / "store"
    assert world.dump(store, rank=0, world=2) is None
    assert sorted(path.name for path in store.glob("shard_*"))[1] == "shard_00002.safetensors"
    opened = world.dump(store, rank=1, world=2)
    assert opened.spec == world.spec
    world.require_whole(store)
    assert opened.contents.of(np.arange(24))[0].all()  # the images of both


def test_shards_of_machines_without_a_common_folder_are_copied_together(world, tmp_path):
    for rank in (0, 1):
        world.dump(tmp_path / str(rank), rank=rank, world=2)
    for shard in (tmp_path / "1").glob("shard_*"):
        shutil.copy(shard, tmp_path / "0")
    world.dump(tmp_path / "0")  # the same line, alone: nothing is left but the manifest
    world.require_whole(tmp_path / "0")


def test_of_several_processes_one_is_killed_and_the_next_start_finishes(world, tmp_path):
    assert stress.rank_kills(world, tmp_path, 4, random.Random(2)).startswith("4 dumps")


def test_what_a_dead_rank_left_is_swept_away_but_not_what_a_living_one_writes(world, tmp_path):
    store = tmp_path / "store"
    living = StoreWriter(store, world.spec, stress.SHARD_IMAGES, rank=3, world=5)
    living.close()
    half = [store / f"shard_00000.safetensors.{rank}.partial" for rank in (3, 4)]

    def live() -> None:
        with StoreWriter(store, world.spec, rank=3, world=5):
            for path in half:
                path.touch()
            time.sleep(60)

    with stress.running(live) as (child,):
        while not half[1].exists():
            assert not child.has_ended()
            time.sleep(0.002)
        world.dump(store)
        assert half[0].exists() and not half[1].exists()
    world.dump(store)
    world.require_whole(store)
    assert not list(store.glob(f"{LOCK}*"))


def test_a_damaged_shard_of_another_rank_is_not_called_whole(world, tmp_path):
    store = tmp_path / "store"
    world.dump(store, rank=0, world=2)
    (store / "shard_00001.safetensors").write_bytes(b"damaged")
    for index in range(3, 12, 2):
        (store / f"shard_{index:05d}.safetensors").write_bytes(
            world.bytes[f"shard_{index:05d}.safetensors"]
        )
    assert world.dump(store, rank=0, world=2) is None
    world.dump(store, rank=1, world=2)
    world.require_whole(store)


TORCHRUN = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{repo!r}, {repo!r} + "/tests"]
import torch.distributed
import stress_store as stress
torch.distributed.init_process_group("gloo")
rank, ranks = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
world, store = stress.World(Path({folder!r}) / str(rank)), Path({folder!r}) / "store"
if rank == 1:
    import regions.store.writer
    def write(self, *_):
        Path({folder!r} + "/killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    regions.store.writer.StoreWriter.write = write
world.dump(store, pause=0.1, rank=rank, world=ranks)
"""


def test_torchrun_with_a_killed_rank_continues_at_the_next_start(world, tmp_path):
    """torchrun ends all ranks when one dies; the next start finishes, with any number."""
    code = TORCHRUN.format(repo=str(REPO), folder=str(tmp_path))
    (tmp_path / "take_part.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    done = subprocess.run([*command, tmp_path / "take_part.py"], capture_output=True, text=True)
    assert done.returncode != 0 and (tmp_path / "killed").exists(), done.stderr
    world.require(tmp_path / "store")
    assert not (tmp_path / "store" / MANIFEST).exists()
    world.dump(tmp_path / "store")
    world.require_whole(tmp_path / "store")


# --- disks, damage and others in the folder --------------------------------------------------


def test_a_full_and_a_read_only_disk(tmp_path):
    told = stress.on_small_disk(tmp_path)
    if told is None:
        pytest.skip("unshare cannot give this user a tmpfs of its own")
    assert "full disk: full" in told and "read-only: reads, refuses to dump" in told


def test_damage_is_refused_and_repaired(tmp_path):
    """Every flip and cut of a logits store: tests/test_store.py."""
    told = stress.damage(stress.World(tmp_path, "features"), tmp_path, 97, random.Random(3))
    assert " 0 of them harmless" in told


def test_two_dumps_want_one_folder(world, tmp_path):
    assert stress.two_dumps(world, tmp_path)


def test_a_reader_opens_while_a_dump_is_written(world, tmp_path):
    assert stress.reader_meanwhile(world, tmp_path).endswith("then whole")


# --- hostile --------------------------------------------------------------------------------


def test_hostile_stores_are_refused_with_one_kind_of_error(tmp_path):
    fuzz = Fuzz(tmp_path)
    fuzz.run(100)
    assert 0 < fuzz.readable < fuzz.tried / 2  # some changes are of no account, most are refused


def test_the_bounds_of_the_fuzz_are_real():
    with pytest.raises(TimeoutError), bounds(seconds=0.05):
        time.sleep(5)
    with pytest.raises(MemoryError), bounds(memory=2**28):
        np.ones(2**27)


@pytest.mark.parametrize("name", [MANIFEST, "images.safetensors", "shard_00001.safetensors"])
@pytest.mark.parametrize("what", ["pipe", "folder", "device"])
def test_what_is_no_file_is_refused_and_not_opened(world, tmp_path, name, what):
    stress.restore(world, tmp_path / "s", unfinished=False)
    path = tmp_path / "s" / name
    path.unlink()
    {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda p: p.symlink_to("/dev/zero")}[what](
        path
    )
    with bounds(), pytest.raises(RegionStoreError, match=f"{name} is no regular file"):
        RegionStore.open(tmp_path / "s")
