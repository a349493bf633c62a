"""Region store against one torch.save per image, as FKD keeps its labels; and a store of ImageNet.

    python -m benchmarks.store_io --json benchmarks/results/<machine>/store_io.json

1. Rows per second of CPU time, for batches of 32 random images with 1 and with 8 regions each:
   RegionStore.read_batch, RegionStore.read image by image, and torch.load of a file per image. All
   of them in one process, in turn, on the same batches; the files are in the system's cache.
2. Memory of a process that reads on and on in stores of growing size; of DataLoader workers, forked
   and spawned, that read one store.
3. A store of 1.28 M images x 50 regions x top-10 with generated values: write, open, random reads,
   verify in parallel. --images-of-large writes a part, and says so.

Letters: B images of a batch, R regions of an image, M regions per image.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import report, table
from regions.store import RegionStore
from regions.store.images import ImageTable, RegionImage
from regions.store.spec import RegionSpec
from regions.store.writer import StoreWriter
from regions.tools.verify import verify

BATCH = table.READ_BATCH
REGIONS = 50
CLASSES = 100
IMAGENET = 1_281_167
TOP_K = 10
MB = 2**20


def make_spec(images: int, kind: str, classes: int) -> RegionSpec:
    # One image after the other: a list of a million would be most of the memory of this process.
    table = ImageTable.of(
        RegionImage(f"train/n{i % classes:08d}/n{i % classes:08d}_{i}.JPEG", i % classes, 375, 500)
        for i in range(images)
    )
    return RegionSpec(
        teacher="generated",
        teacher_digest="0" * 64,
        teacher_precision="fp32",
        template="a photo of a {}.",
        classnames=tuple(f"class {label}" for label in range(classes)),
        images=table,
        image_size=224,
        num_regions=REGIONS,
        scale=(0.08, 0.936),
        ratio=(0.75, 4 / 3),
        flip=0.5,
        seed=1,
        kind=kind,
        top_k=TOP_K if kind == "topk" else 0,
    )


def write_store(path: Path, images: int, kind: str = "logits", classes: int = CLASSES) -> float:
    """Write a store of generated values; returns the seconds it took, values and all."""
    started, rng = time.perf_counter(), np.random.default_rng(0)
    spec = make_spec(images, kind, classes)
    with StoreWriter(path, spec) as writer:
        shape = (max(count for _, count in writer.ranges), REGIONS)
        lse = rng.normal(20, 1, shape).astype(np.float32)
        boxes = rng.random((*shape, 4), np.float32) / 2
        flips = rng.integers(0, 2, shape, np.uint8)
        if kind == "logits":
            kept = {"logits": -rng.exponential(5, (*shape, classes)).astype(np.float16)}
        else:
            values = np.sort(rng.exponential(5, (*shape, TOP_K)), -1).astype(np.float16)
            ids = rng.integers(0, classes // TOP_K, (*shape, TOP_K)) + np.arange(TOP_K) * 10
            kept = {"values": -values, "classes": ids.astype(np.uint16)}
        every = {"boxes": boxes, "flips": flips, "lse": lse, **kept}
        for index in writer.missing:
            count = writer.ranges[index][1]
            rolled = {
                name: np.roll(tensor, index, axis=1)[:count] for name, tensor in every.items()
            }
            writer.write(index, rolled)
        writer.finish()
    return time.perf_counter() - started


# --- 1. rows per second ---------------------------------------------------------------------


def write_pickles(folder: Path, store: RegionStore) -> float:
    """A file per image, with what the store keeps of it."""
    started = time.perf_counter()
    folder.mkdir()
    for index in range(len(store)):
        shard, row = divmod(index, store.shard_images)
        kept = {
            name: torch.from_numpy(tensor[row].copy())
            for name, tensor in store.arrays(shard).items()
        }
        torch.save(kept, folder / f"{index}.pt")
    return time.perf_counter() - started


def rates(store: RegionStore, folder: Path, regions: int, rounds: int) -> dict[str, Any]:
    """Rows per second of CPU time: the median over rounds in which the readers take turns."""
    rng = np.random.default_rng(regions)
    batches = [
        (
            rng.integers(0, len(store), BATCH),
            np.stack([rng.permutation(REGIONS)[:regions] for _ in range(BATCH)]),
        )
        for _ in range(64)
    ]

    def in_batches(images_B: np.ndarray, regions_BR: np.ndarray) -> np.ndarray:
        return store.read_batch(images_B, regions_BR).logits

    def one_by_one(images_B: np.ndarray, regions_BR: np.ndarray) -> np.ndarray:
        rows = zip(images_B.tolist(), regions_BR, strict=True)
        return np.stack([store.read(image, chosen).logits for image, chosen in rows])

    def pickles(images_B: np.ndarray, regions_BR: np.ndarray) -> np.ndarray:
        found = []
        for image, chosen in zip(images_B.tolist(), torch.from_numpy(regions_BR), strict=True):
            kept = torch.load(folder / f"{image}.pt", weights_only=True)
            found.append(kept["logits"][chosen].float() + kept["lse"][chosen, None])
        return torch.stack(found).numpy()

    readers: dict[str, tuple[Callable, int]] = {  # and how many batches a round takes
        "read_batch": (in_batches, 64),
        "read": (one_by_one, 64),
        "torch.save per image": (pickles, 8),
    }
    wanted = pickles(*batches[0])
    for reader, _ in readers.values():
        np.testing.assert_array_equal(reader(*batches[0]), wanted)
    found: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds):
        for name, (reader, count) in readers.items():
            started = time.process_time()
            for batch in batches[:count]:
                reader(*batch)
            taken = time.process_time() - started
            found[name].append(count * BATCH * regions / taken)
    median = {name: statistics.median(values) for name, values in found.items()}
    slowest = median["torch.save per image"]
    return {
        "rows_per_second": {name: round(value) for name, value in median.items()},
        "times_torch_save": {
            name: round(median[name] / slowest, 1) for name in ("read_batch", "read")
        },
    }


def measure_rates(folder: Path, images: int, rounds: int) -> dict[str, Any]:
    seconds = write_store(folder / "store", images)
    store = RegionStore.open(folder / "store")
    pickle_seconds = write_pickles(folder / "pickles", store)
    sizes = {name: _bytes_of(folder / name) for name in ("store", "pickles")}
    result = {
        "images": images,
        "regions": REGIONS,
        "classes": CLASSES,
        "write_seconds": {"store": round(seconds, 2), "pickles": round(pickle_seconds, 2)},
        "bytes": sizes,
    }
    for regions in (1, 8):
        result[f"{BATCH} x {regions}"] = rates(store, folder / "pickles", regions, rounds)
    return result


def _bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


# --- 2. memory ------------------------------------------------------------------------------


def resident() -> dict[str, float]:
    """MB of this process: its own pages, and those of mapped files, which others share."""
    rows = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    found = {row[0]: int(row[1]) / 1024 for row in rows if row[0] in ("RssAnon:", "RssFile:")}
    return {"own": round(found["RssAnon:"], 1), "mapped": round(found["RssFile:"], 1)}


def read_on(path: Path, batches: int, results: Any = None) -> dict[str, Any]:
    """Open a store and read random batches: what memory that adds, at the end and at the most."""
    before = resident()
    store, rng = RegionStore.open(path), np.random.default_rng(os.getpid())
    most = dict.fromkeys(before, 0.0)
    for number in range(batches):
        images_B = rng.integers(0, len(store), BATCH)
        store.read_batch(images_B, rng.integers(0, REGIONS, (BATCH, 8)))
        if number % 16 == 0:
            now = resident()
            most = {key: max(most[key], round(now[key] - before[key], 1)) for key in most}
    result = {"store_mb": round(_bytes_of(path) / MB), "most_mb": most}
    if results is not None:
        results.put(result)
    return result


def in_process(method: str, path: Path, batches: int, workers: int = 1) -> list[dict[str, Any]]:
    """Run read_on in processes of their own, all at once."""
    context = multiprocessing.get_context(method)
    results = context.SimpleQueue()
    processes = [
        context.Process(target=read_on, args=(path, batches, results)) for _ in range(workers)
    ]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return found


def measure_memory(folder: Path, sizes: tuple[int, ...]) -> dict[str, Any]:
    growth = []
    for images in sizes:
        path = folder / f"grow_{images}"
        write_store(path, images)
        growth += in_process("spawn", path, batches=1500)
    workers = {
        method: in_process(method, path, batches=400, workers=3) for method in ("fork", "spawn")
    }
    return {"one_reader": growth, "three_workers_of_the_largest": workers}


# --- 3. a store of ImageNet -----------------------------------------------------------------


def measure_large(folder: Path, images: int) -> dict[str, Any]:
    path = folder / "large"
    seconds = write_store(path, images, "topk", classes=1000)
    size = _bytes_of(path)
    started = time.perf_counter()
    store = RegionStore.open(path)
    opened = time.perf_counter() - started
    started = time.perf_counter()
    store.image_indices([store.spec.images[images // 2].path])
    found = time.perf_counter() - started
    rng = np.random.default_rng(0)
    reads = {}
    for name, count in (("first touch of the shards", 100), ("again", 200)):
        started = time.perf_counter()
        for _ in range(count):
            shape = (BATCH, 8)
            store.read_batch(rng.integers(0, images, BATCH), rng.integers(0, REGIONS, shape))
        taken = time.perf_counter() - started
        reads[name] = {"batches": count, "rows_per_second": round(count * BATCH * 8 / taken)}
    checks = {}
    for threads in (1, os.cpu_count() or 1):
        started = time.perf_counter()
        verified = verify(path, threads)
        checks[f"{threads} threads"] = round(time.perf_counter() - started, 1)
        assert not verified.damages
    return {
        "images": images,
        "part_of_imagenet": round(images / IMAGENET, 3),
        "regions": REGIONS,
        "top_k": TOP_K,
        "bytes": size,
        "bytes_per_image": round(size / images),
        "shards": len(store.shards),
        "write_seconds": round(seconds, 1),
        "open_seconds": round(opened, 3),
        "find_first_image_seconds": round(found, 3),
        f"reads of {BATCH} x 8": reads,
        "verify_seconds": checks,
    }


# --- the command ----------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=4000, help="of part 1; default 4000")
    parser.add_argument("--rounds", type=int, default=7, help="of part 1; default 7")
    parser.add_argument(
        "--images-of-memory", type=int, nargs="+", default=[26_000, 104_000], help="of part 2"
    )
    parser.add_argument("--images-of-large", type=int, default=IMAGENET, help="of part 3; 0: none")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: a temporary")
    report.add_flags(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="store_io_", dir=args.folder) as name:
        folder = Path(name)
        results["reads"] = measure_rates(folder, args.images, args.rounds)
        results["memory"] = measure_memory(folder, tuple(args.images_of_memory))
        if args.images_of_large:
            results["large"] = measure_large(folder, args.images_of_large)
    print(table.store_rows(results))
    options = {key: value for key, value in vars(args).items() if key not in ("json", "folder")}
    report.keep(args.json, "store_io", options, **results)
    return results


if __name__ == "__main__":
    main()
