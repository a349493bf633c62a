"""The dump: images -> regions -> frozen teacher -> region store.

Letters: R regions of one image, N images of a shard, B regions per teacher pass, C classes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from regions.boxes import cut_all, sample_boxes
from regions.dataset import read_image, reading, to_input
from regions.files import DTYPES, Tensors, write_whole
from regions.kinds import encode
from regions.layout import CLAIMS, data_bytes, shard_tensors
from regions.shared import SharedWriter
from regions.spec import RegionImage, RegionSpec, relative_path
from regions.store import RegionStore, RegionStoreError
from regions.writer import StoreWriter

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
    batch_size: int | None = None,
    workers: int = 0,
    shard_images: int | None = None,
    started: float | None = None,
    text: np.ndarray | None = None,
    shared: bool = False,
    progress: bool = True,
) -> RegionStore | None:
    """Write the region store of a spec; called again after a kill, continue where it stopped.

    A teacher's batch never spans two shards, so that the bytes do not depend on where a dump was
    interrupted. Memory holds one shard and a few images.

    Args:
        root: the data root, to which the spec's image paths are relative.
        mean, std: per channel, the teacher's.
        batch_size: regions per teacher pass; None: regions_per_pass.
        workers: processes that decode and cut; 0 does it here. The bytes do not depend on it.
        shard_images: images per shard of a new dump.
        started: time.perf_counter() at which the work began, when before this call.
        text: unit text features (C, D) of the spec's classes, for kind features.
        shared: other processes may write to the same store, see regions.shared.
        progress: show a bar.
    Returns:
        The finished store; None when other shared processes are left to finish it.
    Raises:
        RegionStoreError: the folder holds another dump, an image cannot be read, a logit is not
            finite. Finished shards stay.
        OSError: the disk is full or not writable. Finished shards stay.
    """
    started = time.perf_counter() if started is None else started
    batch_size = batch_size or regions_per_pass(device)
    with (SharedWriter if shared else StoreWriter)(store, spec, shard_images) as writer:
        if writer.is_finished:
            return RegionStore.open(writer.path)
        clock = DumpClock(writer, str(device), started)
        bar = tqdm(
            total=len(spec.images) * spec.num_regions,
            initial=regions_of(writer, writer.on_disk()),
            unit=" regions",
            desc="dump",
            mininterval=0.5 if sys.stderr.isatty() else 10,
            disable=not progress,
        )

        def run(regions_BHW3: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                output_BX = teacher(to_input(regions_BHW3, mean, std).to(device))
            bar.update(len(regions_BHW3))
            return output_BX.float().cpu().numpy()

        done = False
        with bar:
            while not done:  # a second time when a shard is damaged, or another process dies
                for shard, tensors in _shards(
                    writer, Path(root).expanduser(), run, batch_size, workers
                ):
                    writer.write(shard, tensors)
                    clock.add(regions_of(writer, [shard]))
                    if shared:  # what the others wrote meanwhile
                        bar.update(max(0, regions_of(writer, writer.on_disk()) - bar.n))
                done = writer.is_left_to_others()
                if not done:
                    if writer.needs_text:
                        assert text is not None, "kind features needs the classes' text features"
                        writer.write_text(text)
                    if (writer.path / CLAIMS).exists():  # where other processes keep their time
                        clock.join()
                    done = writer.finish()
        return RegionStore.open(writer.path) if writer.is_finished else None


def regions_per_pass(device: str | torch.device) -> int:
    """How many images an image tower takes at once.

    A GPU wants many. On a CPU the activations of many images are pages that the system has to hand
    out anew in each pass; few stay in its caches.
    """
    return 8 if torch.device(device).type == "cpu" else 256


def regions_of(writer: StoreWriter, shards: Iterable[int]) -> int:
    """Number of regions in some shards of a dump."""
    return writer.spec.num_regions * sum(writer.ranges[shard][1] for shard in shards)


def _shards(
    writer: StoreWriter,
    root: Path,
    run: Callable[[np.ndarray], np.ndarray],
    batch_size: int,
    workers: int,
) -> Iterator[tuple[int, Tensors]]:
    """The shards that this process is to write, made one after the other."""
    shards = _Shards(writer)
    loader = DataLoader(
        _CutImages(writer.spec, root),
        batch_size=None,
        sampler=shards,
        num_workers=workers,
        worker_init_fn=writer.worker_init(),
    )
    cut_images = iter(loader)
    for cut_image in cut_images:
        shard = shards.given.popleft()
        first, count = writer.ranges[shard]
        images = writer.spec.images[first : first + count]
        cut_of_shard = itertools.chain([cut_image], cut_images)
        yield shard, _shard_tensors(images, writer.spec, cut_of_shard, run, batch_size)


class _Shards(Sampler):
    """The images of one shard after the other. A shard is asked for when its images are wanted."""

    def __init__(self, writer: StoreWriter) -> None:
        self.writer = writer
        self.given: deque[int] = deque()

    def __iter__(self) -> Iterator[int]:
        for shard in self.writer.to_do():
            self.given.append(shard)
            first, count = self.writer.ranges[shard]
            yield from range(first, first + count)


def _shard_tensors(
    images: Sequence[RegionImage],
    spec: RegionSpec,
    cut_images: Iterator[Any],
    run: Callable[[np.ndarray], np.ndarray],
    batch_size: int,
) -> Tensors:
    """What a shard keeps of its images: see regions.layout.shard_tensors."""
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

    def __init__(self, spec: RegionSpec, root: Path) -> None:
        self.spec, self.root = spec, root

    def __len__(self) -> int:
        return len(self.spec.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...] | RegionStoreError:
        stored = self.spec.images[index]
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
    """Wall time of a dump, summed over its sessions, in <store>.dump.json.

    A process that shares its dump keeps its session among the claims, until one joins them all.
    """

    def __init__(self, writer: StoreWriter, device: str, started: float) -> None:
        self.path, self.claims = dump_record_path(writer.path), writer.path / CLAIMS
        self.process = writer.process
        self.started = started
        spec = writer.spec
        self.head = {"format": 1, "spec_id": spec.id, "teacher": spec.teacher, "device": device}
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.session = {"started": now, "seconds": 0.0, "regions": 0, "device": device}
        # The last bit of a logit may depend on it.
        self.session["threads"] = torch.get_num_threads()
        if self.process:
            self.session["process"] = self.process
        if writer.is_new:
            self.path.unlink(missing_ok=True)  # of an earlier store of that name
        self.others = self._others()

    def add(self, regions: int) -> None:
        """Note that so many more regions are safe on disk."""
        self.session["regions"] += regions
        self.session["seconds"] = round(time.perf_counter() - self.started, 3)
        if self.process:
            with contextlib.suppress(FileNotFoundError):  # the others have finished the dump
                self._write(self.claims / f"session_{self.process}.json", [self.session])
        else:
            self._write(self.path, [*self.others, self.session])

    def join(self) -> None:
        """Write the record of this process and of all that shared the dump."""
        if self.process:
            self.others = self._others()
        self._write(self.path, [*self.others, *([self.session] if self.session["regions"] else [])])

    def _others(self) -> list[dict[str, Any]]:
        """Sessions of the record so far and of other processes, each once."""
        files = [self.path, *sorted(self.claims.glob("session_*.json"))]
        sessions, processes = [], {self.process}
        for session in (session for file in files for session in self._read(file)):
            process = session.get("process")
            if process is None or process not in processes:
                sessions.append(session)
                processes.add(process)
        return sessions

    def _write(self, path: Path, sessions: list[dict[str, Any]]) -> None:
        record = {
            **self.head,
            "seconds": round(sum(s["seconds"] for s in sessions), 3),
            "regions": sum(s["regions"] for s in sessions),
            "sessions": sessions,
        }
        write_whole(path, (json.dumps(record, indent=1) + "\n").encode(), self.process)

    def _read(self, path: Path) -> list[dict[str, Any]]:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            sessions = record["sessions"] if record["spec_id"] == self.head["spec_id"] else []
            return [s for s in sessions if s["seconds"] >= 0 and s["regions"] >= 0]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return []  # lost or foreign: only the time is lost


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
