"""Equal to the official implementations: every fixture, and the tool that compares them."""

from __future__ import annotations

import json
import shutil

import parity
import pytest
import torch
from conftest import PARITY
from safetensors import safe_open
from safetensors.torch import save_file


@pytest.mark.parametrize("path", parity.files_in(PARITY), ids=lambda path: path.stem)
def test_fixture_is_reproduced(path):
    found = parity.compare(path)
    assert found.passed, str(found)


def changed(name: str, folder, change) -> None:
    """A copy of a fixture in which `change` altered tensors and description."""
    with safe_open(PARITY / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        about = json.loads(file.metadata()["json"])
    change(tensors, about)
    save_file(tensors, folder / f"{name}.safetensors", {"json": json.dumps(about)})


def add_to(key: str, amount: float):
    def change(tensors, about):
        tensors[key] = tensors[key] + amount

    return change


@pytest.mark.parametrize(
    ("key", "amount"),
    [
        ("logits", 2e-4),
        ("loss", 2e-4),
        ("grads.prompt_learner.ctx", 2e-4),
        ("params.prompt_learner.ctx", 1e-2),
    ],
)
def test_a_difference_above_the_tolerance_fails(tmp_path, capsys, key, amount):
    changed("maple_n2_depth1", tmp_path, add_to(key, amount))
    shutil.copy(PARITY / "zsclip.safetensors", tmp_path)
    assert parity.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 1 failed"


def test_what_is_not_understood_fails_with_its_reason(tmp_path, capsys):
    def other_method(tensors, about):
        about["config"]["method"] = "Prompt-O-Matic"

    changed("vpt_n4_depth2", tmp_path, other_method)
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    assert parity.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "Prompt-O-Matic" in out and out.splitlines()[-1] == "0 passed, 2 failed"


def test_a_folder_without_fixtures_is_an_error(tmp_path, capsys):
    assert parity.main([str(tmp_path)]) == 1
    assert "holds no fixture" in capsys.readouterr().err


def test_groups_and_dotted_names_are_one_tree(tmp_path):
    """JSON objects, lists of objects and dotted tensor names may describe the same thing."""
    tensors = {"cases.0.loss": torch.tensor(1.0), "params.a.b": torch.zeros(1)}
    about = {"cases": [{"k_max": 4}], "cases.0.note": "x", "config": {"method": "KDPL"}}
    save_file(tensors, tmp_path / "f.safetensors", {"json": json.dumps(about)})
    fixture = parity.Fixture.read(tmp_path / "f.safetensors")
    case = fixture.group("cases").groups["0"].values
    assert case["k_max"] == 4 and case["note"] == "x" and case["loss"] == 1
    assert list(fixture.group("params").values) == ["a.b"]
    assert fixture.config == {"method": "KDPL"}
