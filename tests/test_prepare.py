"""python -m datasets.prepare, against a local server with small archives in the real layouts."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import family_world
import numpy as np
import pytest
from dassl.data.datasets import DATASET_REGISTRY
from family_world import WORLDS, build, jpeg_bytes, wnids, write_classnames
from file_server import FileServer, send_google_here, tar_of, tar_with, zip_of
from scipy.io import savemat
from test_datasets_family import load

from datasets import download, imagenet, imagenet_files, prepare, sources, unpack
from datasets.sizes import PUBLISHED, SIZES, Published, Sizes
from datasets.sources import IMAGENET_FILES, SOURCES
from datasets.split import SPLITS, Entry, Split

REPO = Path(__file__).resolve().parents[1]
FEW = 20  # ImageNet's classes here
REPRODUCIBLE = ["OxfordPets", "StanfordCars", "OxfordFlowers", "SUN397", "UCF101"]
FETCHED = [name for name in WORLDS if name != "ImageNet"]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.setattr(family_world, "IMAGENET_CLASSES", FEW)
    monkeypatch.setattr(imagenet, "NUM_CLASSES", FEW)
    monkeypatch.setattr(imagenet, "VAL_PER_CLASS", 1)
    monkeypatch.setattr(imagenet_files, "NUM_VAL", FEW)
    served = FileServer()
    send_google_here(monkeypatch, served)
    monkeypatch.setattr(prepare, "MIRROR", f"{served.url}/mirror")
    yield served
    served.close()


@pytest.fixture
def offer(server, monkeypatch, tmp_path):
    """Put a data set's archives on the server, as their authors pack them; returns the original."""

    def put(name: str) -> Path:
        folder = build(name, tmp_path / "original")
        cls = DATASET_REGISTRY.get(name)
        split = cls.make_split(folder, random.Random(1))
        test = len(split.test)
        classes = len({entry.label for entry in split.test})
        counts = [len(part) or None for part in split[:2]]
        monkeypatch.setitem(SIZES, name, Sizes(classes, *counts, test))
        monkeypatch.setitem(PUBLISHED, name, Published(split.digest()))
        if cls.split_file:
            text = json.dumps(dict(zip(SPLITS, split, strict=True)))
            (folder / cls.split_file).write_text(text)
        parts = []
        for part in SOURCES[name].parts:
            path, content = f"/{name}/{part.file}", packed(name, part.file, folder)
            if content is not None:
                server.files[path] = content
            for url in part.urls:
                if url.startswith("drive:"):
                    server.drive[url.removeprefix("drive:")] = path
            urls = tuple(url if url.startswith("drive:") else server.url + path
                         for url in part.urls)  # fmt: skip
            md5 = hashlib.md5(content).hexdigest() if part.md5 else ""
            parts.append(replace(part, urls=urls, md5=md5))
        monkeypatch.setitem(SOURCES, name, replace(SOURCES[name], parts=tuple(parts)))
        return folder

    return put


def packed(name: str, file: str, folder: Path) -> bytes | None:
    """The file as its authors offer it; None: they offer what another file has too."""
    if (folder / file).is_file():
        return (folder / file).read_bytes()
    cut = {  # archive: folder it holds, and the path in front of it
        "images.tar.gz": ("images", "images/"),
        "annotations.tar.gz": ("annotations", "annotations/"),
        "cars_train.tgz": ("cars_train", "cars_train/"),
        "cars_test.tgz": ("cars_test", "cars_test/"),
        "car_devkit.tgz": ("devkit", "devkit/"),
        "102flowers.tgz": ("jpg", "jpg/"),
        "food-101.tar.gz": ("images", "food-101/images/"),
        "fgvc-aircraft-2013b.tar.gz": (".", "fgvc-aircraft-2013b/data/"),
        "SUN397.tar.gz": ("SUN397", "SUN397/"),
        "dtd-r1.0.1.tar.gz": ("images", "dtd/images/"),
        "imagenetv2-matched-frequency.tar.gz": (
            "imagenetv2-matched-frequency-format-val",
            "imagenetv2-matched-frequency-format-val/",
        ),
    }
    if file in cut:
        inside, prefix = cut[file]
        return tar_of(folder / inside, prefix)
    if file in ("imagenet-a.tar", "imagenet-r.tar"):
        inside = file.removesuffix(".tar")
        return tar_of(folder / inside, f"{inside}/", mode="w")
    if file == "EuroSAT.zip":
        return zip_of(folder / "2750", "2750/")
    if file == "UCF-101-midframes.zip":
        return zip_of(folder / "UCF-101-midframes", "UCF-101-midframes/")
    if file == "UCF101TrainTestSplits-RecognitionTask.zip":
        return zip_of(folder / "ucfTrainTestlist", "ucfTrainTestlist/")
    if file == "ImageNet-Sketch.zip":
        return zip_of(folder / "images", "sketch/")
    if file == "Partitions.zip":
        lists = folder.parent / "partitions"
        lists.mkdir()
        for path in folder.glob("*.txt"):
            (lists / path.name).write_bytes(path.read_bytes())
        return zip_of(lists)
    if file == "caltech-101.zip":
        lists = folder.parent / "packed"
        lists.mkdir()
        inner = tar_of(folder / "101_ObjectCategories", "101_ObjectCategories/")
        (lists / "101_ObjectCategories.tar.gz").write_bytes(inner)
        return zip_of(lists, "caltech-101/")
    assert file == "101_ObjectCategories.tar.gz", file
    return None


def run(root: Path, capsys, *arguments: str) -> tuple[int, str]:
    code = prepare.run([*arguments, "--root", str(root)])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


# The command


@pytest.mark.parametrize("name", FETCHED)
def test_data_set_is_fetched_laid_out_and_verified_once(offer, server, tmp_path, capsys, name):
    offer(name)
    stem, folder, _ = WORLDS[name]
    code, out = run(tmp_path / "data", capsys, stem)
    assert code == 0, out
    row = next(line for line in out.splitlines() if line.startswith(name + " "))
    assert "complete" in row
    server.log.clear()
    before = sorted(path for path in (tmp_path / "data").rglob("*"))
    assert run(tmp_path / "data", capsys, stem, "--decode")[0] == 0
    assert server.log == []
    assert sorted(path for path in (tmp_path / "data").rglob("*")) == before
    assert not [path for path in before if path.name.startswith(".unpacking")]
    assert load(tmp_path / "data", name, strict=True).test


def test_names_may_be_those_of_yaml_folder_or_registry(tmp_path, capsys):
    names = ["dtd", "caltech-101", "DescribableTextures", "imagenet-rendition", "ImageNet"]
    expected = ["ImageNet", "Caltech101", "DescribableTextures", "ImageNetR"]
    assert prepare.registry_names(names) == expected
    assert prepare.registry_names(["all"]) == list(WORLDS)
    code, out = run(tmp_path, capsys, "cifar")
    assert code == 2 and "cifar: not known. Known: all, imagenet, caltech101" in out
    code, out = run(tmp_path / "nowhere", capsys, "dtd", "--verify")
    assert code == 2 and "is no folder" in out


def test_command_line_of_the_documentation(tmp_path):
    line = [sys.executable, "-m", "datasets.prepare", "all", "--root", str(tmp_path), "--verify"]
    done = subprocess.run(line, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    rows = done.stdout.splitlines()
    headers = "data set classes found / expected train val test split verdict next step"
    assert " ".join(rows[0].split()) == headers
    assert len(rows) == 2 + len(WORLDS) and list(tmp_path.iterdir()) == []
    assert f"python -m datasets.prepare eurosat --root {tmp_path}" in done.stdout
    assert "0 / 13,500" in done.stdout


# What goes wrong on the way


def test_interrupted_download_is_continued_by_the_next_call(offer, server, tmp_path, capsys):
    offer("EuroSAT")
    server.cuts["/EuroSAT/EuroSAT.zip"] = [5000] + [0] * 50
    code, out = run(tmp_path / "data", capsys, "eurosat")
    assert code == 1 and "the connection was cut after 5,000 bytes" in out
    server.cuts.clear()
    server.log.clear()
    assert run(tmp_path / "data", capsys, "eurosat")[0] == 0
    assert server.asked("/EuroSAT/EuroSAT.zip") == ["bytes=5000-"]
    assert server.asked("/EuroSAT/split_zhou_EuroSAT.json") == []


def test_killed_unpacking_leaves_no_folder_that_looks_whole(
    offer, server, tmp_path, capsys, monkeypatch
):
    offer("EuroSAT")
    write, count = unpack._Writer.file, []

    def killed(self, *args):
        count.append(1)
        if len(count) == 20:
            raise KeyboardInterrupt
        write(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(unpack._Writer, "file", killed)
        code, out = run(tmp_path / "data", capsys, "eurosat")
    assert code == 130 and "run the same line again" in out
    assert sorted(os.listdir(tmp_path / "data/eurosat")) == ["EuroSAT.zip"]
    server.log.clear()
    assert run(tmp_path / "data", capsys, "eurosat")[0] == 0
    assert server.asked("/EuroSAT/EuroSAT.zip") == []


def test_wrong_bytes_are_kept_aside_and_the_rest_goes_on(offer, server, tmp_path, capsys):
    offer("EuroSAT"), offer("DescribableTextures")
    server.files["/EuroSAT/EuroSAT.zip"] += b"!"
    code, out = run(tmp_path / "data", capsys, "eurosat", "dtd")
    assert code == 1
    assert "MD5" in out and "kept as" in out and "EuroSAT.zip.wrong-1" in out
    assert not (tmp_path / "data/eurosat/2750").exists()
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "missing" in rows["EuroSAT"] and "complete" in rows["DescribableTextures"]


def test_malicious_archive_is_refused_by_the_command(offer, server, tmp_path, capsys):
    offer("FGVCAircraft")
    evil = tar_with(("fgvc-aircraft-2013b/data/images/../../../../../evil", b"x"))
    server.files["/FGVCAircraft/fgvc-aircraft-2013b.tar.gz"] = evil
    code, out = run(tmp_path / "data", capsys, "fgvc_aircraft")
    assert code == 1 and "lies outside the target. Nothing of it is used." in out
    assert not list(tmp_path.rglob("evil"))


def test_dead_links_lead_to_the_mirror_of_the_whole_folder(offer, server, tmp_path, capsys):
    original = offer("SUN397")
    server.files["/mirror/sun397.zip"] = zip_of(original, "sun397/")
    for path in [path for path in server.files if path.startswith("/SUN397/")]:
        server.status[path] = 404
    server.drive = dict.fromkeys(server.drive, "")
    code, out = run(tmp_path / "data", capsys, "sun397", "--delete-archives")
    assert code == 0, out
    assert sorted(os.listdir(tmp_path / "data/sun397")) == ["SUN397", "split_zhou_SUN397.json"]


def test_blocked_drive_takes_the_split_out_of_the_mirrors_archive(offer, server, tmp_path, capsys):
    original = offer("EuroSAT")
    server.files["/mirror/eurosat.zip"] = zip_of(original, "eurosat/")
    server.drive = dict.fromkeys(server.drive, "")
    assert run(tmp_path / "data", capsys, "eurosat")[0] == 0
    assert all(server.asked("/mirror/eurosat.zip"))  # never the whole archive
    split = "split_zhou_EuroSAT.json"
    assert json.loads((tmp_path / "data/eurosat" / split).read_text()) == json.loads(
        (original / split).read_text()
    )


@pytest.mark.parametrize("name", REPRODUCIBLE)
def test_published_split_is_made_of_the_official_lists_without_drive(
    offer, server, tmp_path, capsys, name
):
    split = offer(name) / DATASET_REGISTRY.get(name).split_file
    for drive_id, path in server.drive.items():  # UCF101's images are there alone
        server.drive[drive_id] = path if path.endswith("midframes.zip") else ""
    stem, folder, _ = WORLDS[name]
    code, out = run(tmp_path / "data", capsys, stem)
    assert code == 0, out
    assert not (tmp_path / "data" / folder / split.name).exists()
    assert server.asked(f"/{name}/{split.name}") == []
    told = (
        f"split_fallback_{name}.json: published split, digest {PUBLISHED[name].digest}, made here"
    )
    assert f"{told} with seed 1." in out
    found = load(tmp_path / "data", name, strict=True, seed=7)  # not the run's seed
    assert (found.split_source, found.split_digest) == ("published", PUBLISHED[name].digest)
    assert told in capsys.readouterr().out
    assert run(tmp_path / "data", capsys, stem, "--verify")[0] == 0


def test_other_splits_made_here_are_said_not_to_be_the_published_one(
    offer, server, tmp_path, capsys
):
    offer("EuroSAT")
    server.drive = dict.fromkeys(server.drive, "")
    server.files.pop("/EuroSAT/split_zhou_EuroSAT.json")
    PUBLISHED["EuroSAT"] = Published("0123456789abcdef")
    code, out = run(tmp_path / "data", capsys, "eurosat")
    out = " ".join(out.split())
    assert code == 1 and "fallback, not the published one split not the published one" in out
    assert "https://drive.google.com/uc?id=1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o" in out
    assert ", not 0123456789abcdef), so that results compare with no published number" in out


def test_verify_notices_a_private_split_and_says_what_to_do(offer, tmp_path, capsys):
    """Earlier versions made the split with the first run's seed and kept it for all later ones."""
    original = offer("StanfordCars")
    (original / "split_zhou_StanfordCars.json").unlink()
    private = DATASET_REGISTRY.get("StanfordCars").make_split(original, random.Random(2))
    kept = original / "split_fallback_StanfordCars.json"
    kept.write_text(json.dumps(dict(zip(SPLITS, private, strict=True))))
    code, out = run(original.parent, capsys, "stanford_cars", "--verify")
    assert code == 1 and "split not the published one" in out
    told = (
        f"The split in {kept}, made with another seed or of other lists, is not the published one "
        f"(digest {private.digest()}, not {PUBLISHED['StanfordCars'].digest}), so that results "
        "compare with no published number. Next: delete it; the next run makes the published one."
    )
    assert told in out
    found = load(original.parent, "StanfordCars", strict=True)
    assert f"Warning: {told}" in capsys.readouterr().out
    assert found.split_source == "fallback, not the published one"
    assert found.split_digest == private.digest()
    kept.unlink()
    assert load(original.parent, "StanfordCars", strict=True).split_source == "published"
    assert run(original.parent, capsys, "stanford_cars", "--verify")[0] == 0


def test_verify_notices_a_split_file_that_is_not_the_published_one(offer, tmp_path, capsys):
    original = offer("EuroSAT")
    path = original / "split_zhou_EuroSAT.json"
    code, out = run(original.parent, capsys, "eurosat", "--verify")
    assert (
        code == 0 and f"{path.name}: published split, digest {PUBLISHED['EuroSAT'].digest}" in out
    )
    split = json.loads(path.read_text())
    path.write_text(json.dumps({**split, "train": split["train"][::-1]}))  # counts are as before
    code, out = run(original.parent, capsys, "eurosat", "--verify")
    assert code == 1 and f"The split in {path} is not the published one" in out
    assert f"delete it, then python -m datasets.prepare eurosat --root {original.parent}" in out
    assert load(original.parent, "EuroSAT").split_source == "split file, not the published one"


def test_digests_are_those_of_the_published_files():
    """And of SUN397 that of train and val; test images are in the order of the official list."""
    assert {name: known.digest for name, known in PUBLISHED.items()} == {
        "OxfordPets": "fbb12e86a2462a06",
        "OxfordFlowers": "a93b5800cd8892ae",
        "StanfordCars": "dcea0404a53aa645",
        "UCF101": "86e0d907236fc556",
        "Caltech101": "17c403faec919d37",
        "DescribableTextures": "460b9ea269753f33",
        "EuroSAT": "3c417b259c8aff68",
        "SUN397": "8292292b12f929ee",
    }
    assert [name for name, known in PUBLISHED.items() if known.parts != SPLITS] == ["SUN397"]
    assert PUBLISHED["SUN397"].parts == ("train", "val")
    one = [Entry("a/b.jpg", 0, "b")]
    known = PUBLISHED["SUN397"]
    assert (
        known.of(Split(one, one, one))
        == known.of(Split(one, one, []))
        == (Split(one, one, []).digest())
    )
    assert known.of(Split(one, [], one)) != known.of(Split(one, one, one))


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("SUN397", "the authors' server no longer has the file. Get SUN397.tar.gz (37 GB)"),
        ("StanfordCars", "Get the folders cars_train and cars_test"),
        ("ImageNet", "register at https://image-net.org, download ILSVRC2012_img_train.tar"),
        ("EuroSAT", "EuroSAT.zip from http"),
    ],
)
def test_dead_links_print_what_to_do_by_hand(server, tmp_path, capsys, monkeypatch, name, step):
    parts = tuple(
        replace(part, urls=tuple(u if u[:6] == "drive:" else f"{server.url}/no" for u in part.urls))
        for part in SOURCES[name].parts
    )
    monkeypatch.setitem(SOURCES, name, replace(SOURCES[name], parts=parts))
    code, out = run(tmp_path, capsys, WORLDS[name][0])
    folder = tmp_path / WORLDS[name][1]
    assert code == 1 and step in out and str(folder) in out
    assert "Traceback" not in out and "run this command again" in " ".join(out.split())


def test_archive_put_there_by_hand_is_used(offer, server, tmp_path, capsys):
    offer("SUN397")
    folder = tmp_path / "data/sun397"
    folder.mkdir(parents=True)
    (folder / "SUN397.tar.gz").write_bytes(server.files.pop("/SUN397/SUN397.tar.gz"))
    assert run(tmp_path / "data", capsys, "sun397")[0] == 0
    assert server.asked("/SUN397/SUN397.tar.gz") == []


def test_class_names_are_copied_from_imagenet(offer, server, tmp_path, capsys):
    offer("ImageNetA")
    write_classnames(tmp_path / "data/imagenet")
    assert run(tmp_path / "data", capsys, "imagenet_a")[0] == 0
    assert server.asked("/ImageNetA/classnames.txt") == []


def test_names_of_imagenet_come_from_the_mirror_when_drive_is_blocked(server, tmp_path, capsys):
    original = build("ImageNetV2", tmp_path / "original")
    server.files["/mirror/imagenetv2.zip"] = zip_of(original, "imagenetv2/")
    code, out = run(tmp_path / "data", capsys, "imagenet")
    assert code == 1 and "register at https://image-net.org" in out
    assert (tmp_path / "data/imagenet/classnames.txt").is_file()
    assert all(server.asked("/mirror/imagenetv2.zip"))


# Checking


def test_verify_names_what_is_missing_and_decode_what_is_broken(offer, tmp_path, capsys):
    original = offer("EuroSAT")
    root = original.parent
    assert run(root, capsys, "eurosat", "--verify", "--decode")[0] == 0
    (original / "2750/Forest/Forest_3.jpg").unlink()
    target = original / "2750/River/River_4.jpg"
    target.unlink()
    target.write_bytes(jpeg_bytes()[:-40])
    code, out = run(root, capsys, "eurosat", "--verify")
    assert code == 1 and "Forest: 9 images of the split found, 10 expected" in out
    assert "River_4" not in out and "incomplete" in out and "10 / 10" in out
    code, out = run(root, capsys, "eurosat", "--verify", "--decode")
    assert code == 1 and f"{target}: broken (" in out
    assert f"remove what is incomplete in {original}" in " ".join(out.split())


def test_verify_writes_nothing(offer, tmp_path, capsys):
    original = offer("DescribableTextures")
    (original / "split_zhou_DescribableTextures.json").unlink()
    PUBLISHED["DescribableTextures"] = Published("0123456789abcdef")
    before = sorted(original.iterdir())
    code, out = run(original.parent, capsys, "dtd", "--verify")
    assert code == 1 and "split not the published one" in " ".join(out.split())
    assert sorted(original.iterdir()) == before


def test_counts_that_differ_are_shown_beside_the_expected_ones(offer, tmp_path, capsys):
    original = offer("EuroSAT")
    path = original / "split_zhou_EuroSAT.json"
    split = json.loads(path.read_text())
    split["train"] = split["train"][5:]
    path.write_text(json.dumps(split))
    out = run(original.parent, capsys, "eurosat", "--verify")[1]
    assert "45 / 50" in out and "9 / 10" not in out
    assert "0 training images found, 1 or more expected" in out


# ImageNet


def _imagenet_archives(folder: Path) -> list[str]:
    """The files of image-net.org: a tar of tars, flat validation images, the development kit."""
    folder.mkdir(parents=True)
    image, ids = jpeg_bytes(), wnids()

    def plain_tar(*members) -> bytes:
        return gzip.decompress(tar_with(*members))

    train = [
        (f"{wnid}.tar", plain_tar((f"{wnid}_1.JPEG", image), (f"{wnid}_2.JPEG", image)))
        for wnid in ids
    ]
    (folder / "ILSVRC2012_img_train.tar").write_bytes(plain_tar(*train))
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, FEW + 1)]
    (folder / "ILSVRC2012_img_val.tar").write_bytes(plain_tar(*((n, image) for n in names)))
    order = np.random.default_rng(0).permutation(FEW)  # class of image i
    kinds = [(key, object) for key in ("ILSVRC2012_ID", "WNID", "words", "num_children")]
    synsets = np.empty(FEW + 1, dtype=kinds)
    numbers = {wnid: 1 + (7 * i) % FEW for i, wnid in enumerate(ids)}  # not in sorted order
    for i, wnid in enumerate(ids):
        synsets[i] = (numbers[wnid], wnid, "words", 0)
    synsets[FEW] = (FEW + 1, "n00000001", "entity", 3)
    savemat(folder / "meta.mat", {"synsets": synsets.reshape(-1, 1)})
    truth = "\n".join(str(numbers[ids[k]]) for k in order).encode()
    kit = "ILSVRC2012_devkit_t12/data"
    (folder / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(
        tar_with(
            (f"{kit}/meta.mat", (folder / "meta.mat").read_bytes()),
            (f"{kit}/ILSVRC2012_validation_ground_truth.txt", truth),
        )
    )
    (folder / "meta.mat").unlink()
    return [ids[k] for k in order]


@pytest.fixture
def imagenet_folder(server, tmp_path, monkeypatch):
    folder = tmp_path / "data/imagenet"
    classes = _imagenet_archives(folder)
    write_classnames(folder)
    monkeypatch.setitem(SIZES, "ImageNet", Sizes(FEW, 2 * FEW, None, FEW, FEW // 2))
    for name in IMAGENET_FILES:
        md5 = hashlib.md5((folder / name).read_bytes()).hexdigest()
        monkeypatch.setitem(sources.IMAGENET_FILES, name, md5)
    return folder, classes


def test_imagenet_archives_are_unpacked_and_val_is_sorted(imagenet_folder, tmp_path, capsys):
    folder, classes = imagenet_folder
    code, out = run(tmp_path / "data", capsys, "imagenet")
    assert code == 0, out
    for number in (1, 17, FEW):
        wnid = classes[number - 1]
        assert (folder / f"images/val/{wnid}/ILSVRC2012_val_{number:08d}.JPEG").is_file()
    found = load(tmp_path / "data", "ImageNet", strict=True, NUM_SHOTS=1)
    assert len(found.train_x) == len(found.test) == FEW
    assert run(tmp_path / "data", capsys, "imagenet")[0] == 0  # nothing is left to do


@pytest.mark.parametrize("listing", ["LOC_val_solution.csv", "valprep.sh", ""])
def test_flat_val_is_sorted_by_other_lists_or_asks_for_one(
    imagenet_folder, tmp_path, capsys, listing
):
    folder, classes = imagenet_folder
    (folder / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    if listing.endswith("csv"):
        with (folder / listing).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["ImageId", "PredictionString"])
            for i, wnid in enumerate(classes, start=1):
                writer.writerow([f"ILSVRC2012_val_{i:08d}", f"{wnid} 1 2 3 4 "])
    elif listing:
        lines = [f"mkdir -p {wnid}" for wnid in wnids()] + [
            f"mv ILSVRC2012_val_{i:08d}.JPEG {wnid}/" for i, wnid in enumerate(classes, start=1)
        ]
        (folder / listing).write_text("\n".join(lines))
    code, out = run(tmp_path / "data", capsys, "imagenet")
    if listing:
        assert code == 0, out
        assert (folder / f"images/val/{classes[4]}/ILSVRC2012_val_00000005.JPEG").is_file()
    else:
        assert code == 1 and "nothing says which class an image has. Put ILSVRC2012_devkit" in out


def test_incomplete_val_list_moves_nothing(imagenet_folder, tmp_path, capsys):
    folder, classes = imagenet_folder
    (folder / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    (folder / "valprep.sh").write_text(f"mv ILSVRC2012_val_00000001.JPEG {classes[0]}/\n")
    code, out = run(tmp_path / "data", capsys, "imagenet")
    assert code == 1 and "names 1 images found, 20 expected" in out
    assert len(list((folder / "images/val").glob("*.JPEG"))) == FEW


def test_wrong_imagenet_archive_is_refused(imagenet_folder, tmp_path, capsys):
    folder, _ = imagenet_folder
    with (folder / "ILSVRC2012_img_train.tar").open("ab") as file:
        file.write(b"!")
    code, out = run(tmp_path / "data", capsys, "imagenet")
    assert code == 1 and "ILSVRC2012_img_train.tar is refused: MD5" in out
    assert not (folder / "images/train").exists()


# The page


def test_page_names_every_address_checksum_and_count():
    page = (REPO / "docs/DATASETS.md").read_text()
    sections = dict(
        re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, flags=re.DOTALL | re.MULTILINE)
    )
    for name, source in SOURCES.items():
        stem, folder, _ = WORLDS[name]
        row = next(line for line in page.splitlines() if line.startswith(f"| [{name}]"))
        assert f"`{name}` | `{stem}` | `{folder}`" in row
        counts = [f"{count:,}" for count in SIZES[name][1:] if count]
        assert [count for count in counts if count not in row] == []
        text = sections[name]
        assert f"datasets.prepare {stem} --root" in text and f"$DATA/{folder}/" in text
        for part in source.parts:
            for url in part.urls:
                assert url.replace("drive:", download.DRIVE_ADDRESS) in text
            assert f"`{part.file}`" in text and part.md5 in text
        assert f"{sources.MIRROR}/{source.mirror}" in text


def test_every_published_checksum_is_one_of_torchvisions():
    """MD5 sums are copied from torchvision's loaders; none is made up."""
    import torchvision.datasets

    if tuple(map(int, torchvision.__version__.split(".")[:2])) < (0, 29):
        pytest.skip("older versions have other archives of Caltech101 and EuroSAT")
    folder = Path(torchvision.datasets.__file__).parent
    text = "".join(path.read_text() for path in folder.glob("*.py"))
    sums = {part.md5 for source in SOURCES.values() for part in source.parts if part.md5}
    sums |= set(IMAGENET_FILES.values())
    assert len(sums) >= 10 and [md5 for md5 in sums if md5 not in text] == []
