"""A finished run as something to use: its folder -> a trainer that recognises, without the data.

A run folder holds config.yaml (every key as it was) and classnames.json beside the prompts, so that
neither the recipe, nor the data set, nor the command of then is needed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY

import trainers  # noqa: F401  (importing registers them)
from configs.cli import merge_yaml
from configs.defaults import extend_cfg
from reporting.identity import read_identity
from reporting.results import FILE_NAME, REPO, RunResult, write_text
from trainers.base import PromptTrainer

CONFIG_FILE, NAMES_FILE = "config.yaml", "classnames.json"


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Which run, which epoch of it, and for which classes."""
    parser.add_argument("--model-dir", required=True, help="--output-dir of the run")
    parser.add_argument("--load-epoch", type=int, help="of the checkpoint; default: the last")
    parser.add_argument(
        "--classnames",
        nargs="+",
        default=[],
        help="other classes: names, or a file with one a line",
    )


def describe_run(cfg, trainer: PromptTrainer) -> None:
    """Write what open_run() reads into cfg.OUTPUT_DIR."""
    write_text(Path(cfg.OUTPUT_DIR, CONFIG_FILE), cfg.dump())
    names = list(trainer.dm.dataset.classnames)
    write_text(Path(cfg.OUTPUT_DIR, NAMES_FILE), json.dumps(names, indent=0) + "\n")


def open_run(
    folder: str | Path, classnames: Sequence[str] = (), epoch: int | None = None
) -> PromptTrainer:
    """The trainer of a run with its prompts loaded, in eval mode; it holds no data.

    Args:
        folder: --output-dir of a training, or of an evaluation: then its --model-dir gives the
            prompts, and it the class names.
        classnames: other classes than those of the run.
        epoch: of the checkpoint; the run's last one when None.
    Raises:
        ValueError: the folder holds no run, its student has other weights here, or its prompts
            cannot serve these classes.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, NAMES_FILE):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder / name} is absent; give the --output-dir of a run of train.py. Runs "
                "older than this file: repeat the test with --eval-only into a new --output-dir."
            )
    cfg = get_cfg_default()
    extend_cfg(cfg)
    try:
        merge_yaml(cfg, folder / CONFIG_FILE, of_a_run=True)
    except ValueError as error:
        raise ValueError(
            f"{error} If it was written by another version, use the commit in {folder / FILE_NAME}."
        ) from error
    cfg.freeze()
    names = list(classnames) or json.loads((folder / NAMES_FILE).read_text(encoding="utf-8"))
    if cfg.TRAINER.NAME not in TRAINER_REGISTRY.registered_names():
        raise ValueError(f"{folder}: the trainer {cfg.TRAINER.NAME!r} is unknown here.")
    trainer = _without_data(TRAINER_REGISTRY.get(cfg.TRAINER.NAME), names)(cfg)
    weights = (read_identity(folder) or {}).get("student weights")
    if weights and weights != trainer.model.clip.digest[:16]:
        raise ValueError(
            f"{folder} was made with other weights of {cfg.MODEL.BACKBONE.NAME}: "
            f"{weights}... there and {trainer.model.clip.digest[:16]}... here. Put the file of "
            "then in its place."
        )
    prompts, last = _prompts_of(folder)
    trainer.load_model(str(prompts), epoch=last if epoch is None else epoch)
    trainer.set_model_mode("eval")
    return trainer


def _without_data(trainer_class: type[PromptTrainer], classnames: list[str]) -> type[PromptTrainer]:
    class Recogniser(trainer_class):
        def build_data_loader(self) -> None:
            self.train_loader_x = self.train_loader_u = None
            self.val_loader = self.test_loader = None
            self.num_classes, self.num_source_domains = len(classnames), 0
            self.lab2cname = dict(enumerate(classnames))
            self.dm = SimpleNamespace(
                dataset=SimpleNamespace(classnames=classnames),
                num_classes=self.num_classes,
                lab2cname=self.lab2cname,
            )

    return Recogniser


def _prompts_of(folder: Path) -> tuple[Path, int | None]:
    """Where the prompts of a run lie, and their last epoch where results.json tells it."""
    if not (folder / FILE_NAME).is_file():
        return folder, None
    result = RunResult.read(folder)
    if not result.eval_only or not result.model_dir:
        return folder, None if result.eval_only else result.epochs
    trained = Path(result.model_dir)
    if not trained.is_dir():  # recorded from the repository's folder
        trained = REPO / result.model_dir
    return trained, result.load_epoch
