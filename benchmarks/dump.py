r"""The dump: regions a second by batch size, threads and workers, and what takes the time.

    python -m benchmarks.dump --teacher ViT-H-14 --json benchmarks/results/<machine>/dump.json

Drawn JPEG images of 500 x 375 pixels, a teacher with random weights at its real size, the dump as
dump_teacher_logits.py runs it, every time into a new folder. Shares: the teacher's is its own wall
time within the dump; decoding and cutting are timed apart on the same images and given for a dump
without workers (with workers they run beside the teacher); the rest is turning pixels into tensors,
files and bookkeeping. Model loading is left out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import report, table
from benchmarks.clips import class_names, random_teacher, random_unit
from benchmarks.data import write_images
from models.clip import LoadedClip
from models.prompted_clip import FrozenCLIP
from regions.boxes import cut_all, sample_boxes
from regions.dataset import read_image
from regions.dump import dump, list_images
from regions.store.spec import RegionSpec


class Item(NamedTuple):
    """What a data set lists of an image."""

    impath: str
    label: int


class TimedTeacher:
    """Logits of a random teacher, and the seconds that they took."""

    def __init__(self, clip: LoadedClip, classes: int):
        self.tower, self.seconds = FrozenCLIP(clip), 0.0
        self.text_CD = random_unit(classes, clip.feature_width, device=clip.device)

    def __call__(self, images: Tensor) -> Tensor:
        started = time.perf_counter()
        logits = self.tower.logits(self.tower.image_features(images), self.text_CD)
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        self.seconds += time.perf_counter() - started
        return logits


def make_spec(
    folder: Path, clip: LoadedClip, images: int, regions: int, classes: int
) -> RegionSpec:
    paths = write_images(folder / "images", images)
    items = [Item(str(path), index % classes) for index, path in enumerate(paths)]
    return RegionSpec(
        teacher=clip.name,
        teacher_digest="0" * 64,
        teacher_precision=clip.precision,
        template="a photo of a {}.",
        classnames=tuple(class_names(classes)),
        images=list_images(items, folder),
        image_size=clip.image_size,
        num_regions=regions,
        scale=(0.08, 0.936),
        ratio=(3 / 4, 4 / 3),
        flip=0.5,
        seed=1,
    )


def image_seconds(folder: Path, spec: RegionSpec) -> dict[str, float]:
    """Median wall seconds to decode one image, and to cut one region."""
    decode, cut = [], []
    for stored in spec.images:
        started = time.perf_counter()
        image = read_image(str(folder / stored.path), stored.height, stored.width)
        decoded = time.perf_counter()
        cut_all(image, *sample_boxes(spec, stored), spec.image_size)
        decode.append(decoded - started)
        cut.append((time.perf_counter() - decoded) / spec.num_regions)
    return {"decode_image": statistics.median(decode), "cut_region": statistics.median(cut)}


def one_dump(
    folder: Path, spec: RegionSpec, clip: LoadedClip, batch_size: int, threads: int, workers: int
) -> dict[str, Any]:
    torch.set_num_threads(threads)
    teacher = TimedTeacher(clip, len(spec.classnames))
    with tempfile.TemporaryDirectory(dir=folder) as name:
        wall, cpu = time.perf_counter(), time.process_time()
        dump(
            Path(name, "store"),
            spec,
            folder,
            teacher,
            mean=clip.mean,
            std=clip.std,
            device=clip.device,
            batch_size=batch_size,
            workers=workers,
            progress=False,
        )
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    images, regions = len(spec.images), len(spec.images) * spec.num_regions
    row = {
        "name": f"batch {batch_size}, {threads} threads, {workers} workers",
        "classes": len(spec.classnames),
        "batch_size": batch_size,
        "threads": threads,
        "workers": workers,
        "regions_per_second": round(regions / wall, 3),
        "ms": round(1000 * wall / regions, 3),  # of a region
        "cpu_ms": round(1000 * cpu / regions, 3),
        "teacher_share": round(teacher.seconds / wall, 4),
    }
    if not workers:
        parts = image_seconds(folder, spec)
        row["decode_share"] = round(parts["decode_image"] * images / wall, 4)
        row["cut_share"] = round(parts["cut_region"] * regions / wall, 4)
    return row


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--teacher", default="ViT-H-14", help="of open_clip, or OpenAI's ViT-B/16")
    parser.add_argument("--bf16", action="store_true", help="the teacher's weights in bfloat16")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--regions", type=int, default=4, help="of each image")
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--workers", type=int, nargs="+", default=[0])
    report.add_flags(parser)
    args = parser.parse_args(argv)
    clip = random_teacher(args.teacher, torch.device(args.device), half=args.bf16)
    with tempfile.TemporaryDirectory(prefix="dump_") as name:
        folder = Path(name)
        spec = make_spec(folder, clip, args.images, args.regions, args.classes)
        TimedTeacher(clip, 2)(torch.zeros(1, 3, spec.image_size, spec.image_size).to(clip.device))
        rows = [
            one_dump(folder, spec, clip, batch_size, threads, workers)
            for threads in args.threads
            for batch_size in args.batch_sizes
            for workers in args.workers
        ]
    options = {key: value for key, value in vars(args).items() if key != "json"}
    print(table.dump_rows({"options": options, "rows": rows}))
    report.keep(args.json, "dump", options, rows=rows)
    return rows


if __name__ == "__main__":
    main()
