"""A dump that several processes write at once: torchrun, a Slurm array, or machines on one folder.

Each process claims shards one after the other, whoever finds all of them done writes the manifest,
and a process that finds nothing left to claim goes. Nobody waits for anybody, and no two need a
connection: only the folder is shared. The bytes are those of a single process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from regions.claims import Claims
from regions.files import RegionStoreError, Tensors, write_whole
from regions.fit import require_same_spec
from regions.layout import CLAIMS, MANIFEST, TEXT, shard_name
from regions.lock import busy, lock_folder, relock
from regions.manifest import find_dump
from regions.spec import RegionSpec
from regions.writer import StoreWriter

FINISH = "manifest"  # name of the claim on finishing; shards are claimed by number
BEGIN = "start"  # and of the claim on starting
START = 600.0  # seconds to wait for another process's start, which verifies the shards that exist


class SharedWriter(StoreWriter):
    """A StoreWriter of one process among several. Use it in a with statement.

    A store is never less whole than with a StoreWriter: shards are put in place whole, and the
    first one stays, even where claims should fail and two processes make the same shard.
    """

    def __init__(self, path: str | Path, spec: RegionSpec, shard_images: int | None = None) -> None:
        self.claims = Claims(Path(path).expanduser() / CLAIMS)
        self.process = self.claims.token
        super().__init__(path, spec, shard_images)

    # Starting: one process at a time; whoever is alone verifies what earlier ones left.

    def _take_lock(self) -> int | None:
        deadline = time.monotonic() + START
        while not self.claims.take(BEGIN):  # whoever starts may hold the lock alone for a while
            if time.monotonic() > deadline:
                raise RegionStoreError(
                    f"another process has been starting a dump in {self.path} for {START:.0f} s. "
                    f"When none runs, delete {self.claims.folder} and start again."
                )
            time.sleep(0.05)
        try:
            return lock_folder(self.path, shared=True)
        except BaseException:
            self.claims.close()
            raise

    def _start(self, shard_images: int | None) -> None:
        alone = self._lock is not None and relock(self._lock, shared=False)
        if alone:
            super()._start(shard_images)
            self._drop_damaged()
        if self._lock is not None and not relock(self._lock, shared=True):
            raise busy(self.path)  # a change of locks that fails loses the lock: take it anew
        if not alone:
            self._join(shard_images)
        self.claims.release(BEGIN)

    def _drop_damaged(self) -> None:
        """What is there is whole from now on."""
        for index in self.missing:
            (self.path / shard_name(index)).unlink(missing_ok=True)
        if self.needs_text:
            (self.path / TEXT).unlink(missing_ok=True)

    def _join(self, shard_images: int | None) -> None:
        """Take part in a dump that other processes are at, whose shards are not verified yet."""
        found = find_dump(self.path)
        self.is_new = found is None
        if found is None:  # no locks on this file system, so no process is known to be alone
            self._lay_out(shard_images)
            self._fix_spec(self._put)
            found = find_dump(self.path)
            assert found is not None
        require_same_spec(self.path, found.spec, self.spec)
        self._lay_out(found.shard_images)
        self.is_finished = found.shards is not None

    # Working

    def on_disk(self) -> set[int]:
        """Shards that some process has put in place."""
        names = set(os.listdir(self.path))
        return {index for index in range(len(self.ranges)) if shard_name(index) in names}

    def to_do(self) -> Iterator[int]:
        """Claim shards one by one, each when it is asked for, while there are free ones."""
        for index in range(len(self.ranges)):
            path = self.path / shard_name(index)
            if path.exists() or not self.claims.take(str(index)):
                continue
            if path.exists():  # its maker gave the claim back just now
                self.claims.release(str(index))
                continue
            yield index

    def _put(self, path: Path, content: bytes) -> None:
        write_whole(path, content, self.process, first_stays=True)

    def write(self, index: int, tensors: Tensors) -> None:
        super().write(index, tensors)
        self.claims.release(str(index))

    def is_left_to_others(self) -> bool:
        """Whether living processes have claimed all that is missing: this one may go.

        Asks until it is known, which takes one touch of a claim whose owner runs elsewhere.
        """
        while not (self.path / MANIFEST).exists():
            missing = set(range(len(self.ranges))) - self.on_disk()
            alive = {self.claims.is_alive(str(index)) for index in missing}
            if False in alive or not missing:
                return False
            if None not in alive:
                return True
            time.sleep(self.claims.beat / 2)
        return True

    # Finishing

    def finish(self) -> bool:
        """Verify every shard, whoever made it, and write the manifest.

        Returns whether no work is left for this process: also when another one finishes. False
        when shards were found damaged; they are removed.
        """
        while not self.claims.take(FINISH):
            if (self.path / MANIFEST).exists() or self.claims.is_alive(FINISH):
                return True
            time.sleep(self.claims.beat / 2)
        if (self.path / MANIFEST).exists():
            return True
        self._shards = {}
        self._find_whole()
        if self.missing or self.needs_text:
            self._drop_damaged()
            self.claims.release(FINISH)
            return False
        return super().finish()

    def close(self) -> None:
        self.claims.close()
        super().close()
