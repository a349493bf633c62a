"""Merge stores: the shards of one dump from several machines, or stores of different images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from regions.files import RegionStoreError, Tensors
from regions.layout import TEXT, shard_ranges, whole_shard, whole_text
from regions.manifest import find_dump
from regions.spec import RegionSpec
from regions.store import RegionStore
from regions.tools import carry_dump_records, progress, refuse_as_target
from regions.writer import StoreWriter


class Merged(NamedTuple):
    """What merge did."""

    store: RegionStore
    shared: int  # images that several stores had
    difference: float  # largest between their values, those of the first store were kept


def merge(paths: Sequence[str | Path], out: str | Path) -> Merged:
    """Join the shards of one dump, made on several machines; or stores of different images.

    Dumps of one spec may be unfinished or damaged: each shard is taken from the first that has it
    whole. Stores that differ in their images alone become one of all images, in the order given.
    Called again after a kill, it continues.

    Raises:
        RegionStoreError: the stores do not fit each other, or a shard is nowhere whole (the
            others are in out then, where a dump can continue).
        OSError: out cannot be written.
    """
    sources, out = [Path(path).expanduser() for path in paths], Path(out).expanduser()
    if len(sources) < 2:
        raise RegionStoreError("merge needs two stores or more.")
    refuse_as_target(out, sources)
    dumps = [find_dump(path) for path in sources]
    for path, found in zip(sources, dumps, strict=True):
        if found is None:
            raise RegionStoreError(f"{path} holds no dump.")
    first = dumps[0].spec
    if all(found.spec.id == first.id for found in dumps):
        layouts = sorted({found.shard_images for found in dumps})
        if len(layouts) == 1:
            joined = _join_shards(sources, first, layouts[0], out)
            carry_dump_records(sources, joined)
            return Merged(joined, 0, 0.0)
        if not all(found.shards for found in dumps):
            raise RegionStoreError(
                f"the dumps in {', '.join(map(str, sources))} have {_listed(layouts)} images per "
                f"shard. Dump again with --shard-images {layouts[0]}, or finish each and merge."
            )
    for path, found in zip(sources[1:], dumps[1:], strict=True):
        _require_mergeable(sources[0], first, path, found.spec)
    merged = _unite([RegionStore.open(path) for path in sources], out)
    carry_dump_records(sources, merged.store)
    return merged


def _join_shards(
    sources: Sequence[Path], spec: RegionSpec, shard_images: int, out: Path
) -> RegionStore:
    ranges = shard_ranges(spec, shard_images)
    with StoreWriter(out, spec, shard_images) as writer:
        for index in progress("merge", writer.missing):
            for path in sources:
                found = whole_shard(path, spec, index, *ranges[index])
                if found is not None:
                    writer.write(index, found[0])
                    break
        texts = (whole_text(path, spec) for path in sources if writer.needs_text)
        text = next((found for found in texts if found is not None), None)
        if text is not None:
            writer.write_text(text[0]["text"])
        if writer.missing or writer.needs_text:
            lacking = _listed(writer.missing) if writer.missing else TEXT
            raise RegionStoreError(
                f"no store has shard {lacking} of {len(ranges)} whole. What there is lies in "
                f"{out}: merge again with another store, or run the dump with --store {out}."
            )
        if not writer.is_finished:
            writer.finish()
    return RegionStore.open(out)


def _require_mergeable(path: Path, spec: RegionSpec, other_path: Path, other: RegionSpec) -> None:
    for name in (field.name for field in fields(RegionSpec)):
        one, two = getattr(spec, name), getattr(other, name)
        if name in ("images", "image_seeds") or one == two:
            continue
        way_out = "Only stores that differ in their images alone can become one."
        if name in ("kind", "dtype", "top_k"):
            way_out = "Convert one of them first: python -m regions convert."
        elif name == "classnames":
            place = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), -1)
            one, two = (
                f"{len(v)} classes" + (f", number {place + 1} being {v[place]!r}" * (place >= 0))
                for v in (one, two)
            )
            way_out = "Dump both with the classes of both, or with DATASET.SUBSAMPLE_CLASSES all."
        raise RegionStoreError(
            f"{path} and {other_path} differ in {name}: {one} and {two}. {way_out}"
        )


def _unite(stores: Sequence[RegionStore], out: Path) -> Merged:
    places: dict[str, tuple[int, int]] = {}  # path -> store, image
    shared, difference = 0, 0.0
    for number, store in enumerate(stores):
        for index, image in enumerate(store.spec.images):
            if image.path not in places:
                places[image.path] = (number, index)
                continue
            other, there = places[image.path]
            shared += 1
            difference = max(difference, _require_same(stores[other], there, store, index))
    spec, chosen = stores[0].spec, list(places.values())
    seeds = sorted({seed for store in stores for seed in store.spec.image_seeds})
    images = tuple(stores[number].spec.images[index] for number, index in chosen)
    spec = replace(spec, images=images, image_seeds=tuple(seeds))
    with StoreWriter(out, spec) as writer:
        for shard in progress("merge", writer.missing):
            start, count = writer.ranges[shard]
            rows = [_image_tensors(stores[n], i) for n, i in chosen[start : start + count]]
            writer.write(shard, {name: np.stack([row[name] for row in rows]) for name in rows[0]})
        if writer.needs_text:
            writer.write_text(stores[0].stored_text)
        if not writer.is_finished:
            writer.finish()
    return Merged(RegionStore.open(out), shared, difference)


def _image_tensors(store: RegionStore, index: int) -> Tensors:
    shard, row = divmod(index, store.shard_images)
    return {name: tensor[row] for name, tensor in store.arrays(shard).items()}


def _require_same(one: RegionStore, index: int, two: RegionStore, other: int) -> float:
    """Largest difference of the values of an image in two stores; refuse other regions."""
    image, same = one.spec.images[index], two.spec.images[other]
    first, second = _image_tensors(one, index), _image_tensors(two, other)
    for name, found, wanted in (
        ("label, height and width", image[1:], same[1:]),
        ("boxes", first["boxes"].tolist(), second["boxes"].tolist()),
        ("flips", first["flips"].tolist(), second["flips"].tolist()),
    ):
        if found != wanted:
            raise RegionStoreError(
                f"{image.path} has {name} {_short(found)} in {one.path}, but {_short(wanted)} in "
                f"{two.path}. Are both of the same data set? Dump one of them again."
            )
    every = np.arange(one.spec.num_regions)
    gap = one.read(index, every).logits - two.read(other, every).logits
    return float(np.abs(gap).max())


def _listed(values: Sequence[int]) -> str:
    shown = [str(value) for value in values[:5]]
    return ", ".join(shown) + (f" and {len(values) - 5} more" if len(values) > 5 else "")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
