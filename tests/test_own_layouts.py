"""What people lay out for own data: meant as it is, or refused with file, line and way out."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from family_world import jpeg_bytes, make_images
from PIL import Image
from test_own_data import CLASSES, folders, load, paths, rows, table

from datasets import decoding, prepare
from datasets.decoding import check_images
from datasets.own_files import read_csv, read_folder
from wording import counted

# classnames.txt


def named(tmp_path: Path, text: str, classes=("n1", "n2", "n3"), **keys):
    own = folders(tmp_path, {"train": 2, "test": 1}, classes)
    (own / "classnames.txt").write_bytes(text.encode(keys.pop("encoding", "utf-8")))
    return load(tmp_path, **keys)


@pytest.mark.parametrize(
    ("text", "classes", "names"),
    [
        ("n1 great white shark\nn2 tench\n\nn3 hen\n", ("n1", "n2", "n3"),
         ["great white shark", "tench", "hen"]),
        ("n1,tench\nn2, hen\nn3 ,cock\n", ("n1", "n2", "n3"), ["tench", "hen", "cock"]),
        ("n1\tgreat white shark\r\nn2\thare, brown\r\nn3\then", ("n1", "n2", "n3"),
         ["great white shark", "hare, brown", "hen"]),
        ("n1 shark, white\nn2 hen\nn3 cock", ("n1", "n2", "n3"), ["shark, white", "hen", "cock"]),
        ("Big Cat lion\nBig bear\nBig Cat 2 tiger", ("Big", "Big Cat", "Big Cat 2"),
         ["bear", "lion", "tiger"]),
        ("Big\tCat lion\nBig Cat\ttiger", ("Big", "Big Cat"), ["Cat lion", "tiger"]),
        ("a,b tench\na hen", ("a", "a,b"), ["hen", "tench"]),
        ("\ufeffn1 tench\nn2 hen\nn3 Käfer", ("n1", "n2", "n3"), ["tench", "hen", "Käfer"]),
    ],
)  # fmt: skip
def test_a_line_is_a_folder_and_a_name(tmp_path, text, classes, names):
    assert named(tmp_path, text, classes).classnames == names


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tench\nhen\ncock\n", "line 1: 'tench' begins with the name of no class folder. line 2: "),
        ("n1 tench\nn4 hen\n", "line 2: 'n4 hen' begins with the name of no class folder"),
        ("n1;tench\n", "line 1: 'n1;tench' begins with"),
        ("n10 tench\n", "line 1: 'n10 tench' begins with"),
        ("n1 tench\nn2\n", "line 2: there is no class name behind the folder 'n2'"),
        ("n1 tench\nn2,\n", "line 2: there is no class name behind the folder 'n2'"),
        ("n1 tench\nn2 hen\nn1 cock\n", "line 3: line 1 names the folder 'n1' too"),
        ("n1 tench\nn2 hen\nn3 tench\n",
         "line 3, folder 'n3': the class 'tench' is called like that of line 1, folder 'n1'"),
        ("n1 sea_hare\nn2 Sea  hare\n", "line 2, folder 'n2': the class 'Sea  hare' is called"),
        ("n1 n2\n", "folder 'n2': the class 'n2' is called like that of line 1, folder 'n1'"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_meant_is_an_error_with_its_number(tmp_path, text, told):
    with pytest.raises(ValueError) as refusal:
        named(tmp_path, text)
    assert told in str(refusal.value) and str(tmp_path / "own") in str(refusal.value)


def test_every_wrong_line_is_told_the_first_ten_of_them(tmp_path):
    with pytest.raises(ValueError) as refusal:
        named(tmp_path, "".join(f"x{i} name\n" for i in range(13)))
    told = str(refusal.value)
    assert "line 10: " in told and "line 11: " not in told and "And 3 more." in told


def test_folders_without_a_line_are_told(tmp_path, capsys):
    assert named(tmp_path, "n2 tench\n").classnames == ["n1", "tench", "n3"]
    assert "Note: classnames.txt has no line for n1, n3, called like the folder." in (
        capsys.readouterr().out
    )


def test_folders_of_one_name_are_refused(tmp_path):
    folders(tmp_path, {"": 10}, ("red_fox", "Red fox", "moth"))
    with pytest.raises(ValueError, match="folder 'red_fox': the class 'red_fox' is called like"):
        load(tmp_path)


def test_names_in_latin_1_are_refused_with_the_line(tmp_path):
    with pytest.raises(ValueError, match=r"classnames.txt, line 2: byte 14 .*iconv -f LATIN1"):
        named(tmp_path, "n1 tench\nn2 Käfer\n", encoding="latin-1")


# Folders


def refused(tmp_path: Path, **keys) -> str:
    with pytest.raises(ValueError) as refusal:
        load(tmp_path, **keys)
    return str(refusal.value)


def notes(tmp_path: Path, capsys, **keys) -> str:
    capsys.readouterr()
    load(tmp_path, **keys)
    return capsys.readouterr().out


def test_a_plain_folder_has_no_notes(tmp_path, capsys):
    folders(tmp_path, {"": 10})
    out = notes(tmp_path, capsys)
    assert "Note" not in out and "Warning" not in out
    assert "Checked 30 images: 30 can be read" in out


@pytest.mark.parametrize("other", ["validation", "valid", "Dev"])
def test_other_words_for_val_are_told(tmp_path, capsys, other):
    folders(tmp_path, {"train": 2, other: 1, "test": 1})
    told = f"Note: the folder {other} is not read: splits are train, val and test."
    assert told in notes(tmp_path, capsys)


def test_class_folders_beside_a_split_are_told(tmp_path, capsys):
    own = folders(tmp_path, {"train": 2, "test": 1})
    make_images(own, ["owl/0.jpg", "1.jpg"])
    out = notes(tmp_path, capsys)
    assert "Note: 1 folder beside train and test not read: owl. Class folders belong into" in out
    assert "Note: 1 image outside class folders not read, such as 1.jpg." in out
    (own / "train/classnames.txt").write_text("moth moth\n")
    assert f"train/classnames.txt is not read: it belongs into {own}" in notes(tmp_path, capsys)


@pytest.mark.parametrize("place", ["", "train", "test"])
def test_what_macos_adds_is_no_class(tmp_path, capsys, place):
    own = folders(tmp_path, {"train": 4, "test": 4} if place else {"": 10})
    make_images(own / place / "__MACOSX/moth", ["0.jpg", "._0.jpg"])
    make_images(own / place / "moth", ["._0.jpg"]) if place else None
    out = notes(tmp_path, capsys)
    assert "Note: the folder __MACOSX, which macOS adds to archives, is passed over." in out
    assert load(tmp_path).classnames == sorted(CLASSES)
    assert ("1 image with a hidden name not read, such as" in out) == bool(place)


def test_what_is_passed_over_in_class_folders_is_told(tmp_path, capsys):
    own = folders(tmp_path, {"": 10})
    make_images(own / "moth", ["more/1.jpg", "more/deep/2.jpg", ".ipynb_checkpoints/3.jpg"])
    for name in ("a.heic", "b.HEIC", "c.txt", "README"):
        (own / "moth" / name).write_text("")
    os.symlink("nowhere.jpg", own / "moth/link.jpg")
    out = notes(tmp_path, capsys)
    assert ("2 images in folders inside class folders not read: move moth/more/1.jpg up into its "
            "class folder") in out  # fmt: skip
    assert "1 image with a hidden name not read, such as moth/.ipynb_checkpoints/3.jpg" in out
    assert "1 image that link to no file not read, such as moth/link.jpg" in out
    assert "4 other files in class folders not read (.heic 2, README 1, .txt 1); images end" in out


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".jpg"])
def test_other_endings_of_jpeg_are_read(tmp_path, capsys, suffix):
    make_images(tmp_path / "own", (f"{name}/{i}{suffix}" for name in CLASSES for i in range(10)))
    assert len(load(tmp_path).train_x) == 15


def test_a_class_that_is_called_train_is_told_how_to_be_one(tmp_path):
    folders(tmp_path, {"": 10}, ("train", "bus", "car"))
    told = refused(tmp_path)
    assert "If train is a class, rename its folder and write its name into " in told
    (tmp_path / "own/train").rename(tmp_path / "own/my_train")
    (tmp_path / "own/classnames.txt").write_text("my_train train\n")
    assert load(tmp_path).classnames == ["bus", "car", "train"]


def test_splits_in_capitals_are_refused_and_a_class_of_that_name_is_one(tmp_path):
    folders(tmp_path, {"Train": 2, "TEST": 1})
    assert "has TEST and Train: the folders of a split are written in small" in refused(tmp_path)
    folders(tmp_path / "other", {"": 10}, ("Train", "Bus"))
    assert load(tmp_path / "other").classnames == ["Bus", "Train"]


def test_classes_without_test_images_or_with_few_are_told(tmp_path, capsys):
    own = folders(tmp_path, {"train": 5, "test": 2})
    for image in (own / "test/moth").iterdir():
        image.unlink()
    (own / "train/red_fox/4.JPG").unlink()
    out = notes(tmp_path, capsys, NUM_SHOTS=5)
    assert ("Warning: 1 class has no test images, so that accuracy says nothing of them: moth"
            in out)  # fmt: skip
    assert ("Warning: 1 class has fewer than DATASET.NUM_SHOTS 5 training images: red_fox"
            in out)  # fmt: skip
    assert "fewer" not in notes(tmp_path, capsys, NUM_SHOTS=4)


@pytest.mark.parametrize(
    ("count", "scope", "told"),
    [
        (1, "all", "SUBSAMPLE_CLASSES all leaves 1 class of 1 "),
        (1, "base", "SUBSAMPLE_CLASSES base leaves 1 class of 1 "),
        (1, "new", "SUBSAMPLE_CLASSES new leaves 0 classes of 1 "),
        (2, "base", "SUBSAMPLE_CLASSES base leaves 1 class of 2 "),
        (3, "new", "SUBSAMPLE_CLASSES new leaves 1 class of 3 "),
    ],
)
def test_one_class_or_none_is_refused(tmp_path, count, scope, told):
    folders(tmp_path, {"": 10}, CLASSES[:count])
    assert told in refused(tmp_path, SUBSAMPLE_CLASSES=scope)


def test_a_half_without_test_images_is_refused(tmp_path):
    own = folders(tmp_path, {"train": 2, "test": 1}, "abcd")
    (own / "test/c/0.JPG").unlink()
    (own / "test/d/0.JPG").unlink()
    assert len(load(tmp_path, SUBSAMPLE_CLASSES="base").test) == 2
    told = refused(tmp_path, SUBSAMPLE_CLASSES="new")
    assert "new leaves 2 classes of 4 and 0 test images" in told


# Tables


@pytest.mark.parametrize("sign", ["\t", ";", ","])
def test_tables_are_parted_by_commas_tabs_or_semicolons(tmp_path, sign):
    text = ["\ufeffpath,label,split", *rows("photos/{i}.jpg,{name},{part}")]
    table(tmp_path, *(line.replace(",", sign) for line in text))
    assert len(load(tmp_path, "CSV", CSV="list.csv").train_x) == 12


GOOD = ["photos/0.jpg,fox,train", "photos/1.jpg,owl,train", "photos/2.jpg,owl,test"]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["path,label,split"], "has no line below its first"),
        (["path,label,split", *GOOD, "photos/3.jpg,hare, brown,test"],
         "line 5: more cells than the 3 columns path,label,split"),
        (["path,label,split", *GOOD, "photos/../photos/0.jpg,fox,test"],
         "line 5: photos/../photos/0.jpg is listed in line 2 already"),
        (["path,label,split", *GOOD, "./photos/2.jpg,owl,test"], "is listed in line 4 already"),
        (["path,label,split", *GOOD, "photos\\3.jpg,owl,test"],
         r"line 5: there is no file .*photos\\3.jpg \(write photos/3.jpg\)"),
        (["path,label,classname", "photos/0.jpg,1,fox", "photos/1.jpg,01,owl"],
         "line 3: label '01' found; numbers of classes are whole"),
        (["path,label,classname", "photos/0.jpg,0.0,fox", "photos/1.jpg,1,owl"],
         "line 2: label '0.0' found"),
        (["path,label,classname", "photos/0.jpg,-1,fox", "photos/1.jpg,1,owl"],
         "line 2: label '-1' found"),
        (["path,label", "photos/0.jpg,-1", "photos/1.jpg,1"], "all labels are numbers"),
        (["path,label,classname", "photos/0.jpg,0,fox", "photos/1.jpg,1,Fox"],
         "line 3: the class 'Fox' is called like that of line 2"),
        (["path,label,split", *GOOD, "photos/3.jpg,Owl,train"],
         "line 5: the class 'Owl' is called like that of line 3"),
        (["path,label,split", *GOOD, f"photos/3.jpg,{'x' * 140000},train"],
         "line 5: field larger than field limit"),
        (["path,label,split", *GOOD, 'photos/3.jpg,"owl,train', "photos/4.jpg,owl,train"],
         "line 6: .* split '' found"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_meant_are_refused_with_the_line(tmp_path, lines, told):
    table(tmp_path, *lines)
    with pytest.raises(ValueError, match=told):
        load(tmp_path, "CSV", CSV="list.csv")


def test_numbers_with_zeros_before_them_are_numbers(tmp_path):
    text = ["path,label,classname", *rows("photos/{i}.jpg,0{number},{name}")]
    table(tmp_path, *text)
    dataset = load(tmp_path, "CSV", CSV="list.csv")
    assert dataset.classnames == ["moth", "barn owl", "red_fox"]  # 08, 09, 010


def test_absent_images_are_named_with_line_ten_of_them(tmp_path):
    table(tmp_path, "path,label,split", *rows("photos/{i}.jpg,{name},{part}"))
    for i in range(5, 17):
        (tmp_path / f"photos/{i}.jpg").unlink()
    with pytest.raises(ValueError) as refusal:
        load(tmp_path, "CSV", CSV="list.csv")
    told = str(refusal.value)
    assert told.count("there is no file") == 10 and "And 2 more. Next: correct " in told
    listing = read_csv(tmp_path / "list.csv")
    lines = {int(problem.split("line ")[1].split(":")[0]) for problem in listing.problems}
    assert lines == {i + 2 for i in range(5, 17)}


def test_a_table_in_latin_1_is_refused_with_line_and_command(tmp_path):
    table(tmp_path, "path,label", *rows("photos/{i}.jpg,{name}"))
    text = (tmp_path / "list.csv").read_text().replace("moth", "Käfer")
    (tmp_path / "list.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"list.csv, line 4: byte \d+ .*0xe4.* iconv -f LATIN1"):
        load(tmp_path, "CSV", CSV="list.csv")


# All images are checked first


def spoil(own: Path, count: int) -> list[Path]:
    """Truncated images in the place of the first of them."""
    images = sorted(path for path in own.rglob("*.JPG"))[:count]
    for path in images:
        path.unlink()
        path.write_bytes(jpeg_bytes()[:-300])
    return images


@pytest.mark.parametrize(("count", "more"), [(1, ""), (10, ""), (12, " and 2 more")])
def test_all_images_that_cannot_be_read_are_listed_at_once(tmp_path, count, more):
    own = folders(tmp_path, {"": 10})
    bad = spoil(own, count)
    told = refused(tmp_path)
    assert f"{count} of 30 images cannot be read: {bad[0]} (" in told
    assert all(str(path) in told for path in bad[:10])
    assert f"){more}; fetch them again, or take them out. Next: python -m datasets.prepare" in told
    assert f"{own} --verify --decode lists them; or set DATASET.STRICT False" in told


def test_bad_images_are_left_out_when_not_strict(tmp_path, capsys):
    own = folders(tmp_path, {"train": 3, "test": 3})
    bad = spoil(own, 2)  # of test/barn owl
    dataset = load(tmp_path, strict=False)
    left = {item.impath for part in (dataset.train_x, dataset.test) for item in part}
    assert len(left) == 16 and not left & set(map(str, bad))
    assert "2 of 18 images cannot be read" in capsys.readouterr().out


@pytest.fixture
def looked(monkeypatch):
    """The images that were decoded."""
    seen, real = [], decoding.look
    monkeypatch.setattr(decoding, "look", lambda path: seen.append(path) or real(path))
    return seen


def own_files(own: Path) -> Path:
    """Images that are files of their own: hard links would share their times."""
    for path in list(own.rglob("*.JPG")):
        path.unlink()
        path.write_bytes(jpeg_bytes())
    return own


def test_what_could_be_read_is_remembered_until_it_changes(tmp_path, looked):
    own = own_files(folders(tmp_path, {"": 10}))
    load(tmp_path)
    assert len(looked) == 30
    load(tmp_path, seed=2, SUBSAMPLE_CLASSES="base")
    assert len(looked) == 30
    changed = own / "moth/3.JPG"
    times = changed.stat()
    changed.write_bytes(jpeg_bytes()[:-300] + bytes(300))  # the same size and time of change
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "1 of 30 images cannot be read" in refused(tmp_path)
    assert looked[30:] == [str(changed)]
    assert "1 of 30 images cannot be read" in refused(tmp_path)  # a bad one is never remembered
    changed.write_bytes(jpeg_bytes())
    load(tmp_path)
    assert looked[30:] == [str(changed)] * 3


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "foreign"])
def test_a_damaged_memory_is_not_used(tmp_path, looked, capsys, harm):
    folders(tmp_path, {"": 10})
    load(tmp_path)
    (memory,) = (tmp_path / ".features").glob("checked-*.bin")
    content = memory.read_bytes()
    flipped = bytearray(content)
    flipped[40] ^= 1
    memory.write_bytes({"cut": content[:-9], "flip": bytes(flipped), "empty": b"",
                        "foreign": b"x" * 50}[harm])  # fmt: skip
    load(tmp_path)
    assert len(looked) == 60
    assert f"{memory} is damaged or of another version" in capsys.readouterr().out
    assert memory.read_bytes() == content


def test_a_memory_that_cannot_be_written_is_told(tmp_path, capsys):
    folders(tmp_path, {"": 10})
    (tmp_path / ".features").write_text("a file is in the way")
    load(tmp_path)
    assert "images are checked in every run" in capsys.readouterr().out


def test_an_interrupted_check_keeps_what_it_has_seen(tmp_path, monkeypatch, looked):
    own = own_files(folders(tmp_path, {"": 10}))
    paths_ = read_folder(own).paths()

    def stop_at_the_last(paths):
        for path in paths[:-1]:
            yield decoding.look(path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "_decoded", stop_at_the_last)
        with pytest.raises(KeyboardInterrupt):
            check_images(paths_, tmp_path / "memory.bin")
    assert len(check_images(paths_, tmp_path / "memory.bin").traits) == 30
    assert len(looked) == 30


def test_scaled_and_rotated_images_are_told_in_every_run(tmp_path, capsys):
    own = folders(tmp_path, {"": 10})
    Image.fromarray(np.full((8, 8), 9999, np.uint16)).save(own / "moth/deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(2):
        Image.new("RGB", (8, 4)).save(own / f"moth/turned{i}.jpg", exif=exif)
    for _ in range(2):
        out = notes(tmp_path, capsys)
        assert f"1 image of 16 or 32 bits scaled to 8 bits (docs/OWN_DATA.md says how), such as " \
               f"{own}/moth/deep.png" in out  # fmt: skip
        assert f"2 images marked as rotated (EXIF) and used as stored, not turned, such as " \
               f"{own}/moth/turned0.jpg" in out  # fmt: skip


def test_a_folder_that_is_wrong_anyway_is_refused_without_decoding(tmp_path, looked):
    own = folders(tmp_path, {"train": 2, "test": 1})
    (own / "train/zebra").mkdir()
    assert "(zebra): 0 training images found" in refused(tmp_path)
    assert looked == []


# datasets.prepare


def run(capsys, *words) -> tuple[int, str]:
    capsys.readouterr()
    code = prepare.run([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_prepare_verifies_folders_and_tables(tmp_path, capsys):
    own = folders(tmp_path, {"train": 3, "test": 2})
    table(tmp_path, "path,label,split", *rows("photos/{i}.jpg,{name},{part}"))
    code, out = run(capsys, own, tmp_path / "list.csv", "--verify", "--decode")
    assert code == 0 and out.count("complete") == 2 and "3 / 3" in out
    assert "Checked 15 images: 15 can be read" in out
    bad = spoil(own, 12)
    assert run(capsys, own, "--verify")[0] == 0  # nothing is decoded
    code, out = run(capsys, own, "--verify", "--decode")
    assert code == 1 and "incomplete" in out
    assert all(f"{path}: broken (" in out for path in bad)  # all of them
    assert not (tmp_path / ".features").exists()  # and nothing is written


def test_prepare_says_what_is_wrong_with_own_data(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("DATA", raising=False)
    own = folders(tmp_path, {"train": 3, "test": 2})
    (own / "classnames.txt").write_text("weasel\n")
    code, out = run(capsys, own, "--verify")
    assert code == 1 and "line 1: 'weasel' begins with the name of no class folder" in out
    code, out = run(capsys, tmp_path / "nothing", "--verify")
    assert code == 1 and f"there is no folder or table {tmp_path / 'nothing'}" in out
    code, out = run(capsys, "eurosat", "--verify")
    assert code == 2 and "Give --root FOLDER, or set DATA" in out
    assert "eurosta: not known" in run(capsys, "eurosta", "--verify")[1]


def test_paths_of_a_listing_are_each_image_once(tmp_path):
    own = folders(tmp_path, {"": 10})
    listing = read_folder(own)
    assert listing.paths() == sorted(str(path) for path in own.rglob("*.JPG"))
    dataset = load(tmp_path)
    used = [*dataset.train_x, *dataset.val, *dataset.test]
    assert sorted(paths(used, own)) == [os.path.relpath(path, own) for path in listing.paths()]


def test_one_of_a_thing_is_not_many(tmp_path):
    folders(tmp_path, {"": 1})
    assert "has 1 image, too few for an automatic split" in refused(tmp_path)
    assert [counted(n, "class") for n in (0, 1, 2)] == ["0 classes", "1 class", "2 classes"]
    assert [counted(n, "image", ",") for n in (1, 1000)] == ["1 image", "1,000 images"]
