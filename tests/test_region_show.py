"""What is shown of a store is what it holds; the page needs nothing else and fits every screen."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import region_world as world
import torch
from PIL import Image

from regions.__main__ import main
from regions.boxes import cut
from regions.store import RegionStore, RegionStoreError
from regions.tools.show import EXTREMES, evenly, look, show
from regions.tools.show_colours import STOPS, Ramp
from regions.tools.survey import weights_of

NAMES = (  # what a page must bear
    "ant",
    "<script>alert(1)</script> & co.",
    "Donaudampfschifffahrtselektrizitaetenhauptbetriebswerkbauunterbeamtengesellschaft",
    "price in $ and $100, of a car with a long name: 2012 Mercedes-Benz Sprinter Van",
)


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> tuple[Path, RegionStore, Path]:
    """The data root, a store of seven images with hard names, and its page."""
    root = tmp_path_factory.mktemp("world")
    store = world.make_store(root, root / "store", classnames=NAMES, num_regions=30)
    page = show(store.path, root, root / "out", num_images=2, seed=1)
    return root, store, page


def every(store: RegionStore, index: int) -> np.ndarray:
    return store.read(index, np.arange(store.spec.num_regions)).logits


# --- what is shown --------------------------------------------------------------------------


def test_regions_come_in_falling_order_with_the_teachers_words(shown):
    root, store, _ = shown
    view = look(store, root, 3, (), seed=0)
    assert len({image.path for image in view.images}) == 3
    assert len({image.label for image in view.images}) == 3  # of different classes
    for image in view.images:
        index = store.image_index(image.path)
        logits = every(store, index)
        order = np.argsort(-weights_of(logits), kind="stable")
        assert image.label == NAMES[store.spec.images[index].label]
        assert len(image.regions) == image.num_stored == store.spec.num_regions
        rows = store.read(index, order)
        whole = Image.open(root / image.path).convert("RGB")
        p = torch.from_numpy(logits).double().softmax(-1).numpy()
        for place, region in enumerate(image.regions):
            assert region.weight == pytest.approx(weights_of(logits)[order[place]], abs=1e-6)
            assert region.box == tuple(rows.boxes[place].tolist())
            expected = cut(whole, rows.boxes[place], rows.flips[place], store.spec.image_size)
            assert region.pixels.tobytes() == expected.tobytes()
            best = np.sort(p[order[place]])[::-1][:3]
            found = [guess.probability for guess in region.guesses]
            np.testing.assert_allclose(found, best, atol=1e-5)
            for guess in region.guesses:
                assert guess.is_label == (guess.name == image.label)
                place_of_name = NAMES.index(guess.name)
                assert p[order[place], place_of_name] == pytest.approx(guess.probability, abs=1e-5)


def test_the_ends_of_a_class_are_its_extremes(shown):
    root, store, _ = shown
    view = look(store, root, 2, (), seed=0)
    for extremes in view.extremes:
        label = NAMES.index(extremes.name)
        own = [i for i, image in enumerate(store.spec.images) if image.label == label]
        weights = np.concatenate([weights_of(every(store, index)) for index in own])
        assert extremes.most[0].weight == pytest.approx(weights.max(), abs=1e-6)
        assert extremes.least[0].weight == pytest.approx(weights.min(), abs=1e-6)
        for ends, sign in ((extremes.most, -1), (extremes.least, 1)):
            found = [sign * region.weight for region in ends]
            assert found == sorted(found) and len(found) == EXTREMES


def test_histograms_count_every_region_of_a_data_set_and_of_a_class(shown):
    root, store, _ = shown
    view = look(store, root, 1, (), seed=0)
    (whole,) = view.datasets
    assert whole.name == "images" and whole.weights.size == len(store) * store.spec.num_regions
    assert {group.name for group in view.classes} == set(NAMES)
    assert sum(group.weights.size for group in view.classes) == whole.weights.size
    means = [group.weights.mean() for group in view.classes]
    assert means == sorted(means)
    for group in (whole, *view.classes):
        assert group.shares.sum() == pytest.approx(1)
    right = [
        (every(store, i).argmax(-1) == image.label).mean()
        for i, image in enumerate(store.spec.images)
    ]
    assert whole.accuracy == pytest.approx(100 * np.mean(right))


@pytest.mark.parametrize("kind", ["topk", "features"])
def test_every_kind_is_shown(tmp_path, kind):
    spec = world.golden_spec(
        **world.GOLDEN_KINDS[f"region_store_v1_{kind}"], num_regions=2, image_size=8
    )
    for image in spec.images:
        path = tmp_path / image.path
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (image.width, image.height), "teal").save(path)
    golden = Path(__file__).parent / "golden" / f"region_store_v1_{kind}"
    view = look(RegionStore.open(golden), tmp_path, 3, (), seed=0)
    for image in view.images:
        logits = every(view.store, view.store.image_index(image.path))
        found = sorted(region.guesses[0].probability for region in image.regions)
        np.testing.assert_allclose(
            found, np.sort(torch.from_numpy(logits).softmax(-1).amax(-1).numpy()), atol=1e-6
        )


def test_images_are_chosen_by_stored_path_or_by_file(shown):
    root, store, _ = shown
    stored = store.spec.images[3].path
    for path in (stored, str(root / stored), f"{root}/images/../{stored}"):
        (image,) = look(store, root, 6, [path], seed=0).images
        assert image.path == stored
    with pytest.raises(
        RegionStoreError, match="asked for it holds none: images/none.png. It is of other images"
    ):
        look(store, root, 6, ["images/none.png"], seed=0)
    with pytest.raises(ValueError, match="--images is 0; it needs 1 or more"):
        look(store, root, 0, (), seed=0)


def test_a_wrong_root_is_told_in_one_line(shown, tmp_path, capsys):
    _, store, _ = shown
    capsys.readouterr()
    words = ["show", str(store.path), "--root", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: image ") and "is missing. Check --root." in error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_many_regions_are_thinned_evenly():
    assert evenly(5, 60).tolist() == [0, 1, 2, 3, 4]
    assert evenly(500, 5).tolist() == [0, 125, 250, 374, 499]


# --- colours and pictures -------------------------------------------------------------------


def test_the_ramp_keeps_its_order_in_grey():
    ramp = Ramp(0.0, 1.0)
    parts = [[int(ramp.colour(w)[i : i + 2], 16) for i in (1, 3, 5)] for w in np.linspace(0, 1, 99)]
    grey = np.array(parts) @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(grey) > 0).all() and ramp.colour(0) == STOPS[0] and ramp.colour(1) == STOPS[-1]
    assert ramp.halo(0.1) == "#ffffff" and ramp.halo(0.9) == "#000000"


def test_the_ramp_spans_the_weights_and_says_so():
    ramp = Ramp.over(np.linspace(0.61, 0.79, 1000))
    assert (ramp.low, ramp.high) == (pytest.approx(0.6), pytest.approx(0.8))
    assert ramp.ends() == ("0.60 or less", "0.80 or more")
    assert ramp.colour(0.1) == STOPS[0] and ramp.colour(0.99) == STOPS[-1]
    assert Ramp.over(np.linspace(0, 1, 1000)).ends() == ("0, cannot tell", "1, certain")
    for value in (0.0, 0.5, 1.0):  # all alike
        flat = Ramp.over(np.full(9, value))
        assert 0 <= flat.low < flat.high <= 1


def test_the_same_seed_gives_the_same_page(shown, tmp_path):
    root, store, page = shown
    assert show(store.path, root, tmp_path, num_images=2, seed=1).read_bytes() == page.read_bytes()


# --- the page -------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Collects tags, ids, addresses and words; refuses tags that do not close."""

    VOID = {"meta", "img", "rect", "path", "br"}

    def __init__(self) -> None:
        super().__init__()
        self.open, self.tags, self.ids, self.addresses, self.words = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_fetches_nothing_and_runs_nothing(shown):
    _, _, page = shown
    text = page.read_text()
    for address in ("http://", "https://", "url(", "@import", "<script", "<link", "<iframe"):
        assert address not in text.lower(), address
    reader = Reader()
    reader.feed(text)
    assert not reader.open and not {"script", "link", "iframe", "object"} & set(reader.tags)
    assert len(set(reader.ids)) == len(reader.ids)
    for address in reader.addresses:
        is_image = address.startswith(("data:image/png;base64,", "data:image/jpeg;base64,"))
        assert is_image or address.removeprefix("#") in reader.ids
    assert "default-src 'none'" in text and 'name="viewport"' in text
    words = "".join(reader.words)
    for name in NAMES:  # whatever a name holds, it is shown and does nothing
        assert name in words
    assert html.escape(NAMES[1]) in text


PROBE = """<script>addEventListener("load", () => {
  const texts = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode;
    if (!node.data.trim() || node.parentNode.closest("svg, script, .legend")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const r of range.getClientRects()) texts.push([r, node.data]);
  }
  const overlaps = [];
  for (let i = 0; i < texts.length; i++) for (let j = 0; j < i; j++) {
    const [a, b] = [texts[i][0], texts[j][0]];
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (wide > 1 && high > 4) overlaps.push([texts[i][1], texts[j][1]]);
  }
  const images = [...document.images];
  parent.postMessage({
    width: innerWidth, content: document.documentElement.scrollWidth, texts: texts.length,
    images: images.length, broken: images.filter(image => !image.naturalWidth).length,
    hidden: images.filter(image => image.getBoundingClientRect().width < 40).length,
    boxes: document.querySelectorAll(".stage rect").length, overlaps: overlaps.slice(0, 5),
    fetched: performance.getEntriesByType("resource").map(entry => entry.name)
      .filter(name => !name.startsWith("data:")),
  }, "*");
});</script>"""
FRAME = """<body><pre id="found"></pre><script>
const found = [];
addEventListener("message", event => {
  found.push(event.data);
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>%s</body>"""


def browse(tmp_path: Path, *options: str) -> str:
    """Run a real browser without a window and without a network; skip where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no Chromium or Chrome is installed")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-default-apps", "--no-first-run", "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}",
        *options,
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{browser} did not answer")
    if done.returncode:
        pytest.skip(f"{browser} does not run here: {done.stderr.strip()[-200:]}")
    return done.stdout


def test_a_browser_shows_the_page_on_a_desk_and_on_a_phone(shown, tmp_path):
    _, _, page = shown
    text = page.read_text()
    policy = text[text.index('<meta http-equiv="Content') : text.index('<meta name="viewport"')]
    (tmp_path / "page.html").write_text(text.replace(policy, "") + PROBE)  # the probe is a script
    frames = "".join(
        f'<iframe src="page.html" style="width: {width}px; height: 900px; border: 0"></iframe>'
        for width in (360, 1200)
    )
    (tmp_path / "frame.html").write_text(FRAME % frames)
    dom = browse(
        tmp_path, "--window-size=1600,1000", "--virtual-time-budget=20000", "--dump-dom",
        (tmp_path / "frame.html").as_uri(),
    )  # fmt: skip
    start = dom.index('<pre id="found">') + len('<pre id="found">')
    found = json.loads(html.unescape(dom[start : dom.index("</pre>")]))
    assert sorted(view["width"] for view in found) == [360, 1200]
    cards = 2 * 30 + 2 * 2 * EXTREMES
    for view in found:
        assert view["content"] <= view["width"], "it scrolls sideways"
        assert view["images"] == cards + 2 and not view["broken"] and not view["hidden"]
        assert view["boxes"] == 2 * 2 * 24 and view["texts"] > 4 * cards
        assert not view["overlaps"] and not view["fetched"]


def test_a_browser_paints_the_page_under_its_own_policy(shown, tmp_path):
    """The page as it is: a policy too strict would leave it without images and colours."""
    root, store, page = shown
    shot = tmp_path / "shot.png"
    browse(tmp_path, "--window-size=1200,1600", f"--screenshot={shot}", page.as_uri())
    with Image.open(shot) as image:
        painted = set(map(tuple, np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()))
    first = look(store, root, 2, (), seed=1).images[0].pixels
    noise = set(
        map(tuple, np.asarray(first).reshape(-1, 3).tolist())
    )  # enlarged in whole pixels, so its colours stay
    assert len(noise & painted) > len(noise) / 2
    dark = tuple(int(STOPS[0][i : i + 2], 16) for i in (1, 3, 5))
    assert dark in painted  # the legend's dark end: styles are on
