"""What identifies a dump of teacher logits: RegionSpec, its canonical JSON and its id."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

KINDS = ("logits",)  # what a region keeps of the teacher
DTYPES = ("float16",)  # how it is kept


class RegionImage(NamedTuple):
    """One image of a dump."""

    path: str  # relative to the data root, with forward slashes
    label: int  # index into the class names of the dump
    height: int  # pixels
    width: int


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
    """What a dump contains. Dumps with equal specs are interchangeable.

    The defaults at the end are what is stored of each region; other kinds may follow.
    """

    teacher: str  # name, as in TRAINER.FDBPL.TEACHER
    teacher_digest: str  # sha256 of its weights
    teacher_precision: str  # fp32, fp16 or bf16: what it computed in
    template: str  # hand-written prompt, e.g. "a photo of a {}."
    classnames: tuple[str, ...]  # column c of the logits belongs to class c
    images: tuple[RegionImage, ...]
    image_size: int  # side in pixels of a cut region: the teacher's input
    num_regions: int  # per image
    scale: tuple[float, float]  # region area / image area, low and high
    ratio: tuple[float, float]  # region width / region height, low and high
    flip: float  # probability that a region is mirrored
    seed: int
    kind: str = "logits"
    dtype: str = "float16"

    def __post_init__(self) -> None:
        check_settings(self.num_regions, self.scale, self.ratio, self.flip, self.seed)
        if not self.teacher:
            raise ValueError("TRAINER.FDBPL.TEACHER is empty; name the teacher, e.g. ViT-L/14.")
        if self.kind not in KINDS or self.dtype not in DTYPES:
            raise ValueError(
                f"a store keeps {self.kind} as {self.dtype}, but this code knows "
                f"{', '.join(KINDS)} as {', '.join(DTYPES)}."
            )
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
        for image in self.images:
            if not 0 <= image.label < len(self.classnames):
                raise ValueError(
                    f"{image.path} has label {image.label}, "
                    f"but there are {len(self.classnames)} class names."
                )
            if image.height < 1 or image.width < 1:
                raise ValueError(f"{image.path} is {image.height} x {image.width} pixels.")
        if len({image.path for image in self.images}) != len(self.images):
            raise ValueError("an image is listed twice among the training images.")

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
    ) -> RegionSpec:
        """Join the config's region keys with what the data set and the teacher say.

        The last two may be left out until the teacher is loaded (dataclasses.replace fills them).
        Raises ValueError, naming the key, when a value makes no sense.
        """
        return cls(
            teacher=cfg.TRAINER.FDBPL.TEACHER,
            teacher_digest=teacher_digest,
            teacher_precision=teacher_precision,
            template=template,
            classnames=tuple(classnames),
            images=tuple(images),
            image_size=image_size,
            **region_settings(cfg),
        )

    def to_json(self) -> dict[str, Any]:
        """The spec as plain JSON values; an image is a row [path, label, height, width]."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        plain["images"] = [list(image) for image in self.images]
        return json.loads(canonical_json(plain))

    @classmethod
    def from_json(cls, plain: Any) -> RegionSpec:
        """Read what to_json wrote. Raises ValueError when it is anything else."""
        names = {field.name for field in fields(cls)}
        if not isinstance(plain, dict) or set(plain) != names:
            raise ValueError(f"a spec needs exactly the fields {', '.join(sorted(names))}.")
        values = dict(plain)
        for name in ("teacher", "teacher_digest", "teacher_precision", "template", "kind", "dtype"):
            _require(type(values[name]) is str, name, values[name])
        for name in ("image_size", "num_regions", "seed"):
            _require(type(values[name]) is int, name, values[name])
        for name in ("scale", "ratio"):
            _require(_is_row(values[name], (float, float)), name, values[name])
            values[name] = tuple(values[name])
        _require(type(values["flip"]) is float, "flip", values["flip"])
        names = values["classnames"]
        _require(type(names) is list and all(type(n) is str for n in names), "classnames", names)
        values["classnames"] = tuple(names)
        _require(type(values["images"]) is list, "images", values["images"])
        for row in values["images"]:
            _require(_is_row(row, (str, int, int, int)), "images", row)
        values["images"] = tuple(RegionImage(*row) for row in values["images"])
        return cls(**values)

    @cached_property
    def id(self) -> str:
        """sha256 of the canonical JSON, in hex: equal exactly when the specs are equal."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, ASCII, shortest floats."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _is_row(row: Any, types: tuple[type, ...]) -> bool:
    return type(row) is list and tuple(type(value) for value in row) == types


def _require(holds: bool, name: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"{name} of the spec cannot be {str(value)[:80]!r}.")
