"""Work on a whole store: verify its files in parallel, convert it to another kind.

Letters: N images of a shard, M regions per image, K kept classes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from regions.files import REDO, RegionStoreError, Tensors, check_size, file_checksum, write_whole
from regions.kinds import KINDS, encode
from regions.layout import IMAGES, MANIFEST
from regions.manifest import Manifest, read_manifest
from regions.spec import RegionSpec
from regions.store import RegionStore
from regions.writer import StoreWriter

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


# --- convert --------------------------------------------------------------------------------


def convert(
    path: str | Path, out: str | Path, kind: str, dtype: str | None = None, top_k: int = 0
) -> RegionStore:
    """Write the same regions as another kind; what is lost or cannot be known is never made up.

    Args:
        dtype: of the values; None keeps that of the store.
        top_k: classes kept by kind topk, where equal values stand in the order of the classes.
    Raises:
        RegionStoreError: that kind does not follow from this store; says what to do.
        ValueError: top_k is not in 1..C.
        OSError: out cannot be written.
    """
    store, out = RegionStore.open(path), Path(out).expanduser()
    spec = _converted(store, kind, dtype or store.spec.dtype, top_k)
    refuse_as_target(out, [store.path])
    with StoreWriter(out, spec, store.shard_images) as writer:
        for shard in progress("convert", writer.missing):
            given = store.arrays(shard)
            kept = _convert_values(store, shard, spec)
            writer.write(shard, {"boxes": given["boxes"], "flips": given["flips"], **kept})
        if writer.needs_text:
            writer.write_text(store.stored_text)
        if not writer.is_finished:
            writer.finish()
    converted = RegionStore.open(out)
    carry_dump_records([store.path], converted)
    return converted


def _converted(store: RegionStore, kind: str, dtype: str, top_k: int) -> RegionSpec:
    """The spec after conversion; refuses with RegionStoreError what cannot be."""
    spec, classes = store.spec, len(store.spec.classnames)
    has = f"{store.path} holds {spec.kind} in {spec.dtype}"
    again = f"Dump again into another --store with TRAINER.FDBPL.STORE_KIND {kind}"
    if kind not in KINDS:
        raise RegionStoreError(f"--to is {kind}; a store keeps {', '.join(KINDS)}.")
    if kind == "features" != spec.kind:
        raise RegionStoreError(
            f"{has}: image features cannot be found again from logits, which are their products "
            f"with {classes} text features alone. {again}."
        )
    if spec.kind == "topk" and (kind == "logits" or top_k > spec.top_k) and spec.top_k < classes:
        raise RegionStoreError(
            f"{has} of the {spec.top_k} likeliest of {classes} classes: the other logits were not "
            f"kept, and training only spreads what is left evenly over them. {again}."
        )
    if (spec.kind, spec.dtype, dtype) in {
        (k, "float16", "float32") for k in ("logits", "topk")
    } or (kind == spec.kind == "features" and dtype != spec.dtype == "float16"):
        raise RegionStoreError(
            f"{has}: what float16 rounded away does not come back. {again} and "
            "TRAINER.FDBPL.STORE_DTYPE float32."
        )
    if kind == "topk" and not top_k:
        top_k = spec.top_k or min(10, classes)
    new = replace(spec, kind=kind, dtype=dtype, top_k=top_k if kind == "topk" else 0,
                  feature_width=spec.feature_width if kind == "features" else 0,
                  logit_scale=spec.logit_scale if kind == "features" else 0.0)  # fmt: skip
    if new == spec:
        raise RegionStoreError(f"{has} already: nothing to convert.")
    return new


def _convert_values(store: RegionStore, shard: int, spec: RegionSpec) -> Tensors:
    """What the new store keeps of a shard's regions, (N, M, ...)."""
    old, given = store.spec, store.arrays(shard)
    if old.kind == "features" != spec.kind:
        logits = store.read_shard(shard).logits
        first, rows = store.shards[shard].first_image, logits.shape[:2]
        images = np.repeat([image.path for image in old.images[first : first + rows[0]]], rows[1])
        kept = encode(spec, logits.reshape(len(images), -1), images)
        return {name: tensor.reshape(*rows, *tensor.shape[1:]) for name, tensor in kept.items()}
    # Log-probabilities are moved, not computed again: what they say of p stays the same.
    if old.kind == "logits" and spec.kind == "topk":
        classes_NMK = np.argsort(-given["logits"], axis=-1, kind="stable")[..., : spec.top_k]
        values_NMK = np.take_along_axis(given["logits"], classes_NMK, -1)
        return {"values": values_NMK, "classes": classes_NMK, "lse": given["lse"]}
    if old.kind == "topk" and spec.kind == "logits":
        logits = np.empty((*given["lse"].shape, len(old.classnames)), given["values"].dtype)
        np.put_along_axis(logits, given["classes"].astype(np.int64), given["values"], -1)
        return {"logits": logits, "lse": given["lse"]}
    kept = {name: tensor for name, tensor in given.items() if name not in ("boxes", "flips")}
    if spec.kind == "topk":
        kept |= {name: kept[name][..., : spec.top_k] for name in ("values", "classes")}
    return kept


def refuse_as_target(out: Path, sources: Iterable[Path]) -> None:
    """Refuse to write into a store that is read from. Raises RegionStoreError."""
    for path in sources:
        if out.exists() and path.exists() and out.samefile(path):
            raise RegionStoreError(f"--out {out} is a store to read from. Give another folder.")


def carry_dump_records(sources: Iterable[Path], store: RegionStore) -> None:
    """Put what the dumps of the sources took beside a store made of them, when all are known."""
    from regions.dump import dump_record_path  # it brings torch

    try:
        found = [json.loads(dump_record_path(path).read_text("utf-8")) for path in sources]
        sessions = [session for record in found for session in record["sessions"]]
        record = {
            "format": 1,
            "spec_id": store.spec.id,
            "teacher": store.spec.teacher,
            "device": found[0]["device"],
            "seconds": round(sum(session["seconds"] for session in sessions), 3),
            "regions": sum(session["regions"] for session in sessions),
            "sessions": sessions,
        }
    except (OSError, ValueError, KeyError, TypeError):
        return  # lost or foreign: only the time is lost
    write_whole(dump_record_path(store.path), (json.dumps(record, indent=1) + "\n").encode())


def progress(what: str, shards: Sequence[int]) -> Iterable[int]:
    """Go through shards with a progress bar."""
    with _bar(what, len(shards), " shards") as bar:
        for shard in shards:
            yield shard
            bar.update()


def _bar(what: str, total: int, unit: str) -> tqdm:
    waits = 0.5 if sys.stderr.isatty() else 10
    return tqdm(total=total, desc=what, unit=unit, unit_scale=unit == "B", mininterval=waits)
