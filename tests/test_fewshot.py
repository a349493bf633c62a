"""Few-shot draws and class scopes: the family's, for every seed, whatever else happens."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from dassl.data.datasets import Datum

from datasets.fewshot import draw_few_shot, few_shot_split, subsample_classes

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


def test_unknown_scope_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="SUBSAMPLE_CLASSES is 'bases'; set it to one of all"):
        subsample_classes("bases", [])
