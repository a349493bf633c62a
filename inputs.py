"""Images and text files as people have them, read in one way by every command.

Dump, training, test, prediction and tools all get the pixels of read_image(); docs/OWN_DATA.md
tells users what it does with 16 bits, floats, transparency and rotation.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

SUFFIXES = (  # of files that are taken for images in a folder, in small letters
    ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
FULL_SCALES = (255, 65535)  # of 32-bit pixels; floats have 1 before them

# Between 89 and 179 million pixels Pillow reads an image and warns without its name.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def is_image(name: str) -> bool:
    """Whether a file's name says that it is an image; hidden files are none."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def read_image(path: str | os.PathLike) -> Image.Image:
    """Read an image file as 8-bit RGB: see to_rgb.

    Raises:
        ValueError: the file is missing or no readable image; the message names it.
    """
    try:
        with open(path, "rb") as file:
            return decode(file)
    except Exception as error:  # decoders raise whatever they like
        raise ValueError(unreadable(path, error)) from None


def decode(file: BinaryIO) -> Image.Image:
    """The image of an open file as 8-bit RGB; raises what Pillow raises."""
    with Image.open(file) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB.

    Modes of 8 bits or fewer: Pillow's convert("RGB"), as in the family's code. Transparency is left
    out, so that a pixel has the colour that is stored under it. More bits, which Pillow would cut
    off at 255, are scaled to 0..255 and rounded: 16 bits by 1/257; 32-bit whole numbers from the
    first of 0..255, 0..65535 that holds all pixels of the image, floats from 0..1 or these, and
    what fits none of them from the image's own lowest..highest. The EXIF rotation is not applied.

    Raises:
        ValueError: a float pixel is not finite.
    """
    if not is_deep(image):
        image.info.pop("transparency", None)  # Pillow would warn of it, and leave it out as well
        return image.convert("RGB")
    pixels_HW = np.asarray(image).astype(np.float64)
    if not np.isfinite(pixels_HW).all():
        raise ValueError("it has pixels that are not finite")
    low, high = float(pixels_HW.min()), float(pixels_HW.max())
    if image.mode != "F" and (image.mode != "I" or image.format in ("PNG", "PPM")):
        low, high = 0.0, 65535.0  # these formats have no 32 bits: "I" is how Pillow holds 16
    elif low >= 0:
        scales = (1, *FULL_SCALES) if image.mode == "F" else FULL_SCALES
        full = next((scale for scale in scales if high <= scale), None)
        low, high = (low, high) if full is None else (0.0, float(full))
    scaled_HW = np.rint((pixels_HW - low) / ((high - low) or 1.0) * 255)
    return Image.fromarray(scaled_HW.astype(np.uint8)).convert("RGB")


def is_deep(image: Image.Image) -> bool:
    """Whether its pixels have more bits than 8 as Pillow holds them."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def unreadable(path: str | os.PathLike, error: Exception) -> str:
    """One line for whatever went wrong with an image file."""
    if isinstance(error, FileNotFoundError):
        return f"image {path} is missing. Check --root."
    large = isinstance(error, Image.DecompressionBombError)
    way_out = "Scale it down" if large else "Fetch it again"
    return f"image {path} cannot be read ({reason(error)}). {way_out}, or take it out."


def reason(error: Exception) -> str:
    """Why an image cannot be read."""
    if isinstance(error, Image.DecompressionBombError):
        return f"too large: {str(error).partition(', could')[0]}"
    if isinstance(error, UnidentifiedImageError):
        return "in no format that Pillow knows"
    return " ".join(str(error).split()) or type(error).__name__


def image_id(path: str | os.PathLike) -> int:
    """64 bits of an image's path, size, and times of change; another id is another image.

    The inode's time counts as well: no program can write a file and leave that as it was.
    """
    file = os.stat(path)
    text = f"{os.path.abspath(path)}\n{file.st_size}\n{file.st_mtime_ns}\n{file.st_ctime_ns}"
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "little")


def read_text(path: str | os.PathLike) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: it is in another encoding; the message has the line and how to convert it.
    """
    content = Path(path).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf_16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: byte {error.start + 1} of the file "
            f"(0x{content[error.start]:02x}) is not UTF-8. Save it as UTF-8, for example: iconv -f "
            f"{'UTF-16' if utf_16 else 'LATIN1'} -t UTF-8 {path} > utf8.txt"
        ) from None
