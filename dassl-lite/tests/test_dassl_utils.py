"""Seeds, files, checkpoints, log, meters, registry."""

from __future__ import annotations

import random
import re
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from dassl import utils
from dassl.utils import rng
from dassl.utils.torchtools import load_complete_set


def draw() -> tuple:
    return random.random(), np.random.randn(), torch.randn(3).tolist()


def test_seed_0_is_a_seed():
    utils.set_random_seed(0)
    first = draw()
    utils.set_random_seed(0)
    assert draw() == first
    utils.set_random_seed(1)
    assert draw() != first
    with pytest.raises(ValueError, match="seed is -1"):
        utils.set_random_seed(-1)


def test_rng_state_replays_after_a_round_trip_through_a_file(tmp_path):
    utils.set_random_seed(5)
    np.random.randn()  # leaves numpy with a cached second value
    torch.save(rng.get_rng_state(), tmp_path / "rng.pt")
    expected = draw()
    utils.set_random_seed(6)
    rng.set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert draw() == expected


# ---- checkpoints ----


def state(model, epoch=1) -> dict:
    return {"state_dict": model.state_dict(), "epoch": epoch}


def test_checkpoint_layout(tmp_path, capsys):
    model = nn.DataParallel(nn.Linear(2, 2))
    utils.save_checkpoint(state(model, 3), str(tmp_path / "name"), is_best=True)
    names = {path.name for path in (tmp_path / "name").iterdir()}
    assert names == {"checkpoint", "model.pth.tar-3", "model-best.pth.tar"}
    assert (tmp_path / "name" / "checkpoint").read_text() == "model.pth.tar-3\n"
    found = utils.load_checkpoint(tmp_path / "name" / "model.pth.tar-3")
    assert list(found["state_dict"]) == ["weight", "bias"]  # "module." is cut
    assert f"Checkpoint saved to {tmp_path}/name/model.pth.tar-3\n" in capsys.readouterr().out
    utils.save_checkpoint(state(model), str(tmp_path / "name"), model_name="model-best.pth.tar")
    assert (tmp_path / "name" / "checkpoint").read_text() == "model-best.pth.tar\n"


def test_a_view_is_saved_without_the_storage_it_looks_into(tmp_path):
    table = torch.randn(1000, 100)
    utils.save_checkpoint({"state_dict": {"row": table[:1]}, "epoch": 1}, str(tmp_path))
    assert (tmp_path / "model.pth.tar-1").stat().st_size < 10_000


def test_a_failed_save_leaves_the_old_file(tmp_path):
    model = nn.Linear(2, 2)
    utils.save_checkpoint(state(model), str(tmp_path))
    before = (tmp_path / "model.pth.tar-1").read_bytes()
    with pytest.raises(Exception, match="pickle"):
        utils.save_checkpoint({**state(model), "bad": lambda: 0}, str(tmp_path))
    assert (tmp_path / "model.pth.tar-1").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"model.pth.tar-1", "checkpoint"}


def test_resume_from_checkpoint(tmp_path, capsys):
    torch.manual_seed(0)
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    utils.save_checkpoint(state(model, 7), str(tmp_path))
    assert utils.resume_from_checkpoint(tmp_path, other) == 7
    assert torch.equal(model.weight, other.weight)
    assert "Previous epoch: 7" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="nothing to resume from"):
        utils.resume_from_checkpoint(tmp_path / "none", other)


class Foreign:
    """Stands for the pickled scheduler of an upstream checkpoint."""


def test_pickled_objects_are_refused_and_the_printed_command_helps(tmp_path):
    path = tmp_path / "old.pth.tar"
    torch.save({"state_dict": {}, "epoch": 1, "scheduler": {"successor": Foreign()}}, path)
    with pytest.raises(ValueError, match="If you trust the file") as refusal:
        utils.load_checkpoint(path)
    code = re.search(r'python -c "(.*)"$', str(refusal.value)).group(1)
    exec(code)
    assert utils.load_checkpoint(path)["scheduler"] is None


def flipped(content: bytes, weight: torch.Tensor) -> bytes:
    """One bit of a weight the other way round."""
    place = content.index(weight.detach().numpy().tobytes()) + 100
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "flipped"])
def test_damaged_files_are_named(tmp_path, damage):
    path, model = tmp_path / "model.pth.tar-1", nn.Linear(50, 50)
    utils.save_checkpoint(state(model), str(tmp_path))
    content = path.read_bytes()
    damages = {"empty": b"", "cut": content[:3000], "text": b"this is text"}
    path.write_bytes(damages.get(damage, flipped(content, model.weight)))
    with pytest.raises(ValueError, match=re.escape(str(path))):
        utils.load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="gone"):
        utils.load_checkpoint(tmp_path / "gone")


def test_a_damaged_file_of_one_model_sends_all_to_an_older_epoch(tmp_path, capsys):
    folders, model = [str(tmp_path / name) for name in "ab"], nn.Linear(50, 50)
    for epoch in (1, 2):
        for folder in folders:
            utils.save_checkpoint(state(model, epoch), folder)
    last = tmp_path / "b" / "model.pth.tar-2"
    last.write_bytes(flipped(last.read_bytes(), model.weight))
    assert [path[-15:] for path, _ in load_complete_set(folders)] == ["model.pth.tar-1"] * 2
    assert f"An older checkpoint is looked for: {last} cannot be read" in capsys.readouterr().out
    (tmp_path / "a" / "model.pth.tar-1").write_bytes(b"")
    with pytest.raises(ValueError, match=f"Not one checkpoint .*{last.name}.*give another"):
        load_complete_set(folders)


def test_a_checkpoint_of_another_model_is_named(tmp_path):
    utils.save_checkpoint(state(nn.Linear(2, 3)), str(tmp_path))
    with pytest.raises(ValueError, match=r"(?s)model.pth.tar-1 is of another model: .*weight"):
        utils.resume_from_checkpoint(str(tmp_path), nn.Linear(3, 3))


def test_epochs_of_several_models_are_never_mixed(tmp_path):
    folders = [str(tmp_path / name) for name in "ab"]
    model = nn.Linear(1, 1)

    def save(letter, epoch, **kwargs):
        utils.save_checkpoint(state(model, epoch), str(tmp_path / letter), **kwargs)

    def found_epochs():
        found = load_complete_set(folders)
        return found and [checkpoint["epoch"] for _, checkpoint in found]

    assert found_epochs() is None
    save("a", 1)
    assert found_epochs() is None
    save("b", 1)
    assert found_epochs() == [1, 1]
    save("a", 2)  # killed before b
    assert found_epochs() == [1, 1]
    save("b", 2)
    assert found_epochs() == [2, 2]
    for letter in "ab":
        save(letter, 3, model_name="model-best.pth.tar")
    assert found_epochs() == [3, 3]
    save("a", 4, model_name="model-best.pth.tar")  # same name, another epoch
    assert found_epochs() == [2, 2]


def test_pretrained_weights(tmp_path, capsys):
    source = nn.Sequential(OrderedDict(body=nn.Linear(2, 2), head=nn.Linear(2, 5)))
    target = nn.Sequential(OrderedDict(body=nn.Linear(2, 2), head=nn.Linear(2, 3)))
    utils.save_checkpoint(state(source), str(tmp_path))
    utils.load_pretrained_weights(target, tmp_path / "model.pth.tar-1")
    assert torch.equal(source.body.weight, target.body.weight)
    assert "discarded due to unmatched keys or size: ['head.weight'" in capsys.readouterr().out
    torch.save(source.body.state_dict(), tmp_path / "plain.pt")
    utils.load_pretrained_weights(nn.Linear(2, 2), tmp_path / "plain.pt")
    with pytest.raises(ValueError, match="fits Conv2d nowhere"):
        utils.load_pretrained_weights(nn.Conv2d(1, 1, 1), tmp_path / "model.pth.tar-1")


def test_count_num_param():
    model = nn.Linear(2, 3)
    assert utils.count_num_param(model) == 9
    assert utils.count_num_param(params=model.parameters()) == 9
    assert utils.count_num_param(params=[{"params": list(model.parameters())}]) == 9
    with pytest.raises(ValueError, match="needs a model or params"):
        utils.count_num_param()


# ---- files, names, meters ----


def test_json_and_folders(tmp_path):
    path = tmp_path / "a" / "b" / "x.json"
    utils.write_json({"é": [1, 2]}, str(path))
    assert utils.read_json(path) == {"é": [1, 2]}
    (path.parent / ".hidden").touch()
    (path.parent / "a.txt").touch()
    assert utils.listdir_nohidden(path.parent, sort=True) == ["a.txt", "x.json"]
    path.write_text("{")
    with pytest.raises(ValueError, match="x.json is not valid JSON"):
        utils.read_json(path)
    utils.mkdir_if_missing(path.parent)
    utils.mkdir_if_missing("")
    assert utils.check_isfile(path)
    with pytest.warns(UserWarning, match="No file found"):
        assert not utils.check_isfile(tmp_path / "none")


def test_images_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="bad.jpg is not a readable image"):
        utils.read_image(tmp_path / "bad.jpg")
    with pytest.raises(FileNotFoundError, match="No image at .*gone.jpg; check DATASET.ROOT"):
        utils.read_image(tmp_path / "gone.jpg")


def test_registry():
    registry = utils.Registry("ANIMAL")

    @registry.register()
    class Ant:
        pass

    def bee():
        pass

    registry.register(bee)
    assert registry.registered_names() == ["Ant", "bee"]
    assert registry.get("Ant") is Ant
    with pytest.raises(KeyError, match="already has 'bee'"):
        registry.register(bee)
    registry.register(bee, force=True)
    with pytest.raises(KeyError, match="no 'cat'. Registered: Ant, bee"):
        registry.get("cat")
    with pytest.raises(ValueError, match="none: is the module that registers them imported"):
        utils.check_availability("cat", [])


def test_meters():
    meter = utils.MetricMeter()
    meter.update({"loss": torch.tensor(1.0), "acc": 50})
    meter.update({"loss": 2.0, "acc": 100})
    meter.update(None)
    assert str(meter) == "loss 2.0000 (1.5000) acc 100.0000 (75.0000)"
    with pytest.raises(TypeError, match="needs a dictionary"):
        meter.update([1])
    average = utils.AverageMeter(ema=True)
    average.update(1.0)
    average.update(2.0)
    assert average.avg == pytest.approx(0.9 * 0.1 + 0.2)
    weighted = utils.AverageMeter()
    weighted.update(1.0, n=3)
    weighted.update(5.0)
    assert (weighted.avg, weighted.sum, weighted.count, weighted.val) == (2.0, 8.0, 4, 5.0)


def test_other_names():
    assert utils.tolist_if_not(1) == [1] and utils.tolist_if_not([1]) == [1]
    assert f"torch: {torch.__version__}" in utils.collect_env_info()


# ---- log ----


def test_log_continues_after_a_marked_line(tmp_path, keep_stdout, capsys):
    log = tmp_path / "run" / "log.txt"
    utils.setup_logger(str(tmp_path / "run"))
    print("* accuracy: 10.0%")
    sys.stdout.write("half a li")  # killed here
    utils.setup_logger(tmp_path / "run")
    print("* accuracy: 20.0%")
    lines = log.read_text().splitlines()
    assert lines[0] == "* accuracy: 10.0%" and lines[1] == "half a li"
    assert re.fullmatch(r"=== log continued on [\d-]+ [\d:]+ ===", lines[2])
    assert lines[3:] == ["* accuracy: 20.0%"]
    assert list(log.parent.iterdir()) == [log]
    assert "continued" not in capsys.readouterr().out


def test_log_switches_files_and_goes_on_without_one(tmp_path, keep_stdout, capsys):
    utils.setup_logger(None)
    print("console")
    utils.setup_logger(str(tmp_path / "a.log"))
    print("first")
    utils.setup_logger(str(tmp_path / "b.txt"))
    print("second", flush=True)
    assert (tmp_path / "a.log").read_text() == "first\n"
    assert (tmp_path / "b.txt").read_text() == "second\n"
    assert capsys.readouterr().out == "console\nfirst\nsecond\n"
    assert sys.stdout.encoding and not sys.stdout.isatty()
    with sys.stdout:
        print("third")
    print("fourth")  # to the console alone
    assert (tmp_path / "b.txt").read_text() == "second\nthird\n"
    assert capsys.readouterr().out == "third\nfourth\n"


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.6, 0.95, 0.999])
def test_a_cut_checkpoint_is_named_whatever_the_reader_says(tmp_path, kept):
    """torch seeks behind the end of some: the system's "Invalid argument" names no file."""
    path = tmp_path / "model.pth.tar-3"
    state = {"state_dict": {"ctx": torch.zeros(16, 512)}, "epoch": 3}
    utils.save_checkpoint(state, tmp_path, model_name=path.name)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=f"{path} (cannot be read|holds more than)"):
        utils.load_checkpoint(path)
