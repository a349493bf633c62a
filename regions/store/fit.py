"""Whether a store is what a run needs, or what a dump that continues asks for; else the way out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from regions.store.images import RegionImage
from regions.store.spec import RegionSpec, region_settings
from regions.store.tensors import RegionStoreError
from wording import counted, listed


@dataclass(frozen=True)
class RunNeeds:
    """What a training run asks of a store."""

    teacher: str
    teacher_digest: str | None  # None: not known without loading the teacher, not compared
    template: str
    num_regions: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: float
    seed: int
    classnames: tuple[str, ...]  # in the order of the run's labels; a subset of the store's
    images: tuple[str, ...]  # relative paths; a subset of the store's

    @classmethod
    def from_cfg(
        cls,
        cfg: Any,
        *,
        template: str,
        classnames: Sequence[str],
        images: Sequence[str],
        teacher_digest: str | None = None,
    ) -> RunNeeds:
        """Join the config's region keys with what the data set says."""
        return cls(
            teacher=cfg.TRAINER.FDBPL.TEACHER,
            teacher_digest=teacher_digest,
            template=template,
            classnames=tuple(classnames),
            images=tuple(images),
            **region_settings(cfg),
        )


# field of the spec -> what the store holds, and the config key or flag that asks for it
SETTINGS = {
    "template": ("logits for the prompt {!r}", "DATASET.TEMPLATE"),
    "num_regions": ("{} regions per image", "TRAINER.FDBPL.NUM_REGIONS"),
    "scale": ("regions with an area of {} of the image", "TRAINER.FDBPL.REGION_SCALE"),
    "ratio": ("regions with width / height in {}", "TRAINER.FDBPL.REGION_RATIO"),
    "flip": ("regions mirrored with probability {}", "TRAINER.FDBPL.REGION_FLIP"),
}
_DUMP_SETTINGS = {
    **SETTINGS,
    "teacher": ("logits of {}", "TRAINER.FDBPL.TEACHER"),
    "teacher_digest": ("logits of a teacher with weights {}", ""),
    "seed": ("regions drawn with seed {}", "--seed"),
    "image_seeds": ("images of the seeds {}", "--union-of-seeds"),
    "teacher_precision": ("logits computed in {}", "TRAINER.FDBPL.TEACHER_PREC"),
    "image_size": ("regions of {} pixels a side", ""),
    "kind": ("{} of each region", "TRAINER.FDBPL.STORE_KIND"),
    "dtype": ("values in {}", "TRAINER.FDBPL.STORE_DTYPE"),
    "top_k": ("the {} likeliest classes", "TRAINER.FDBPL.TOP_K"),
    "feature_width": ("features of width {}", ""),
    "logit_scale": ("features for a logit scale of {}", ""),
}


def refuse(path: Path, field: str, found: Any, wanted: Any) -> None:
    noun, key = _DUMP_SETTINGS[field]
    holds = f"{path} holds {noun.format(found)}"
    if not key:
        raise RegionStoreError(
            f"{holds}, but this run has {noun.format(wanted)}. "
            "Use the teacher the store was made with, or dump again into another --store."
        )
    value = f'"{found}"' if isinstance(found, (tuple, str)) and " " in str(found) else found
    raise RegionStoreError(
        f"{holds}, but {key} is {wanted}. Set {key} {value}, or dump again into another --store."
    )


def require_same_spec(
    path: Path, found: RegionSpec, wanted: RegionSpec, ignore: Sequence[str] = ()
) -> None:
    """Refuse to continue a dump under another spec. Raises RegionStoreError for the first field."""
    for field in (f.name for f in fields(RegionSpec)):
        old, new = getattr(found, field), getattr(wanted, field)
        if field in ignore or old == new:
            continue
        if field == "classnames":
            old, new = _first_difference(old, new, len(old), len(new), "classes", "{!r}")
        elif field == "images":
            _require_same_images(path, found, wanted)
            old, new = _first_difference(old, new, len(old), len(new), "images", "{}")
        else:
            refuse(path, field, old, new)
        raise RegionStoreError(f"{path} is a dump of {old}, but this call has {new}. {_OTHER_DUMP}")


def split_moved(path: Path, stored: int, asked: int, missing: Sequence[str]) -> str:
    """Why a store has no regions of some of the images that a run asks for, and the ways out."""
    holds = f"{path} holds regions of {counted(stored, 'image')}, but of {len(missing)} of the "
    holds += f"{asked} asked for it holds none: {listed(missing)}."
    if len(missing) == asked:
        return (
            f"{holds} It is of other images: set --root, the data set, --seed, DATASET.NUM_SHOTS "
            "and DATASET.SUBSAMPLE_CLASSES as in the dump, or dump again into another --store."
        )
    return (
        f"{holds} The split moved: images were added, removed or renamed since the dump, or "
        "DATASET.NUM_SHOTS or DATASET.SUBSAMPLE_CLASSES is another. Restore the images or set "
        "these as in the dump, or dump again into another --store."
    )


def _require_same_images(path: Path, found: RegionSpec, wanted: RegionSpec) -> None:
    """Refuse other images under the same settings. Raises RegionStoreError."""
    then, now = ([image.path for image in spec.images] for spec in (found, wanted))
    removed, added = sorted(set(then) - set(now)), sorted(set(now) - set(then))
    if not (removed or added) or len(removed) == len(then):
        return
    changes = [f"{listed(names)} {what}" for names, what in
               ((added, "added"), (removed, "removed")) if names]  # fmt: skip
    raise RegionStoreError(
        f"{path} is a dump of {counted(len(then), 'image')}, but this call has {len(now)}: the "
        f"split moved ({'; '.join(changes)}). Restore the images, or set DATASET.NUM_SHOTS and "
        "DATASET.SUBSAMPLE_CLASSES as in that dump, or give another --store."
    )


_OTHER_DUMP = (
    "Set --root, --seed, DATASET.NUM_SHOTS and DATASET.SUBSAMPLE_CLASSES as in that dump, "
    "or give another --store."
)


def _first_difference(
    old: Sequence, new: Sequence, num_old: int, num_new: int, noun: str, form: str
) -> tuple[str, str]:
    if num_old != num_new:
        return f"{num_old} {noun}", f"{num_new}"
    pairs = enumerate(zip(old, new, strict=True))
    place = next((i for i, (a, b) in pairs if a != b), 0)
    values = [_describe(value) for value in (old[place], new[place])]
    return tuple(f"{num_old} {noun}, number {place + 1} being {value}" for value in values)


def _describe(value: RegionImage | str) -> str:
    if isinstance(value, RegionImage):
        return f"{value.path} (label {value.label}, {value.height} x {value.width})"
    return repr(value)
