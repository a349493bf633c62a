"""Images of every mode and format, and texts of every encoding, are read in one way everywhere."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from dassl.config import get_cfg_default
from PIL import Image

import predict
from datasets.decoding import look
from inputs import SUFFIXES, decode, is_image, read_image, read_text
from regions.dataset import RegionStoreError
from regions.dataset import read_image as read_stored_image
from regions.dump import list_images
from trainers.images import ImageItems

RAMP_HW = np.arange(64).reshape(8, 8)
GREY_HW = np.rint(np.linspace(0, 255, 64)).reshape(8, 8)  # what a full ramp of any depth becomes
FULL_HW = np.linspace(0, 1, 64).reshape(8, 8)


def grey(values_HW) -> np.ndarray:
    return np.repeat(np.asarray(values_HW, np.uint8)[..., None], 3, axis=-1)


def palette(**_) -> Image.Image:
    image = Image.fromarray(RAMP_HW.astype(np.uint8), "P")
    image.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
    return image


COLOURS = np.stack([RAMP_HW, 255 - RAMP_HW, np.full_like(RAMP_HW, 7)], -1).astype(np.uint8)
RGBA = np.concatenate([COLOURS, RAMP_HW[..., None].astype(np.uint8)], -1)
CMYK = np.stack([RAMP_HW, 2 * RAMP_HW, RAMP_HW, np.full_like(RAMP_HW, 10)], -1).astype(np.uint8)
CMYK_AS_RGB = np.asarray(Image.fromarray(CMYK, "CMYK").convert("RGB"))
ALPHA = bytes(range(0, 256))


def made(values, mode=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the mode as an argument
        return Image.fromarray(values, mode)


# name -> image, file suffix, save options, the pixels it must give
CASES = {
    "RGB": (made(COLOURS), ".png", {}, COLOURS),
    "L": (made(RAMP_HW.astype(np.uint8)), ".png", {}, grey(RAMP_HW)),
    "P": (palette(), ".png", {}, COLOURS),
    "P, one colour transparent": (palette(), ".png", {"transparency": 5}, COLOURS),
    "P, alphas in bytes": (palette(), ".png", {"transparency": ALPHA}, COLOURS),
    "P, gif": (palette(), ".gif", {"transparency": 5}, COLOURS),
    "RGBA": (made(RGBA), ".png", {}, COLOURS),
    "RGBA, webp": (made(RGBA), ".webp", {"lossless": True, "exact": True}, COLOURS),
    "LA": (made(np.stack([RAMP_HW] * 2, -1).astype(np.uint8), "LA"), ".png", {}, grey(RAMP_HW)),
    "L, transparent": (made(RAMP_HW.astype(np.uint8)), ".png", {"transparency": 3}, grey(RAMP_HW)),
    "1": (made(RAMP_HW % 2 > 0), ".png", {}, grey(255 * (RAMP_HW % 2))),
    "CMYK": (made(CMYK, "CMYK"), ".tif", {}, CMYK_AS_RGB),
    "16 bits, png": (made(np.uint16(65535 * FULL_HW)), ".png", {}, grey(GREY_HW)),
    "16 bits, tif": (made(np.uint16(65535 * FULL_HW)), ".tiff", {}, grey(GREY_HW)),
    "16 bits, dark": (made(np.uint16(RAMP_HW * 257)), ".png", {}, grey(RAMP_HW)),
    "16 bits, nearly black": (made(np.uint16(RAMP_HW)), ".png", {}, grey(0 * RAMP_HW)),
    "32 bits of 8": (made(np.int32(RAMP_HW)), ".tif", {}, grey(RAMP_HW)),
    "32 bits of 16": (made(np.int32(RAMP_HW * 257)), ".tif", {}, grey(RAMP_HW)),
    "32 bits": (made(np.int32(1e9 * FULL_HW)), ".tif", {}, grey(GREY_HW)),
    "32 bits, signed": (made(np.int32(1000 * FULL_HW - 500)), ".tif", {}, grey(GREY_HW)),
    "float to 1": (made(np.float32(FULL_HW)), ".tif", {}, grey(GREY_HW)),
    "float to 255": (made(np.float32(RAMP_HW)), ".tif", {}, grey(RAMP_HW)),
    "float to 65535": (made(np.float32(65535 * FULL_HW)), ".tif", {}, grey(GREY_HW)),
    "float, signed": (made(np.float32(2 * FULL_HW - 1)), ".tif", {}, grey(GREY_HW)),
    "float, one value": (made(np.float32(0 * FULL_HW - 3)), ".tif", {}, grey(0 * RAMP_HW)),
}
OWN_ROUNDING = {"16 bits, png", "16 bits, tif", "32 bits", "32 bits, signed",
                "float to 65535"}  # fmt: skip


def by_every_door(path: Path) -> dict[str, np.ndarray]:
    """The pixels that each part of the product gets of a file."""
    image = read_image(path)
    cfg = get_cfg_default()
    item = SimpleNamespace(impath=str(path), label=0, domain=0)
    return {
        "inputs": np.asarray(image),
        "dump and FDBPL": np.asarray(read_stored_image(str(path), image.height, image.width)),
        "training and test": ImageItems(cfg, [item], transform=np.asarray)[0]["img"],
        "predict": np.asarray(predict.read_image(path)),
    }


@pytest.mark.parametrize("name", CASES)
def test_every_mode_has_its_pixels_at_every_door(tmp_path, name):
    image, suffix, options, wanted = CASES[name]
    path = tmp_path / f"image{suffix}"
    image.save(path, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = by_every_door(path)
    for door, pixels in found.items():
        # Cut to whole numbers before, a pixel of a ramp may be one less.
        slack = 1 if name in OWN_ROUNDING else 0
        gap = np.abs(pixels.astype(int) - wanted.astype(int)).max()
        assert pixels.dtype == np.uint8 and gap <= slack, door


@pytest.mark.parametrize("name", [name for name in CASES if name[0] not in "13f" or name == "1"])
def test_modes_of_eight_bits_keep_the_bits_of_the_family(tmp_path, name):
    image, suffix, options, _ = CASES[name]
    path = tmp_path / f"image{suffix}"
    image.save(path, **options)
    with Image.open(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        family = np.asarray(file.convert("RGB"))
    assert np.array_equal(np.asarray(read_image(path)), family)


@pytest.mark.parametrize("quality", [30, 95])
def test_jpegs_keep_the_bits_of_the_family(tmp_path, quality):
    made(COLOURS).resize((37, 21)).save(tmp_path / "a.jpg", quality=quality)
    with Image.open(tmp_path / "a.jpg") as file:
        assert np.array_equal(np.asarray(read_image(tmp_path / "a.jpg")), file.convert("RGB"))


def test_sixteen_bits_are_the_nearest_of_eight():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    buffer = io.BytesIO()
    made(values).save(buffer, "PNG")
    found = np.asarray(decode(buffer))[..., 0].astype(np.int64)
    wanted = [round(value / 257) for value in values.ravel().tolist()]
    assert found.ravel().tolist() == wanted


@pytest.mark.parametrize("maxval", [255, 4095, 65535])
def test_netpbm_is_scaled_by_its_own_maximum(tmp_path, maxval):
    width = 1 if maxval < 256 else 2
    values = np.array([0, maxval // 2, maxval]).astype(f">u{width}")
    (tmp_path / "a.ppm").write_bytes(f"P5 3 1 {maxval}\n".encode() + values.tobytes())
    assert np.asarray(read_image(tmp_path / "a.ppm"))[0, :, 0].tolist() == [0, 127, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotation_marks_are_not_applied_and_are_noticed(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    made(COLOURS[:, :5]).save(tmp_path / "a.png", exif=exif)
    for pixels in by_every_door(tmp_path / "a.png").values():
        assert np.array_equal(pixels, COLOURS[:, :5])
    assert look(tmp_path / "a.png") == (2 * (orientation > 1), "")


def bomb() -> bytes:
    """A PNG that says it has 400 million pixels."""
    buffer = io.BytesIO()
    Image.new("1", (20000, 20000)).save(buffer, "PNG")
    return buffer.getvalue()


def truncated() -> bytes:
    buffer = io.BytesIO()
    made(COLOURS).resize((256, 256)).save(buffer, "JPEG")
    return buffer.getvalue()[:-200]


def not_finite() -> bytes:
    buffer = io.BytesIO()
    made(np.float32([[0, np.nan], [1, 2]])).save(buffer, "TIFF")
    return buffer.getvalue()


BROKEN = {
    "bomb.png": (bomb, "too large: Image size (400000000 pixels)"),
    "cut.jpg": (truncated, "truncated"),
    "text.png": (lambda: b"<html>", "in no format that Pillow knows"),
    "empty.png": (lambda: b"", "in no format that Pillow knows"),
    "nan.tif": (not_finite, "pixels that are not finite"),
}


@pytest.mark.parametrize("name", ["bomb.png", "text.png"])
def test_a_dump_lists_images_in_the_same_words(tmp_path, name):
    (tmp_path / name).write_bytes(BROKEN[name][0]())
    told = []
    item = SimpleNamespace(impath=str(tmp_path / name), label=0)
    for read in (lambda: list_images([item], tmp_path), lambda: read_image(tmp_path / name)):
        with pytest.raises(ValueError) as refusal:
            read()
        told.append(str(refusal.value))
    assert told[0] == told[1]


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_told_in_the_same_words_at_every_door(tmp_path, name):
    content, why = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(content())
    told = []
    item = SimpleNamespace(impath=str(path), label=0, domain=0)
    for read in (
        lambda: read_image(path),
        lambda: read_stored_image(str(path), 8, 8),
        lambda: ImageItems(get_cfg_default(), [item])[0],
        lambda: predict.recognise(None, None, [path]),
    ):
        with pytest.raises(ValueError) as refusal:
            read()
        told.append(str(refusal.value))
    assert len(set(told)) == 1 and "\n" not in told[0]
    assert told[0].startswith(f"image {path} cannot be read (") and why in told[0]
    assert ("Scale it down" in told[0]) == (name == "bomb.png")
    assert look(path) == (0, told[0].split("cannot be read (")[1].rsplit(").", 1)[0])


def test_a_missing_image_and_a_folder_are_named(tmp_path):
    with pytest.raises(ValueError, match="no.jpg is missing. Check --root."):
        read_image(tmp_path / "no.jpg")
    with pytest.raises(RegionStoreError, match="no.jpg is missing. Check --root."):
        read_stored_image(str(tmp_path / "no.jpg"), 1, 1)
    with pytest.raises(ValueError, match=f"image {tmp_path} cannot be read"):
        read_image(tmp_path)


def test_names_of_images():
    assert all(is_image(f"a{suffix}") and is_image(f"A.B{suffix.upper()}") for suffix in SUFFIXES)
    assert is_image("a.jfif") and not is_image("._a.jpg") and not is_image("a.jpg.txt")


def test_samples_of_several_transforms(tmp_path):
    made(COLOURS).save(tmp_path / "a.png")
    item = SimpleNamespace(impath=str(tmp_path / "a.png"), label=3, domain=0)
    cfg = get_cfg_default()
    sample = ImageItems(cfg, [item], [lambda image: image.size, lambda image: "two"])[0]
    assert (sample["img"], sample["img2"], sample["label"]) == ((8, 8), "two", 3)
    cfg.DATALOADER.K_TRANSFORMS = 2
    ImageItems(cfg, [item], is_train=False)
    with pytest.raises(ValueError, match="K_TRANSFORMS above 1"):
        ImageItems(cfg, [item], is_train=True)


# Texts


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_texts_in_utf_8_with_and_without_a_mark(tmp_path, mark):
    (tmp_path / "a.txt").write_text(f"{mark}Mehlkäfer\n", encoding="utf-8")
    assert read_text(tmp_path / "a.txt") == "Mehlkäfer\n"


@pytest.mark.parametrize(
    ("encoding", "where", "way_out"),
    [
        ("latin-1", "line 2: byte 6 of the file (0xe4)", "iconv -f LATIN1 -t UTF-8"),
        ("cp1252", "line 2: byte 6 of the file (0xe4)", "iconv -f LATIN1"),
        ("utf-16", "line 1: byte 1 of the file (0xff)", "iconv -f UTF-16"),
    ],
)
def test_texts_in_other_encodings_are_refused_with_line_and_command(
    tmp_path, encoding, where, way_out
):
    (tmp_path / "a.txt").write_bytes("abc\nKäfer\n".encode(encoding))
    with pytest.raises(ValueError) as refusal:
        read_text(tmp_path / "a.txt")
    assert f"{tmp_path / 'a.txt'}, {where} is not UTF-8" in str(refusal.value)
    assert way_out in str(refusal.value)
