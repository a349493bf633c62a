"""Own data by config alone: what is read, what is refused, and docs/OWN_DATA.md as written."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from dassl.data.datasets import build_dataset
from family_world import make_images
from test_datasets_family import config

import dump_teacher_logits
import train
from datasets import export_toy
from datasets.own_data import few_images
from trainers.sanity import _warnings, report_own_data

REPO = Path(__file__).resolve().parents[1]
PAGE = (REPO / "docs/OWN_DATA.md").read_text()
CLASSES = ("red_fox", "barn owl", "moth")


def folders(root: Path, counts: dict[str, int], classes=CLASSES) -> Path:
    """root/own/<split>/<class>/<i>.jpg; split "" puts class folders at once."""
    for split, count in counts.items():
        make_images(
            root / "own" / split, (f"{name}/{i}.JPG" for name in classes for i in range(count))
        )
    return root / "own"


def load(root: Path, name: str = "ImageFolder", *, strict: bool = True, **keys):
    keys = {"FOLDER": "own"} | keys if name == "ImageFolder" else keys
    return build_dataset(config(root, name, strict=strict, **keys))


def paths(items, folder: Path) -> list[str]:
    return [Path(item.impath).relative_to(folder).as_posix() for item in items or []]


# ImageFolder


def test_given_split_is_used(tmp_path):
    own = folders(tmp_path, {"train": 3, "val": 1, "test": 2})
    (own / "train/moth/notes.txt").write_text("not an image")
    dataset = load(tmp_path)
    assert dataset.classnames == ["barn owl", "moth", "red_fox"]  # sorted folders
    assert [len(part) for part in (dataset.train_x, dataset.val, dataset.test)] == [9, 3, 6]
    assert paths(dataset.test, own)[:2] == ["test/barn owl/0.JPG", "test/barn owl/1.JPG"]


def test_validation_images_may_be_missing(tmp_path):
    folders(tmp_path, {"train": 3, "test": 2})
    assert load(tmp_path).val is None


def test_automatic_split_is_the_same_for_every_seed_and_covers_all(tmp_path):
    own = folders(tmp_path, {"": 10})
    first, other = load(tmp_path, seed=1), load(tmp_path, seed=2)
    parts = [paths(part, own) for part in (first.train_x, first.val, first.test)]
    assert [len(part) for part in parts] == [15, 6, 9]
    assert len(set().union(*parts)) == 30
    assert parts == [paths(part, own) for part in (other.train_x, other.val, other.test)]
    shots = load(tmp_path, seed=2, NUM_SHOTS=2)
    assert len(shots.train_x) == 6 and paths(shots.test, own) == parts[2]
    assert sorted(item.name for item in own.iterdir()) == sorted(CLASSES)  # nothing is written


def test_folder_may_be_absolute_or_the_root_itself(tmp_path):
    own = folders(tmp_path / "elsewhere", {"": 10})
    (tmp_path / "data").mkdir()
    assert load(tmp_path / "data", FOLDER=str(own)).num_classes == 3
    assert load(own, FOLDER="").num_classes == 3


def test_class_names_can_be_written_beside_the_folders(tmp_path):
    own = folders(tmp_path, {"train": 2, "test": 1}, ("n1", "n2", "n3"))
    (own / "classnames.txt").write_text("n1 great white shark\nn3 tench\n")
    assert load(tmp_path).classnames == ["great white shark", "n2", "tench"]


def test_scopes_and_counts(tmp_path):
    folders(tmp_path, {"train": 3, "val": 1, "test": 2})
    base = load(tmp_path, SUBSAMPLE_CLASSES="base", NUM_SHOTS=1)
    assert base.class_counts() == [("barn owl", 1, 1, 2), ("moth", 1, 1, 2)]


def test_class_without_training_images_is_refused_or_left_out(tmp_path, capsys):
    own = folders(tmp_path, {"train": 2, "test": 2})
    for image in (own / "train/moth").iterdir():
        image.unlink()
    (own / "train/zebra").mkdir()
    with pytest.raises(ValueError) as refusal:
        load(tmp_path)
    assert "class 1 (moth): 0 training images found, 1 or more expected" in str(refusal.value)
    assert f"give these classes images in {own}; or set DATASET.STRICT False" in str(refusal.value)
    dataset = load(tmp_path, strict=False)
    assert "Warning: ImageFolder is not as it should be" in capsys.readouterr().out
    assert dataset.classnames == ["barn owl", "red_fox"] and dataset.num_classes == 2
    assert {item.label for item in dataset.test} == {0, 1}


@pytest.mark.parametrize(
    ("counts", "keys", "told"),
    [
        ({"train": 2}, {}, "own has train, but train and test are needed"),
        ({"": 3}, {}, "has 3 images, too few for an automatic split"),
        ({"": 5}, {"FOLDER": "nowhere"}, "DATASET.FOLDER is 'nowhere': there is no folder"),
        ({"": 0}, {}, "gives no image to train or test on"),
    ],
)
def test_other_folders_are_refused_with_the_way_out(tmp_path, counts, keys, told):
    (tmp_path / "own").mkdir()
    folders(tmp_path, counts)
    with pytest.raises(ValueError, match=told):
        load(tmp_path, **keys)


# CSV


def table(root: Path, *lines: str) -> None:
    make_images(root / "photos", (f"{i}.jpg" for i in range(30)))
    (root / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def rows(pattern: str, count: int = 30) -> list[str]:
    return [pattern.format(i=i, name=CLASSES[i % 3], part=("train", "val", "test")[i // 3 % 3],
                           number=10 - i % 3) for i in range(count)]  # fmt: skip


def test_table_with_splits(tmp_path):
    table(tmp_path, "path,label,split", *rows("photos/{i}.jpg, {name}, {part}"))
    dataset = load(tmp_path, "CSV", CSV="list.csv")
    assert dataset.classnames == ["barn owl", "moth", "red_fox"]
    assert dataset.class_counts() == [(name, 4, 3, 3) for name in dataset.classnames]


def test_table_without_splits_is_split_as_folders_are(tmp_path):
    table(tmp_path, "\ufeffpath,label", *rows("{i}.jpg,{name}"))
    (tmp_path / "list.csv").rename(tmp_path / "photos/list.csv")  # paths are relative to it
    dataset = load(tmp_path, "CSV", CSV="photos/list.csv")
    assert dataset.class_counts() == [(name, 5, 2, 3) for name in dataset.classnames]


def test_numbers_need_names_and_keep_their_order(tmp_path):
    table(tmp_path, "path,label", *rows("photos/{i}.jpg,{number}"))
    with pytest.raises(ValueError, match="all labels are numbers, which prompts cannot speak of"):
        load(tmp_path, "CSV", CSV="list.csv")
    table_lines = ["path,label,classname", *rows("photos/{i}.jpg,{number},{name}")]
    (tmp_path / "list.csv").write_text("\n".join(table_lines))
    dataset = load(tmp_path, "CSV", CSV="list.csv")
    assert dataset.classnames == ["moth", "barn owl", "red_fox"]  # 8, 9, 10


def test_absolute_paths(tmp_path):
    pattern = str(tmp_path / "photos") + "/{i}.jpg,{name},{part}"
    table(tmp_path, "path,label,split", *rows(pattern))
    (tmp_path / "lists").mkdir()
    (tmp_path / "list.csv").rename(tmp_path / "lists/list.csv")
    assert len(load(tmp_path, "CSV", CSV="lists/list.csv").test) == 9


GOOD = "photos/0.jpg,fox,train"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["file,label", "a,b"], "has the columns file, label, but not path"),
        (["path,label,split", GOOD, "photos/1.jpg,fox,dev"], "line 3: .* split 'dev' found"),
        (["path,label,split", GOOD, "photos/1.jpg,,test"], "line 3: .*label ''"),
        (["path,label,split", GOOD, GOOD], "photos/0.jpg is listed in line 2 already"),
        (["path,label,split", GOOD, "photos/0.jpg,fox,test"], "is listed in line 2 already"),
        (
            ["path,label,split", GOOD, "photos/99.jpg,fox,test"],
            "list.csv, line 3: there is no file .*photos/99.jpg. Next: correct .*list.csv",
        ),
        (
            ["path,label,split", GOOD, "photos/1.jpg,owl,test"],
            r"class 1 \(owl\): 0 training images found",
        ),
        (["path,label,split", GOOD], "gives no image to train or test on"),
    ],
)
def test_other_tables_are_refused_with_the_way_out(tmp_path, lines, told):
    table(tmp_path, *lines)
    with pytest.raises(ValueError, match=told):
        load(tmp_path, "CSV", CSV="list.csv")
    with pytest.raises(ValueError, match="DATASET.CSV is 'no.csv': there is no file"):
        load(tmp_path, "CSV", CSV="no.csv")


def test_missing_images_of_a_table_are_left_out_when_not_strict(tmp_path):
    table(tmp_path, "path,label,split", *rows("photos/{i}.jpg,{name},{part}"))
    (tmp_path / "photos/6.jpg").unlink()
    assert len(load(tmp_path, "CSV", CSV="list.csv", strict=False).test) == 8


# The page


SCRIPTS = {
    "train.py": train.main,
    "dump_teacher_logits.py": lambda argv: check(dump_teacher_logits.run(argv)),
    "datasets.export_toy": export_toy.main,
}


def check(code: int) -> None:
    assert code == 0


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """Do what docs/OWN_DATA.md says, line by line; returns what the lines returned, by folder."""
    home, patch, returned = tmp_path_factory.mktemp("home"), pytest.MonkeyPatch(), {}
    patch.chdir(home)
    (home / "configs").symlink_to(REPO / "configs")
    for kind, text in re.findall(r"```(bash|yaml)\n(.*?)```", PAGE, flags=re.DOTALL):
        if kind == "yaml":
            (home / re.match(r"# (\S+\.yaml)\n", text)[1]).write_text(text)
            continue
        for line in text.strip().splitlines():
            words = shlex.split(line)
            if words[0] == "mkdir":
                (home / words[-1]).mkdir()
                continue
            assert words[0] == "python", line
            script, *arguments = words[2:] if words[1] == "-m" else words[1:]
            result = SCRIPTS[script](arguments)
            if "--output-dir" in arguments:
                returned[arguments[arguments.index("--output-dir") + 1]] = result
    yield home, returned
    patch.undo()


def test_page_leads_to_results_of_every_run(followed):
    home, returned = followed
    names = {"zeroshot", "coop", "fdbpl", "zeroshot_csv"}
    assert {Path(folder).name for folder in returned} == names
    results = {
        name: json.loads((home / f"output/my_data/{name}/results.json").read_text())
        for name in names
    }
    assert {result["dataset"] for result in results.values()} == {"ImageFolder", "CSV"}
    assert all(result["num_classes"] == 8 for result in results.values())
    assert all(result["accuracy"] > 2 * 12.5 for result in results.values())
    same = results["zeroshot"]["accuracy"], results["zeroshot_csv"]["accuracy"]
    assert same[0] == pytest.approx(same[1], abs=15)  # as many images, split otherwise


def test_exported_folder_is_not_overwritten(followed):
    with pytest.raises(ValueError, match="is not empty"):
        export_toy.main(["data/my_data"])


def test_report_tells_counts_zero_shot_and_teacher_and_moves_no_random_number(followed, capsys):
    _, returned = followed
    trainer = returned["output/my_data/fdbpl"]
    before = torch.get_rng_state()
    report = report_own_data(trainer)
    assert torch.equal(before, torch.get_rng_state())
    out = capsys.readouterr().out
    assert 'Own data: 8 classes, prompt "a photo of a {}."' in out
    assert re.search(r"  \S.* +8 +4 +6\n", out)
    assert "Zero-shot accuracy of the student on 64 training images: " in out
    assert "Accuracy of the teacher (toy-teacher) on the regions of the store: " in out
    assert report.student > 25 and report.teacher > report.student and report.warnings == []
    assert report_own_data(returned["output/my_data/coop"]).teacher is None


def test_report_encodes_an_image_once_for_all_runs_and_seeds(followed, monkeypatch):
    trainer = followed[1]["output/my_data/fdbpl"]
    first = report_own_data(trainer)
    with monkeypatch.context() as patch:
        patch.setattr("PIL.Image.open", lambda *_: pytest.fail("an image was opened"))
        assert report_own_data(trainer) == first
    monkeypatch.setattr(trainer, "cfg", trainer.cfg.clone())
    trainer.cfg.defrost()
    trainer.cfg.TEST.CACHE_FEATURES = False
    assert report_own_data(trainer) == first  # from the images


def test_report_agrees_with_the_zero_shot_trainer(followed, monkeypatch):
    trainer = followed[1]["output/my_data/zeroshot"]
    monkeypatch.setattr(trainer.dm.dataset, "_train_x", trainer.dm.dataset.test)
    assert report_own_data(trainer).student == pytest.approx(trainer.scores["accuracy"])


def test_report_of_an_online_teacher_and_of_a_worse_one(followed, capsys, monkeypatch):
    home, _ = followed
    monkeypatch.chdir(home)
    command = [
        *("--root", "data", "--trainer", "CoOp_KDPL", "--seed", "1", "--no-train"),
        *("--dataset-config-file", "my_data.yaml", "--output-dir", "output/my_data/kdpl"),
        *("--config-file", "configs/trainers/CoOp_KDPL/toy.yaml", "DATASET.NUM_SHOTS", "8"),
    ]
    for teacher, is_better in (("toy-teacher", True), ("toy-student", False)):
        trainer = train.main([*command, "TRAINER.KDPL.TEACHER", teacher])
        trainer.before_train()
        trainer.close_writer()
        capsys.readouterr()
        report = report_own_data(trainer)
        warned = "Warning: the teacher" in capsys.readouterr().out
        assert (report.teacher > report.student) == is_better != warned


def test_known_data_sets_are_not_reported(followed):
    trainer = followed[1]["output/my_data/coop"]
    trainer.dm.dataset.own_data = False
    assert report_own_data(trainer) is None
    del trainer.dm.dataset.own_data


def test_warnings_name_chance_and_small_classes():
    told = " ".join(_warnings(2, 51.0, 50.0))
    assert "the teacher (50.0 %) is not better than the student (51.0 %)" in told
    assert "zero-shot accuracy (51.0 %) is about chance (50.0 %)" in told
    assert "regions show less" not in told  # both saw whole images
    (told,) = _warnings(10, 51.0, 50.0, of_regions=True)
    assert "regions show less than whole images, so it may still be; if not, distill" in told
    assert _warnings(10, 60.0, None) == []
    counts = [("fox", 8, 0, 1), ("owl", 3, 0, 1)]
    assert few_images(counts, 8) == [
        "1 class has fewer than DATASET.NUM_SHOTS 8 training images: owl"
    ]
    assert few_images(counts, -1) == []
    told = few_images([("fox", 2, 0, 0), ("owl", 3, 0, 0)], 4)
    assert told == [
        "2 classes have fewer than DATASET.NUM_SHOTS 4 training images: fox, owl",
        "2 classes have no test images, so that accuracy says nothing of them: fox, owl",
    ]
