"""Finding and loading the prompts of a run; what does not fit is an error, not a silence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

REBUILT = ("token_prefix", "token_suffix")  # in official files; made from each run's class names


def find_checkpoint(directory: str, name: str, epoch: int | None) -> Path:
    """The file of a registered model in a run folder, for example prompt_learner/model.pth.tar-50.

    Without an epoch: model-best.pth.tar if there is one, else the newest.

    Raises:
        ValueError: there is no such file; the message lists those that exist.
    """
    folder = Path(directory, name)
    if epoch is not None:
        path = folder / f"model.pth.tar-{epoch}"
    elif (folder / "model-best.pth.tar").is_file():
        path = folder / "model-best.pth.tar"
    else:
        pointer = folder / "checkpoint"
        path = folder / (pointer.read_text().strip() if pointer.is_file() else "checkpoint")
    if not path.is_file():
        epochs = sorted(int(file.name.rsplit("-", 1)[1]) for file in folder.glob("model.pth.tar-*"))
        found = f"epochs {', '.join(map(str, epochs))}" if epochs else "no checkpoint"
        raise ValueError(
            f"{path} does not exist; {folder} holds {found}. Check --model-dir and --load-epoch, "
            "or train the run first."
        )
    return path


def read_checkpoint(path: Path) -> dict:
    """A checkpoint file as a dict with state_dict and epoch; nothing in it is executed.

    Raises:
        ValueError: the file is no checkpoint, or holds more than plain values.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken or unsafe file
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({str(error).splitlines()[0]}). It is cut off, "
            "or another program wrote it with pickled objects inside."
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} holds no state_dict; give a file that a trainer saved.")
    return checkpoint


def load_prompts(learner: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a learner's parameters; every name and shape must fit.

    Raises:
        ValueError: the file is of another method, context length or width; names what differs.
    """
    kept = {key: value for key, value in state.items() if not key.endswith(REBUILT)}
    own = learner.state_dict()
    missing, unexpected = sorted(own.keys() - kept.keys()), sorted(kept.keys() - own.keys())
    if missing or unexpected:
        raise ValueError(
            f"{path} does not fit {type(learner).__name__}: missing {missing}, unexpected "
            f"{unexpected}. Check that --trainer is the one that wrote it."
        )
    for key, value in kept.items():
        if value.shape != own[key].shape:
            raise ValueError(
                f"{path}: {key} has shape {tuple(value.shape)}, this run's {tuple(own[key].shape)} "
                "(tokens x width; with one more axis for class-specific contexts, which serve "
                "their own classes only). Check N_CTX, CTX_INIT, CSC, --backbone and the classes."
            )
    learner.load_state_dict(kept)
