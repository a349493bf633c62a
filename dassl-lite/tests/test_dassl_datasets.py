"""Few-shot draws equal Dassl's; classes without images are refused by name."""

from __future__ import annotations

import json
import math
import pickle
import random
import re

import pytest

from dassl.config import get_cfg_default
from dassl.data.datasets import DatasetBase, Datum, build_dataset
from dassl.data.datasets.base_dataset import Datum as DatumOfPickles
from dassl.utils import set_random_seed

from .dassl_toy import DATA

pytestmark = pytest.mark.filterwarnings("ignore:No file found")
DRAWS = json.loads((DATA / "fewshot_selections.json").read_text())
SPLIT = json.loads((DATA / "split_zhou_EuroSAT.synthetic.json").read_text())


def data(*labels: int, names: str = "abcdefgh") -> list[Datum]:
    return [Datum(f"{i}.jpg", label, 0, names[label]) for i, label in enumerate(labels)]


def in_scope(items: list[Datum], scope: str) -> list[list]:
    """CoOp's base and new classes: the first ceil(n / 2) and the rest, numbered anew."""
    labels = sorted({item.label for item in items})
    half = math.ceil(len(labels) / 2)
    chosen = {"all": labels, "base": labels[:half], "new": labels[half:]}[scope]
    return [
        [item.impath, chosen.index(item.label), item.classname]
        for item in items
        if item.label in chosen
    ]


@pytest.mark.parametrize("case", DRAWS)
def test_few_shot_draw_equals_the_parity_file(case):
    seed, shots, scope = re.fullmatch(r"seed(\d+)_shots(\d+)_(\w+)", case).groups()
    splits = {
        split: [Datum(path, label, 0, name) for path, label, name in SPLIT[split]]
        for split in ("train", "val", "test")
    }
    dataset = DatasetBase(train_x=splits["train"], val=splits["val"], test=splits["test"])
    set_random_seed(int(seed))
    train = dataset.generate_fewshot_dataset(splits["train"], num_shots=int(shots))
    val = dataset.generate_fewshot_dataset(splits["val"], num_shots=min(int(shots), 4))
    assert in_scope(train, scope) == DRAWS[case]["train"]
    assert in_scope(val, scope) == DRAWS[case]["val"]
    if scope == "all":
        assert dataset.classnames == DRAWS[case]["classnames"]
        assert dataset.num_classes == DRAWS[case]["num_classes"]


def test_few_shot_keeps_short_classes_or_repeats_them():
    items = data(0, 0, 0, 1)
    dataset = DatasetBase(train_x=items)
    assert dataset.generate_fewshot_dataset(items) is items
    kept = dataset.generate_fewshot_dataset(items, num_shots=2)
    assert [item.label for item in kept] == [0, 0, 1]
    filled = dataset.generate_fewshot_dataset(items, num_shots=2, repeat=True)
    assert [item.label for item in filled] == [0, 0, 1, 1]
    random.seed(3)
    both = dataset.generate_fewshot_dataset(items, items, num_shots=1)
    assert len(both) == 2 and all(len(drawn) == 2 for drawn in both)


def test_class_without_training_images_is_named():
    message = re.escape("no training image of class 1 ('b', has images in test).")
    with pytest.raises(ValueError, match=message):
        DatasetBase(train_x=data(0, 2), test=data(0, 1, 2))
    with pytest.raises(ValueError, match="no training image of class 1, 3"):
        DatasetBase(train_x=data(0, 2, 4))
    with pytest.raises(ValueError, match=re.escape("class 2 ('c', has images in val)")):
        DatasetBase(train_x=data(0, 1), val=data(2))


def test_other_broken_class_lists_are_refused():
    with pytest.raises(ValueError, match="train_x is empty"):
        DatasetBase(train_x=[], test=data(0))
    with pytest.raises(ValueError, match="Class 0 is called 'a' and 'z'"):
        DatasetBase(train_x=data(0) + data(0, names="z"))
    with pytest.raises(ValueError, match="classes start at 0"):
        DatasetBase(train_x=data(0, 1) + [Datum("x.jpg", -1)])


def test_names_follow_labels_not_order_of_images():
    dataset = DatasetBase(train_x=data(2, 0, 1, 2))
    assert dataset.classnames == ["a", "b", "c"]
    assert dataset.lab2cname == {0: "a", 1: "b", 2: "c"}
    assert list(dataset.split_dataset_by_label(dataset.train_x)) == [2, 0, 1]
    assert list(dataset.split_dataset_by_domain(dataset.train_x)) == [0]


def test_datum_keeps_the_names_of_old_pickles():
    datum = data(1)[0]
    assert DatumOfPickles is Datum
    assert vars(datum) == {"_impath": "0.jpg", "_label": 1, "_domain": 0, "_classname": "b"}
    assert vars(pickle.loads(pickle.dumps(datum))) == vars(datum)
    with pytest.warns(UserWarning, match='No file found at "gone.jpg"'):
        Datum("gone.jpg")
    with pytest.raises(ValueError, match="needs a str"):
        Datum(3)


def test_domains_are_checked():
    class Two(DatasetBase):
        domains = ("photo", "sketch")

    two = Two(train_x=data(0))
    two.check_input_domains(["photo"], ["sketch"])
    with pytest.raises(ValueError, match="TARGET_DOMAINS is empty; choose from photo, sketch"):
        two.check_input_domains(["photo"], [])
    with pytest.raises(ValueError, match="no domain 'clipart'; choose from photo, sketch"):
        two.check_input_domains(["clipart"], ["photo"])


def test_unknown_data_set_is_told_with_the_known_ones():
    cfg = get_cfg_default()
    cfg.DATASET.NAME = "Toi"
    with pytest.raises(ValueError, match="'Toi' is not known. Do you mean 'Toy'. Known: .*Toy"):
        build_dataset(cfg)


def test_archives_unpack_and_others_are_refused(tmp_path, monkeypatch):
    import sys
    import types
    import zipfile

    def download(url, dst, quiet):
        with zipfile.ZipFile(dst, "w") as archive:
            archive.writestr("inside.txt", "hello")

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=download))
    dataset = DatasetBase(train_x=data(0))
    dataset.download_data("url", str(tmp_path / "new" / "set.zip"))
    assert (tmp_path / "new" / "inside.txt").read_text() == "hello"
    with pytest.raises(ValueError, match="unpack it by hand"):
        dataset.download_data("url", str(tmp_path / "set.rar"))
    with pytest.raises(ValueError, match="by hand"):
        dataset.download_data("url", str(tmp_path / "set.zip"), from_gdrive=False)
