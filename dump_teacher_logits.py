r"""Run the frozen teacher over image regions once, and keep its logits.

    python dump_teacher_logits.py --root $DATA --seed 1 --store stores/oxford_pets \
        --dataset-config-file configs/datasets/oxford_pets.yaml \
        --config-file configs/trainers/FDBPL/vit_b32_ctxv1.yaml DATASET.NUM_SHOTS 16

Writes shard_00000.safetensors, ... and, last, manifest.json (docs/REGION_STORE.md); the time it
took goes to <store>.dump.json. Called again, it continues.

Several processes share the work, on one machine or on several that see the folder: process r of N
makes every N-th shard, the one that finds all of them there finishes the store, and the same line
with any N continues. torchrun sets RANK and WORLD_SIZE, as scripts/dump_slurm.py does for an array
of Slurm jobs, and so can you:

    torchrun --nproc-per-node 8 dump_teacher_logits.py --root $DATA ...
    RANK=0 WORLD_SIZE=2 python dump_teacher_logits.py --root $DATA ...
"""

from __future__ import annotations

# First, since a signal may come during the imports below.
from entry import UsageError, run_script

# isort: split
import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from dassl.data.datasets import Datum, build_dataset
from dassl.utils import set_random_seed
from torch import Tensor

import datasets  # noqa: F401  registers the data sets
from configs.cli import add_family_flags, setup_cfg
from files import human
from models.clip import supported_precision, weights_digest
from models.teacher import Teacher
from models.templates import template_for
from regions.dump import dump, dump_cost, list_images, require_same_images
from regions.store import RegionStore
from regions.store.contents import contents_memory
from regions.store.fit import require_same_spec
from regions.store.layout import find_dump
from regions.store.record import dump_seconds
from regions.store.spec import FROM_TEACHER, RegionSpec, region_settings
from regions.store.writer import StoreWriter
from wording import counted


def main(args: argparse.Namespace) -> None:
    if args.union_of_seeds and args.seed < 0:
        args.seed = min(args.union_of_seeds)
    cfg = setup_cfg(args)
    require_usage(args, cfg)
    store = Path(args.store or cfg.TRAINER.FDBPL.STORE).expanduser()
    seed = region_settings(cfg)["seed"]
    set_random_seed(seed)
    place = Place.from_environment()
    device = place.device(cfg.USE_CUDA)

    seeds = sorted(set(args.union_of_seeds or [seed]))
    root = Path(cfg.DATASET.ROOT).expanduser()
    classnames, items = union_of_seeds(cfg, seeds)
    name = cfg.TRAINER.FDBPL.TEACHER
    spec = RegionSpec.from_cfg(
        cfg,
        template=template_for(cfg.DATASET.NAME, cfg.DATASET.TEMPLATE),
        classnames=classnames,
        images=list_images(items, root),
        teacher_precision=supported_precision(cfg.TRAINER.FDBPL.TEACHER_PREC, device),
        teacher_digest=weights_digest(name) or "",
        image_seeds=seeds,
    )
    if refuse_or_recognise(store, spec, place, cfg):
        place.tell(f"{store} is complete, and made as asked: nothing to do.")
        return
    if spec.kind != "features":  # whose size the teacher tells
        print_plan(store, spec, epochs=cfg.OPTIM.MAX_EPOCH, tell=place.tell)

    started = time.perf_counter()
    teacher = Teacher.load(name, spec.classnames, spec.template, spec.teacher_precision, device)
    text_CD = teacher.text_features().float().cpu().numpy()
    spec = spec.with_teacher(
        teacher.digest, teacher.image_size, text_CD.shape[1], teacher.logit_scale
    )
    if spec.kind == "features":
        print_plan(store, spec, epochs=cfg.OPTIM.MAX_EPOCH, tell=place.tell)
    run_teacher = teacher.image_features if spec.kind == "features" else teacher
    if spec.teacher_precision != "fp32" and place.rank == 0:
        run_teacher = ComparedWithFp32(teacher, run_teacher)
    if args.threads:  # of the image tower; the text has the same bits with any number
        torch.set_num_threads(args.threads)
    finished = dump(
        store,
        spec,
        root,
        run_teacher,
        mean=teacher.mean,
        std=teacher.std,
        device=device,
        batch_size=args.batch_size,
        workers=usual_workers(device) if args.workers is None else args.workers,
        shard_images=args.shard_images,
        started=started,
        text=text_CD,
        rank=place.rank,
        world=place.world_size,
        trust_mtime=cfg.TRAINER.FDBPL.TRUST_MTIME,
        memory=contents_memory(cfg),
        progress=place.rank == 0,
    )
    if isinstance(run_teacher, ComparedWithFp32) and run_teacher.left > 0 and run_teacher.gaps:
        run_teacher.tell()  # a dump of fewer batches
    if finished is not None:
        print_result(finished)
    else:
        print(
            f"process {place.rank} of {place.world_size} has made its shards; the one that makes "
            f"the last shard of {store} finishes it. Should one have died, run the same line again."
        )


def usual_workers(device: torch.device) -> int:
    """Processes that decode and cut, where --workers does not say.

    None beside a teacher on a CPU, whose threads take every core. A GPU needs them: a region takes
    about 1.5 ms to decode and cut, so four of them keep up with 2500 regions/s.
    """
    if device.type == "cpu":
        return 0
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return max(0, min(4, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1))


class ComparedWithFp32:
    """A teacher in lower precision whose first regions are computed in fp32 too, for the log.

    The weights are the same float32 ones: bf16 and fp16 are autocast (models/teacher.py).
    """

    def __init__(self, teacher: Teacher, run: Callable[[Tensor], Tensor]) -> None:
        self.teacher, self.run, self.left = teacher, run, 512  # regions to compare
        clip = replace(teacher.clip, precision="fp32")
        self.exact = Teacher(clip, teacher.classnames, teacher.template)
        self.gaps: list[Tensor] = []
        self.agree: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        if self.left > 0:
            self.left -= len(images)
            logits, exact = self.teacher(images), self.exact(images)
            self.gaps.append((logits - exact).abs().flatten())
            self.agree.append((logits.argmax(-1) == exact.argmax(-1)).float())
            if self.left <= 0:
                self.tell()
        return self.run(images)

    def tell(self) -> None:
        gaps, agree = torch.cat(self.gaps), torch.cat(self.agree)
        print(
            f"Precision       logits of {len(agree)} regions in {self.teacher.clip.precision} are "
            f"{gaps.mean():.3f} from fp32 on average, {gaps.max():.3f} at most; the same class "
            f"comes first in {100 * agree.mean():.1f} %"
        )


@dataclass(frozen=True)
class Place:
    """Which of the processes of a dump this is, and what it computes on."""

    rank: int
    world_size: int
    local_rank: int  # on this machine

    @classmethod
    def from_environment(cls) -> Place:
        """Read what torchrun sets; without it the only process.

        Raises:
            UsageError: the variables are no such numbers.
        """
        names = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        given = {name: os.environ.get(name, default) for name, default in names.items()}
        if not all(value.isdigit() for value in given.values()) or (
            int(given["RANK"]) >= int(given["WORLD_SIZE"])
        ):
            told = ", ".join(f"{name}={value}" for name, value in given.items())
            raise UsageError(f"{told}: RANK counts from 0 to WORLD_SIZE - 1. Set or unset both.")
        return cls(*map(int, given.values()))

    def device(self, use_cuda: bool) -> torch.device:
        if not (use_cuda and torch.cuda.is_available()):
            return torch.device("cpu")
        if self.world_size == 1:
            return torch.device("cuda")
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())

    def tell(self, text: str) -> None:
        """Print what all processes would say: once."""
        if self.rank == 0:
            print(text)


def union_of_seeds(cfg, seeds: Sequence[int]) -> tuple[list[str], list[Datum]]:
    """Class names, and the training images of all seeds, each once, in order of appearance."""
    items: dict[str, Datum] = {}
    for seed in seeds:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SEED = seed
        cfg.freeze()
        dataset = build_dataset(cfg)
        for item in dataset.train_x:
            items.setdefault(item.impath, item)
    return dataset.classnames, list(items.values())


def require_usage(args: argparse.Namespace, cfg) -> None:
    if not (args.store or cfg.TRAINER.FDBPL.STORE):
        raise UsageError("where to? Give --store FOLDER, or set TRAINER.FDBPL.STORE.")
    if not cfg.DATASET.NAME:
        raise UsageError(
            "which images? Give --dataset-config-file configs/datasets/<data set>.yaml."
        )
    for name, least in (("batch_size", 1), ("shard_images", 1), ("threads", 1), ("workers", 0)):
        given = getattr(args, name)
        if given is not None and given < least:
            raise UsageError(f"--{name.replace('_', '-')} is {given}; it needs {least} or more.")


def refuse_or_recognise(store: Path, spec: RegionSpec, place: Place, cfg) -> bool:
    """Before the teacher is loaded: is the store there already (True), or still to be done?

    Raises RegionStoreError when the folder holds something else.
    """
    found = find_dump(store)
    if found is None:
        return False
    unknown = [name for name in FROM_TEACHER if not getattr(spec, name)]
    require_same_spec(store, found.spec, spec, ignore=unknown)
    known = replace(found.spec, images=spec.images)
    with StoreWriter(store, known, rank=place.rank, world=place.world_size) as writer:
        trust = cfg.TRAINER.FDBPL.TRUST_MTIME
        require_same_images(writer, cfg.DATASET.ROOT, trust, contents_memory(cfg))
        return writer.is_finished


def print_plan(store: Path, spec: RegionSpec, epochs: int, tell: Callable[[str], None]) -> None:
    """Say what the dump takes, and what online distillation would; refuse a disk too small."""
    cost = dump_cost(spec)
    folder = next(path for path in (store, *store.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    there = bytes_there(store)
    tell(
        f"Images          {cost.images}, of {counted(len(spec.classnames), 'class')}\n"
        f"Regions         {spec.num_regions} per image\n"
        f"Teacher passes  {cost.passes}, once for every run on these images\n"
        f"Online instead  {cost.images * epochs} passes in each run of {counted(epochs, 'epoch')}: "
        f"{epochs / spec.num_regions:.2f} times as many\n"
        f"On disk         {human(cost.bytes)} in {store}, {human(free)} free"
    )
    if there:
        tell(f"Already there   {human(there)}; the dump continues")
    if free < cost.bytes - there:
        raise ValueError(
            f"{store} needs {human(cost.bytes - there)}, but the disk has {human(free)}. "
            "Free some space, give --store on another disk, or lower TRAINER.FDBPL.NUM_REGIONS."
        )


def bytes_there(store: Path) -> int:
    return sum(file.stat().st_size for file in store.glob("*.safetensors"))


def print_result(store: RegionStore) -> None:
    regions = len(store) * store.spec.num_regions
    print(
        f"Wrote {store.path}: {counted(len(store), 'image')} x "
        f"{counted(store.spec.num_regions, 'region')}.\n"
        f"Teacher accuracy {store.teacher_accuracy():.1f} % of the regions"
    )
    seconds = dump_seconds(store.path, store.spec.id)
    if seconds:
        print(
            f"Took            {seconds:.1f} s, loading the teacher included: "
            f"{regions / seconds:.0f} regions/s"
        )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", default="", help="folder to write; else TRAINER.FDBPL.STORE")
    parser.add_argument(
        "--batch-size",
        type=int,
        help="regions per teacher pass (default: 8 on a CPU, else 256)",
    )
    parser.add_argument(
        "--shard-images", type=int, help="images per shard (about 4096 regions); lost if killed"
    )
    parser.add_argument("--threads", type=int, help="of the teacher on a CPU (default: torch's)")
    parser.add_argument(
        "--workers",
        type=int,
        help="processes that decode and cut images (default: 0 beside a teacher on a CPU; beside a "
        "GPU one less than the cores, up to 4)",
    )
    parser.add_argument(
        "--union-of-seeds",
        nargs="+",
        metavar="SEED",
        help="dump the few-shot images of these seeds, each image once; --seed draws the regions "
        "(default: the smallest)",
    )
    add_family_flags(parser)
    args = parser.parse_args(argv)
    split_seeds(args)
    return args


def split_seeds(args: argparse.Namespace) -> None:
    """Where KEY VALUE pairs follow the seeds at once, give them back to args.opts."""
    given = args.union_of_seeds or []
    end = next((i for i, text in enumerate(given) if not text.isdigit()), len(given))
    args.union_of_seeds = [int(text) for text in given[:end]]
    args.opts = [*given[end:], *args.opts]


def run(argv: list[str] | None = None) -> int:
    """The script as a function; see entry.run_script for the exit code."""
    args = parse_args(argv)
    return run_script(lambda: main(args))


if __name__ == "__main__":
    sys.exit(run())
