"""Words about a store: what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from files import human
from regions.store import RegionStore
from regions.store.layout import MANIFEST, Manifest, find_dump, shard_name
from regions.store.record import dump_record_path, dump_seconds
from regions.store.spec import RegionSpec
from regions.store.teacher_text import kept_variants
from regions.store.tensors import RegionStoreError
from regions.tools.survey import SURVEYED, survey
from wording import counted


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
    rows |= _of_dump(path, found.spec.id)
    return "\n".join(f"{name:<16} {value}" for name, value in rows.items())


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
        "Teacher accuracy": f"{seen.teacher_accuracy:.1f} % of the regions{part}",
        "Region weight w": f"mean {seen.weights_NM.mean():.3f}; 10 % are below {low:.2f}, "
        f"half below {middle:.2f}, 90 % below {high:.2f}{part}",
    }


def _of_text(store: RegionStore) -> dict[str, str]:
    kept = [
        f"{text.variant} ({counted(text.num_classes, 'class')})" for text in kept_variants(store)
    ]
    return {"Text variants": f"{', '.join(kept)}, in {store.path.name}.text"} if kept else {}


def _of_dump(path: Path, spec_id: str) -> dict[str, str]:
    seconds = dump_seconds(path, spec_id)
    lost = f"not known: {dump_record_path(path).name} is not beside the store"
    return {"Dump took": lost if seconds is None else f"{seconds:.1f} s"}


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
