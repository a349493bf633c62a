"""The family's command line: 16 flags and KEY VALUE pairs become one frozen config."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml
from dassl.config import get_cfg_default
from yacs.config import CfgNode

from configs.defaults import RENAMED, extend_cfg
from wording import nearest


def add_family_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that CoOp, MaPLe, PromptSRC and KDPL share, with their meaning."""
    parser.add_argument("--root", default="", help="folder that holds the data sets; default $DATA")
    parser.add_argument("--output-dir", default="", help="where log, checkpoints and results go")
    parser.add_argument("--resume", default="", help="run folder to continue from")
    parser.add_argument("--seed", type=int, default=-1, help="0 and up; negative is unseeded")
    parser.add_argument("--source-domains", nargs="+", help="source domains for DA or DG")
    parser.add_argument("--target-domains", nargs="+", help="target domains for DA or DG")
    parser.add_argument("--transforms", nargs="+", help="data augmentation methods")
    parser.add_argument("--config-file", default="", help="recipe: configs/trainers/.../*.yaml")
    parser.add_argument("--dataset-config-file", default="", help="configs/datasets/*.yaml")
    parser.add_argument("--trainer", default="", help="registered trainer, for example FDBPL")
    parser.add_argument("--backbone", default="", help="student, for example ViT-B/16")
    parser.add_argument("--head", default="", help="head name (none of our trainers has one)")
    parser.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    parser.add_argument("--model-dir", default="", help="run folder to load for --eval-only")
    parser.add_argument("--load-epoch", type=int, help="epoch of the checkpoint to load")
    parser.add_argument("--no-train", action="store_true", help="do not call trainer.train()")
    parser.add_argument(
        "--trust-mtime", action="store_true", help="do not read images that look as in the dump"
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs, for example OPTIM.MAX_EPOCH 10"
    )


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """Merge defaults < data set yaml < recipe yaml < named flags < KEY VALUE pairs, and freeze.

    Raises:
        ValueError: a file is missing or holds an unknown key, or KEY VALUE pairs are malformed.
    """
    cfg = get_cfg_default()
    extend_cfg(cfg)
    for flag, name in (
        ("--dataset-config-file", args.dataset_config_file),
        ("--config-file", args.config_file),
    ):
        if name:
            _merge_file(cfg, flag, name)
    _merge_flags(cfg, args)
    _merge_opts(cfg, args.opts)
    if cfg.OPTIM.MAX_EPOCH < 1:
        raise ValueError(
            f"OPTIM.MAX_EPOCH is {cfg.OPTIM.MAX_EPOCH}; it needs 1 or more. To test without a "
            "training give --eval-only."
        )
    cfg.freeze()
    return cfg


def _merge_file(cfg: CfgNode, flag: str, name: str) -> None:
    if not Path(name).is_file():
        folder = Path(name).parent
        there = sorted(path.name for path in folder.glob("*.yaml")) if folder.is_dir() else []
        close = nearest(Path(name).name, there)
        raise ValueError(
            f"{flag} {name} does not exist. "
            + f"Do you mean {folder / close}? " * bool(close)
            + (f"{folder} holds {', '.join(there)}." if there else f"{folder} holds no yaml file.")
        )
    merge_yaml(cfg, name, flag)


def merge_yaml(
    cfg: CfgNode,
    path: str | Path,
    flag: str = "",
    change: Callable[[CfgNode], CfgNode] = lambda loaded: loaded,
) -> None:
    """Merge a yaml file; before it the one that its key _BASE_ names, a path beside it.

    Nothing in it is ever run, as yacs does with files named .py.

    Args:
        change: is done with what was read before it is merged.
    Raises:
        ValueError: it is no yaml file of keys and values, or a key or value does not fit; with the
            line.
    """
    named = f"{flag} {path}".strip()
    if Path(path).suffix not in (".yaml", ".yml"):
        raise ValueError(f"{named} is no .yaml or .yml file.")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        if tree is None:
            raise ValueError(f"{named} is empty; it holds keys and values, as configs/ has them.")
        if not isinstance(tree, yaml.MappingNode):
            kind = {"sequence": "a list", "scalar": "a single value"}[tree.id]
            line = tree.start_mark.line + 1
            raise ValueError(
                f"{named}, line {line}: {kind}, not KEY: VALUE lines as the files in configs/ have."
            )
        loaded = CfgNode(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ValueError(f"{named}{_fault_of_yaml(error)}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{named} is no text in UTF-8 (byte {error.start}).") from error
    except AssertionError as error:  # yacs takes no dates
        raise ValueError(f"{named}: {_plain(error)}.") from error
    base = loaded.pop("_BASE_", "")
    if base:
        _merge_file(cfg, f"{named}: _BASE_", str(Path(path).parent / str(base)))
    try:
        loaded = change(loaded)
        _whole_numbers_as_floats(loaded, cfg)
        cfg.merge_from_other_cfg(loaded)
    except (KeyError, ValueError, AssertionError) as error:
        key = _key_of(error)
        line = _line_of(tree, key.split(".")) if key else None
        where = f", line {line}" if line else ""
        raise ValueError(f"{named}{where} does not fit: {_fault(error, cfg)}") from error


def _fault_of_yaml(error: yaml.YAMLError) -> str:
    mark, said = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f", line {mark.line + 1}" if mark else ""
    hint = " Indent by spaces, not by tabs." if "\\t" in (said or "") else ""
    return f"{where} is not yaml: {' '.join((said or str(error)).split())}.{hint}"


def _key_of(error: Exception) -> str:
    """The full key that an error of yacs is about; "" where it names none."""
    found = re.search(r"(?:config|Non-existent) key: ([\w.]+)", _plain(error))
    return found[1].rstrip(".") if found else ""


def _line_of(tree: yaml.Node, parts: list[str]) -> int | None:
    """The line, from 1, at which a key stands."""
    for key, value in tree.value if isinstance(tree, yaml.MappingNode) else ():
        if str(key.value) == parts[0]:
            return key.start_mark.line + 1 if not parts[1:] else _line_of(value, parts[1:])
    return None


def _fault(error: Exception, cfg: CfgNode) -> str:
    """What yacs found, in a sentence; the nearest key where there is none of that name."""
    said, key = _plain(error), _key_of(error)
    kinds = re.search(r"Type mismatch \(<class '(.+?)'> vs. <class '(.+?)'>\)", said)
    if kinds:
        wanted, found = (
            kind.split(".")[-1].replace("CfgNode", "section") for kind in kinds.groups()
        )
        return f"{key} takes a value of kind {wanted}, not {found}."
    if not said.startswith("Non-existent"):
        return f"{said}."
    if key in RENAMED:
        return f"{key} was renamed to {RENAMED[key]}."
    known = list(_keys(cfg))
    same = [other for other in known if other.split(".")[-1] == key.split(".")[-1].upper()]
    close = same[0] if len(same) == 1 else nearest(key, known)
    hint = f" Do you mean {close}?" if close else ""
    return f"there is no key {key}.{hint} configs/defaults.py lists our keys."


def _keys(cfg: CfgNode, before: str = "") -> Iterator[str]:
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{before}{key}.")
        else:
            yield before + key


def _merge_flags(cfg: CfgNode, args: argparse.Namespace) -> None:
    plain = {
        # The environment's is the last that is asked, after the files.
        "DATASET.ROOT": args.root or (not cfg.DATASET.ROOT and os.environ.get("DATA")),
        "OUTPUT_DIR": args.output_dir,
        "RESUME": args.resume,
        "DATASET.SOURCE_DOMAINS": args.source_domains,
        "DATASET.TARGET_DOMAINS": args.target_domains,
        "INPUT.TRANSFORMS": args.transforms,
        "TRAINER.NAME": args.trainer,
        "MODEL.BACKBONE.NAME": args.backbone,
        "MODEL.HEAD.NAME": args.head,
        "TRAINER.FDBPL.TRUST_MTIME": args.trust_mtime,
    }
    given = [item for key, value in plain.items() if value for item in (key, value)]
    if args.seed >= 0:  # seed 0 is a seed
        given += ["SEED", args.seed]
    cfg.merge_from_list(given)


def _merge_opts(cfg: CfgNode, opts: list[str]) -> None:
    if len(opts) % 2:
        raise ValueError(f"{' '.join(opts)}: config values come in KEY VALUE pairs; one is single.")
    try:
        cfg.merge_from_list(_as_held(cfg, opts))
    except (KeyError, ValueError, AssertionError) as error:
        raise ValueError(f"{' '.join(opts)}: {_fault(error, cfg)}") from error


def _whole_numbers_as_floats(loaded: CfgNode, cfg: CfgNode, before: str = "") -> None:
    """GPA_MEAN: 15, as official files write it, is 15.0 where the key holds a float.

    Raises:
        ValueError: nothing stands behind a key, which yacs would take for None.
    """
    for key, value in loaded.items():
        if not isinstance(key, str):
            raise ValueError(f"{before}{key} is no key, which are words")
        known = cfg.get(key)
        if isinstance(value, CfgNode) and isinstance(known, CfgNode):
            _whole_numbers_as_floats(value, known, f"{before}{key}.")
        elif value is None and known is not None:
            raise ValueError(f"no value for config key: {before}{key}")
        elif isinstance(known, float) and type(value) is int:
            loaded[key] = float(value)


def _as_held(cfg: CfgNode, opts: list[str]) -> list[str]:
    """Values in the type of their key: 200 for a float, and 0.3 for a list of one."""
    values = list(opts)
    for place, (key, value) in enumerate(zip(opts[::2], opts[1::2], strict=True)):
        known = cfg
        for part in key.split("."):
            if not (isinstance(known, CfgNode) and part in known):
                raise KeyError(f"Non-existent key: {key}")
            known = known[part]
        if value == "None" and known is not None:
            raise ValueError(f"no value for config key: {key}")
        if isinstance(known, (tuple, list)) and _is_number(value):
            values[2 * place + 1] = f"({value},)"
        elif isinstance(known, float) and _is_number(value):
            values[2 * place + 1] = repr(float(value))
    return values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _plain(error: Exception) -> str:
    return str(error.args[0]) if error.args else type(error).__name__
