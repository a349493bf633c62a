"""What identifies a dump: RegionSpec, its canonical JSON and its id."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from regions.store.images import MAX_IMAGES, ImageTable, RegionImage
from regions.store.kinds import KINDS, VALUES
from regions.store.tensors import canonical_json

# Fields that are known once the teacher is loaded: RegionSpec.with_teacher fills them.
FROM_TEACHER = ("teacher_digest", "image_size", "feature_width", "logit_scale")


def relative_path(impath: str | Path, root: str | Path) -> str:
    """Name an image by its place under the data root, so that a store survives a moved root.

    Raises:
        ValueError: the image does not lie under the root.
    """
    root = os.path.abspath(os.path.expanduser(root))
    relative = Path(os.path.relpath(os.path.abspath(impath), root)).as_posix()
    if relative.split("/")[0] == "..":
        raise ValueError(
            f"{impath} does not lie under the data root {root}. "
            "Images are stored by their path under the root: set --root to a folder above them."
        )
    return relative


def region_settings(cfg: Any) -> dict[str, Any]:
    """Read from a config how regions are drawn: what a dump and a run on it must agree on.

    Returns num_regions, scale, ratio, flip and seed under the names RegionSpec gives them.
    Raises ValueError, naming the key, when a value makes no sense.
    """
    keys = cfg.TRAINER.FDBPL
    settings = {
        "num_regions": keys.NUM_REGIONS,
        "scale": tuple(float(value) for value in keys.REGION_SCALE),
        "ratio": tuple(float(value) for value in keys.REGION_RATIO),
        "flip": float(keys.REGION_FLIP),
        "seed": cfg.SEED,
    }
    check_settings(**settings)
    return settings


def check_settings(
    num_regions: int,
    scale: tuple[float, ...],
    ratio: tuple[float, ...],
    flip: float,
    seed: int,
) -> None:
    """Raise ValueError, naming the config key, unless regions can be drawn this way."""
    if type(num_regions) is not int or num_regions < 1:
        raise ValueError(f"TRAINER.FDBPL.NUM_REGIONS is {num_regions}; it needs 1 or more.")
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(
            f"TRAINER.FDBPL.REGION_SCALE is {scale}; "
            "it needs 0 < low <= high <= 1, for example (0.08, 0.936)."
        )
    if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1] < math.inf:
        raise ValueError(
            f"TRAINER.FDBPL.REGION_RATIO is {ratio}; "
            "it needs 0 < low <= high, width by height, for example (0.75, 1.3333333333333333)."
        )
    if not 0 <= flip <= 1:
        raise ValueError(f"TRAINER.FDBPL.REGION_FLIP is {flip}; it needs a probability, 0 to 1.")
    if type(seed) is not int or seed < 0:
        raise ValueError(
            f"SEED is {seed}; regions and few-shot images are drawn from it, "
            "so give --seed a number of 0 or more."
        )


@dataclass(frozen=True)
class RegionSpec:
    """What a dump contains. Dumps with equal specs are interchangeable."""

    teacher: str  # name, as in TRAINER.FDBPL.TEACHER
    teacher_digest: str  # sha256 of its weights
    teacher_precision: str  # fp32, fp16 or bf16: what it computed in
    template: str  # hand-written prompt, e.g. "a photo of a {}."
    classnames: tuple[str, ...]  # class c of the logits
    images: Sequence[RegionImage]  # kept as an ImageTable
    image_size: int  # side in pixels of a cut region: the teacher's input
    num_regions: int  # per image
    scale: tuple[float, float]  # region area / image area, low and high
    ratio: tuple[float, float]  # region width / region height, low and high
    flip: float  # probability that a region is mirrored
    seed: int  # of the regions
    image_seeds: tuple[int, ...] = ()  # whose few-shot images these are; () means (seed,)
    kind: str = "logits"  # what is kept of a region, see regions.store.kinds
    dtype: str = "float16"  # of the kept values
    top_k: int = 0  # kind topk: classes kept
    feature_width: int = 0  # kind features: numbers per region, D
    logit_scale: float = 0.0  # kind features: logits are logit_scale * feature @ text feature

    def __post_init__(self) -> None:
        check_settings(self.num_regions, self.scale, self.ratio, self.flip, self.seed)
        if not self.teacher:
            raise ValueError("TRAINER.FDBPL.TEACHER is empty; name the teacher, e.g. ViT-L/14.")
        if len(self.classnames) < 2:
            raise ValueError(
                f"the data set has {len(self.classnames)} class(es); a teacher needs 2 or more. "
                "Check DATASET.SUBSAMPLE_CLASSES and the folder of the data set."
            )
        if not self.images:
            raise ValueError(
                "there is no training image to dump. "
                "Check DATASET.NUM_SHOTS, DATASET.SUBSAMPLE_CLASSES and the data set's folder."
            )
        if self.image_size < 0:
            raise ValueError(f"image_size is {self.image_size}; it needs the teacher's input size.")
        self._check_kind()
        set_field = partial(object.__setattr__, self)  # the dataclass is frozen
        set_field("image_seeds", self.image_seeds or (self.seed,))
        if not isinstance(self.images, ImageTable):
            set_field("images", ImageTable.of(self.images))
        if self.images.is_loaded:  # a table on disk is checked when it is read
            self._check_labels()

    def _check_kind(self) -> None:
        if self.kind not in KINDS or self.dtype not in VALUES:
            raise ValueError(
                f"TRAINER.FDBPL.STORE_KIND is {self.kind} and STORE_DTYPE {self.dtype}, but a "
                f"store keeps {', '.join(KINDS)} as {', '.join(VALUES)}."
            )
        classes = len(self.classnames)
        if not (1 <= self.top_k <= classes if self.kind == "topk" else self.top_k == 0):
            raise ValueError(
                f"TRAINER.FDBPL.TOP_K is {self.top_k} for a store of {self.kind}; "
                f"kind topk needs 1 to {classes}, the number of classes, other kinds need 0."
            )
        known = self.feature_width >= 0 and 0 <= self.logit_scale < 65504
        if not known or (self.kind != "features" and (self.feature_width or self.logit_scale)):
            raise ValueError(
                f"a store of {self.kind} has feature_width {self.feature_width} and logit_scale "
                f"{self.logit_scale}; only kind features has them, from the teacher."
            )

    def _check_labels(self) -> None:
        labels = self.images.labels
        wrong = ((labels < 0) | (labels >= len(self.classnames))).nonzero()[0]
        if len(wrong):
            image = self.images[int(wrong[0])]
            raise ValueError(
                f"{image.path} has label {image.label}, "
                f"but there are {len(self.classnames)} class names."
            )

    @classmethod
    def from_cfg(
        cls,
        cfg: Any,
        *,
        template: str,
        classnames: Sequence[str],
        images: Sequence[RegionImage],
        teacher_precision: str,
        teacher_digest: str = "",
        image_size: int = 0,
        image_seeds: Sequence[int] = (),
    ) -> RegionSpec:
        """Join the config's region keys with what the data set and the teacher say.

        teacher_digest and image_size may be left out until with_teacher.
        Raises ValueError, naming the key, when a value makes no sense.
        """
        keys = cfg.TRAINER.FDBPL
        return cls(
            teacher=keys.TEACHER,
            teacher_digest=teacher_digest,
            teacher_precision=teacher_precision,
            template=template,
            classnames=tuple(classnames),
            images=images,
            image_size=image_size,
            image_seeds=tuple(image_seeds),
            kind=keys.STORE_KIND,
            dtype=keys.STORE_DTYPE,
            top_k=min(keys.TOP_K, len(classnames)) if keys.STORE_KIND == "topk" else 0,
            **region_settings(cfg),
        )

    def with_teacher(
        self, digest: str, image_size: int, feature_width: int, logit_scale: float
    ) -> RegionSpec:
        """The spec with what only the loaded teacher knows; see FROM_TEACHER."""
        known = {"teacher_digest": digest, "image_size": image_size}
        if self.kind == "features":
            known |= {"feature_width": feature_width, "logit_scale": float(logit_scale)}
        return replace(self, **known)

    def to_json(self) -> dict[str, Any]:
        """The spec as plain JSON values; images are named by their number and checksum."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        plain["images"] = {"count": len(self.images), "sha256": self.images.digest}
        return json.loads(canonical_json(plain))

    @classmethod
    def from_json(cls, plain: Any, table: Callable[[int, str, int], ImageTable]) -> RegionSpec:
        """Read what to_json wrote.

        table: makes the list of images from their number, checksum and the number of classes.
        Raises ValueError when it is anything else.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(plain, dict) or set(plain) != names:
            raise ValueError(f"a spec needs exactly the fields {', '.join(sorted(names))}.")
        for name, is_right in _JSON_TYPES.items():
            if not is_right(plain[name]):
                raise ValueError(f"{name} of the spec cannot be {str(plain[name])[:80]!r}.")
        values = {k: tuple(v) if type(v) is list else v for k, v in plain.items()}
        count, digest = plain["images"]["count"], plain["images"]["sha256"]
        values["images"] = table(count, digest, len(plain["classnames"]))
        return cls(**values)

    @cached_property
    def id(self) -> str:
        """sha256 of the canonical JSON, in hex: equal exactly when the specs are equal."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()


def _is(wanted: type) -> Callable[[Any], bool]:
    return lambda value: type(value) is wanted  # a bool is no int here


def _list_of(wanted: type, length: int | None = None) -> Callable[[Any], bool]:
    return lambda value: (
        type(value) is list
        and length in (None, len(value))
        and all(type(part) is wanted for part in value)
    )


def _is_image_list(value: Any) -> bool:
    return (
        type(value) is dict
        and value.keys() == {"count", "sha256"}
        and type(value["count"]) is int
        and 1 <= value["count"] <= MAX_IMAGES
        and type(value["sha256"]) is str
    )


_TEXTS = ("teacher", "teacher_digest", "teacher_precision", "template", "kind", "dtype")
_NUMBERS = ("image_size", "num_regions", "seed", "top_k", "feature_width")
_JSON_TYPES: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(_TEXTS, _is(str)),
    **dict.fromkeys(_NUMBERS, _is(int)),
    **dict.fromkeys(("flip", "logit_scale"), _is(float)),
    **dict.fromkeys(("scale", "ratio"), _list_of(float, 2)),
    "classnames": _list_of(str),
    "image_seeds": _list_of(int),
    "images": _is_image_list,
}
