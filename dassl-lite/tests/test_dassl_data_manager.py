"""Loaders: what a batch holds, what is dropped, what is refused."""

from __future__ import annotations

import pytest
import torch

from dassl.data import DataManager, DatasetWrapper
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import Datum

from . import dassl_toy as toy


@pytest.fixture
def items(image_root):
    return [Datum(str(image_root / f"{i}.png"), i % 3, 0, toy.CLASSNAMES[i % 3]) for i in range(7)]


def half(image):
    return torch.full((1,), image.size[0] / 2)


@pytest.mark.parametrize(
    ("images", "batch_size", "is_train", "sizes"),
    [
        (7, 3, True, [3, 3]),  # the incomplete last batch is dropped
        (7, 7, True, [7]),
        (7, 8, True, [7]),  # unless it is the only one
        (7, 3, False, [3, 3, 1]),
    ],
)
def test_last_batch(cfg, items, images, batch_size, is_train, sizes):
    loader = build_data_loader(
        cfg, data_source=items[:images], batch_size=batch_size, tfm=half, is_train=is_train
    )
    assert [len(batch["label"]) for batch in loader] == sizes == [*sizes][: len(loader)]


@pytest.mark.parametrize("nothing", [None, []])
def test_no_image_is_refused(cfg, nothing):
    with pytest.raises(ValueError, match="Toy gives no image for training; .* Check DATASET.ROOT"):
        build_data_loader(cfg, data_source=nothing)


def test_unknown_sampler_is_told_with_the_known_ones(cfg, items):
    with pytest.raises(ValueError, match="'Shuffle'. Known to dassl-lite: RandomSampler, Seq"):
        build_data_loader(cfg, "Shuffle", items)


def test_random_sampler_follows_the_seed(cfg, items):
    def order(seed):
        torch.manual_seed(seed)
        loader = build_data_loader(cfg, "RandomSampler", items, batch_size=7, tfm=half)
        return next(iter(loader))["index"].tolist()

    assert order(0) == order(0) != order(1)
    assert sorted(order(0)) == list(range(7))


def test_batch_keys(cfg, items):
    item = DatasetWrapper(cfg, items, transform=half)[4]
    assert set(item) == {"label", "domain", "impath", "index", "img"}
    assert (item["label"], item["domain"], item["index"]) == (1, 0, 4)
    assert item["impath"] == items[4].impath
    assert item["img"].item() == 14.0  # images are 28 wide
    assert DatasetWrapper(cfg, items)[0]["img"].size == (28, 20)  # PIL, as no transform is given


def test_several_transforms_and_views(cfg, items):
    cfg.merge_from_list(["DATALOADER.K_TRANSFORMS", 2, "DATALOADER.RETURN_IMG0", True])
    item = DatasetWrapper(cfg, items, transform=[half, half, half], is_train=True)[0]
    assert set(item) >= {"img", "img2", "img3", "img0"}
    assert len(item["img"]) == len(item["img3"]) == 2
    assert item["img0"].shape == (3, 16, 16)
    assert isinstance(DatasetWrapper(cfg, items, transform=half)[0]["img"], torch.Tensor)
    with pytest.raises(ValueError, match="K_TRANSFORMS is 2, but there is no transform"):
        DatasetWrapper(cfg, items, is_train=True)


def test_data_manager_builds_everything_and_prints_the_table(cfg, capsys):
    dm = DataManager(cfg)
    assert (dm.num_classes, dm.num_source_domains) == (3, 0)
    assert dm.lab2cname == {0: "ant", 1: "bee", 2: "cat"}
    assert dm.train_loader_u is None and len(dm.train_loader_x) == 5
    assert next(iter(dm.test_loader))["img"].shape == (22, 3, 16, 16)
    table = "Dataset    Toy\n# classes  3\n# train_x  22\n# val      9\n# test     22\n"
    assert table in capsys.readouterr().out


def test_data_manager_takes_custom_parts(cfg, capsys):
    class Wrapper(DatasetWrapper):
        def __getitem__(self, idx):
            return super().__getitem__(idx) | {"extra": idx}

    dm = DataManager(cfg, custom_tfm_train=half, custom_tfm_test=half, dataset_wrapper=Wrapper)
    batch = next(iter(dm.val_loader))
    assert batch["extra"].tolist() == batch["index"].tolist() == list(range(9))
    assert "* Using custom transform for testing" in capsys.readouterr().out
