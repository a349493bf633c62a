r"""Run the frozen teacher over image regions once, and keep its logits.

    python dump_teacher_logits.py --root $DATA --seed 1 --store stores/oxford_pets \
        --dataset-config-file configs/datasets/oxford_pets.yaml \
        --config-file configs/trainers/FDBPL/vit_b32_ctxv1.yaml DATASET.NUM_SHOTS 16

Writes shard_00000.safetensors, ... and, last, manifest.json (docs/REGION_STORE.md); the time it
took goes to <store>.dump.json. Called again, it continues.

Several processes share the work under torchrun, and so do lines of one command with --shared, on
one machine or on several that see the same folder (scripts/dump_slurm.py is a Slurm array of them):

    torchrun --nproc-per-node 8 dump_teacher_logits.py --root $DATA ...

Images of tar files or folders, too many for a list, are dumped without a data set of Dassl:

    python dump_teacher_logits.py --root $DATA --store stores/imagenet \
        --source "$DATA/imagenet/train-*.tar" --classnames imagenet_classes.txt \
        --seed 1 DATASET.TEMPLATE "a photo of a {}."
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
from models.clip import supported_precision, weights_digest
from models.teacher import Teacher
from models.templates import template_for
from regions.dump import (
    dump,
    dump_cost,
    dump_seconds,
    list_images,
    stored_teacher_accuracy,
    teacher_on_pixels,
    threads_of_dump,
)
from regions.fit import require_same_spec
from regions.images import ImageTable
from regions.manifest import find_dump
from regions.pace import find_pace, using_threads
from regions.shared import SharedWriter
from regions.sources import expand, images_of, read_classnames
from regions.spec import FROM_TEACHER, RegionSpec, region_settings
from regions.store import RegionStore
from regions.writer import StoreWriter
from wording import counted


def main(args: argparse.Namespace) -> None:
    if args.union_of_seeds and args.seed < 0:
        args.seed = min(args.union_of_seeds)
    cfg = setup_cfg(args)
    require_usage(args, cfg)
    store = Path(args.store or cfg.TRAINER.FDBPL.STORE).expanduser()
    seed = region_settings(cfg)["seed"]
    set_random_seed(seed)
    place = Place.from_environment(args.shared)
    device = place.device(cfg.USE_CUDA)

    seeds = sorted(set(args.union_of_seeds or [seed]))
    root = Path(cfg.DATASET.ROOT).expanduser()
    if args.source:
        sources = expand(args.source)
        classnames = read_classnames(sources, args.classnames)
        images = ImageTable.of(images_of(sources, root))
    else:
        classnames, items = union_of_seeds(cfg, seeds)
        images = list_images(items, root)
    name = cfg.TRAINER.FDBPL.TEACHER
    spec = RegionSpec.from_cfg(
        cfg,
        template=template_for(cfg.DATASET.NAME, cfg.DATASET.TEMPLATE),
        classnames=classnames,
        images=images,
        teacher_precision=supported_precision(cfg.TRAINER.FDBPL.TEACHER_PREC, device),
        teacher_digest=weights_digest(name) or "",
        image_seeds=seeds,
    )
    if refuse_or_recognise(store, spec, place.shared):
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
    pace, told = find_pace(
        spec,
        root,
        teacher_on_pixels(run_teacher, teacher.mean, teacher.std, device),
        regions_left(store, spec),
        on_cpu=device.type == "cpu",
        threads=args.threads,
        workers=args.workers,
        before=threads_of_dump(store),
    )
    place.tell(f"Pace            {told}")
    if spec.teacher_precision != "fp32" and place.rank == 0:
        run_teacher = ComparedWithFp32(teacher, run_teacher)
    with using_threads(pace.threads):
        finished = dump(
            store,
            spec,
            root,
            run_teacher,
            mean=teacher.mean,
            std=teacher.std,
            device=device,
            batch_size=args.batch_size,
            workers=pace.workers,
            shard_images=args.shard_images,
            started=started,
            text=text_CD,
            shared=place.shared,
            progress=place.rank == 0,
        )
    if isinstance(run_teacher, ComparedWithFp32) and run_teacher.left and run_teacher.gaps:
        run_teacher.tell()  # a dump of fewer batches
    if finished is not None:
        print_result(finished)
    else:
        print(
            f"process {place.rank}: no work is left; the process that makes the last shard of "
            f"{store} finishes it. Should all have ended before, run the same line again."
        )


class ComparedWithFp32:
    """A teacher in lower precision whose first batches are computed in fp32 too, for the log.

    The weights are the same float32 ones: bf16 and fp16 are autocast (models/teacher.py).
    """

    def __init__(self, teacher: Teacher, run: Callable[[Tensor], Tensor], batches: int = 2) -> None:
        self.teacher, self.run, self.left = teacher, run, batches
        clip = replace(teacher.clip, precision="fp32")
        self.exact = Teacher(clip, teacher.classnames, teacher.template)
        self.gaps: list[Tensor] = []
        self.agree: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        if self.left:
            self.left -= 1
            logits, exact = self.teacher(images), self.exact(images)
            self.gaps.append((logits - exact).abs().flatten())
            self.agree.append((logits.argmax(-1) == exact.argmax(-1)).float())
            if not self.left:
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
    local_rank: int  # on this machine
    shared: bool  # other processes may write to the same store

    @classmethod
    def from_environment(cls, shared: bool) -> Place:
        """Read what torchrun sets; without it the only process, which may share all the same."""
        rank, local_rank, world_size = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))
        )
        return cls(rank, local_rank, shared or world_size > 1)

    def device(self, use_cuda: bool) -> torch.device:
        if not (use_cuda and torch.cuda.is_available()):
            return torch.device("cpu")
        if not self.shared:
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
    if args.source and not cfg.DATASET.TEMPLATE:
        raise UsageError(
            'which prompt? Give DATASET.TEMPLATE "a photo of a {}." to a dump of --source.'
        )
    if args.union_of_seeds and args.source:
        raise UsageError("--source takes every image: --union-of-seeds has nothing to draw from.")
    if not cfg.DATASET.NAME and not args.source:
        raise UsageError(
            "which images? Give --dataset-config-file configs/datasets/<data set>.yaml."
        )
    if args.batch_size < 1 or (args.shard_images is not None and args.shard_images < 1):
        raise UsageError("--batch-size and --shard-images need 1 or more.")
    if (args.threads is not None and args.threads < 1) or (args.workers or 0) < 0:
        raise UsageError("--threads needs 1 or more, --workers 0 or more.")


def refuse_or_recognise(store: Path, spec: RegionSpec, shared: bool) -> bool:
    """Before the teacher is loaded: is the store there already (True), or still to be done?

    Raises RegionStoreError when the folder holds something else.
    """
    found = find_dump(store)
    if found is None:
        return False
    unknown = [name for name in FROM_TEACHER if not getattr(spec, name)]
    require_same_spec(store, found.spec, spec, ignore=unknown)
    writer_class = SharedWriter if shared else StoreWriter
    with writer_class(store, replace(found.spec, images=spec.images)) as writer:
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


def regions_left(store: Path, spec: RegionSpec) -> int:
    """About how many regions the teacher has still to see, by the size of what is on disk."""
    cost = dump_cost(spec)
    return round(cost.passes * max(0.0, 1 - bytes_there(store) / cost.bytes))


def print_result(store: RegionStore) -> None:
    accuracy, regions = stored_teacher_accuracy(store), len(store) * store.spec.num_regions
    print(
        f"Wrote {store.path}: {counted(len(store), 'image')} x "
        f"{counted(store.spec.num_regions, 'region')}.\n"
        f"Teacher top-1   {accuracy.regions:.1f} % of the regions, "
        f"{accuracy.images:.1f} % of the images (mean probability over the regions)"
    )
    seconds = dump_seconds(store.path)
    if seconds:
        print(
            f"Took            {seconds:.1f} s, loading the teacher included: "
            f"{regions / seconds:.0f} regions/s"
        )


def human(size: int) -> str:
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB")) if size >= u), (1e3, "kB"))
    return f"{size / unit:.1f} {name}"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", default="", help="folder to write; else TRAINER.FDBPL.STORE")
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="PATH",
        help="a folder or tar file of images under --root, or a quoted pattern of several, instead "
        "of a data set; may repeat (regions/sources.py)",
    )
    parser.add_argument(
        "--classnames", type=Path, metavar="FILE", help="of --source, a name a line, by label"
    )
    parser.add_argument("--batch-size", type=int, default=256, help="regions per teacher pass")
    parser.add_argument(
        "--shard-images", type=int, help="images per shard (about 4096 regions); lost if killed"
    )
    parser.add_argument(
        "--threads", type=int, help="of the teacher on a CPU (default: the fastest, by measurement)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        help="processes that decode and cut images; 0: none (default: by measurement)",
    )
    parser.add_argument(
        "--shared", action="store_true", help="other processes run this line too (torchrun says so)"
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
