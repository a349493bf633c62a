"""The page of a store as one HTML text: images as data URIs, no script, nothing fetched."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from PIL import Image

from regions.tools.show_colours import STOPS, Ramp
from wording import counted

if TYPE_CHECKING:
    from regions.tools.show import ClassView, Histogram, ImageView, Region, StoreView

THUMB = 160  # pixels a side of a region on the page, at most
PHOTO = 800  # of the long side of an image


def page(view: StoreView) -> str:
    """The whole page."""
    spec, found = view.store.spec, view.survey
    facts = (
        ("Teacher", f"{spec.teacher}, {spec.teacher_precision}"),
        ("Prompt", spec.template),
        ("Classes", f"{len(spec.classnames)}"),
        ("Images", f"{len(spec.images):,} × {counted(spec.num_regions, 'region')}"),
        ("Kept", f"{spec.kind}, {spec.dtype}"),
        ("Regions drawn from", f"seed {spec.seed}"),
        ("Teacher accuracy", f"{found.teacher_accuracy:.1f} % of the regions"),
        ("Mean w", f"{found.weights_NM.mean():.3f}"),
    )
    whole = len(found.images_N) == len(spec.images)
    looked = "" if whole else f" Numbers are from {len(found.images_N):,} of the images."
    parts = (
        f"<h1>Regions in <code>{escape(view.store.path.name)}</code></h1>",
        f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in facts)}</dl>",
        "<p>Each region is weighted by how sure the teacher is of it: w = 1 − H(p) / ln C, where "
        "H(p) is the entropy of its probabilities over the C classes. A check mark stands at the "
        f"labelled class.{looked}</p>",
        _legend(view.ramp),
        *(_image(number, image, view.ramp) for number, image in enumerate(view.images, start=1)),
        _histograms("w in each data set", view.datasets, view.ramp, large=True),
        _histograms(view.title_of_classes, view.classes, view.ramp),
        *(_class(extremes, view.ramp) for extremes in view.extremes),
    )
    title = escape(f"Regions in {view.store.path.name}")
    # The policy forbids whatever is not in the file, should a name ever smuggle in an address.
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def _legend(ramp: Ramp) -> str:
    low, high = ramp.ends()
    return (
        f'<div class="legend"><b>w</b><span>{low}</span><i style="background: '
        f'linear-gradient(to right, {", ".join(STOPS)})"></i><span>{high}</span></div>'
    )


def _image(number: int, image: ImageView, ramp: Ramp) -> str:
    frames = []
    for place in reversed(image.boxed):  # the most informative on top
        rank, region = place + 1, image.regions[place]
        top, left, height, width = region.box
        where = f'x="{left:.5f}" y="{top:.5f}" width="{width:.5f}" height="{height:.5f}"'
        frames.append(
            f'<a href="#r{number}-{rank}"><title>w {region.weight:.2f}: '
            f"{escape(region.guesses[0].name)}</title>"
            f'<rect {where} stroke="{ramp.halo(region.weight)}" stroke-width="4.5"/>'
            f'<rect {where} stroke="{ramp.colour(region.weight)}" stroke-width="2.5"/></a>'
        )
    wide, high = image.pixels.size
    cards = "".join(
        _card(region, ramp, f' id="r{number}-{rank}"')
        for rank, region in enumerate(image.regions, 1)
    )
    return (
        '<section><div class="photo">'
        f'<div class="stage" style="aspect-ratio: {wide} / {high}; '
        f'max-width: min(100%, {34 * wide / max(wide, high):.1f}rem)">'
        f'<img src="{_data_uri(image.pixels, PHOTO)}" alt="{escape(image.path)}"'
        f"{_sharp(image.pixels)}>"
        '<svg viewBox="0 0 1 1" preserveAspectRatio="none" role="img" '
        f'aria-label="boxes of the regions">{"".join(frames)}</svg></div>'
        f'<div><h2>{escape(_words(image.label))}</h2><p class="path">{escape(image.path)}</p>'
        f"<p>{image.caption}. A box leads to its region.</p></div></div>"
        f'<ul class="cards">{cards}</ul>'
        "</section>"
    )


def _class(view: ClassView, ramp: Ramp) -> str:
    rows = (("most informative", view.most), ("least informative", view.least))
    body = "".join(
        f'<h3>{name}</h3><ul class="cards">{"".join(_card(r, ramp) for r in members)}</ul>'
        for name, members in rows
    )
    return f"<section><h2>Class {escape(_words(view.name))}</h2>{body}</section>"


def _card(region: Region, ramp: Ramp, anchor: str = "") -> str:
    guesses = "".join(
        f"<li{' class=label' if guess.is_label else ''}><span>{'✓ ' if guess.is_label else ''}"
        f"{escape(_words(guess.name))}</span><b>{guess.probability:.2f}</b></li>"
        for guess in region.guesses
    )
    mirrored = "<small>mirrored</small>" if region.flip else ""
    return (
        f'<li{anchor} class="card" style="--w: {ramp.colour(region.weight)}">'
        f'<img src="{_data_uri(region.pixels, THUMB)}" alt=""{_sharp(region.pixels)}>'
        f'<p class="w"><b>w {region.weight:.2f}</b>{mirrored}</p><ol>{guesses}</ol></li>'
    )


def _histograms(title: str, groups: Sequence[Histogram], ramp: Ramp, large: bool = False) -> str:
    figures = "".join(_histogram(group, ramp) for group in groups)
    size = " large" if large else ""
    return (
        f"<section><h2>{escape(title)}</h2><p>Share of the regions in 20 bins of w from 0 to 1; "
        f'the line is the mean.</p><div class="charts{size}">{figures}</div></section>'
    )


def _histogram(group: Histogram, ramp: Ramp) -> str:
    shares = group.shares
    highest = max(shares.max(), 1e-9)
    bars = "".join(
        f'<rect x="{5 * i + 0.25:.2f}" y="{40 - 38 * share / highest:.2f}" width="4.5" '
        f'height="{38 * share / highest:.2f}" fill="{ramp.colour((i + 0.5) / 20)}"/>'
        for i, share in enumerate(shares)
        if share
    )
    mean = float(group.weights.mean())
    return (
        f'<figure><svg viewBox="0 0 100 41" preserveAspectRatio="none" role="img" '
        f'aria-label="histogram of w">{bars}<path class="axis" d="M0 40.5H100"/>'
        f'<path class="mean" d="M{100 * mean:.1f} 0V40"/></svg>'
        f'<div class="ends"><span>0</span><span>0.5</span><span>1</span></div>'
        f"<figcaption><b>{escape(_words(group.name))}</b><br>mean w {mean:.2f}, "
        f"accuracy {group.accuracy:.0f}\N{NO-BREAK SPACE}%</figcaption></figure>"
    )


def _words(name: str) -> str:
    return name.replace("_", " ")


def _sharp(pixels: Image.Image) -> str:
    """Small images are enlarged in whole pixels, not blurred."""
    return ' class="sharp"' if max(pixels.size) < 100 else ""


def _data_uri(pixels: Image.Image, side: int) -> str:
    small = pixels.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    file, kind = io.BytesIO(), "png" if max(small.size) < 100 else "jpeg"
    small.save(file, kind, optimize=True, **({"quality": 85} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


STYLE = """
:root { color-scheme: light dark; --ground: #fff; --text: #1b1e24; --soft: #5b6270;
  --line: #d9dce2; --card: #f6f7f9 }
@media (prefers-color-scheme: dark) { :root { --ground: #15171b; --text: #e8eaee; --soft: #a3abb8;
  --line: #363b44; --card: #1f2228 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--ground); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif }
main { max-width: 66rem; margin: 0 auto; padding: 1.25rem 1rem 4rem }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; overflow-wrap: anywhere }
h2 { font-size: 1.25rem; margin: 0; overflow-wrap: anywhere }
h3 { font-size: 1rem; margin: 1rem 0 .5rem; color: var(--soft); font-weight: 600 }
p { margin: .5rem 0 } .path { color: var(--soft); font-size: .85rem; overflow-wrap: anywhere }
section { margin-top: 2rem; padding-top: 1.5rem; border-top: 1px solid var(--line) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0 0 1rem }
dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
.legend { position: sticky; top: 0; z-index: 2; display: flex; gap: .6rem; align-items: center;
  padding: .5rem 0; background: var(--ground); font-size: .85rem; white-space: nowrap }
.legend i { flex: 1; max-width: 22rem; height: .8rem; border-radius: .2rem;
  outline: 1px solid var(--line) }
.photo { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; margin-bottom: 1rem }
.photo > div:last-child { flex: 1 1 14rem }
.stage { position: relative; width: 100% }
.stage img, .stage svg { position: absolute; inset: 0; width: 100%; height: 100%; display: block }
.stage rect { fill: transparent; vector-effect: non-scaling-stroke; pointer-events: stroke }
.stage a:hover rect + rect, .stage a:focus rect + rect { stroke-width: 5 }
.sharp { image-rendering: pixelated }
.cards { list-style: none; margin: .5rem 0; padding: 0; display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(8.6rem, 1fr)) }
.card { background: var(--card); border-radius: .3rem; border-top: .5rem solid var(--w);
  scroll-margin-top: 3rem; overflow: hidden }
.card:target { outline: 3px solid var(--text); outline-offset: 2px }
.card img { display: block; width: 100%; aspect-ratio: 1 }
.card .w { display: flex; justify-content: space-between; align-items: baseline;
  margin: .3rem .5rem .1rem }
small { color: var(--soft); font-size: .72rem }
.card ol { list-style: none; margin: 0 .5rem .5rem; padding: 0; font-size: .8rem;
  line-height: 1.3 }
.card ol li { display: flex; justify-content: space-between; gap: .5rem; padding: .1rem 0;
  color: var(--soft) }
.card ol li span { overflow-wrap: anywhere } .card ol li b { font-weight: 400;
  font-variant-numeric: tabular-nums }
.card ol li.label { color: var(--text); font-weight: 600 } .card ol li.label b { font-weight: 600 }
.charts { display: grid; gap: 1.25rem 1rem;
  grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)) }
.charts.large { grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)) }
figure { margin: 0 } figure svg { display: block; width: 100%; height: 5rem }
.large figure svg { height: 9rem }
.axis, .mean { fill: none; stroke: var(--soft); vector-effect: non-scaling-stroke }
.mean { stroke: var(--text); stroke-dasharray: 4 3; stroke-width: 1.5 }
.ends { display: flex; justify-content: space-between; color: var(--soft); font-size: .72rem }
figcaption { font-size: .8rem; line-height: 1.35; overflow-wrap: anywhere }
"""
