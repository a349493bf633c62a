"""Images decoded to the last pixel, and a memory of those that could be: own data, --decode.

The memory is a file of 9 bytes an image under DATASET.ROOT/.features, for one folder or table. An
image that changed has another id; a file that is damaged is not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from files import write_whole
from inputs import image_id, is_deep, reason, to_rgb
from wording import counted

SHOWN = 10  # images that a line lists; the others are counted
DEEP, ROTATED = 1, 2  # traits that users are told of
ORIENTATION = 0x0112  # EXIF's tag
MEMORY = np.dtype([("id", "<u8"), ("traits", "u1")])
VERSION = b"checked images 1"  # part of the checksum


@dataclass
class Checked:
    """What decoding found: image path -> reason, or -> traits."""

    broken: dict[str, str] = field(default_factory=dict)
    traits: dict[str, int] = field(default_factory=dict)

    def __contains__(self, path: str) -> bool:
        return path in self.broken

    def problem(self) -> str:
        """All that cannot be read, in one sentence without a full stop."""
        shown = [f"{path} ({why})" for path, why in list(self.broken.items())[:SHOWN]]
        more = len(self.broken) - len(shown)
        total = counted(len(self.broken) + len(self.traits), "image")
        return (
            f"{len(self.broken):,} of {total} cannot be read: {', '.join(shown)}"
            + (f" and {more:,} more" if more else "")
            + "; fetch them again, or take them out"
        )

    def notes(self) -> list[str]:
        """What is done to some images, in sentences without a full stop."""
        said = {
            DEEP: "of 16 or 32 bits scaled to 8 bits (docs/OWN_DATA.md says how), such as",
            ROTATED: "marked as rotated (EXIF) and used as stored, not turned, such as",
        }
        found = {bit: [path for path, traits in self.traits.items() if traits & bit]
                 for bit in said}  # fmt: skip
        return [
            f"{counted(len(found[bit]), 'image')} {text} {found[bit][0]}"
            for bit, text in said.items()
            if found[bit]
        ]


def memory_file(cfg, place: Path) -> Path:
    """Where the check of a folder or table is remembered: beside the features of its images."""
    folder = Path(cfg.TEST.FEATURES_DIR or Path(cfg.DATASET.ROOT, ".features")).expanduser()
    digest = hashlib.sha256(str(place).encode("utf-8", "surrogateescape")).hexdigest()
    return folder / f"checked-{digest[:16]}.bin"


def check_images(paths: Sequence[str], memory: Path | None = None) -> Checked:
    """Decode every image that the memory does not know; missing files are left out.

    Args:
        memory: a file that is read and written; None decodes all and remembers nothing.
    """
    ids = {}
    for path in paths:
        with contextlib.suppress(OSError):
            ids[path] = image_id(path)
    known = _remembered(memory) if memory else {}
    checked = Checked(traits={path: known[i] for path, i in ids.items() if i in known})
    unknown = [path for path in ids if path not in checked.traits]
    try:
        for path, (traits, why) in zip(unknown, _decoded(unknown), strict=True):
            if why:
                checked.broken[path] = why
            else:
                checked.traits[path] = traits
    finally:  # also when it is interrupted
        if memory and unknown:
            _remember(memory, [(ids[path], traits) for path, traits in checked.traits.items()])
    if unknown:
        good = len(unknown) - len(checked.broken)
        print(f"Checked {counted(len(unknown), 'image')}: {good:,} can be read")
    return checked


def _decoded(paths: Sequence[str]) -> Iterator[tuple[int, str]]:
    bar = tqdm(total=len(paths), desc="Checking images", unit="img", disable=None)
    with bar, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for first in range(0, len(paths), 1000):  # not a million tasks at once
            for result in pool.map(look, paths[first : first + 1000]):
                bar.update()
                yield result


def look(path: str | os.PathLike) -> tuple[int, str]:
    """An image's traits, and why it cannot be read: "" where it can."""
    traits = 0
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            to_rgb(image)
            traits = DEEP * is_deep(image)
            with contextlib.suppress(Exception):  # training does not look at damaged EXIF data
                if image.getexif().get(ORIENTATION, 1) in range(2, 9):
                    traits |= ROTATED
    except Exception as error:  # decoders raise whatever they like
        return 0, reason(error)
    return traits, ""


def _remembered(memory: Path) -> dict[int, int]:
    """Traits of the images that could be decoded, by id."""
    try:
        content = memory.read_bytes()
    except OSError:
        return {}
    digest, data = content[:32], content[32:]
    if hashlib.sha256(VERSION + data).digest() != digest:
        print(f"{memory} is damaged or of another version: all images are checked again.")
        return {}
    kept = np.frombuffer(data, MEMORY)
    return dict(zip(kept["id"].tolist(), kept["traits"].tolist(), strict=True))


def _remember(memory: Path, images: list[tuple[int, int]]) -> None:
    data = np.array(images, MEMORY).tobytes()
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_whole(memory, hashlib.sha256(VERSION + data).digest() + data)
    except OSError as error:
        print(f"{memory} cannot be written ({error.strerror}): images are checked in every run.")
