"""What a store's regions look like: choose images, cut their regions, and write the page.

Letters: R regions of one image, C classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from files import write_whole
from regions.boxes import cut
from regions.dataset import read_image
from regions.store import RegionStore, RegionStoreError
from regions.store.spec import relative_path
from regions.tools import show_html
from regions.tools.show_colours import Ramp
from regions.tools.survey import Survey, survey, weights_of

MAX_REGIONS = 60  # of one image in a picture; of more, evenly spaced ones in the order of w
MAX_BOXES = 24  # drawn on an image: evenly spaced ones of its regions shown
MAX_CLASSES = 24  # histograms of classes; of more, those with the lowest and the highest mean w
EXTREMES = 6  # least and most informative regions of a class
MAX_EXTREME_CLASSES = 6
PAGE = "index.html"


@dataclass(frozen=True)
class Guess:
    """One of the teacher's likeliest classes."""

    name: str
    probability: float
    is_label: bool


@dataclass(frozen=True)
class Region:
    """A cut region and what the teacher said of it."""

    pixels: Image.Image  # as the teacher saw it
    box: tuple[float, float, float, float]  # top, left, height, width: fractions
    flip: bool
    weight: float
    guesses: tuple[Guess, ...]  # three at most, the likeliest first


@dataclass(frozen=True)
class ImageView:
    """An image with its regions in falling order of w."""

    path: str
    label: str
    pixels: Image.Image
    regions: tuple[Region, ...]
    num_stored: int  # regions that the store has of it

    @property
    def boxed(self) -> list[int]:
        """Places of the regions whose boxes are drawn: more would hide the image."""
        return evenly(len(self.regions), MAX_BOXES).tolist()

    @property
    def caption(self) -> str:
        """What is shown of its regions."""
        shown = f"{self.num_stored} regions in falling order of w"
        if len(self.regions) < self.num_stored:
            shown = f"{len(self.regions)} of {shown}, evenly spaced"
        if len(self.boxed) < len(self.regions):
            shown += f"; {len(self.boxed)} boxes drawn"
        return shown


@dataclass(frozen=True)
class Histogram:
    """w of the regions of one data set or class."""

    name: str
    weights: np.ndarray  # (any,)
    accuracy: float  # of the teacher on these regions, in percent

    @property
    def shares(self) -> np.ndarray:
        """The share of the regions in each of 20 bins of w."""
        counts, _ = np.histogram(self.weights, np.linspace(0, 1, 21))
        return counts / max(1, counts.sum())


@dataclass(frozen=True)
class ClassView:
    """The least and the most informative regions of a class."""

    name: str
    most: tuple[Region, ...]  # falling w
    least: tuple[Region, ...]  # rising w


@dataclass(frozen=True)
class StoreView:
    """All that is shown of a store."""

    store: RegionStore
    survey: Survey
    ramp: Ramp
    images: tuple[ImageView, ...]
    datasets: tuple[Histogram, ...]
    classes: tuple[Histogram, ...]  # rising mean w
    extremes: tuple[ClassView, ...]

    @property
    def title_of_classes(self) -> str:
        """What the histograms of classes show."""
        present, half = len(np.unique(self.survey.labels_N)), len(self.classes) // 2
        if len(self.classes) < present:
            return f"w in the {half} least and the {half} most certain of {present} classes"
        return "w in each class, by rising mean"


def show(
    path: str | Path,
    root: str | Path,
    out: str | Path,
    num_images: int = 6,
    chosen: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """Write the page of a store, and return its path.

    Args:
        root: the data root, to which the store's image paths are relative.
        out: a folder, made when missing; an earlier page is replaced.
        num_images: how many images are drawn at random from seed, unless some are chosen.
        chosen: paths of images, as stored or as they lie under root.
    Raises:
        RegionStoreError: the store or an image cannot be read, or an image is not in the store.
        ValueError: num_images is less than 1.
        OSError: the folder cannot be written.
    """
    view = look(RegionStore.open(path), root, num_images, chosen, seed)
    out = Path(out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / PAGE, show_html.page(view).encode())
    return out / PAGE


def look(
    store: RegionStore, root: str | Path, num_images: int, chosen: Sequence[str], seed: int
) -> StoreView:
    """Read what is to be shown. Arguments and errors as of show."""
    root = Path(root).expanduser()
    found = survey(store)
    indices = pick_images(store, root, num_images, chosen, seed)
    images = tuple(image_view(store, root, index) for index in indices)
    stored = [store.spec.images[int(index)] for index in found.images_N]
    labels = dict.fromkeys(store.spec.images[index].label for index in indices)
    labels = [label for label in labels if label in found.labels_N][:MAX_EXTREME_CLASSES]
    return StoreView(
        store,
        found,
        Ramp.over(found.weights_NM),
        images,
        datasets=histograms(found, [image.path.split("/")[0] for image in stored]),
        classes=histograms(found, [store.spec.classnames[label] for label in found.labels_N]),
        extremes=tuple(class_view(store, root, found, label) for label in labels),
    )


def pick_images(
    store: RegionStore, root: Path, num_images: int, chosen: Sequence[str], seed: int
) -> list[int]:
    """Indices of the chosen images, or of random ones, of different classes while there are any."""
    if chosen:
        return [_index_of(store, root, path) for path in dict.fromkeys(chosen)]
    if num_images < 1:
        raise ValueError(f"--images is {num_images}; it needs 1 or more.")
    order = np.random.default_rng(seed).permutation(len(store))[: 50 * num_images]
    seen: dict[int, int] = {}
    ranks = []
    for index in order.tolist():
        label = store.spec.images[index].label
        ranks.append(seen.get(label, 0))
        seen[label] = ranks[-1] + 1
    return order[np.argsort(ranks, kind="stable")][:num_images].tolist()


def _index_of(store: RegionStore, root: Path, path: str) -> int:
    try:
        return store.image_index(path.replace(os.sep, "/"))
    except RegionStoreError:
        under_root = relative_path(root / path if not os.path.exists(path) else path, root)
        return store.image_index(under_root)


def image_view(store: RegionStore, root: Path, index: int) -> ImageView:
    """An image and its regions in falling order of w, or MAX_REGIONS of them evenly spaced."""
    stored = store.spec.images[index]
    weights_R = weights_of(store.read(index, np.arange(store.spec.num_regions)).logits)
    order_R = np.argsort(-weights_R, kind="stable")
    order_R = order_R[evenly(len(order_R), MAX_REGIONS)]
    pixels = _pixels(store, root, index)
    return ImageView(
        stored.path,
        store.spec.classnames[stored.label],
        pixels,
        cut_regions(store, index, order_R, pixels),
        store.spec.num_regions,
    )


def cut_regions(
    store: RegionStore, index: int, regions_R: np.ndarray, pixels: Image.Image
) -> tuple[Region, ...]:
    """Cut some regions of an image, in the order given, as the dump did."""
    label, names = store.spec.images[index].label, store.spec.classnames
    rows = store.read(index, regions_R)
    p_RC = torch.from_numpy(rows.logits).softmax(-1).numpy()
    regions = []
    for row, weight in enumerate(weights_of(rows.logits).tolist()):
        best = np.argsort(-p_RC[row], kind="stable")[:3].tolist()
        guesses = tuple(Guess(names[c], float(p_RC[row, c]), c == label) for c in best)
        box, flip = tuple(rows.boxes[row].tolist()), bool(rows.flips[row])
        region = cut(pixels, rows.boxes[row], flip, store.spec.image_size)
        regions.append(Region(region, box, flip, weight, guesses))
    return tuple(regions)


def histograms(found: Survey, names_N: Sequence[str]) -> tuple[Histogram, ...]:
    """One histogram per name, by rising mean w; of many, those at both ends."""
    names = np.array(names_N, object)
    groups = []
    for name in dict.fromkeys(names_N):
        chosen_N = names == name
        accuracy = 100 * float(found.right_NM[chosen_N].mean())
        groups.append(Histogram(name, found.weights_NM[chosen_N].ravel(), accuracy))
    groups.sort(key=lambda group: float(group.weights.mean()))
    half = MAX_CLASSES // 2
    return tuple(groups if len(groups) <= MAX_CLASSES else groups[:half] + groups[-half:])


def class_view(store: RegionStore, root: Path, found: Survey, label: int) -> ClassView:
    """The regions of a class with the highest and the lowest w, of different images if possible."""
    rows = np.flatnonzero(found.labels_N == label)
    ends = []
    for sign in (-1, 1):  # most informative first, then least
        key_NM = sign * found.weights_NM[rows]
        rank_NM = np.argsort(np.argsort(key_NM, axis=1, kind="stable"), axis=1)  # in its image
        flat = np.lexsort((key_NM.ravel(), rank_NM.ravel()))[:EXTREMES]
        flat = flat[np.argsort(key_NM.ravel()[flat], kind="stable")]
        regions = []
        for row, region in zip(*np.unravel_index(flat, key_NM.shape), strict=True):
            index = int(found.images_N[rows[row]])
            pixels = _pixels(store, root, index)
            regions += cut_regions(store, index, np.array([region]), pixels)
        ends.append(tuple(regions))
    return ClassView(store.spec.classnames[label], *ends)


def _pixels(store: RegionStore, root: Path, index: int) -> Image.Image:
    stored = store.spec.images[index]
    path, digest = str(root / stored.path), store.contents.digest(index)
    return read_image(path, stored.height, stored.width, digest)


def evenly(count: int, most: int) -> np.ndarray:
    """Places 0..count-1, or so many evenly spaced ones, the first and the last among them."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)
