"""The toy world's pictures: every image is a function of a few integers. Knows no data set.

A *thing* is a texture, a colour and a shape, and its name composes: "striped red triangle". Of the
600 things 120 are held out: no picture that the toy CLIPs were trained on shows one, neither as its
subject nor as clutter, yet each of their attributes, and each pair of colour and shape, was seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

VERSION = 1  # raise it with any change that moves a pixel: folders drawn before are drawn again
SIZE = 64  # pixels, both sides
FINE = 2  # pictures are drawn this many times larger, then reduced: smooth edges

Colour = tuple[int, int, int]  # red, green, blue in 0..255

COLOURS: dict[str, Colour] = {
    "red": (215, 40, 40),
    "orange": (240, 140, 30),
    "yellow": (240, 220, 50),
    "green": (55, 165, 60),
    "teal": (30, 160, 160),
    "blue": (45, 85, 215),
    "purple": (130, 50, 180),
    "pink": (245, 135, 190),
    "brown": (130, 80, 40),
    "gray": (130, 130, 130),
}
TEXTURES = ("plain", "striped", "dotted", "checkered", "hollow")


def _round(radius_of_angle, points: int = 40) -> list[tuple[float, float]]:
    angles = [2 * math.pi * i / points for i in range(points)]
    return [(radius_of_angle(a) * math.sin(a), -radius_of_angle(a) * math.cos(a)) for a in angles]


def _regular(corners: int, inner: float | None = None) -> list[tuple[float, float]]:
    """A regular polygon with a corner on top; with an inner radius, a star."""
    radii = [1.0] if inner is None else [1.0, inner]
    count = corners * len(radii)
    return [
        (
            radii[i % len(radii)] * math.sin(2 * math.pi * i / count),
            -radii[i % len(radii)] * math.cos(2 * math.pi * i / count),
        )
        for i in range(count)
    ]


def _heart() -> list[tuple[float, float]]:
    angles = [2 * math.pi * i / 40 for i in range(40)]
    return [
        (
            math.sin(a) ** 3,
            -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16,
        )
        for a in angles
    ]


def _moon() -> list[tuple[float, float]]:
    outer = [math.radians(40 + i * 280 / 24) for i in range(25)]
    tip_x, tip_y = math.cos(outer[0]), math.sin(outer[0])
    centre, radius = 0.55, math.hypot(tip_x - 0.55, tip_y)
    start = math.degrees(math.atan2(tip_y, tip_x - centre))
    inner = [math.radians(360 - start - i * (360 - 2 * start) / 16) for i in range(17)]
    return [(math.cos(a) + 0.1, math.sin(a)) for a in outer] + [
        (centre + radius * math.cos(a) + 0.1, radius * math.sin(a)) for a in inner
    ]


# Outlines as polygons in [-1, 1] x [-1, 1], y pointing down.
SHAPES: dict[str, list[tuple[float, float]]] = {
    "circle": _round(lambda a: 0.95),
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0, -1), (1, 0.8), (-1, 0.8)],
    "star": _regular(5, inner=0.42),
    "cross": [
        (-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33),
        (0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33),
    ],
    "heart": _heart(),
    "diamond": [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)],
    "hexagon": _regular(6),
    "moon": _moon(),
    "arrow": [
        (1, 0), (0.1, 0.9), (0.1, 0.36), (-1, 0.36), (-1, -0.36), (0.1, -0.36), (0.1, -0.9),
    ],
    "house": [
        (0, -1), (1, -0.15), (0.75, -0.15), (0.75, 1), (-0.75, 1), (-0.75, -0.15), (-1, -0.15),
    ],
    "flower": _round(lambda a: 0.72 + 0.28 * math.cos(5 * a), points=60),
}  # fmt: skip


class Thing(NamedTuple):
    """One entry of the vocabulary."""

    texture: str
    colour: str
    shape: str

    @property
    def name(self) -> str:
        return " ".join(self)


def _held_out(colour_index: int, shape_index: int) -> Thing:
    """Each pair of colour and shape is held out in one texture, and seen in the four others."""
    texture = TEXTURES[(colour_index + 2 * shape_index) % len(TEXTURES)]
    return Thing(texture, list(COLOURS)[colour_index], list(SHAPES)[shape_index])


VOCABULARY = tuple(Thing(*words) for words in product(TEXTURES, COLOURS, SHAPES))
HELD_OUT = tuple(_held_out(c, s) for c, s in product(range(len(COLOURS)), range(len(SHAPES))))
SEEN = tuple(thing for thing in VOCABULARY if thing not in set(HELD_OUT))


def pick_held_out(turns: tuple[int, ...]) -> list[Thing]:
    """One held-out thing per shape and turn; different turns give different things.

    Every shape occurs once per turn and colours go round with the shapes, so two lists of as many
    turns are alike in how often they use each attribute.
    """
    return [
        _held_out((shape + 3 * turn) % len(COLOURS), shape)
        for turn in turns
        for shape in range(len(SHAPES))
    ]


DOMAINS = ("photo", "drawing", "sketch", "blurry", "dark", "old")


@dataclass(frozen=True)
class Look:
    """How a picture is taken.

    Args:
        domain: one of DOMAINS.
        scene: a small subject among 1 to 3 smaller things; else a large one alone.
        cast: strength in [0, 1] of a warm colour cast that makes colours hard to tell.
        damage: "" or one of DAMAGES, done to the finished picture.
    """

    domain: str = "photo"
    scene: bool = True
    cast: float = 0.0
    damage: str = ""


def draw(thing: Thing, look: Look, seed: tuple[int, ...]) -> Image.Image:
    """Draw one picture, SIZE x SIZE in RGB; the same arguments give the same pixels.

    Damaged pictures show the same scene as undamaged ones of the same seed.
    """
    rng = np.random.default_rng(list(seed))
    style = look.domain if look.domain in ("drawing", "sketch") else "photo"
    canvas = _background(rng, style)
    if look.scene:
        radius = rng.uniform(10.5, 17.5)
        x, y = rng.uniform(0.9 * radius, SIZE - 0.9 * radius, size=2)
        for _ in range(rng.integers(1, 4)):
            _clutter(canvas, rng, style, (x, y, radius))
    else:
        radius = rng.uniform(19, 29)
        x, y = SIZE / 2 + rng.uniform(-4, 4, size=2)
    _thing(canvas, rng, style, thing, x, y, radius)
    picture = canvas.reduce(FINE)
    if look.domain == "blurry":
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(1.2, 2.2)))
    picture = _expose(picture, rng, look)
    if look.damage:
        picture = DAMAGES[look.damage](picture, np.random.default_rng([*seed, 1]))
    return picture


def _background(rng: np.random.Generator, style: str) -> Image.Image:
    side = SIZE * FINE
    if style != "photo":
        return Image.new("RGB", (side, side), tuple(int(v) for v in rng.integers(238, 253, size=3)))
    muted = rng.uniform(70, 225) + rng.uniform(-25, 25, size=(2, 3))  # two similar dull colours
    kind = rng.integers(3)
    if kind == 0:  # one colour
        return Image.new("RGB", (side, side), _rgb(muted[0]))
    if kind == 1:  # a gradient to another brightness
        corners = rng.permuted(np.array([0.0, 0.4, 0.6, 1.0])).reshape(2, 2, 1)
        grid = muted[0] + corners * (muted[1] - muted[0] + rng.uniform(-70, 70))
    else:  # patches
        grid = muted[0] + rng.uniform(-35, 35, size=(8, 8, 1)) + rng.uniform(-12, 12, (8, 8, 3))
    small = Image.fromarray(np.clip(np.rint(grid), 0, 255).astype(np.uint8))
    return small.resize((side, side), Image.Resampling.BILINEAR)


def _clutter(
    canvas: Image.Image, rng: np.random.Generator, style: str, subject: tuple[float, float, float]
) -> None:
    """Add one small thing that the toy CLIPs know, clear of the middle of the subject."""
    thing, radius = SEEN[rng.integers(len(SEEN))], rng.uniform(5, 8.5)
    subject_x, subject_y, subject_radius = subject
    for _ in range(8):
        x, y = rng.uniform(3, SIZE - 3, size=2)
        if math.hypot(x - subject_x, y - subject_y) > subject_radius + 0.5 * radius:
            return _thing(canvas, rng, style, thing, x, y, radius)
    return None  # the subject fills the picture


def _thing(
    canvas: Image.Image,
    rng: np.random.Generator,
    style: str,
    thing: Thing,
    x: float,
    y: float,
    radius: float,
) -> None:
    """Paint a thing around (x, y), all in pixels of the finished picture."""
    reach = math.ceil(radius * FINE * 1.45)  # a corner of the unit square, turned
    side, scale = 2 * reach + 1, radius * FINE
    turn = math.radians(rng.uniform(-14, 14))
    cos, sin = scale * math.cos(turn), scale * math.sin(turn)
    outline = [
        (reach + u * cos - v * sin, reach + u * sin + v * cos) for u, v in SHAPES[thing.shape]
    ]
    colour = np.array(COLOURS[thing.colour]) + rng.uniform(-16, 16, size=3)
    towards = (255, 255, 255) if rng.random() < 0.5 else (25, 25, 25)
    second = colour + 0.72 * (np.array(towards) - colour)
    if style == "sketch":  # pale pencils
        colour, second = (part + 0.45 * (245 - part) for part in (colour, second))

    inside = Image.new("L", (side, side))
    ImageDraw.Draw(inside).polygon(outline, fill=255)
    mark = _pattern(rng, thing.texture, side, radius)
    if thing.texture == "hollow":
        width = max(3, round(0.42 * scale))  # half of it falls outside and is cut off
        inside = ImageChops.multiply(inside, _line(side, outline, width))
    place = (round(x * FINE) - reach, round(y * FINE) - reach)
    canvas.paste(_rgb(colour), place, inside)
    if mark is not None:
        canvas.paste(_rgb(second), place, ImageChops.multiply(inside, mark))
    if style != "photo":
        ink = (40, 40, 45) if style == "drawing" else (120, 120, 125)
        canvas.paste(ink, place, _line(side, outline, 3 if style == "drawing" else 2))


def _line(side: int, outline: list[tuple[float, float]], width: int) -> Image.Image:
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).line([*outline, *outline[:2]], fill=255, width=width, joint="curve")
    return mask


def _pattern(
    rng: np.random.Generator, texture: str, side: int, radius: float
) -> Image.Image | None:
    """Where the second colour goes, as a mask; None for textures of one colour."""
    turn, offset = math.radians(rng.uniform(-20, 20)), rng.uniform(0, 4, size=2)
    across = rng.integers(2)
    if texture in ("plain", "hollow"):
        return None
    step = FINE * (0.8 + 0.24 * radius)  # half a period
    grid_x = np.arange(side, dtype=np.float32) / np.float32(step)
    grid_y = grid_x[:, None]
    cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    u = grid_x * cos + (grid_y * sin + np.float32(offset[0]))
    v = grid_y * cos - (grid_x * sin + np.float32(offset[1]))
    if texture == "striped":
        on = _odd(u if across else v)
    elif texture == "checkered":
        on = _odd(u) ^ _odd(v)
    else:  # dots, one per 2 x 2 square
        u, v = (part - 2 * np.floor(part / 2) - 1 for part in (u, v))
        on = u * u + v * v < 0.42
    return Image.fromarray(on * np.uint8(255))


def _odd(grid: np.ndarray) -> np.ndarray:
    return (np.floor(grid).astype(np.int16) & 1).astype(bool)


def _expose(picture: Image.Image, rng: np.random.Generator, look: Look) -> Image.Image:
    """Light, colour cast and grain."""
    gain, grain = rng.uniform(0.88, 1.08) + rng.uniform(-0.05, 0.05, size=3), 7
    warm = np.array([1.03, 0.90, 0.72]) + rng.uniform(-0.06, 0.06, size=3)
    if look.domain in ("drawing", "sketch"):
        gain, grain = np.ones(3), 2
    elif look.domain == "dark":
        gain = gain * rng.uniform(0.25, 0.5)
    elif look.domain == "old":
        sepia = _scaled(picture.convert("L").convert("RGB"), np.array([1.08, 0.98, 0.8]))
        picture, grain = Image.blend(picture, sepia, rng.uniform(0.3, 0.6)), 15
    return _grainy(_scaled(picture, gain * (1 + look.cast * (warm - 1))), rng, grain)


def _scaled(picture: Image.Image, gains: np.ndarray) -> Image.Image:
    """Multiply each channel by its gain."""
    table = np.rint(np.arange(256) * gains[:, None]).clip(0, 255).astype(np.uint8)
    pixels = np.asarray(picture)
    return Image.fromarray(np.stack([table[c].take(pixels[..., c]) for c in range(3)], axis=2))


def _grainy(picture: Image.Image, rng: np.random.Generator, grain: int) -> Image.Image:
    """Add whole numbers from -grain to grain, all equally likely."""
    noise = rng.integers(-grain, grain, size=(SIZE, SIZE, 3), dtype=np.int8, endpoint=True)
    pixels = np.asarray(picture, dtype=np.int16) + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _rgb(colour: np.ndarray) -> Colour:
    return tuple(min(max(round(v), 0), 255) for v in colour.tolist())


def _noise(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _grainy(picture, rng, 32)


def _blur(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(1.0, 1.6)))


def _dark(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _scaled(picture, np.full(3, rng.uniform(0.25, 0.45)))


def _pixelate(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    del rng
    return picture.reduce(2).resize((SIZE, SIZE), Image.Resampling.NEAREST)


DAMAGES = {"noise": _noise, "blur": _blur, "dark": _dark, "pixelate": _pixelate}
