"""Config files and KEY VALUE pairs: what does not fit is one line, with the nearest that does."""

from __future__ import annotations

import argparse

import pytest

from configs.cli import add_family_flags, setup_cfg

HEAD = "# a recipe\nOPTIM:\n"


def cfg_of(*words: object):
    parser = argparse.ArgumentParser()
    add_family_flags(parser)
    return setup_cfg(parser.parse_args([str(word) for word in words]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HEAD + "  LR: 0.1\n  MAX_EPOC: 3\n",
            "line 4 does not fit: there is no key OPTIM.MAX_EPOC.",
        ),
        (HEAD + "  MAX_EPOC: 3\n", "Do you mean OPTIM.MAX_EPOCH?"),
        (HEAD + "  lr: 0.1\n", "line 3 does not fit: there is no key OPTIM.lr."),
        (HEAD + "  lr: 0.1\n", "Do you mean OPTIM.LR?"),
        (HEAD + "\tLR: 0.1\n", "line 3 is not yaml: found character '\\t' that cannot start"),
        (HEAD + "\tLR: 0.1\n", "Indent by spaces, not by tabs."),
        (HEAD + "  LR: [0.1\n", "line 4 is not yaml: expected ',' or ']'"),
        (HEAD + " LR: 0.1\n  WARMUP_EPOCH: 1\n", "line 4 is not yaml: mapping values are not"),
        (HEAD + "  LR: much\n", "line 3 does not fit: OPTIM.LR takes a value of kind float, not"),
        (HEAD + "  LR:\n", "line 3 does not fit: no value for config key: OPTIM.LR"),
        (HEAD, "line 2 does not fit: no value for config key: OPTIM"),
        ("OPTIM: 3\n", "line 1 does not fit: OPTIM takes a value of kind section, not int"),
        ("# a list\n- OPTIM\n", "line 2: a list, not KEY: VALUE lines"),
        ("hello\n", "line 1: a single value, not KEY: VALUE lines"),
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("3: 4\n", "3 is no key, which are words"),
        ("OPTIM: !!python/object/apply:os.system ['true']\n", "line 1 is not yaml: could not"),
        ("OPTIM: {}\n---\nOPTIM: {}\n", "line 2 is not yaml: but found another document"),
        ("\ufeff" + HEAD + "  MAX_EPOC: 3\n", "line 3 does not fit: there is no key OPTIM.MAX_EP"),
    ],
)
@pytest.mark.parametrize("flag", ["--config-file", "--dataset-config-file"])
def test_a_faulty_file_is_told_with_its_line(tmp_path, flag, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as refusal:
        cfg_of(flag, path)
    said = str(refusal.value)
    assert said.startswith(f"{flag} {path}") and message in said and "\n" not in said


@pytest.mark.parametrize("name", ["recipe.py", "recipe", "recipe.yaml.py", "recipe.json"])
def test_a_file_of_another_kind_is_refused_and_never_run(tmp_path, name):
    path, ran = tmp_path / name, tmp_path / "ran"
    path.write_text(f"open({str(ran)!r}, 'w')\ncfg = {{}}\n")
    with pytest.raises(ValueError, match="is no .yaml or .yml file"):
        cfg_of("--config-file", path)
    assert not ran.exists()


def test_the_config_of_a_run_is_read_with_the_same_care(tmp_path):
    from trained import open_run

    (tmp_path / "classnames.json").write_text("[]")
    (tmp_path / "config.yaml").write_text(HEAD + "\tLR: 0.1\n")
    with pytest.raises(ValueError, match=r"config.yaml, line 3 is not yaml.*use the commit in"):
        open_run(tmp_path)


def test_a_base_is_told_by_its_own_name_and_lines(tmp_path):
    (tmp_path / "own.yaml").write_text("A: 1\n_BASE_: base.yaml\n")
    with pytest.raises(ValueError, match=r"own.yaml: _BASE_ \S+/base.yaml does not exist"):
        cfg_of("--config-file", tmp_path / "own.yaml")
    (tmp_path / "base.yaml").write_text(HEAD + "  MAX_EPOC: 3\n")
    with pytest.raises(ValueError, match=r"own.yaml: _BASE_ \S+/base.yaml, line 3 does not fit"):
        cfg_of("--config-file", tmp_path / "own.yaml")


def test_yml_and_whole_numbers_for_floats_are_read(tmp_path):
    path = tmp_path / "recipe.yml"
    path.write_text("OPTIM:\n  LR: 1\n")
    assert cfg_of("--config-file", path).OPTIM.LR == 1.0


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["OPTIM.MAX_EPOC", 3], "there is no key OPTIM.MAX_EPOC. Do you mean OPTIM.MAX_EPOCH?"),
        (["MAX_EPOCH", 3], "there is no key MAX_EPOCH. Do you mean OPTIM.MAX_EPOCH?"),
        (["SEED.X", 3], "there is no key SEED.X. Do you mean SEED?"),
        (["OPTIM.LR", "much"], "OPTIM.LR takes a value of kind float, not str"),
        (["OPTIM.LR", "None"], "no value for config key: OPTIM.LR"),
        (["OPTIM", 3], "OPTIM takes a value of kind section, not int"),
        (["OPTIM.LR"], "one is single"),
        (["OPTIM.MAX_EPOCH", 0], "OPTIM.MAX_EPOCH is 0; it needs 1 or more"),
        (["OPTIM.MAX_EPOCH", -1], "OPTIM.MAX_EPOCH is -1; it needs 1 or more"),
    ],
)
def test_a_pair_that_does_not_fit_is_told_with_the_nearest_key(pairs, message):
    with pytest.raises(ValueError) as refusal:
        cfg_of(*pairs)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_the_nearest_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="Do you mean configs/datasets/toy_shapes.yaml?"):
        cfg_of("--dataset-config-file", "configs/datasets/toyshapes.yaml")


def test_the_data_root_is_the_flag_else_the_file_else_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA", "of_environment")
    assert cfg_of().DATASET.ROOT == "of_environment"
    path = tmp_path / "recipe.yaml"
    path.write_text("DATASET:\n  ROOT: of_file\n")
    assert cfg_of("--config-file", path).DATASET.ROOT == "of_file"
    assert cfg_of("--root", "of_flag", "--config-file", path).DATASET.ROOT == "of_flag"
    monkeypatch.delenv("DATA")
    assert cfg_of().DATASET.ROOT == ""
