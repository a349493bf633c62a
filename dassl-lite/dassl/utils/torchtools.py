"""Checkpoints: written whole or not at all, read without running code from the file."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from .tools import mkdir_if_missing

POINTER = "checkpoint"  # text file that names the newest checkpoint of a folder
BEST = "model-best.pth.tar"


def checkpoint_name(epoch: int) -> str:
    """File name of the checkpoint after ``epoch`` finished epochs."""
    return f"model.pth.tar-{epoch}"


def save_checkpoint(
    state: Mapping[str, Any],
    save_dir: str | os.PathLike,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Write a checkpoint, then the pointer file; a kill at any moment leaves both readable.

    Args:
        state: holds "state_dict" and "epoch" (finished epochs), besides what the caller adds.
        is_best: copy the file to model-best.pth.tar too.
        remove_module_from_keys: cut the "module." that DataParallel puts before names.
        model_name: file name; the default is model.pth.tar-<epoch>.
    """
    mkdir_if_missing(save_dir)
    weights = state["state_dict"]
    if remove_module_from_keys:
        weights = OrderedDict((key.removeprefix("module."), v) for key, v in weights.items())
    weights = OrderedDict((key, _compact(value)) for key, value in weights.items())

    path = os.path.join(save_dir, model_name or checkpoint_name(state["epoch"]))
    with _WholeFile(path) as file:
        torch.save({**state, "state_dict": weights}, file)
    print(f"Checkpoint saved to {path}")
    if is_best:
        best_path = os.path.join(save_dir, BEST)
        with _WholeFile(best_path) as file, open(path, "rb") as source:
            shutil.copyfileobj(source, file)
        print(f'Best checkpoint saved to "{best_path}"')
    with _WholeFile(os.path.join(save_dir, POINTER)) as file:
        file.write(f"{os.path.basename(path)}\n".encode())


def load_checkpoint(fpath: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, with tensors and plain values only.

    Checksums are compared, which torch writes and does not read: those of the zip archive that
    torch.save makes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds objects of other classes; with the way out.
    """
    if fpath is None:
        raise ValueError("The checkpoint's path is None; give a file.")
    if not os.path.exists(fpath):
        raise FileNotFoundError(f'File is not found at "{fpath}"')
    try:
        if zipfile.is_zipfile(fpath):  # else of torch before 1.6, or no checkpoint
            with zipfile.ZipFile(fpath) as archive:
                broken = archive.testzip()
            if broken:
                raise ValueError(f"the checksum of {broken} does not fit")
        return torch.load(fpath, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{fpath} holds more than tensors and plain values, or is not a checkpoint. "
            "Checkpoints of upstream Dassl pickle their learning-rate scheduler. If you trust the "
            'file, write it anew without one: python -c "import torch; '
            f"p = {os.fspath(fpath)!r}; "
            "c = torch.load(p, map_location='cpu', weights_only=False); c['scheduler'] = None; "
            'torch.save(c, p)"'
        ) from error
    except Exception as error:  # a damaged file can fail anywhere in the reader
        if isinstance(error, OSError) and error.filename:
            raise
        raise ValueError(
            f"{fpath} cannot be read ({(str(error) or 'it is empty').splitlines()[0]}). "
            "Fetch it again, or delete it to go on from an older checkpoint."
        ) from error


def resume_from_checkpoint(
    fdir: str | os.PathLike,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
) -> int:
    """Load the checkpoint that the folder's pointer file names; return its finished epochs."""
    name = read_pointer(fdir)
    if name is None:
        raise FileNotFoundError(f'No file "{POINTER}" in {fdir}: nothing to resume from.')
    path = os.path.join(fdir, name)
    return restore(load_checkpoint(path), path, model, optimizer, scheduler)


def read_pointer(fdir: str | os.PathLike) -> str | None:
    """Name of a folder's newest checkpoint file, None where there is no pointer file."""
    path = os.path.join(fdir, POINTER)
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.readline().strip() or None


def restore(
    checkpoint: Mapping[str, Any],
    path: str | os.PathLike,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    scheduler: Any,
) -> int:
    """Put a loaded checkpoint into model, optimizer and scheduler; return its finished epochs.

    Raises:
        ValueError: it is of another model.
    """
    print(f'Loading checkpoint from "{path}"')
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ValueError(
            f"{path} is of another model: {error} Resume with the config it was trained with, or "
            "give another --output-dir."
        ) from error
    print("Loaded model weights")
    if optimizer is not None and checkpoint.get("optimizer") is not None:
        optimizer.load_state_dict(checkpoint["optimizer"])
        print("Loaded optimizer")
    if scheduler is not None and checkpoint.get("scheduler") is not None:
        scheduler.load_state_dict(checkpoint["scheduler"])
        print("Loaded scheduler")
    print(f"Previous epoch: {checkpoint['epoch']}")
    return checkpoint["epoch"]


def load_complete_set(folders: list[str]) -> list[tuple[str, dict[str, Any]]] | None:
    """Newest checkpoints of several models that belong to one epoch.

    A run killed between two models' saves leaves one of them ahead; such a pair is never mixed. The
    file named by the pointers comes first, then numbered files that every folder has, newest first.
    A file that cannot be read is passed over, with a line that says so.

    Returns:
        One (path, checkpoint) per folder, or None when no epoch is complete.
    Raises:
        ValueError: there are checkpoints, and not one can be read.
    """
    refused: list[str] = []
    pointers = {read_pointer(folder) for folder in folders}
    candidates = [pointers.pop()] if len(pointers) == 1 else []
    numbered = set.intersection(*(_saved_epochs(folder) for folder in folders))
    candidates += [checkpoint_name(epoch) for epoch in sorted(numbered, reverse=True)]
    for name in candidates:
        if name is None:
            continue
        paths = [os.path.join(folder, os.path.basename(name)) for folder in folders]
        if not all(os.path.isfile(path) for path in paths):
            if name == candidates[0] and numbered:
                print(f'"{POINTER}" in {folders[0]} names {name!r}, which is not there')
            continue
        try:
            checkpoints = [load_checkpoint(path) for path in paths]
            epochs = {int(checkpoint["epoch"]) for checkpoint in checkpoints}
        except (ValueError, KeyError, TypeError) as error:
            refused.append(" ".join(str(error).split()))
            print(f"An older checkpoint is looked for: {refused[-1]}")
            continue
        if len(epochs) == 1:
            return list(zip(paths, checkpoints, strict=True))
    if refused:
        raise ValueError(
            f"Not one checkpoint of {', '.join(folders)} can be read. {refused[0]} To train from "
            "scratch, delete them or give another --output-dir."
        )
    return None


def count_num_param(model: nn.Module | None = None, params: Iterable | None = None) -> int:
    """Number of parameters of a model, or of parameters or parameter groups."""
    if model is not None:
        return sum(parameter.numel() for parameter in model.parameters())
    if params is None:
        raise ValueError("count_num_param needs a model or params.")
    total = 0
    for entry in params:
        inner = entry["params"] if isinstance(entry, Mapping) else entry
        tensors = [inner] if isinstance(inner, torch.Tensor) else inner
        total += sum(tensor.numel() for tensor in tensors)
    return total


def load_pretrained_weights(model: nn.Module, weight_path: str | os.PathLike) -> None:
    """Load the weights that fit a model by name and shape, and name those left out.

    Raises:
        ValueError: not one weight fits.
    """
    checkpoint = load_checkpoint(weight_path)
    found = checkpoint.get("state_dict", checkpoint)
    own = model.state_dict()
    fitting, discarded = {}, []
    for key, value in found.items():
        name = key.removeprefix("module.")
        if name in own and isinstance(value, torch.Tensor) and own[name].shape == value.shape:
            fitting[name] = value
        else:
            discarded.append(name)
    if not fitting:
        raise ValueError(
            f"{weight_path} fits {type(model).__name__} nowhere: it holds {list(found)[:5]} ..., "
            f"the model {list(own)[:5]} .... Check MODEL.INIT_WEIGHTS against TRAINER.NAME."
        )
    model.load_state_dict({**own, **fitting})
    print(f"Successfully loaded pretrained weights from {weight_path}")
    if discarded:
        print(f"Layers discarded due to unmatched keys or size: {discarded}")


def _saved_epochs(folder: str) -> set[int]:
    prefix = checkpoint_name(0)[:-1]
    names = os.listdir(folder) if os.path.isdir(folder) else []
    endings = [name[len(prefix) :] for name in names if name.startswith(prefix)]
    return {int(ending) for ending in endings if ending.isdecimal()}


def _compact(value: Any) -> Any:
    """Copy a view out of its storage: torch.save would write all of what it looks into."""
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    return value.clone() if value.untyped_storage().nbytes() > value.nbytes else value


class _WholeFile:
    """Write beside, flush to disk, then rename: the file is whole or absent."""

    def __init__(self, path: str) -> None:
        self.path, self.partial = path, f"{path}.partial"

    def __enter__(self) -> Any:
        self.file = open(self.partial, "wb")
        return self.file

    def __exit__(self, error_type: type | None, *_: object) -> None:
        if error_type is None:
            self.file.flush()
            os.fsync(self.file.fileno())
        self.file.close()
        if error_type is None:
            os.replace(self.partial, self.path)
        else:
            os.remove(self.partial)
