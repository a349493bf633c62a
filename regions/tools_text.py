"""Words about stores: what one holds, and what differs between two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from regions.files import RegionStoreError
from regions.layout import MANIFEST, shard_name
from regions.manifest import Manifest, find_dump
from regions.spec import RegionSpec
from regions.store import RegionStore
from regions.summary import SURVEYED, probabilities, survey
from regions.text import kept_variants

KEPT = ("kind", "dtype", "top_k", "feature_width", "logit_scale", "images", "image_seeds")


def info(path: str | Path, max_images: int = SURVEYED) -> str:
    """A summary for people, of a finished store or of a dump on its way.

    Raises:
        RegionStoreError: there is no dump, or it is damaged.
    """
    path = Path(path).expanduser()
    found = _dump_in(path)
    store = RegionStore.open(path) if found.shards is not None else None
    rows = {"Store": str(path), **_of_spec(found.spec), **_of_files(path, found)}
    if store:
        rows |= _of_values(store, max_images)
        rows |= _of_text(store)
    rows |= _of_dump(path)
    return "\n".join(f"{name:<15} {value}" for name, value in rows.items())


def _dump_in(path: Path) -> Manifest:
    found = find_dump(path)
    if found is None:
        RegionStore.open(path)  # says so
        raise RegionStoreError(f"{path} holds no region store.")
    return found


def _of_spec(spec: RegionSpec) -> dict[str, str]:
    counts = np.bincount(spec.images.labels, minlength=len(spec.classnames))
    each = " to ".join(map(str, sorted({int(counts.min()), int(counts.max())})))
    (low, high), (narrow, wide) = spec.scale, spec.ratio
    kept = {
        "logits": "of every class",
        "topk": f"of the {spec.top_k} likeliest classes",
        "features": f"{spec.feature_width} numbers, logit scale {spec.logit_scale:.4g}",
    }
    return {
        "Teacher": f"{spec.teacher}, {spec.teacher_precision}",
        "Weights": spec.teacher_digest or "not known",
        "Prompt": spec.template,
        "Classes": f"{len(spec.classnames)}: {_examples(spec.classnames)}",
        "Images": f"{len(spec.images):,}, {each} of each class, e.g. {spec.images[0].path}",
        "Regions": f"{spec.num_regions} per image, {len(spec.images) * spec.num_regions:,} in all, "
        f"{spec.image_size} x {spec.image_size} pixels",
        "Drawn": f"seed {spec.seed}, area {low:g} to {high:g} of the image, "
        f"width / height {narrow:.3g} to {wide:.3g}, mirrored {spec.flip:g}",
        "Serves": f"runs of --seed {', '.join(map(str, spec.image_seeds))}",
        "Kept": f"{spec.kind} ({kept[spec.kind]}) in {spec.dtype}",
    }


def _of_files(path: Path, found: Manifest) -> dict[str, str]:
    images = len(found.spec.images)
    if found.shards is None:
        number = -(-images // found.shard_images)
        there = sum((path / shard_name(index)).exists() for index in range(number))
        todo = "Run the dump again with the flags it was started with: it continues."
        return {"On disk": f"not finished: {there} of {number} shards. {todo}"}
    size = sum(file.bytes for file in (*found.shards, *found.files.values()))
    size += (path / MANIFEST).stat().st_size
    each = human(size / images)
    return {"On disk": f"{human(size)} in {len(found.shards)} shards, {each} per image"}


def _of_values(store: RegionStore, max_images: int) -> dict[str, str]:
    seen = survey(store, max_images)
    looked = len(seen.images_N)
    part = f" (of {looked:,} of the images)" if looked < len(store) else ""
    low, middle, high = np.quantile(seen.weights_NM, (0.1, 0.5, 0.9))
    return {
        "Teacher top-1": f"{seen.region_accuracy:.1f} % of the regions, "
        f"{seen.image_accuracy:.1f} % of the images (mean probability over the regions){part}",
        "Region weight w": f"mean {seen.weights_NM.mean():.3f}; 10 % are below {low:.2f}, "
        f"half below {middle:.2f}, 90 % below {high:.2f}{part}",
    }


def _of_text(store: RegionStore) -> dict[str, str]:
    kept = [f"{text.variant} ({text.num_classes} classes)" for text in kept_variants(store)]
    return {"Text variants": f"{', '.join(kept)}, in {store.path.name}.text"} if kept else {}


def _of_dump(path: Path) -> dict[str, str]:
    from regions.dump import dump_record_path, dump_seconds  # they bring torch

    seconds = dump_seconds(path)
    lost = f"not known: {dump_record_path(path).name} is not beside the store"
    return {"Dump took": lost if seconds is None else f"{seconds:.1f} s"}


def human(size: float) -> str:
    """Bytes in words."""
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB")) if size >= u), (1e3, "kB"))
    return f"{size / unit:.1f} {name}"


# --- what differs ---------------------------------------------------------------------------


def diff(path: str | Path, other: str | Path) -> list[str]:
    """What differs between two dumps, a line each; nothing for equal ones.

    First the fields of the specs; then, where both hold the same regions of some images and the
    same classes, and both are finished, the values on those images.

    Raises:
        RegionStoreError: a folder holds no dump, or a damaged one.
    """
    paths = [Path(path).expanduser(), Path(other).expanduser()]
    one, two = (_dump_in(place).spec for place in paths)
    lines = []
    for name in (field.name for field in fields(RegionSpec)):
        old, new = getattr(one, name), getattr(two, name)
        if old == new:
            continue
        if name == "classnames":
            lines += _sets_differ("classes", old, new)
        elif name == "images":
            lines += _images_differ(one, two)
        else:
            lines.append(f"{name}: {_plain(old)} | {_plain(new)}")
    for place in paths:
        if not (place / MANIFEST).exists():
            return [*lines, f"values: not compared, the dump in {place} is not finished"]
    others = [f.name for f in fields(RegionSpec) if f.name not in KEPT]
    if any(getattr(one, name) != getattr(two, name) for name in others):
        return lines
    return lines + _values_differ(*map(RegionStore.open, paths))


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _sets_differ(noun: str, old: Sequence[str], new: Sequence[str]) -> list[str]:
    lines = [f"{noun}: {len(old)} | {len(new)}"]
    for side, here, there in (("left", old, set(new)), ("right", new, set(old))):
        only = [name for name in here if name not in there]
        if only:
            lines.append(f"{noun}: {len(only)} on the {side} only, {_examples(only)}")
    if len(lines) == 1 and len(old) == len(new):
        place = next(i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
        where = f"first at {place + 1}: {old[place]} | {new[place]}"
        lines = [f"{noun}: in another order, {where}"]
    return lines


def _images_differ(one: RegionSpec, two: RegionSpec) -> list[str]:
    old, new = ({image.path: image for image in spec.images} for spec in (one, two))
    lines = []
    if list(old) != list(new):
        lines += _sets_differ("images", list(old), list(new))
    changed = [path for path in old if path in new and old[path] != new[path]]
    if changed:
        (_, *left), (_, *right) = old[changed[0]], new[changed[0]]
        lines.append(
            f"images: {len(changed)} with another label, height or width, "
            f"e.g. {changed[0]}: {_plain(tuple(left))} | {_plain(tuple(right))}"
        )
    return lines


def _values_differ(one: RegionStore, two: RegionStore, max_images: int = SURVEYED) -> list[str]:
    there = two.spec.images.find([image.path for image in one.spec.images])
    common = np.flatnonzero(there >= 0)
    if not len(common):
        return []
    # Evenly spread over the images, all of them when they are few.
    common = common[np.unique(np.linspace(0, len(common) - 1, max_images).astype(int))]
    every = np.arange(one.spec.num_regions)
    moved, gaps = 0, np.zeros(2)
    for index in common.tolist():
        left, right = one.read(index, every), two.read(int(there[index]), every)
        same = (left.boxes == right.boxes).all(-1) & (left.flips == right.flips)
        moved += int((~same).sum())
        gap_p = probabilities(left.logits) - probabilities(right.logits)
        worst = np.abs(left.logits - right.logits).max(), np.abs(gap_p).max()
        gaps = np.maximum(gaps, worst)
    on = f"on {len(common):,} images"
    lines = [f"boxes and flips: {moved} of {len(common) * len(every)} differ {on}"] if moved else []
    if gaps[0]:
        lines.append(f"values: logits differ by at most {gaps[0]:.3g}, p by {gaps[1]:.3g} {on}")
    return lines


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
