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

# First, since a signal may come during the imports below.
from entry import UsageError, explain, is_told, run_script

# isort: split
import argparse
import copy
import sys
import traceback
from pathlib import Path

import torch
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import set_random_seed, setup_logger
from yacs.config import CfgNode

import datasets  # noqa: F401  (importing registers the data sets)
import trainers  # noqa: F401  (and the trainers)
from configs.cli import add_family_flags, setup_cfg
from files import Lock
from models.clip import shared_clips, weights_digest
from regions.store.record import dump_seconds
from reporting.identity import (
    EPOCHS,
    LATER,
    Identity,
    check_resume,
    completed,
    data_facts,
    holds_run,
    read_identity,
    require_same,
    require_trained,
    run_identity,
    set_aside,
    trained_identity,
    write_identity,
)
from reporting.paired import write_predictions
from reporting.results import FILE_NAME, RunResult, git_commit, library_versions, peak_rss_bytes
from trained import describe_run
from trainers.base import PromptTrainer
from wording import counted, unknown

DATASET_FLAG = "DATASET.NAME, of --dataset-config-file configs/datasets/<data set>.yaml,"


def main(argv: list[str] | None = None) -> PromptTrainer | list[PromptTrainer]:
    """Run what the flags say and return the trainer, or those of --seeds.

    Prints to stdout and OUTPUT_DIR/log.txt.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_family_flags(parser)
    parser.add_argument(
        "--fresh", action="store_true", help="set aside what --output-dir holds, and start anew"
    )
    parser.add_argument(
        "--extend", action="store_true", help="go on to a larger OPTIM.MAX_EPOCH, where that is"
        " the same as a longer run"
    )  # fmt: skip
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
        of = counted(len(args.seeds), "seed")
        raise ValueError(f"{len(told)} of {of} failed. {' '.join(told)}")
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
    require_names(cfg)
    if args.fresh and cfg.RESUME:
        raise UsageError("--fresh starts anew and --resume goes on: give one of them.")
    out = Path(cfg.OUTPUT_DIR).resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    way_out = "Wait until it ends, or give another --output-dir."
    # Beside the folder, so that nothing in it says a run is there before one is.
    with Lock(out.with_name(f"{out.name}.lock"), f"at work in {cfg.OUTPUT_DIR}", way_out):
        return run_alone(args, cfg)


def run_alone(args: argparse.Namespace, cfg: CfgNode) -> PromptTrainer:
    """One run, with its config."""
    if not args.fresh:  # before anything is loaded, or written to the log of another run
        later = dict.fromkeys((*LATER, *["trained"] * args.eval_only))
        require_own(args, cfg, run_identity(cfg, later, args.eval_only))
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    aside = set_aside(cfg.OUTPUT_DIR) if args.fresh else None
    setup_logger(cfg.OUTPUT_DIR)
    torch.backends.cudnn.deterministic = True  # the same seed gives the same bits
    print(f"** Arguments **\n{vars(args)}\n** Config **\n{cfg}")

    if aside:
        print(f"--fresh: what {cfg.OUTPUT_DIR} held is in {aside} now")

    trainer = build_trainer(cfg)
    identity = identify(args, cfg, trainer)
    describe_run(cfg, trainer)
    if args.eval_only:
        trainer.test()
    elif not args.no_train:
        trainer.train()
    if trainer.scores:
        said = trainer.tested
        write_predictions(cfg.OUTPUT_DIR, said.impaths, said.labels, said.predictions)
        path = result_of(args, cfg, trainer, identity).write(cfg.OUTPUT_DIR)
        print(f"Results saved to {path}")
    return trainer


def identify(args: argparse.Namespace, cfg, trainer: PromptTrainer) -> Identity:
    """What this run is: compared with what its folders hold, then written into OUTPUT_DIR.

    The prompts of an evaluation are loaded.

    Raises:
        IdentityError: a folder holds another run; nothing in it has been changed.
    """
    own, out = run_identity(cfg, facts_of(args, cfg, trainer), args.eval_only), cfg.OUTPUT_DIR
    if args.eval_only:
        learned = bool(trainer.get_model_names())
        if learned and args.model_dir and not require_trained(args.model_dir, own):
            print(f"What was trained in {args.model_dir} is not known: it has no identity.json")
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
        if learned:
            own["trained"] = trained_identity(args.model_dir, *trainer.loaded)
    if require_own(args, cfg, own):
        print(f"Extended to {EPOCHS} {cfg.OPTIM.MAX_EPOCH}")
        Path(out, FILE_NAME).unlink(missing_ok=True)  # of fewer epochs
    if args.eval_only or not args.no_train:
        # A store that is not there now is refused soon; what the run has read stays known.
        own = completed(own, read_identity(out) if holds_run(out) else None)
        write_identity(out, own)
    return own


def require_own(args: argparse.Namespace, cfg, own: Identity) -> bool:
    """The folders that this run goes on from, or writes into, hold it or nothing.

    Returns:
        Whether it goes on to more epochs than it had.
    Raises:
        IdentityError: they hold another run.
    """
    extended = False
    for folder in dict.fromkeys((cfg.OUTPUT_DIR, cfg.RESUME or cfg.OUTPUT_DIR)):
        if not holds_run(folder):
            continue
        if args.eval_only:
            require_same(folder, own)
        else:
            extended |= check_resume(folder, own, args.extend)
    return extended


def facts_of(args: argparse.Namespace, cfg, trainer: PromptTrainer) -> dict[str, str | None]:
    """The facts of an identity that data set and models tell."""
    dataset = trainer.dm.dataset
    test = dataset.val if cfg.TEST.SPLIT == "val" and dataset.val else dataset.test
    parts = {"test": test}
    if not args.eval_only:
        parts |= {"train": trainer.training_images(), "val": dataset.val or ()}
    facts = data_facts(
        dataset.classnames,
        **{name: [(item.impath, item.label) for item in part] for name, part in parts.items()},
    )
    facts["student weights"] = trainer.model.clip.digest[:16]
    for key, suffix in (("KDPL", "_KDPL"), ("PROMPTKD", "PromptKD")):
        keys = cfg.TRAINER[key]
        if cfg.TRAINER.NAME.endswith(suffix):
            teacher = keys.TEACHER if key == "KDPL" else keys.TEACHER_NAME
            found = weights_digest(teacher)
            facts["teacher weights"] = found and found[:16]
    return facts


def require_names(cfg) -> None:
    """
    Raises:
        UsageError: the trainer or the data set is not given, or not known.
    """
    for what, name, registry in (
        ("--trainer", cfg.TRAINER.NAME, TRAINER_REGISTRY),
        (DATASET_FLAG, cfg.DATASET.NAME, DATASET_REGISTRY),
    ):
        known = registry.registered_names()
        if name not in known:
            raise UsageError(unknown(what, name, known))


def result_of(
    args: argparse.Namespace, cfg, trainer: PromptTrainer, identity: Identity
) -> RunResult:
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
        epochs=identity.get("trained", {}).get(EPOCHS, cfg.OPTIM.MAX_EPOCH),
        accuracy=trainer.scores["accuracy"],
        macro_f1=trainer.scores["macro_f1"],
        error_rate=trainer.scores["error_rate"],
        num_images=len(trainer.test_loader.dataset),
        num_classes=trainer.num_classes,
        seconds={
            **trainer.seconds,
            "dump": dump_seconds(store.path, store.spec.id) if store else None,
        },
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
        identity=identity,
        commit=git_commit(),
        versions=library_versions(),
    )


if __name__ == "__main__":
    sys.exit(run_script(main))
