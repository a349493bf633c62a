"""The family's command line: 16 flags and KEY VALUE pairs become one frozen config.

And what every entry script does with an error: one line for the user, and an exit code.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from dassl.config import get_cfg_default
from yacs.config import CfgNode

from configs.defaults import extend_cfg


def add_family_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that CoOp, MaPLe, PromptSRC and KDPL share, with their meaning."""
    parser.add_argument("--root", default="", help="folder that holds the data sets")
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
    cfg.freeze()
    return cfg


def _merge_file(cfg: CfgNode, flag: str, name: str) -> None:
    if not Path(name).is_file():
        folder = Path(name).parent
        there = sorted(path.name for path in folder.glob("*.yaml")) if folder.is_dir() else []
        raise ValueError(
            f"{flag} {name} does not exist. "
            + (f"{folder} holds {', '.join(there)}." if there else f"{folder} holds no yaml file.")
        )
    try:
        merge_yaml(cfg, name)
    except (KeyError, ValueError, AssertionError) as error:
        raise ValueError(
            f"{flag} {name} does not fit: {_plain(error)}. configs/defaults.py lists our keys."
        ) from error


def merge_yaml(cfg: CfgNode, path: str | Path) -> None:
    """Merge a yaml file; before it the one that its key _BASE_ names, a path beside it."""
    with open(path, encoding="utf-8") as file:
        loaded = CfgNode.load_cfg(file)
    base = loaded.pop("_BASE_", "")
    if base:
        merge_yaml(cfg, Path(path).parent / base)
    _whole_numbers_as_floats(loaded, cfg)
    cfg.merge_from_other_cfg(loaded)


def _merge_flags(cfg: CfgNode, args: argparse.Namespace) -> None:
    plain = {
        "DATASET.ROOT": args.root,
        "OUTPUT_DIR": args.output_dir,
        "RESUME": args.resume,
        "DATASET.SOURCE_DOMAINS": args.source_domains,
        "DATASET.TARGET_DOMAINS": args.target_domains,
        "INPUT.TRANSFORMS": args.transforms,
        "TRAINER.NAME": args.trainer,
        "MODEL.BACKBONE.NAME": args.backbone,
        "MODEL.HEAD.NAME": args.head,
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
        raise ValueError(
            f"{' '.join(opts)}: {_plain(error)}. configs/defaults.py lists our keys."
        ) from error


def _whole_numbers_as_floats(loaded: CfgNode, cfg: CfgNode) -> None:
    """GPA_MEAN: 15, as official files write it, is 15.0 where the key holds a float."""
    for key, value in loaded.items():
        known = cfg.get(key)
        if isinstance(value, CfgNode) and isinstance(known, CfgNode):
            _whole_numbers_as_floats(value, known)
        elif isinstance(known, float) and type(value) is int:
            loaded[key] = float(value)


def _as_held(cfg: CfgNode, opts: list[str]) -> list[str]:
    """Values in the type of their key: 200 for a float, and 0.3 for a list of one."""
    values = list(opts)
    for place, (key, value) in enumerate(zip(opts[::2], opts[1::2], strict=True)):
        known = cfg
        for part in key.split("."):
            known = known.get(part) if isinstance(known, CfgNode) else None
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


class UsageError(ValueError):
    """The command line lacks something."""


def run_script(main: Callable[[], object]) -> int:
    """Run an entry script's main and tell errors in one line on stderr.

    Set FDBPL_TRACEBACK=1 to see where an error comes from.

    Returns:
        The exit code: 0 finished, 1 error, 2 wrong usage, 130 interrupted.
    """
    try:
        main()
    except KeyboardInterrupt:
        print("\nstopped: run the same line again, it continues.", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("FDBPL_TRACEBACK") or not is_told(error):
            raise
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def is_told(error: Exception) -> bool:
    """Whether a line says enough of an error; others are bugs, whose traceback is wanted."""
    return isinstance(error, (ValueError, FloatingPointError, OSError)) or _is_full(error)


def explain(error: Exception) -> str:
    """One line that says what happened and what to do."""
    if _is_full(error):
        return (
            "the GPU's memory is full. Run again with a smaller batch: "
            "DATALOADER.TRAIN_X.BATCH_SIZE, or --batch-size of a dump."
        )
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        line = f"{error.strerror}{where}."
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            line += " What is finished is kept: free some space and run again, it continues."
        return line
    return " ".join(str(error).split())


def _is_full(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError"  # torch's, without importing torch here
