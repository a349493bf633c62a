"""Few-shot draws and class scopes: the family's, for every seed, whatever else happens."""

from __future__ import annotations

import hashlib
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from dassl.data.datasets import Datum

from datasets.fewshot import (
    Entry,
    Split,
    cached_few_shot,
    divide,
    draw_few_shot,
    few_shot_split,
    hold_out,
    subsample_classes,
)

pytestmark = pytest.mark.filterwarnings("ignore:No file found")  # the split's images do not exist
DATA = Path(__file__).parent / "data"
OFFICIAL = json.loads((DATA / "fewshot_selections.json").read_text())
SPLIT = json.loads((DATA / "split_zhou_EuroSAT.synthetic.json").read_text())


def read(split: str) -> list[Datum]:
    return [Datum(impath=p, label=label, classname=name) for p, label, name in SPLIT[split]]


def plain(items: list[Datum]) -> list[list]:
    return [[item.impath, item.label, item.classname] for item in items]


@pytest.mark.parametrize("case", sorted(OFFICIAL))
def test_draw_and_scope_are_the_official_ones(case):
    seed, shots, scope = re.fullmatch(r"seed(\d+)_shots(-?\d+)_(\w+)", case).groups()
    train, val = few_shot_split(read("train"), read("val"), int(shots), int(seed))
    train, val, test = subsample_classes(scope, train, val, read("test"))
    expected = OFFICIAL[case]
    assert plain(train) == expected["train"]
    assert plain(val) == expected["val"]
    assert len(test) == expected["n_test"]
    names = {item.label: item.classname for item in train}
    assert [names[label] for label in sorted(names)] == expected["classnames"]
    assert len(names) == expected["num_classes"]


def test_draw_does_not_touch_or_read_the_global_generators():
    first = few_shot_split(read("train"), read("val"), 4, seed=3)
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    again = few_shot_split(read("train"), read("val"), 4, seed=3)
    assert [plain(part) for part in first] == [plain(part) for part in again]
    assert states[0] == random.getstate()
    assert states[1] == np.random.get_state()[1].tolist()
    assert torch.equal(states[2], torch.get_rng_state())


def test_base_and_new_runs_share_the_images_of_the_all_class_run():
    train, val = few_shot_split(read("train"), read("val"), 4, seed=0)
    halves = [subsample_classes(scope, train, val) for scope in ("base", "new")]
    for i, whole in enumerate((train, val)):
        together = [item.impath for half in halves for item in half[i]]
        assert together == [item.impath for item in whole]


def test_a_small_class_gives_all_it_has_and_few_validation_images_are_drawn():
    items = [Datum(impath=f"{label}/{i}", label=label) for label in (4, 2) for i in range(3)]
    assert plain(draw_few_shot(items, 5, random.Random(0))) == plain(items)
    train, val = few_shot_split(read("train"), read("val"), 16, seed=1)
    assert len(val) == 4 * len({item.label for item in read("val")})
    assert plain(few_shot_split(items, items, 0, seed=1)[0]) == plain(items)


def test_negative_seed_draws_anew_and_seed_zero_is_a_seed():
    def draw(seed: int) -> list[list]:
        return plain(few_shot_split(read("train"), [], 8, seed)[0])

    assert draw(0) == draw(0) != draw(1)
    assert draw(-1) != draw(-1)


@pytest.mark.parametrize("count", [1, 2, 5, 47])
def test_base_is_the_larger_half_and_both_are_relabelled_from_zero(count):
    # Labels with gaps and out of order, as a split file may have them.
    items = [Datum(impath=str(i), label=7 * i, classname=f"c{i}") for i in reversed(range(count))]
    (base,), (new,) = subsample_classes("base", items), subsample_classes("new", items)
    middle = -(-count // 2)
    assert {item.label: item.classname for item in base} == {i: f"c{i}" for i in range(middle)}
    assert {item.label: item.classname for item in new} == {
        i: f"c{middle + i}" for i in range(count - middle)
    }


def test_the_classes_of_a_scope_are_those_of_the_first_split():
    """Five classes of training are 3 base and 2 new, whatever validation has of them."""
    train = [Datum(impath=f"t{i}", label=i, classname=f"c{i}") for i in range(5)]
    val = [Datum(impath=f"v{i}", label=i, classname=f"c{i}") for i in (4, 1)]
    for scope, kept, wanted in (("base", [0, 1, 2], ["v1", 1]), ("new", [3, 4], ["v4", 1])):
        of_train, of_val = subsample_classes(scope, train, val)
        assert [item.impath for item in of_train] == [f"t{i}" for i in kept]
        assert [item.label for item in of_train] == list(range(len(kept)))
        assert [[item.impath, item.label] for item in of_val] == [wanted]


def test_unknown_scope_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="SUBSAMPLE_CLASSES is 'bases'; set it to one of all"):
        subsample_classes("bases", [])


# Splits made here


def entries(count: int, label: int = 0) -> list[Entry]:
    return [Entry(f"{label}/{i:02d}.jpg", label, f"c{label}") for i in range(count)]


@pytest.mark.parametrize(
    "count, held",  # 20 %, rounded to the nearest: 0.4, 0.6, 1.4, 1.6, 2.4, 2.6
    [(1, 0), (2, 0), (3, 1), (7, 1), (8, 2), (10, 2), (12, 2), (13, 3)],
)
def test_a_fifth_of_every_class_is_held_out(count, held):
    train, val = hold_out(entries(count) + entries(10, 1), random.Random(0))
    first, second = entries(count), entries(10, 1)
    rng = random.Random(0)  # class by class, in order of appearance
    rng.shuffle(first), rng.shuffle(second)
    assert val == first[:held] + second[:2] and train == first[held:] + second[2:]


@pytest.mark.parametrize(
    "count, sizes",  # halves are rounded to the even number, as Python's round does
    [
        (4, (2, 1, 1)),
        (5, (2, 1, 2)),
        (7, (4, 1, 2)),
        (9, (4, 2, 3)),
        (10, (5, 2, 3)),
        (13, (6, 3, 4)),
    ],
)
def test_a_class_is_divided_50_20_30(count, sizes):
    split = divide(entries(count) + entries(10, 1), random.Random(0))
    first, second = entries(count), entries(10, 1)
    rng = random.Random(0)
    rng.shuffle(first), rng.shuffle(second)
    train, val, _ = sizes
    assert split.train == first[:train] + second[:5]
    assert split.val == first[train : train + val] + second[5:7]
    assert split.test == first[train + val :] + second[7:]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_class_too_small_to_divide_is_named(count):
    with pytest.raises(ValueError, match=f"Class 'c3' has {count} images?, .*4 is the least"):
        divide(entries(8) + entries(count, 3), random.Random(0))


# The cache of a draw


def test_the_digest_of_a_split_is_that_of_its_compact_ascii_json():
    """Caches and own data are named by it: other digits would orphan what is there."""
    split = Split([Entry("a/é.jpg", 0, "café cat")], [], [Entry("b.jpg", 1, "pug")])
    text = rb'[[["a/\u00e9.jpg",0,"caf\u00e9 cat"]],[],[["b.jpg",1,"pug"]]]'
    assert split.digest() == hashlib.sha256(text).hexdigest()[:16]


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("change", ["path", "label", "classname"])
def test_a_kept_draw_with_an_image_that_the_split_lacks_is_drawn_anew(
    tmp_path, capsys, part, change
):
    split = Split(entries(9) + entries(9, 1), entries(6, 2) + entries(6, 3), entries(1))
    drawn = cached_few_shot(tmp_path, split, 2, seed=1)
    (path,) = (tmp_path / "split_fewshot").iterdir()
    whole, content = path.read_text(), json.loads(path.read_text())
    place = Entry._fields.index(change)
    content[part][-1][place] = 7 if change == "label" else "other"
    path.write_text(json.dumps(content))
    assert cached_few_shot(tmp_path, split, 2, seed=1) == drawn
    assert f"{path} does not fit the split; it is drawn anew." in capsys.readouterr().out
    assert path.read_text() == whole
    assert cached_few_shot(tmp_path, split, 2, seed=1) == drawn
    assert capsys.readouterr().out == ""


def test_a_kept_draw_is_that_of_its_shots_and_seed(tmp_path):
    split = Split(entries(9) + entries(9, 1), entries(6, 2), entries(1))
    for shots, seed in ((2, 1), (3, 1), (2, 0), (2, 1)):
        drawn = few_shot_split(split.train, split.val, shots, seed)
        assert cached_few_shot(tmp_path, split, shots, seed) == drawn
    names = sorted(path.name for path in (tmp_path / "split_fewshot").iterdir())
    wanted = ("shot_2-seed_0", "shot_2-seed_1", "shot_3-seed_1")
    assert names == [f"{name}-{split.digest()}.json" for name in wanted]


@pytest.mark.parametrize("shots, seed", [(0, 1), (-1, 1), (2, -1)])
def test_whole_splits_and_unseeded_draws_are_not_kept(tmp_path, shots, seed):
    split = Split(entries(9), entries(6), entries(1))
    train, val = cached_few_shot(tmp_path, split, shots, seed)
    assert (len(train), len(val)) == ((2, 2) if shots > 0 else (9, 6))
    assert list(tmp_path.iterdir()) == []
