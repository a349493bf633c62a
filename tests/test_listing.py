"""Large data sets: names are listed once, kept beside the data, made into objects where used."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
from pathlib import Path

import pytest
from family_world import WORLDS, build, wnids
from test_datasets_family import load, plain

from datasets import base, imagenet, listing
from datasets.fewshot import draw_few_shot
from datasets.listing import class_files
from datasets.sizes import SIZES, Sizes
from datasets.split import ClassFolder, Entry, Listing, Split, by_label, class_sizes

ODD = [
    "a.jpg",
    'quote".jpg',
    "back\\slash.jpg",
    "back\\nslash.jpg",
    "\u00e9\U0001f600.jpg",
    "z\t.jpg",
]


def folders() -> list[ClassFolder]:
    """Class folders of 1 to 40 images, labels out of order, and one without images."""
    made = [
        ClassFolder(f"train/n{label}", label, f'class "{label}"',
                    "\n".join(f"n{label}_{i}.JPEG" for i in range(1 + 3 * label)))
        for label in (3, 0, 13, 7)
    ]  # fmt: skip
    return [
        *made,
        ClassFolder("o\u0308dd", 1, "odd \u00e9", "\n".join(ODD)),
        ClassFolder("e", 2, "e", ""),
    ]


def test_a_listing_has_the_entries_and_the_digest_of_the_list():
    compact = Listing(folders())
    entries = [
        Entry(f"{one.path}/{name}", one.label, one.classname)
        for one in folders()
        for name in one.names.split("\n")
        if name
    ]
    assert list(compact) == entries and len(compact) == len(entries)
    assert entries[3] in compact and entries[3]._replace(label=5) not in compact
    assert class_sizes(compact) == class_sizes(entries)
    assert list(by_label(compact)) == list(by_label(entries))
    for other in ([], entries[:2]):
        assert Split(compact, other, compact).digest() == Split(entries, other, entries).digest()
        assert Split(other, compact, other).digest() == Split(other, entries, other).digest()


@pytest.mark.parametrize("shots", [1, 2, 8, 16, 40])
def test_a_listing_is_drawn_from_as_the_list_is(shots):
    """Against random.sample() of the images themselves, as the family's code has it."""
    for seed in range(20):
        rng, expected = random.Random(seed), []
        for members in by_label(list(Listing(folders()))).values():
            expected += rng.sample(members, shots) if len(members) >= shots else members
        assert draw_few_shot(Listing(folders()), shots, random.Random(seed)) == expected


# The kept listing


@pytest.fixture
def tree(tmp_path):
    """Folders that changed last an hour ago."""
    root = tmp_path / "images"
    for part in ("train", "val"):
        for name in ("n1", "n2"):
            (root / part / name).mkdir(parents=True)
            for i in range(3):
                (root / part / name / f"{i}.jpg").touch()
    (root / "train/n1/.hidden").touch()
    settle(root)
    return root


def settle(root: Path, seconds: float = 3600) -> None:
    for folder, _, _ in os.walk(root):
        changed = os.stat(folder).st_mtime_ns - int(seconds * 10**9)
        os.utime(folder, ns=(changed, changed))


EXPECTED = {
    f"{part}/{name}": "0.jpg\n1.jpg\n2.jpg" for part in ("train", "val") for name in ("n1", "n2")
}


def listed(tree: Path, monkeypatch=None) -> dict[str, str]:
    """The listing by way of the file; with monkeypatch, folders must not be listed."""
    if monkeypatch is None:
        return class_files(tree, ("train", "val"), tree.parent / "kept.json")
    with monkeypatch.context() as patch:
        patch.setattr(listing, "_listed", lambda *_: pytest.fail("a folder was listed"))
        return class_files(tree, ("train", "val"), tree.parent / "kept.json")


def test_an_unchanged_tree_is_listed_once(tree, monkeypatch, capsys):
    assert listed(tree) == EXPECTED == class_files(tree, ("train", "val"))
    assert listed(tree, monkeypatch) == EXPECTED
    tree.rename(tree.parent / "moved")  # paths are relative
    (tree.parent / "moved").rename(tree)
    assert listed(tree, monkeypatch) == EXPECTED
    assert capsys.readouterr().out == ""
    assert sorted(path.name for path in tree.parent.iterdir()) == ["images", "kept.json"]


@pytest.mark.parametrize("same_time", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda tree: (tree / "train/n2/3.jpg").touch(),
        lambda tree: (tree / "val/n1/0.jpg").unlink(),
        lambda tree: (tree / "train/n3").mkdir(),
        lambda tree: (tree / "val/n2/0.jpg").rename(tree / "val/n1/0b.jpg"),
    ],
    ids=["new image", "image gone", "new class", "image moved"],
)
def test_a_changed_tree_is_listed_anew(tree, change, same_time):
    """Also where a tool put the folders' times back: then the number of entries tells."""
    listed(tree)
    times = {folder: os.stat(folder).st_mtime_ns for folder, _, _ in os.walk(tree)}
    change(tree)
    if same_time:
        for folder, changed in times.items():
            os.utime(folder, ns=(changed, changed))
    assert listed(tree) == class_files(tree, ("train", "val")) != EXPECTED


def test_an_image_renamed_in_place_is_noticed_by_the_time(tree):
    listed(tree)
    (tree / "train/n1/0.jpg").rename(tree / "train/n1/9.jpg")
    assert listed(tree)["train/n1"] == "1.jpg\n2.jpg\n9.jpg"


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("2.jpg", "3.jpg", 1),
        lambda text: "",
        lambda text: "[]",
        lambda text: "{}\n" + text,
        lambda text: "\x00" * len(text),
    ],
)
def test_a_damaged_listing_is_told_and_replaced(tree, monkeypatch, capsys, damage):
    listed(tree)
    kept = tree.parent / "kept.json"
    whole = kept.read_text()
    kept.write_text(damage(whole))
    assert listed(tree) == EXPECTED
    assert f"{kept} is damaged" in capsys.readouterr().out
    assert kept.read_text() == whole
    assert listed(tree, monkeypatch) == EXPECTED


@pytest.mark.parametrize("content", ["[]", "{}", '{"train": 1}', '{"train": [1, 2, "n1"]}'])
def test_a_listing_of_another_form_does_not_serve(tree, content):
    sealed = f"{hashlib.sha256(content.encode()).hexdigest()}\n{content}"
    (tree.parent / "kept.json").write_text(sealed)
    assert listed(tree) == EXPECTED


def test_a_tree_that_changed_just_now_is_not_kept(tree):
    (tree / "train/n1/3.jpg").touch()
    listed(tree)
    assert not (tree.parent / "kept.json").exists()  # it may change again within the same tick
    settle(tree)
    listed(tree)
    assert (tree.parent / "kept.json").exists()


def test_a_folder_that_cannot_be_written_to_serves(tree, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(listing, "write_whole", refuse)
    assert listed(tree) == listed(tree) == EXPECTED
    assert [path.name for path in tree.parent.iterdir()] == ["images"]


def test_a_name_with_a_line_break_is_told(tree):
    (tree / "val/n1/a\nb.jpg").touch()
    with pytest.raises(ValueError, match="A name in .*n1 has a line break in it; rename that file"):
        listed(tree)


# In a data set


@pytest.mark.parametrize("name", ["ImageNet", "ImageNetR"])
def test_a_data_set_of_a_kept_listing_is_the_same(tmp_path, monkeypatch, name):
    folder = build(name, tmp_path)
    settle(folder)
    kept = folder / f"listing_{name}.json"
    first = load(tmp_path, name, NUM_SHOTS=1, SUBSAMPLE_CLASSES="base")
    assert kept.is_file()
    monkeypatch.setattr(listing, "_listed", lambda *_: pytest.fail("a folder was listed"))
    again = load(tmp_path, name, NUM_SHOTS=1, SUBSAMPLE_CLASSES="base")
    for part in ("train_x", "val", "test"):
        assert plain(getattr(again, part), tmp_path) == plain(getattr(first, part), tmp_path)
    assert again.split_digest == first.split_digest and len(first.split_digest) == 16
    assert first.split_source == "official lists"


def test_a_few_shot_run_makes_objects_of_the_images_it_draws_alone(tmp_path, monkeypatch):
    build("ImageNet", tmp_path)
    monkeypatch.setitem(SIZES, "ImageNet", Sizes(1000, 2000, None, 1000, 500))
    monkeypatch.setattr(imagenet, "VAL_PER_CLASS", 1)
    made = ClassFolder.at
    asked = []

    def counted(self, places):
        found = made(self, places)
        asked.extend(entry.path for entry in found)
        return found

    monkeypatch.setattr(ClassFolder, "at", counted)
    found = load(tmp_path, "ImageNet", strict=True, NUM_SHOTS=1)
    drawn = [f"train/{i.impath.split('train/')[1]}" for i in found.train_x]
    assert sorted(path for path in asked if path.startswith("train/")) == sorted(drawn)
    assert len(drawn) == len(wnids()) and len(found.test) == len(wnids())
    assert found.val is found.test


def test_every_data_set_says_which_split_it_has(tmp_path):
    """Attributes for results and tables, with the words of datasets/base.py."""
    words = {base.PUBLISHED_SPLIT, base.OFFICIAL, base.UNCHECKED, base.OTHER_FILE, base.FALLBACK}
    for name in ("EuroSAT", "OxfordPets", "FGVCAircraft", "ImageNetA"):
        build(name, tmp_path)
        found = load(tmp_path, name)
        assert found.split_source in words and int(found.split_digest, 16) >= 0
        few = load(tmp_path, name, NUM_SHOTS=1, SUBSAMPLE_CLASSES="new", seed=5)
        assert (few.split_source, few.split_digest) == (found.split_source, found.split_digest)
    folder = tmp_path / WORLDS["EuroSAT"][1]
    content = json.loads((folder / "split_fallback_EuroSAT.json").read_text())
    whole = Split(*([Entry(*entry) for entry in content[part]] for part in content))
    eurosat = load(tmp_path, "EuroSAT")
    assert (eurosat.split_digest, eurosat.split_source) == (whole.digest(), base.FALLBACK)
    Path(eurosat.test[0].impath).unlink()
    short = load(tmp_path, "EuroSAT")  # not strict: what is left is another split
    assert short.split_source == f"{base.FALLBACK}, incomplete"
    assert short.split_digest != eurosat.split_digest


@pytest.mark.parametrize("on", [True, False])
def test_garbage_collection_is_as_it_was_after_loading(tmp_path, on):
    build("EuroSAT", tmp_path)
    (gc.enable if on else gc.disable)()
    try:
        load(tmp_path, "EuroSAT")
        assert gc.isenabled() == on
        with pytest.raises(ValueError, match="there is no folder"):
            load(tmp_path, "UCF101")
        assert gc.isenabled() == on
    finally:
        gc.enable()
