"""The dump: images -> regions -> frozen teacher -> region store.

Letters: R regions of one image, N images of a shard, B regions per teacher pass, C classes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from regions.boxes import cut_all, sample_boxes
from regions.dataset import read_image, reading, to_input
from regions.files import DTYPES, Tensors
from regions.kinds import encode
from regions.spec import RegionImage, RegionSpec, relative_path
from regions.store import (
    RegionStore,
    RegionStoreError,
    StoreWriter,
    data_bytes,
    shard_tensors,
    write_whole,
)

# images (B, 3, H, W) float32 -> logits (B, C), or unit image features (B, D) for kind features
Teacher = Callable[[Tensor], Tensor]


def list_images(items: Iterable[Any], root: str | Path) -> list[RegionImage]:
    """Read the sizes of a data set's images (objects with .impath and .label) from their headers.

    Raises:
        RegionStoreError: an image is missing or unreadable.
        ValueError: an image does not lie under root.
    """
    images = []
    for item in items:
        with reading(item.impath), Image.open(item.impath) as file:
            width, height = file.size
        images.append(RegionImage(relative_path(item.impath, root), item.label, height, width))
    return images


def dump(
    store: str | Path,
    spec: RegionSpec,
    root: str | Path,
    teacher: Teacher,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: str | torch.device = "cpu",
    batch_size: int = 256,
    workers: int = 0,
    shard_images: int | None = None,
    started: float | None = None,
    text: np.ndarray | None = None,
) -> RegionStore:
    """Write the region store of a spec; called again after a kill, continue where it stopped.

    A teacher's batch never spans two shards, so that the bytes do not depend on where a dump was
    interrupted. Memory holds one shard and a few images.

    Args:
        root: the data root, to which the spec's image paths are relative.
        mean, std: per channel, the teacher's.
        batch_size: regions per teacher pass.
        workers: processes that decode and cut; 0 does it here. The bytes do not depend on it.
        shard_images: images per shard of a new dump.
        started: time.perf_counter() at which the work began, when before this call.
        text: unit text features (C, D) of the spec's classes, for kind features.
    Raises:
        RegionStoreError: the folder holds another dump, an image cannot be read, a logit is not
            finite. Finished shards stay.
        OSError: the disk is full or not writable. Finished shards stay.
    """
    started = time.perf_counter() if started is None else started
    with StoreWriter(store, spec, shard_images) as writer:
        if writer.is_finished:
            return RegionStore.open(writer.path)
        clock = DumpClock(writer.path, spec, str(device), started, fresh=writer.is_new)
        images_of = {k: spec.images[i : i + n] for k, (i, n) in enumerate(writer.ranges)}
        missing = writer.missing
        todo = [image for shard in missing for image in images_of[shard]]
        cut_images = iter(
            DataLoader(
                _CutImages(todo, spec, Path(root).expanduser()),
                batch_size=None,
                num_workers=workers,
                worker_init_fn=writer.worker_init(),
            )
        )
        total = len(spec.images) * spec.num_regions
        bar = tqdm(
            total=total,
            initial=total - len(todo) * spec.num_regions,
            unit=" regions",
            desc="dump",
            mininterval=0.5 if sys.stderr.isatty() else 10,
        )
        with bar:
            for shard in missing:

                def run(regions_BHW3: np.ndarray) -> np.ndarray:
                    with torch.inference_mode():
                        output_BX = teacher(to_input(regions_BHW3, mean, std).to(device))
                    bar.update(len(regions_BHW3))
                    return output_BX.float().cpu().numpy()

                tensors = _shard_tensors(images_of[shard], spec, cut_images, run, batch_size)
                writer.write(shard, tensors)
                clock.add(len(images_of[shard]) * spec.num_regions)
        if writer.needs_text:
            assert text is not None, "kind features needs the text features of the classes"
            writer.write_text(text)
        writer.finish()
        return RegionStore.open(writer.path)


def _shard_tensors(
    images: Sequence[RegionImage],
    spec: RegionSpec,
    cut_images: Iterator[Any],
    run: Callable[[np.ndarray], np.ndarray],
    batch_size: int,
) -> Tensors:
    """What a shard keeps of its images: see regions.store.shard_tensors."""
    tensors = {
        name: np.empty(tensor.shape, DTYPES[tensor.dtype])
        for name, tensor in shard_tensors(spec, len(images)).items()
    }
    boxes, flips = tensors["boxes"], tensors["flips"]
    flat = {name: tensor.reshape(-1, *tensor.shape[2:]) for name, tensor in tensors.items()}
    waiting = np.empty((0, spec.image_size, spec.image_size, 3), np.uint8)
    done = 0
    for place in range(len(images)):
        sample = next(cut_images)
        if isinstance(sample, RegionStoreError):
            raise sample
        boxes[place], flips[place], regions = sample
        waiting = np.concatenate([waiting, regions])
        last = place + 1 == len(images)
        while len(waiting) >= batch_size or (last and len(waiting)):
            names = [
                images[row // spec.num_regions].path
                for row in range(done, done + min(batch_size, len(waiting)))
            ]
            for name, part in encode(spec, run(waiting[:batch_size]), names).items():
                flat[name][done : done + len(names)] = part
            done += len(names)
            waiting = waiting[batch_size:]
    return tensors


class _CutImages(Dataset):
    """Each image decoded once and cut into all its regions: boxes, flips, uint8 (R, H, W, 3).

    An image that cannot be read comes back as the error itself: raised in a worker process it
    would reach the user inside that process's traceback.
    """

    def __init__(self, images: Sequence[RegionImage], spec: RegionSpec, root: Path) -> None:
        self.images, self.spec, self.root = images, spec, root

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...] | RegionStoreError:
        stored = self.images[index]
        try:
            image = read_image(str(self.root / stored.path), stored.height, stored.width)
        except RegionStoreError as error:
            return error
        boxes, flips = sample_boxes(self.spec, stored)
        return boxes, flips, cut_all(image, boxes, flips, self.spec.image_size)


def dump_record_path(store: str | Path) -> Path:
    """Where the time of a dump is kept: beside the store, whose bytes do not depend on it."""
    store = Path(store).expanduser()
    return store.with_name(store.name + ".dump.json")


def dump_seconds(store: str | Path) -> float | None:
    """Wall time that a store took to dump, or None where its record is lost."""
    try:
        return float(json.loads(dump_record_path(store).read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


class DumpClock:
    """Wall time of a dump, summed over its restarts, in <store>.dump.json."""

    def __init__(
        self, store: Path, spec: RegionSpec, device: str, started: float, fresh: bool
    ) -> None:
        self.path = dump_record_path(store)
        self.started = started
        self.sessions: list[dict[str, Any]] = []
        self.head = {"format": 1, "spec_id": spec.id, "teacher": spec.teacher, "device": device}
        if not fresh:
            self.sessions = self._earlier(spec)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.sessions.append({"started": now, "seconds": 0.0, "regions": 0, "device": device})

    def _earlier(self, spec: RegionSpec) -> list[dict[str, Any]]:
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
            sessions = record["sessions"] if record["spec_id"] == spec.id else []
            return [s for s in sessions if s["seconds"] >= 0 and s["regions"] >= 0]
        except (OSError, ValueError, KeyError, TypeError):
            return []  # lost or foreign: only the time is lost

    def add(self, regions: int) -> None:
        """Note that so many more regions are safe on disk."""
        session = self.sessions[-1]
        session["regions"] += regions
        session["seconds"] = round(time.perf_counter() - self.started, 3)
        record = {
            **self.head,
            "seconds": round(sum(s["seconds"] for s in self.sessions), 3),
            "regions": sum(s["regions"] for s in self.sessions),
            "sessions": self.sessions,
        }
        write_whole(self.path, (json.dumps(record, indent=1) + "\n").encode())


class TeacherAccuracy(NamedTuple):
    """Top-1 accuracy of the stored logits against the labels, in percent."""

    regions: float
    images: float  # of the mean probability over an image's regions


def stored_teacher_accuracy(store: RegionStore) -> TeacherAccuracy:
    """How often the teacher names the labelled class."""
    right_regions = right_images = 0
    labels = store.spec.images.labels.astype(np.int64)
    for shard, (_, first, num_images, *_) in enumerate(store.shards):
        logits = torch.from_numpy(store.read_shard(shard).logits)
        labels_N = torch.from_numpy(labels[first : first + num_images])
        right_regions += int((logits.argmax(-1) == labels_N[:, None]).sum())
        right_images += int((logits.softmax(-1).mean(1).argmax(-1) == labels_N).sum())
    total = len(store)
    return TeacherAccuracy(
        100 * right_regions / (total * store.spec.num_regions), 100 * right_images / total
    )


class Cost(NamedTuple):
    """What a dump will take."""

    images: int
    passes: int  # of the teacher, one region each
    bytes: int  # on disk


def dump_cost(spec: RegionSpec) -> Cost:
    """Teacher passes and bytes of a whole dump (headers and manifest: about 200 bytes an image)."""
    images = len(spec.images)
    size = data_bytes(spec, images) + 200 * images + 2**12
    return Cost(images, images * spec.num_regions, size)
