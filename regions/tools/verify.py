"""Verify a whole store: every file, several at a time."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from regions.store import RegionStore
from regions.store.contents import contents_path
from regions.store.layout import IMAGES, MANIFEST, Manifest, read_manifest
from regions.store.tensors import REDO, RegionStoreError, check_size, file_checksum

# --- verify ---------------------------------------------------------------------------------


class Damage(NamedTuple):
    """A file that is not as the manifest says."""

    file: str
    why: str  # and what to do


class Verified(NamedTuple):
    """What verify found."""

    files: int
    bytes: int
    damages: tuple[Damage, ...]
    strangers: tuple[str, ...]  # in the folder, but not of the store


def verify(path: str | Path, threads: int | None = None) -> Verified:
    """Check size, checksum, header and values of every file, several files at a time.

    Raises:
        RegionStoreError: there is no finished store, or its manifest is damaged.
    """
    path = Path(path).expanduser()
    if not (path / MANIFEST).exists():
        RegionStore.open(path)  # says what is there instead
    manifest = read_manifest(path / MANIFEST)
    sizes = {**{name: file.bytes for name, file in manifest.files.items()},
             **{shard.file: shard.bytes for shard in manifest.shards}}  # fmt: skip
    damages = []
    with (
        _bar("verify", sum(sizes.values()), "B") as bar,
        ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool,
    ):
        jobs = {pool.submit(_check_file, path, manifest, name): name for name in sizes}
        for job in as_completed(jobs):
            try:
                job.result()
            except RegionStoreError as error:
                damages.append(Damage(jobs[job], str(error)))
            bar.update(sizes[jobs[job]])
    try:
        RegionStore(path, manifest).contents  # noqa: B018  of the images, where it is kept
    except RegionStoreError as error:
        damages.append(Damage(contents_path(path).name, str(error)))
    strangers = {entry.name for entry in path.iterdir()} - sizes.keys() - {MANIFEST}
    return Verified(
        len(sizes) + 1,
        sum(sizes.values()) + (path / MANIFEST).stat().st_size,
        tuple(sorted(damages)),
        tuple(sorted(strangers)),
    )


def _check_file(path: Path, manifest: Manifest, name: str) -> None:
    """Raises RegionStoreError."""
    store = RegionStore(path, manifest)  # a reader of its own: it ends, and lets go of its maps
    for index, shard in enumerate(store.shards):
        if shard.file == name:
            store.arrays(index)
            return
    size, sha256 = store.files[name]
    check_size(path / name, size)
    if file_checksum(path / name) != sha256:
        raise RegionStoreError(
            f"{path / name} is damaged: its checksum is not the manifest's. {REDO}"
        )
    if name == IMAGES:
        for _ in store.spec.images:  # each path is checked when it is read
            pass
    else:
        store.stored_text  # noqa: B018  reads it, and thereby checks it


def _bar(what: str, total: int, unit: str) -> tqdm:
    waits = 0.5 if sys.stderr.isatty() else 10
    return tqdm(total=total, desc=what, unit=unit, unit_scale=unit == "B", mininterval=waits)
