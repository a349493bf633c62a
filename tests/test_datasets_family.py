"""The loaders of the 11 data sets and the ImageNet variants, on their real layouts.

tests/data/official_splits.json holds what CoOp's own loaders (ff61507) made of the layouts of
tests/family_world.py, with directory listings sorted: the split made with seed 3, and the 2-shot
base draw of seed 1. Long lists are kept as a SHA-256 of their JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
from pathlib import Path

import pytest
import yaml
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from family_world import WORLDS, build, make_images, wnids, write_classnames

import datasets  # noqa: F401
from configs.defaults import extend_cfg
from datasets.fewshot import Entry, Split, class_folders, divide, keep_split, read_split
from datasets.sizes import SIZES, Sizes
from models.templates import template_for

REPO = Path(__file__).resolve().parents[1]
OFFICIAL = json.loads((REPO / "tests/data/official_splits.json").read_text())
VARIANTS = ("ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR")
TRAINED = [name for name in WORLDS if name not in VARIANTS]
WITH_SPLIT_FILE = [name for name in TRAINED if name not in ("ImageNet", "FGVCAircraft")]


def config(root: Path, name: str, *, strict: bool = False, seed: int = 1, **keys):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.DATASET.STRICT = name, str(root), strict
    cfg.SEED, cfg.VERBOSE = seed, False
    for key, value in keys.items():
        cfg.DATASET[key] = value
    return cfg


def load(root: Path, name: str, **keys):
    dataset = build_dataset(config(root, name, **keys))
    for part in (dataset.train_x, dataset.val, dataset.test):
        assert [item.impath for item in part or [] if not os.path.isfile(item.impath)] == []
    return dataset


def plain(items, folder: Path) -> list[list]:
    return [[os.path.relpath(i.impath, folder), i.label, i.classname] for i in items or []]


def like(expected, found: list) -> bool:
    if isinstance(expected, str):
        found = hashlib.sha256(json.dumps(found).encode()).hexdigest()
    return found == expected


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Every layout, built once, with the split of seed 3, as in the official run; tests that change
    one build their own.
    """
    root = tmp_path_factory.mktemp("data")
    for name in WORLDS:
        folder = build(name, root)
        if name in WITH_SPLIT_FILE:
            made = DATASET_REGISTRY.get(name).make_split(folder, random.Random(3))
            keep_split(folder / f"split_fallback_{name}.json", made)
    return root


@pytest.fixture
def small_sizes(monkeypatch):
    """Makes a folder's counts the expected ones, so that STRICT True accepts it."""

    def set_sizes(name: str, dataset) -> None:
        train = None if name in VARIANTS else len(dataset.train_x)
        val = None if name in ("ImageNet", *VARIANTS) else len(dataset.val)
        sizes = Sizes(dataset.num_classes, train, val, len(dataset.test))
        monkeypatch.setitem(SIZES, name, sizes)

    return set_sizes


# Names


def test_names_folders_and_files_are_the_familys():
    expected = {
        "Caltech101": ("101_ObjectCategories", "split_zhou_Caltech101.json"),
        "OxfordPets": ("images", "split_zhou_OxfordPets.json"),
        "StanfordCars": (".", "split_zhou_StanfordCars.json"),
        "OxfordFlowers": ("jpg", "split_zhou_OxfordFlowers.json"),
        "Food101": ("images", "split_zhou_Food101.json"),
        "SUN397": ("SUN397", "split_zhou_SUN397.json"),
        "DescribableTextures": ("images", "split_zhou_DescribableTextures.json"),
        "EuroSAT": ("2750", "split_zhou_EuroSAT.json"),
        "UCF101": ("UCF-101-midframes", "split_zhou_UCF101.json"),
        "ImageNet": ("images", ""),
        "FGVCAircraft": ("images", ""),
        "ImageNetV2": ("imagenetv2-matched-frequency-format-val", ""),
        "ImageNetSketch": ("images", ""),
        "ImageNetA": ("imagenet-a", ""),
        "ImageNetR": ("imagenet-r", ""),
    }
    assert set(expected) == set(WORLDS) == set(SIZES)
    for name, (stem, folder, _) in WORLDS.items():
        content = yaml.safe_load((REPO / f"configs/datasets/{stem}.yaml").read_text())
        assert content == {"DATASET": {"NAME": name}}
        cls = DATASET_REGISTRY.get(name)
        assert (cls.dataset_dir, (cls.image_dir, cls.split_file)) == (folder, expected[name])


def test_templates_are_the_familys():
    own = {
        "OxfordPets": "a photo of a {}, a type of pet.",
        "OxfordFlowers": "a photo of a {}, a type of flower.",
        "FGVCAircraft": "a photo of a {}, a type of aircraft.",
        "DescribableTextures": "{} texture.",
        "EuroSAT": "a centered satellite photo of {}.",
        "Food101": "a photo of {}, a type of food.",
        "UCF101": "a photo of a person doing {}.",
    }
    for name in WORLDS:
        assert template_for(name) == own.get(name, "a photo of a {}.")


# Lists equal the official ones


@pytest.mark.parametrize("name", WORLDS)
def test_split_equals_the_official_loaders(worlds, name):
    folder = worlds / WORLDS[name][1]
    whole = load(worlds, name)
    for part in ("train_x", "val", "test"):
        assert like(OFFICIAL[name]["whole"][part], plain(getattr(whole, part), folder)), part
    assert like(OFFICIAL[name]["classnames"], whole.classnames)
    assert whole.num_classes == len(whole.classnames)


@pytest.mark.parametrize("name", TRAINED)
def test_few_shot_base_draw_equals_the_official_loaders(worlds, name):
    folder = worlds / WORLDS[name][1]
    for _ in range(2):  # drawn, then read from the cache
        random.seed(77)
        drawn = load(worlds, name, seed=1, NUM_SHOTS=2, SUBSAMPLE_CLASSES="base")
        for part in ("train_x", "val", "test"):
            expected = OFFICIAL[name]["shots2_seed1_base"][part]
            assert like(expected, plain(getattr(drawn, part), folder)), part


def test_class_names_follow_the_familys_rules(worlds):
    def names(name: str) -> list[str]:
        return load(worlds, name).classnames

    assert names("Caltech101") == ["face", "leopard", "motorbike", "accordion", "airplane",
                                   "yin_yang"]  # fmt: skip
    assert names("OxfordPets")[:2] == ["abyssinian", "american_bulldog"]
    assert names("StanfordCars")[0] == "2000 AM General Hummer SUV"
    assert names("FGVCAircraft")[3:] == ["F/A-18", "Spitfire Mk V"]
    assert names("SUN397") == ["abbey", "outdoor apartment_building", "indoor apse", "youth_hostel"]
    assert names("EuroSAT")[3:5] == ["Highway or Road", "Industrial Buildings"]
    assert names("UCF101")[:2] == ["Apply_Eye_Makeup", "Boxing_Punching_Bag"]
    assert names("Food101")[0] == "apple_pie"
    twice = names("ImageNet")
    assert len(twice) == 1000 and twice[657] == twice[744] == "missile"
    assert len(names("ImageNetA")) == 200 and names("ImageNetR")[0] == "great white shark"


def test_variants_are_for_evaluation_only(worlds):
    for name in VARIANTS:
        variant = load(worlds, name, NUM_SHOTS=16)
        assert plain(variant.train_x, worlds) == plain(variant.test, worlds)
        assert variant.val is None
    assert [i.label for i in variant.test[:3]] == [0, 0, 1]  # ranks among the 200 folders
    assert load(worlds, "ImageNetA", SUBSAMPLE_CLASSES="new").num_classes == 100


# Split files


def test_published_split_is_read_and_no_other_is_made(tmp_path, small_sizes):
    folder = build("EuroSAT", tmp_path)
    entries = [
        Entry(f"Forest/Forest_{i}.jpg", 0, "Forest") for i in (3, 1, 2)
    ] + [Entry("River/River_9.jpg", 1, "River")]  # fmt: skip
    keep_split(folder / "split_zhou_EuroSAT.json", Split(entries, entries[:1], entries[2:]))
    (folder / "split_fallback_EuroSAT.json").write_text("not read")
    found = load(tmp_path, "EuroSAT")
    assert plain(found.train_x, folder / "2750") == [list(entry) for entry in entries]
    small_sizes("EuroSAT", found)
    assert len(load(tmp_path, "EuroSAT", strict=True).test) == 2


def test_split_made_here_is_kept_for_other_seeds_and_gives_way_to_the_published_one(
    tmp_path, capsys
):
    folder = build("DescribableTextures", tmp_path)
    first = load(tmp_path, "DescribableTextures", seed=3)
    assert "results compare with no published number" in capsys.readouterr().out
    again = load(tmp_path, "DescribableTextures", seed=4)
    assert plain(again.test, folder) == plain(first.test, folder)
    assert not (folder / "split_zhou_DescribableTextures.json").exists()
    made = read_split(folder / "split_fallback_DescribableTextures.json")
    published = made._replace(train=made.train[::-1])
    keep_split(folder / "split_zhou_DescribableTextures.json", published)
    assert load(tmp_path, "DescribableTextures").train_x[0].label == 3


def test_split_of_an_incomplete_folder_is_not_kept(tmp_path, small_sizes):
    folder = build("EuroSAT", tmp_path / "data")
    fallback = folder / "split_fallback_EuroSAT.json"
    whole = load(tmp_path / "data", "EuroSAT")
    fallback.unlink()
    small_sizes("EuroSAT", whole)
    (folder / "2750/Forest/Forest_3.jpg").rename(tmp_path / "away.jpg")
    with pytest.raises(ValueError, match="images found"):
        load(tmp_path / "data", "EuroSAT", strict=True)
    assert not fallback.exists()
    load(tmp_path / "data", "EuroSAT")  # not strict: kept, so that all seeds test alike
    (tmp_path / "away.jpg").rename(folder / "2750/Forest/Forest_3.jpg")
    with pytest.raises(ValueError, match="split_fallback_EuroSAT.json was made of .* delete it"):
        load(tmp_path / "data", "EuroSAT", strict=True)
    fallback.unlink()
    assert len(load(tmp_path / "data", "EuroSAT", strict=True).test) == len(whole.test)


def test_split_is_kept_on_a_file_system_without_links(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    one = Split([Entry("a.jpg", 0, "a")], [], [])
    path = tmp_path / "split.json"
    keep_split(path, one)
    assert keep_split(path, one._replace(test=one.train)) == one == read_split(path)


def test_a_split_made_here_is_drawn_with_seed_1_whatever_the_runs_seed(tmp_path):
    folder = build("DescribableTextures", tmp_path)
    load(tmp_path, "DescribableTextures", seed=5)
    made = read_split(folder / "split_fallback_DescribableTextures.json")
    assert made == divide(class_folders(folder / "images"), random.Random(1))


def test_a_split_is_put_in_place_by_a_link_which_replaces_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("a rename could replace a split"))
    one = Split([Entry("a.jpg", 0, "a")], [], [])
    assert keep_split(tmp_path / "split.json", one) == one
    text = (tmp_path / "split.json").read_text()  # as the published ones are laid out
    assert text.startswith('{\n    "train": [\n        [\n            "a.jpg",\n            0,')


def test_first_of_two_splits_written_at_once_wins(tmp_path):
    one = Split([Entry("a.jpg", 0, "a")], [], [])
    path = tmp_path / "split.json"
    assert keep_split(path, one) == one
    assert keep_split(path, one._replace(test=one.train)) == one
    assert [item.name for item in tmp_path.iterdir()] == ["split.json"]


def test_damaged_split_file_is_named(tmp_path):
    folder = build("EuroSAT", tmp_path)
    (folder / "split_zhou_EuroSAT.json").write_text('{"train": [["a.jpg", 0')
    with pytest.raises(ValueError, match="split_zhou_EuroSAT.json is no split file.*fetch it"):
        load(tmp_path, "EuroSAT")


# The few-shot cache


def test_cache_is_json_with_relative_paths_and_survives_a_move(tmp_path):
    folder = build("EuroSAT", tmp_path)
    first = load(tmp_path, "EuroSAT", NUM_SHOTS=2)
    (path,) = (folder / "split_fewshot").iterdir()
    content = json.loads(path.read_text())
    assert path.name == f"shot_2-seed_1-{content['split']}.json"
    assert content["train"][0][0].startswith("AnnualCrop/AnnualCrop_")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(folder, moved / "eurosat")
    again = load(moved, "EuroSAT", NUM_SHOTS=2)
    assert plain(again.train_x, moved) == plain(first.train_x, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda content, split: content.update(train=content["train"][:1]),
        lambda content, split: content.update(train=content["train"][:1] * 20),
        lambda content, split: content["train"].__setitem__(
            0, next(list(e) for e in split.train if list(e) not in content["train"])
        ),
        lambda content, split: content["train"].reverse(),
        lambda content, split: content.update(val=[]),
        lambda content, split: content.update(seed=2),
    ],
    ids=["one image", "one image 20 times", "another image", "another order", "no val", "seed"],
)
def test_cache_that_is_not_the_draw_is_told_and_replaced(tmp_path, capsys, change):
    folder = build("EuroSAT", tmp_path)
    first = load(tmp_path, "EuroSAT", NUM_SHOTS=1)
    (path,) = (folder / "split_fewshot").iterdir()
    whole, content = path.read_text(), json.loads(path.read_text())
    change(content, read_split(folder / "split_fallback_EuroSAT.json"))
    path.write_text(json.dumps(content))
    capsys.readouterr()
    again = load(tmp_path, "EuroSAT", NUM_SHOTS=1)
    assert f"{path} does not fit the split; it is drawn anew." in capsys.readouterr().out
    assert plain(again.train_x, folder) == plain(first.train_x, folder)
    assert plain(again.val, folder) == plain(first.val, folder)
    assert path.read_text() == whole
    load(tmp_path, "EuroSAT", NUM_SHOTS=1)
    assert "drawn anew" not in capsys.readouterr().out


def test_another_split_has_a_cache_of_its_own(tmp_path):
    folder = build("EuroSAT", tmp_path)
    load(tmp_path, "EuroSAT", NUM_SHOTS=1)
    split = read_split(folder / "split_fallback_EuroSAT.json")
    keep_split(folder / "split_zhou_EuroSAT.json", split._replace(train=split.train[1:]))
    load(tmp_path, "EuroSAT", NUM_SHOTS=1)
    assert len(list((folder / "split_fewshot").iterdir())) == 2


@pytest.mark.parametrize("text", ["{", "[]", '{"split": "x", "train": [], "val": []}'])
def test_damaged_cache_is_drawn_anew(tmp_path, capsys, text):
    folder = build("EuroSAT", tmp_path)
    first = load(tmp_path, "EuroSAT", NUM_SHOTS=2)
    (path,) = (folder / "split_fewshot").iterdir()
    path.write_text(text)
    again = load(tmp_path, "EuroSAT", NUM_SHOTS=2)
    assert "drawn anew" in capsys.readouterr().out
    assert plain(again.train_x, folder) == plain(first.train_x, folder)
    assert json.loads(path.read_text())["shots"] == 2


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("opened",))


def test_upstream_pickles_are_never_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, pickles in (
        ("EuroSAT", ["split_fewshot/shot_2-seed_1.pkl"]),
        ("ImageNet", ["preprocessed.pkl", "split_fewshot/shot_2-seed_1.pkl"]),
    ):
        folder = build(name, tmp_path)
        (folder / "split_fewshot").mkdir()
        for path in pickles:
            (folder / path).write_bytes(pickle.dumps(Bomb()))
        load(tmp_path, name, NUM_SHOTS=2)
    assert not (tmp_path / "opened").exists()


# Checks before training


def test_full_size_eurosat_is_accepted_and_each_lack_is_named(tmp_path):
    sizes = dict(AnnualCrop=3000, Forest=3000, HerbaceousVegetation=3000, Highway=2500,
                 Industrial=2500, Pasture=2000, PermanentCrop=2500, Residential=3000, River=2500,
                 SeaLake=3000)  # fmt: skip
    images = tmp_path / "eurosat/2750"
    for name, count in sizes.items():
        make_images(images, (f"{name}/{name}_{i}.jpg" for i in range(1, count + 1)))
    found = load(tmp_path, "EuroSAT", strict=True, NUM_SHOTS=16, SUBSAMPLE_CLASSES="base")
    assert (len(found.train_x), len(found.test), found.num_classes) == (80, 4200, 5)

    for i in range(1, 31):
        (images / f"Forest/Forest_{i}.jpg").unlink()
    with pytest.raises(ValueError) as refusal:
        load(tmp_path, "EuroSAT", strict=True)
    assert str(refusal.value) == (
        f"EuroSAT is not as it should be. {images}/Forest: 2,970 images of the split found, 3,000 "
        f"expected. Next: python -m datasets.prepare eurosat --root {tmp_path}; or set "
        "DATASET.STRICT False to go on with what is there."
    )
    assert len(load(tmp_path, "EuroSAT").test) + 30 > 8100 > len(load(tmp_path, "EuroSAT").test)


def test_full_size_textures_in_another_label_order_are_refused(tmp_path):
    folder = tmp_path / "dtd"
    names = [f"texture{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(47)]
    for name in names:
        make_images(folder / "images", (f"{name}/{name}_{i:04d}.jpg" for i in range(120)))
    found = load(tmp_path, "DescribableTextures", strict=True)
    assert (len(found.train_x), len(found.val), len(found.test)) == (2820, 1128, 1692)
    made = read_split(folder / "split_fallback_DescribableTextures.json")
    extra = made.test[-36:]  # of the last class: now 36 fewer of another
    test = [entry for entry in made.test if entry.label] + extra
    keep_split(folder / "split_zhou_DescribableTextures.json", made._replace(test=test))
    with pytest.raises(
        ValueError, match="828 test images of base classes found, 864 expected: the"
    ):
        load(tmp_path, "DescribableTextures", strict=True)


def test_class_without_training_images_is_refused_or_left_out(tmp_path, capsys):
    folder = build("EuroSAT", tmp_path)
    load(tmp_path, "EuroSAT")
    split = read_split(folder / "split_fallback_EuroSAT.json")
    train = [entry for entry in split.train if entry.label != 4]
    keep_split(folder / "split_zhou_EuroSAT.json", split._replace(train=train))
    lack = r"class 4 \(Industrial Buildings\): 0 training images found, 1 or more expected"
    with pytest.raises(ValueError, match=f"9 classes found, 10 expected. {lack}"):
        load(tmp_path, "EuroSAT", strict=True)
    found = load(tmp_path, "EuroSAT")
    assert "Warning: EuroSAT is not as it should be (DATASET.STRICT False)" in (
        capsys.readouterr().out
    )
    assert found.num_classes == len(found.classnames) == 9
    assert "Industrial Buildings" not in {item.classname for item in found.test}
    assert {item.label for item in found.test} == set(range(9))


def test_images_that_are_gone_are_left_out_when_not_strict(tmp_path):
    build("OxfordPets", tmp_path)
    whole = load(tmp_path, "OxfordPets")
    Path(whole.test[0].impath).unlink()
    assert len(load(tmp_path, "OxfordPets").test) == len(whole.test) - 1


def test_incomplete_imagenet_is_told_by_folder(tmp_path, small_sizes):
    folder = build("ImageNet", tmp_path)
    small_sizes("ImageNet", load(tmp_path, "ImageNet"))
    for wnid in wnids()[100:109]:
        shutil.rmtree(folder / "images/train" / wnid)
    with pytest.raises(ValueError) as refusal:
        load(tmp_path, "ImageNet", strict=True)
    message = str(refusal.value)
    assert "1,982 train images found, 2,000 expected" in message
    assert "991 classes found, 1000 expected" in message
    assert f"{folder}/images/train: 991 class folders found, 1000 expected" in message
    found = load(tmp_path, "ImageNet")  # not strict: one label space for both
    assert found.num_classes == len(found.classnames) == 991
    names = {item.classname: item.label for item in found.train_x}
    assert all(names[item.classname] == item.label for item in found.test
               if item.classname not in ("missile", "sunglasses"))  # fmt: skip


def test_unsorted_imagenet_val_is_told_with_the_command(tmp_path):
    folder = build("ImageNet", tmp_path)
    shutil.rmtree(folder / "images/val")
    make_images(folder / "images/val", ["ILSVRC2012_val_00000001.JPEG"])
    with pytest.raises(ValueError, match="not sorted into class folders. Next: python -m datasets"):
        load(tmp_path, "ImageNet")


def test_another_list_of_imagenet_names_is_told(tmp_path, capsys):
    folder = build("ImageNetA", tmp_path)
    text = (folder / "classnames.txt").read_text().replace("missile", "crane")
    (folder / "classnames.txt").write_text(text)
    load(tmp_path, "ImageNetA")
    assert "crane, sunglasses more than once; 1000 expected" in capsys.readouterr().out
    write_classnames(folder)
    load(tmp_path, "ImageNetA")
    assert "classnames.txt" not in capsys.readouterr().out


def test_clips_own_list_of_names_is_accepted(tmp_path, capsys):
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES  # as in CLIP's notebook

    folder = build("ImageNetA", tmp_path)
    lines = [f"{wnid} {name}" for wnid, name in zip(wnids(), IMAGENET_CLASSNAMES, strict=True)]
    (folder / "classnames.txt").write_text("\n".join(lines))
    assert load(tmp_path, "ImageNetA").classnames[0] == IMAGENET_CLASSNAMES[3]
    assert "classnames.txt" not in capsys.readouterr().out


@pytest.mark.parametrize("name", TRAINED)
def test_missing_folders_and_lists_name_the_next_command(tmp_path, name):
    stem, folder, _ = WORLDS[name]
    with pytest.raises(ValueError, match=f"there is no folder .*/{folder}/?.*datasets.prepare"):
        load(tmp_path, name)
    cls = DATASET_REGISTRY.get(name)
    if cls.needed:
        build(name, tmp_path)
        (tmp_path / folder / cls.needed[0]).unlink()
        with pytest.raises(ValueError, match=f"{cls.needed[0]}. Next: python -m datasets.prepare"):
            load(tmp_path, name)


def test_lists_that_contradict_each_other_are_told(tmp_path):
    folder = build("FGVCAircraft", tmp_path)
    (folder / "variants.txt").write_text("707-320\n")
    with pytest.raises(ValueError, match="variants.txt, images_variant_train.txt.*do not fit"):
        load(tmp_path, "FGVCAircraft")


def test_read_only_data_folder_serves(tmp_path, monkeypatch, capsys):
    folder = build("EuroSAT", tmp_path)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    first = load(tmp_path, "EuroSAT", NUM_SHOTS=2)
    assert "its split is made anew each time" in capsys.readouterr().out
    again = load(tmp_path, "EuroSAT", NUM_SHOTS=2)
    assert plain(first.train_x, folder) == plain(again.train_x, folder)


# In use


def test_trains_and_tests_across_data_sets(worlds, tmp_path, monkeypatch):
    import train

    monkeypatch.chdir(REPO)

    def run(out: str, stem: str, *options: str):
        return train.main([
            *("--root", str(worlds), "--seed", "1", "--trainer", "CoOp"),
            *("--dataset-config-file", f"configs/datasets/{stem}.yaml"),
            *("--config-file", "configs/trainers/CoOp/toy.yaml"),
            *("--output-dir", str(tmp_path / out)), *options,
        ])  # fmt: skip

    keys = ("DATASET.STRICT", "False", "DATASET.NUM_SHOTS", "2", "OPTIM.MAX_EPOCH", "1")
    run("base", "eurosat", *keys, "DATASET.SUBSAMPLE_CLASSES", "base")
    load = ("--eval-only", "--model-dir", str(tmp_path / "base"), "--load-epoch", "1")
    new = run("new", "eurosat", *load, *keys, "DATASET.SUBSAMPLE_CLASSES", "new")
    assert (new.num_classes, len(new.test_loader.dataset)) == (5, 15)
    hard = run("imagenet_a", "imagenet_a", *load, *keys)
    assert (hard.num_classes, len(hard.test_loader.dataset)) == (200, 400)
