"""What a store survives: a handful of what `python -m regions.stress` and `regions.fuzz` do."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import regions.shared
from regions import stress
from regions.claims import Claims
from regions.dump import dump_record_path
from regions.files import RegionStoreError
from regions.fuzz import Fuzz, bounds
from regions.layout import CLAIMS, MANIFEST
from regions.shared import SharedWriter
from regions.store import RegionStore
from regions.writer import StoreWriter

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


# --- shared ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_bytes_do_not_depend_on_the_number_of_processes(world, tmp_path, number):
    """And all of them work: nobody makes all shards while others wait."""
    store = tmp_path / "store"

    def take_part() -> None:
        world.dump(store, pause=0.01, shared=True)

    with stress.running(*[take_part] * number) as processes:
        for process in processes:
            process.wait()
    world.require_whole(store)
    record = json.loads(dump_record_path(store).read_text())
    assert record["regions"] == 96 and len(record["sessions"]) == number
    assert sorted(os.listdir(tmp_path)) == ["store", "store.dump.json"]


def test_of_three_processes_one_is_killed_and_the_others_finish_or_the_next_start(world, tmp_path):
    assert stress.shared_kills(world, tmp_path, 4, random.Random(2)).startswith("4 shared dumps")


def test_a_process_that_finds_nothing_left_to_claim_goes(world, tmp_path):
    """It does not wait for the slow one, which finishes the dump itself."""
    store = tmp_path / "store"

    def slow() -> None:
        world.dump(store, pause=1.0, shared=True)

    def quick() -> None:
        assert world.dump(store, shared=True) is None

    with stress.running(slow) as (last,):
        while not (store / CLAIMS / "0.claim").exists():
            assert not last.has_ended()
            time.sleep(0.002)
        with stress.running(quick) as (first,):
            first.wait()
        assert not last.has_ended() and not (store / MANIFEST).exists()
        assert len(list(store.glob("shard_*"))) == 11
        last.wait()
    world.require_whole(store)


@pytest.mark.parametrize("clock", [0, 4e9])
def test_the_shard_of_a_dead_machine_is_made_by_another(world, tmp_path, monkeypatch, clock):
    """Whatever the other machine's clock said; and a late shard of it changes nothing."""
    monkeypatch.setattr(regions.shared, "Claims", partial(Claims, beat=0.05, stale=0.3))
    store = tmp_path / "store"
    (store / CLAIMS).mkdir(parents=True)
    for index in (3, 7):
        claim = store / CLAIMS / f"{index}.claim"
        claim.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 1, "token": "t"}))
        os.utime(claim, (clock, clock))
    world.dump(store, shared=True)
    world.require_whole(store)


def test_a_shared_dump_keeps_its_lock_while_others_start(world, tmp_path):
    """A change of locks that fails loses the lock: it has to be taken again."""
    store = tmp_path / "store"
    with SharedWriter(store, world.spec, stress.SHARD_IMAGES):
        second = SharedWriter(store, world.spec)  # not alone, so its change of locks fails
        assert not second.is_finished
    with second, pytest.raises(RegionStoreError, match="another dump is writing to"):
        StoreWriter(store, world.spec)
    StoreWriter(store, world.spec).close()


TORCHRUN = """
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = [{repo!r}]
import torch.distributed
from regions import stress
torch.distributed.init_process_group("gloo")
world, store = stress.World(Path({folder!r}) / os.environ["RANK"]), Path({folder!r}) / "store"
if os.environ["RANK"] == "1":
    import regions.writer
    def write(self, index, tensors):
        Path({folder!r} + "/killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    regions.writer.StoreWriter.write = write
world.dump(store, pause=0.1, shared=True)
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
    world.dump(tmp_path / "store", shared=True)
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
