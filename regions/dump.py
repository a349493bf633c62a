"""The dump: images -> regions -> frozen teacher -> region store.

Letters: R regions of one image, N images of a shard, B regions per teacher pass, C classes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from regions.boxes import cut_all, sample_boxes
from regions.dataset import read_with_record, reading, regions_per_pass, to_input
from regions.store import RegionStore, RegionStoreError
from regions.store.contents import RECORD, Contents
from regions.store.images import RegionImage
from regions.store.kinds import encode
from regions.store.layout import data_bytes, shard_tensors
from regions.store.record import DumpClock
from regions.store.spec import RegionSpec, relative_path
from regions.store.tensors import DTYPES, Tensors
from regions.store.writer import StoreWriter

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
    rank: int = 0,
    world: int = 1,
    trust_mtime: bool = False,
    memory: Path | None = None,
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
        rank, world: of the processes that write this store together; see StoreWriter.
        trust_mtime, memory: how the images of earlier sessions are compared; see Contents.changed.
        progress: show a bar.
    Returns:
        The finished store; None when shards of other processes are left to be made.
    Raises:
        Busy: another process of this rank is writing there.
        RegionStoreError: the folder holds another dump, an image cannot be read, a logit is not
            finite. Finished shards stay.
        OSError: the disk is full or not writable. Finished shards stay.
    """
    started = time.perf_counter() if started is None else started
    batch_size = batch_size or regions_per_pass(device)
    with StoreWriter(store, spec, shard_images, rank, world) as writer:
        require_same_images(writer, root, trust_mtime, memory)
        if writer.is_finished:
            return RegionStore.open(writer.path)
        clock = DumpClock(writer, str(device), torch.get_num_threads(), started)
        bar = tqdm(
            total=spec.num_regions * sum(writer.ranges[shard][1] for shard in writer.mine),
            initial=writer.on_disk(),
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

        with bar:
            for shard, tensors, records in _shards(
                writer, Path(root).expanduser(), run, batch_size, workers
            ):
                writer.write(shard, tensors, records)
                clock.add(spec.num_regions * writer.ranges[shard][1])
        if writer.needs_text:
            assert text is not None, "kind features needs the classes' text features"
            writer.write_text(text)
        return RegionStore.open(writer.path) if writer.finish() else None


def require_same_images(
    writer: StoreWriter, root: str | Path, trust_mtime: bool, memory: Path | None
) -> None:
    """Refuse to go on, or to call a store complete, when images of its shards have changed.

    Raises:
        RegionStoreError: it names them.
    """
    contents = Contents.read(writer.path, writer.spec, writer.is_finished)
    contents.require_unchanged(writer.spec, writer.written, root, trust_mtime, memory)


def _shards(
    writer: StoreWriter,
    root: Path,
    run: Callable[[np.ndarray], np.ndarray],
    batch_size: int,
    workers: int,
) -> Iterator[tuple[int, Tensors, list[np.ndarray]]]:
    """The missing shards, made one after the other, with the records of their images."""
    images = [
        range(first, first + n) for first, n in map(writer.ranges.__getitem__, writer.missing)
    ]
    loader = DataLoader(
        _CutImages(writer.spec, root),
        batch_size=None,
        sampler=[index for shard in images for index in shard],
        num_workers=workers,
    )
    cut_images = iter(loader)
    for shard, members in zip(writer.missing, images, strict=True):
        of_shard = writer.spec.images[members.start : members.stop]
        yield shard, *_shard_tensors(of_shard, writer.spec, cut_images, run, batch_size)


def _shard_tensors(
    images: Sequence[RegionImage],
    spec: RegionSpec,
    cut_images: Iterator[Any],
    run: Callable[[np.ndarray], np.ndarray],
    batch_size: int,
) -> tuple[Tensors, list[np.ndarray]]:
    """What a shard keeps of its images (see layout.shard_tensors), and the images' records."""
    tensors = {
        name: np.empty(tensor.shape, DTYPES[tensor.dtype])
        for name, tensor in shard_tensors(spec, len(images)).items()
    }
    boxes, flips = tensors["boxes"], tensors["flips"]
    flat = {name: tensor.reshape(-1, *tensor.shape[2:]) for name, tensor in tensors.items()}
    waiting = np.empty((0, spec.image_size, spec.image_size, 3), np.uint8)
    records, done = [], 0
    for place in range(len(images)):
        sample = next(cut_images)
        if isinstance(sample, RegionStoreError):
            raise sample
        boxes[place], flips[place], regions, record = sample
        records.append(np.frombuffer(record, RECORD)[0])
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
    return tensors, records


class _CutImages(Dataset):
    """Each image decoded once and cut into all its regions: boxes, flips, uint8 (R, H, W, 3),
    and its record as bytes, which no loader takes for a tensor.

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
            path = str(self.root / stored.path)
            image, record = read_with_record(path, stored.height, stored.width, index)
        except RegionStoreError as error:
            return error
        boxes, flips = sample_boxes(self.spec, stored)
        return boxes, flips, cut_all(image, boxes, flips, self.spec.image_size), record.tobytes()


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
