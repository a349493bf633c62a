"""Folders and tar files of images: dumped without a list of them, cut again from where they lie."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import region_world as world
import torch
from clip.model import CLIP
from PIL import Image

from dump_teacher_logits import run
from regions.dataset import RegionDataset, read_image
from regions.files import RegionStoreError
from regions.images import ImageTable, RegionImage
from regions.sources import expand, images_of, read_classnames
from regions.store import RegionStore


def write_tar(path: Path, samples: dict[str, bytes], prefix: str = "") -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in samples.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def root(tmp_path) -> Path:
    """Seven images in folders of their classes, and the same in two tar files, with labels."""
    items = world.draw_images(tmp_path)
    for number, part in enumerate((items[:4], items[4:])):
        samples = {}
        for item in part:
            key = f"s/{Path(item.impath).stem}"
            samples[f"{key}.cls"] = str(item.label).encode()
            samples[f"{key}.png"] = Path(item.impath).read_bytes()
            samples[f"{key}.json"] = b"{}"
        write_tar(tmp_path / f"train-{number}.tar", samples, prefix="./" * number)
    (tmp_path / "names.txt").write_text("\n".join(world.CLASSES) + "\n")
    return tmp_path


def test_a_tar_file_holds_the_images_that_its_folder_holds(root):
    tars = expand([str(root / "train-*.tar")])
    found = list(images_of(tars, root))
    in_folder = {Path(image.path).stem: image for image in images_of([root / "images"], root)}
    assert [image.path for image in found] == [
        *(f"train-0.tar/s/{i}.png" for i in range(4)),
        *(f"train-1.tar/s/{i}.png" for i in range(4, 7)),
    ]
    for image in found:
        same = in_folder[Path(image.path).stem]
        assert image[1:] == same[1:]
        one, two = (read_image(str(root / i.path), i.height, i.width) for i in (image, same))
        assert one.tobytes() == two.tobytes()
    assert read_classnames(tars, root / "names.txt") == list(world.CLASSES)
    assert read_classnames([root / "images"], None) == list(world.CLASSES)


def test_a_dump_of_tar_files_is_identified_by_them_and_serves_training(root, capsys):
    torch.manual_seed(0)
    teacher = root / "tiny.pt"
    torch.save(CLIP(16, 12, 1, 64, 6, 77, 49408, 64, 1, 1).state_dict(), teacher)

    def line(store: str, *source: str) -> list[str]:
        flags = ["--root", str(root), "--seed", "1", "--store", str(root / store)]
        flags += [part for one in source for part in ("--source", str(root / one))]
        flags += ["--classnames", str(root / "names.txt"), "--shard-images", "3"]
        keys = ("DATASET.TEMPLATE", "a photo of a {}.", "TRAINER.FDBPL.TEACHER", str(teacher))
        return [*flags, *keys, "TRAINER.FDBPL.NUM_REGIONS", "5"]

    assert run(line("by_tar", "train-*.tar")) == 0
    assert run(line("by_tar", "train-*.tar")) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert run(line("by_tar", "train-0.tar")) == 1
    assert "is a dump of 7 images, but this call has 4" in capsys.readouterr().err
    assert run(line("by_folder", "images")) == 0
    by_tar, by_folder = RegionStore.open(root / "by_tar"), RegionStore.open(root / "by_folder")
    assert by_tar.spec.id != by_folder.spec.id and len(by_tar) == len(by_folder) == 7

    image = by_tar.spec.images[5]
    item = world.Item(str(root / image.path), image.label)
    samples = RegionDataset(
        [item], by_tar, by_tar.columns(world.CLASSES), 5, 12, world.MEAN, world.STD, root
    )
    sample = samples[0, torch.arange(5)]
    assert sample["img"].shape == (5, 3, 12, 12) and sample["label"] == 1
    np.testing.assert_array_equal(sample["teacher_logits"], by_tar.read(5, range(5)).logits)


def test_usage_of_sources_is_told(root, capsys):
    line = ["--root", str(root), "--store", str(root / "s"), "--seed", "1", "--source"]
    assert run([*line, str(root / "train-*.tar")]) == 2
    assert "Give DATASET.TEMPLATE" in capsys.readouterr().err
    assert run([*line, str(root / "train-*.tar"), "DATASET.TEMPLATE", "a {}."]) == 1
    assert "tar files do not name their classes. Give --classnames" in capsys.readouterr().err
    assert run([*line, str(root / "nothing*"), "DATASET.TEMPLATE", "a {}."]) == 1
    assert "nothing* is missing" in capsys.readouterr().err


def test_sources_that_are_not_as_they_should_be_are_refused(root):
    png = (root / "images/ant/0.png").read_bytes()
    for samples, message in (
        ({"1.png": png, "2.cls": b"0"}, "no label beside t.tar/1.png"),
        ({"1.png": png}, "no label beside t.tar/1.png"),
        ({"1.png": png[:30], "1.cls": b"0"}, "t.tar/1.png cannot be read"),
        ({"1.png": png, "1.cls": b"cat"}, "t.tar/1.cls cannot be read"),
    ):
        write_tar(root / "t.tar", samples)
        with pytest.raises(RegionStoreError, match=message):
            list(images_of([root / "t.tar"], root))
    (root / "t.tar").write_bytes(b"hello")
    with pytest.raises(RegionStoreError, match="is no tar file"):
        list(images_of([root / "t.tar"], root))
    (root / "names.txt").write_text("ant\nbee\n")
    with pytest.raises(RegionStoreError, match="has 4 subfolders, but .* names 2 classes"):
        read_classnames([root / "images"], root / "names.txt")
    with pytest.raises(RegionStoreError, match="image .*train-0.tar/s/9.png is missing"):
        read_image(str(root / "train-0.tar/s/9.png"), 1, 1)


def test_images_are_counted_and_not_kept():
    """A list of tuples takes 400 bytes an image; the table takes its columns."""
    count = 50_000
    Image.init()
    tracemalloc.start()
    table = ImageTable.of(RegionImage(f"train/{i:08d}.jpg", i % 10, 9, 8) for i in range(count))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(table) == count and table[count - 1].path == "train/00049999.jpg"
    assert peak / count < 200
    with pytest.raises(ValueError, match="listed twice"):
        ImageTable.of(RegionImage(f"{i % 7}.jpg", 0, 1, 1) for i in range(8))
