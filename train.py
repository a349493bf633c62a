r"""Train or evaluate one run: flags -> config -> trainer.train() or .test() -> results.json.

    python train.py --root data --trainer CoOp --seed 1 --output-dir output/coop \
        --dataset-config-file configs/datasets/toy_shapes.yaml \
        --config-file configs/trainers/CoOp/toy.yaml DATASET.NUM_SHOTS 16

Several seeds in one process, one after the other, which start once and hold one CLIP. Each ends as
its own run would: in DIR/seed1, DIR/seed2, ..., or where {seed} stands in a folder's name or a KEY
VALUE pair, in that place:

    python train.py --seeds 1 2 3 --output-dir output/fdbpl --trainer FDBPL ... \
        TRAINER.FDBPL.STORE stores/toy_shapes_seed{seed}
"""

from __future__ import annotations

import argparse
import copy
import sys
import traceback
from pathlib import Path

import torch
from dassl.engine import build_trainer
from dassl.utils import set_random_seed, setup_logger
from yacs.config import CfgNode

import datasets  # noqa: F401  (importing registers the data sets)
import trainers  # noqa: F401  (and the trainers)
from configs.cli import UsageError, add_family_flags, explain, is_told, run_script, setup_cfg
from files import Lock
from models.clip import shared_clips
from regions.dump import dump_seconds
from reporting.predictions import write_predictions
from reporting.results import RunResult, git_commit, library_versions, peak_rss_bytes
from trained import describe_run
from trainers.base import PromptTrainer


def main(argv: list[str] | None = None) -> PromptTrainer | list[PromptTrainer]:
    """Run what the flags say and return the trainer, or those of --seeds.

    Prints to stdout and OUTPUT_DIR/log.txt.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_family_flags(parser)
    several = "as many runs in one process; put another flag behind it, before KEY VALUE pairs"
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help=several)
    args = parser.parse_args(argv)
    stdout = sys.stdout
    try:
        return run_seeds(args) if args.seeds else run(args)
    finally:
        sys.stdout = stdout  # setup_logger has put a tee in its place


def run_seeds(args: argparse.Namespace) -> list[PromptTrainer]:
    """One run for each of --seeds; one that fails does not stop the others.

    Raises:
        ValueError: seeds failed; it says why.
    """
    if args.seed >= 0 or min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
        raise UsageError(
            f"--seeds {' '.join(map(str, args.seeds))}: different numbers from 0 up, and no --seed "
            "beside it."
        )
    if not args.output_dir:
        raise UsageError("--seeds needs --output-dir: results go to its folders seed1, seed2, ...")
    done, told, stdout, logs = [], [], sys.stdout, []
    with shared_clips():
        for seed in args.seeds:
            logs.append(sys.stdout)  # upstream's log closes the console when nobody holds it
            sys.stdout = stdout
            try:
                done.append(run(of_seed(args, seed)))  # which seeds every random generator
            except Exception as error:
                if not is_told(error):
                    traceback.print_exc()
                told.append(f"seed {seed}: {explain(error)}")
                print(f"error: {told[-1]}")
    if told:
        raise ValueError(f"{len(told)} of {len(args.seeds)} seeds failed. {' '.join(told)}")
    return done


def of_seed(args: argparse.Namespace, seed: int) -> argparse.Namespace:
    """The flags of one seed's own run."""
    own = copy.copy(args)
    own.seed = seed
    for name in ("output_dir", "model_dir", "resume"):
        folder = getattr(args, name)
        if folder and "{seed}" not in folder:
            folder = str(Path(folder, "seed{seed}"))
        setattr(own, name, folder.replace("{seed}", str(seed)))
    own.opts = [word.replace("{seed}", str(seed)) for word in args.opts]
    return own


def run(args: argparse.Namespace) -> PromptTrainer:
    """One run, the only one in its folder.

    Raises:
        Busy: another process is at work there.
    """
    cfg = setup_cfg(args)
    out = Path(cfg.OUTPUT_DIR).resolve()
    out.mkdir(parents=True, exist_ok=True)
    way_out = "Wait until it ends, or give another --output-dir."
    # Beside the folder, so that nothing in it says a run is there before one is.
    with Lock(out.with_name(f"{out.name}.lock"), f"at work in {cfg.OUTPUT_DIR}", way_out):
        return run_alone(args, cfg)


def run_alone(args: argparse.Namespace, cfg: CfgNode) -> PromptTrainer:
    """One run, with its config."""
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    setup_logger(cfg.OUTPUT_DIR)
    torch.backends.cudnn.deterministic = True  # the same seed gives the same bits
    print(f"** Arguments **\n{vars(args)}\n** Config **\n{cfg}")

    trainer = build_trainer(cfg)
    describe_run(cfg, trainer)
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
        trainer.test()
    elif not args.no_train:
        trainer.train()
    if trainer.scores:
        said = trainer.tested
        write_predictions(cfg.OUTPUT_DIR, said.impaths, said.labels, said.predictions)
        path = result_of(args, cfg, trainer).write(cfg.OUTPUT_DIR)
        print(f"Results saved to {path}")
    return trainer


def result_of(args: argparse.Namespace, cfg, trainer: PromptTrainer) -> RunResult:
    """Everything a table needs to know of a finished run."""
    on_gpu, store = trainer.device.type == "cuda", trainer.store
    return RunResult(
        trainer=cfg.TRAINER.NAME,
        dataset=cfg.DATASET.NAME,
        scope=cfg.DATASET.SUBSAMPLE_CLASSES,
        split=trainer.split,
        shots=cfg.DATASET.NUM_SHOTS,
        seed=cfg.SEED,
        backbone=cfg.MODEL.BACKBONE.NAME,
        precision=trainer.model.clip.precision,
        device=torch.cuda.get_device_name() if on_gpu else "cpu",
        teacher=trainer.teacher_name(),
        config=Path(args.config_file).stem,
        config_files=[args.dataset_config_file, args.config_file],
        opts=list(args.opts),
        eval_only=args.eval_only,
        model_dir=args.model_dir,
        load_epoch=args.load_epoch,
        epochs=cfg.OPTIM.MAX_EPOCH,
        accuracy=trainer.scores["accuracy"],
        macro_f1=trainer.scores["macro_f1"],
        error_rate=trainer.scores["error_rate"],
        num_images=len(trainer.test_loader.dataset),
        num_classes=trainer.num_classes,
        seconds={**trainer.seconds, "dump": dump_seconds(store.path) if store else None},
        peak_memory_bytes={
            "rss": peak_rss_bytes(),
            "device": torch.cuda.max_memory_allocated() if on_gpu else None,
        },
        store=store
        and {
            "path": str(store.path),
            "spec_id": store.spec.id,
            "teacher": store.spec.teacher,
            "num_regions": store.spec.num_regions,
        },
        knobs=trainer.knobs(),
        transductive=trainer.transductive,
        together=args.seeds,
        sweep=trainer.tested.sweep(),
        commit=git_commit(),
        versions=library_versions(),
    )


if __name__ == "__main__":
    sys.exit(run_script(main))
