"""The pictures of regions as PNG files: boxes, cut regions, histograms of w, ends of a class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from regions.boxes import box_to_pixels
from regions.show_colours import Ramp

if TYPE_CHECKING:
    from regions.show import ClassView, Histogram, ImageView, Region

PHOTO = 900  # pixels of the long side of the picture of boxes
CARD = 210  # pixels of a region's side
CHART = (330, 110)
GAP = 16
BINS = np.linspace(0, 1, 21)
TEXT, SOFT, LINE = "#1b1e24", "#5b6270", "#c9cdd4"


def boxes(image: ImageView, ramp: Ramp) -> Image.Image:
    """The image with its regions' boxes coloured by w, and the legend below."""
    factor = PHOTO / max(image.pixels.size)
    width, height = (max(1, round(side * factor)) for side in image.pixels.size)
    picture = image.pixels.resize((width, height), _resampling(factor))
    draw = ImageDraw.Draw(picture)
    for place in reversed(image.boxed):  # the most informative on top
        region = image.regions[place]
        top, left, box_height, box_width = box_to_pixels(region.box, height, width)
        right, bottom = left + box_width - 1, top + box_height - 1
        draw.rectangle((left, top, right, bottom), outline=ramp.halo(region.weight), width=5)
        if min(box_width, box_height) > 2:
            inner = (left + 1, top + 1, right - 1, bottom - 1)
            draw.rectangle(inner, outline=ramp.colour(region.weight), width=3)
    return stack([picture, legend(ramp, max(width, 420))])


def regions(image: ImageView, ramp: Ramp, columns: int = 8) -> Image.Image:
    """The cut regions in falling order of w, each with the teacher's top three."""
    cards = [card(region, ramp) for region in image.regions]
    return _sheet(f"{image.label} · {image.caption}", image.path, [("", cards)], ramp, columns)


def extremes(view: ClassView, ramp: Ramp, columns: int = 8) -> Image.Image:
    """The most and the least informative regions of a class."""
    groups = [
        (name, [card(region, ramp) for region in members])
        for name, members in (("most informative", view.most), ("least informative", view.least))
    ]
    return _sheet(view.name, "", groups, ramp, columns)


def histograms(
    groups: Sequence[tuple[str, Sequence[Histogram]]], ramp: Ramp, columns: int = 4
) -> Image.Image:
    """Histograms of w under their titles."""
    charts = [(title, [chart(group, ramp) for group in members]) for title, members in groups]
    note = "share of the regions in 20 bins of w from 0 to 1; the line is the mean"
    return _sheet("Region weight w", note, charts, ramp, columns)


def shares_of(group: Histogram) -> np.ndarray:
    """The share of the regions in each bin of w, (20,)."""
    counts, _ = np.histogram(group.weights, BINS)
    return counts / max(1, counts.sum())


# --- parts ----------------------------------------------------------------------------------


def card(region: Region, ramp: Ramp) -> Image.Image:
    """A region in a frame of its colour, its w, and the teacher's guesses."""
    small, bold = font(13), font(13, bold=True)
    rows = []  # (text, probability or "", font)
    for guess in region.guesses:
        face = bold if guess.is_label else small
        words = ("✓ " if guess.is_label else "") + guess.name.replace("_", " ")
        lines = wrap(words, face, CARD - 48, most=3)
        rows += [(line, "" if i else f"{guess.probability:.2f}", face)
                 for i, line in enumerate(lines)]  # fmt: skip
    picture = Image.new("RGB", (CARD, CARD + 28 + 18 * len(rows)), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, CARD - 1, CARD - 1), fill=ramp.colour(region.weight))
    inner = CARD - 14
    resampling = _resampling(inner / max(region.pixels.size))
    picture.paste(region.pixels.resize((inner, inner), resampling), (7, 7))
    draw.text((0, CARD + 5), f"w {region.weight:.2f}", TEXT, font(16, bold=True))
    if region.flip:
        draw.text((CARD, CARD + 8), "mirrored", SOFT, small, anchor="ra")
    for line, (words, probability, face) in enumerate(rows):
        y = CARD + 28 + 18 * line
        draw.text((0, y), words, TEXT, face)
        draw.text((CARD, y), probability, TEXT, face, anchor="ra")
    return picture


def chart(group: Histogram, ramp: Ramp) -> Image.Image:
    """A histogram of w from 0 to 1 with its mean."""
    width, height = CHART
    small, shares = font(13), shares_of(group)
    names = wrap(group.name.replace("_", " "), font(14, bold=True), width, most=2)
    top = 20 * len(names) + 22
    picture = Image.new("RGB", (width, top + height + 24), "white")
    draw = ImageDraw.Draw(picture)
    for line, name in enumerate(names):
        draw.text((0, 20 * line), name, TEXT, font(14, bold=True))
    mean = float(group.weights.mean())
    words = f"mean w {mean:.2f}, teacher's top-1 {group.accuracy:.0f} %"
    draw.text((0, top - 21), words, SOFT, small)
    base, step = top + height, width / len(shares)
    for place, share in enumerate(shares):
        high = round((height - 8) * share / max(shares.max(), 1e-9))
        if high:
            left, right = round(place * step) + 1, round((place + 1) * step) - 1
            draw.rectangle((left, base - high, right, base - 1),
                           fill=ramp.colour(float(BINS[place]) + 0.025))  # fmt: skip
    draw.line((0, base, width, base), fill=SOFT)
    x = round(mean * (width - 1))
    for y in range(top + 2, base, 8):  # dashed
        draw.line((x, y, x, y + 4), fill=TEXT, width=2)
    for place, anchor in ((0, "la"), (0.5, "ma"), (1, "ra")):
        draw.text((place * width, base + 4), f"{place:g}", SOFT, small, anchor=anchor)
    return picture


def legend(ramp: Ramp, width: int) -> Image.Image:
    """The colours of w with both ends in words."""
    width = min(width, 640)
    picture = Image.new("RGB", (width, 48), "white")
    draw = ImageDraw.Draw(picture)
    for x in range(width):
        weight = ramp.low + (ramp.high - ramp.low) * x / (width - 1)
        draw.line((x, 4, x, 18), fill=ramp.colour(weight))
    low, high = ramp.ends()
    draw.text((0, 23), low, TEXT, font(14))
    draw.text((width / 2, 23), "region weight w", TEXT, font(14, bold=True), anchor="ma")
    draw.text((width, 23), high, TEXT, font(14), anchor="ra")
    return picture


def stack(pictures: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Pictures below each other, flush left, on white."""
    height = sum(picture.height for picture in pictures) + gap * (len(pictures) - 1)
    whole = Image.new("RGB", (max(picture.width for picture in pictures), height), "white")
    y = 0
    for picture in pictures:
        whole.paste(picture, (0, y))
        y += picture.height + gap
    return whole


def _sheet(
    title: str, note: str, groups: Sequence[tuple[str, list[Image.Image]]], ramp: Ramp, columns: int
) -> Image.Image:
    members = [picture for _, pictures in groups for picture in pictures]
    columns = max(2, min(columns, max(len(pictures) for _, pictures in groups)))
    step = max(picture.width for picture in members) + GAP
    width = columns * step - GAP
    parts = [_words(title.replace("_", " "), font(20, bold=True), width)]
    parts += [_words(note, font(14), width)] if note else []
    for name, pictures in groups:
        parts += [_words(name, font(16), width)] if name else []
        for start in range(0, len(pictures), columns):
            line = pictures[start : start + columns]
            row = Image.new("RGB", (width, max(picture.height for picture in line)), "white")
            for place, picture in enumerate(line):
                row.paste(picture, (place * step, 0))
            parts.append(row)
    inside = stack([*parts, legend(ramp, width)])
    whole = Image.new("RGB", (inside.width + 2 * GAP, inside.height + 2 * GAP), "white")
    whole.paste(inside, (GAP, GAP))
    return whole


def _words(text: str, face: ImageFont.FreeTypeFont, width: int) -> Image.Image:
    lines = wrap(text, face, width)
    step = round(1.4 * face.size)
    picture = Image.new("RGB", (width, step * len(lines)), "white")
    draw = ImageDraw.Draw(picture)
    for line, words in enumerate(lines):
        draw.text((0, step * line), words, TEXT, face)
    return picture


def wrap(text: str, face: ImageFont.FreeTypeFont, width: float, most: int = 99) -> list[str]:
    """Break a text into lines no wider than width pixels; what most lines do not hold is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if face.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:  # a word wider than a line is broken, too
            if lines[-1] and face.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) > most:
        last = lines[most - 1]
        while last and face.getlength(last + "…") > width:
            last = last[:-1]
        lines = [*lines[: most - 1], last + "…"]
    return lines


@lru_cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has most alphabets."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


def _resampling(factor: float) -> Image.Resampling:
    """Small images are enlarged in whole pixels, not blurred."""
    return Image.Resampling.NEAREST if factor > 3 else Image.Resampling.BICUBIC
