"""Finding and loading the prompts of a run, ours or one that official code trained.

Our files hold the learner's parameters alone, under the names of models/learners.py: the family's
model.pth.tar-<epoch>, which also resumes, and beside it prompts-<epoch>.safetensors. Official files
hold prompts (CoOp, CoCoOp) or whole models (the others) under the names that _OFFICIAL translates.
What does not fit is an error, not a silence; so is a file that is not as it was written: torch's
archives hold a checksum of each part, prompts-<epoch>.safetensors one of its tensors.
"""

from __future__ import annotations

import contextlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from files import write_whole
from models.clip import state_digest

# name in an official state dict -> ours
_OFFICIAL = (
    (r"(?:prompt_learner\.)?ctx", "ctx"),
    (r"(?:prompt_learner\.)?(meta_net\.linear[12]\.(?:weight|bias))", r"\1"),
    (r"(?:prompt_learner\.)?(proj\.(?:weight|bias))", r"\1"),
    (r"(?:prompt_learner\.)?compound_prompts_text\.(\d+)", r"deep_text.\1"),
    (r"(?:prompt_learner\.)?compound_prompt_projections\.(\d+\.(?:weight|bias))", r"deep_proj.\1"),
    (r"image_encoder\.VPT", "vision.0"),
    (r"image_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow", r"vision.\1"),
    (r"text_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow", "deep_text.{}"),
)
# Frozen towers and class-name tokens in official files; each run has its own.
_NOT_LEARNED = re.compile(
    r"(?:prompt_learner\.)?token_(?:prefix|suffix)"
    r"|(?:prompt_learner\.ZS_)?image_encoder\..+|text_encoder\..+|logit_scale"
    r"|teacher_model\..+"
)


def find_checkpoint(directory: str, name: str, epoch: int | None) -> Path:
    """The file of a registered model in a run folder, for example prompt_learner/model.pth.tar-50.

    Without an epoch: model-best.pth.tar if there is one, else the newest. Where an epoch has no
    such file, its prompts-<epoch>.safetensors serves.

    Raises:
        ValueError: there is no such file; the message lists those that exist.
    """
    folder = Path(directory, name)
    if epoch is not None:
        path = folder / f"model.pth.tar-{epoch}"
        if not path.is_file() and (folder / f"prompts-{epoch}.safetensors").is_file():
            path = folder / f"prompts-{epoch}.safetensors"
    elif (folder / "model-best.pth.tar").is_file():
        path = folder / "model-best.pth.tar"
    else:
        pointer = folder / "checkpoint"
        named = pointer.read_text(errors="replace").strip() if pointer.is_file() else ""
        path = folder / (Path(named.splitlines()[0] if named else "").name or "checkpoint")
    if not path.is_file() or path.name == "checkpoint":
        epochs = sorted({epoch_of(file) for file in folder.glob("*")} - {None})
        found = f"epochs {', '.join(map(str, epochs))}" if epochs else "no checkpoint"
        raise ValueError(
            f"{path} does not exist; {folder} holds {found}. Check --model-dir and --load-epoch, "
            "or train the run first."
        )
    return path


def epoch_of(path: Path) -> int | None:
    """The epoch that a checkpoint's name tells."""
    number = re.fullmatch(r"(?:model\.pth\.tar-(\d+)|prompts-(\d+)\.safetensors)", path.name)
    return int(number[1] or number[2]) if number else None


def save_prompts(learner: nn.Module, folder: Path, epoch: int) -> None:
    """Write prompts-<epoch>.safetensors: the learner's parameters and their checksum."""
    state = {
        name: value.detach().cpu().contiguous() for name, value in learner.state_dict().items()
    }
    # One metadata key: of several, safetensors writes the order by chance, and bytes would differ.
    content = save(state, {"sha256": state_digest(state)})
    write_whole(folder / f"prompts-{epoch}.safetensors", content)


class _Inert:
    """Stands for any object that a file asks for beside tensors: it takes all and does nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


def _empty_dict(*args) -> dict:
    return {}


_STAND_INS = {"collections.defaultdict": _empty_dict}  # an optimizer's state is filled in


def read_checkpoint(path: Path) -> dict:
    """A checkpoint file as a dict with state_dict and epoch; nothing in it is executed.

    Files of old Dassl versions carry a pickled schedule with its optimizer. Such objects come out
    empty: every class or function that a file names is replaced by one that does nothing.

    Raises:
        ValueError: the file is no checkpoint, or not as it was written; lists those beside it that
            are whole.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a file that a trainer saved.")
    try:
        checkpoint = _read_whole(path)
    except Exception as error:  # torch raises many kinds for a broken file
        whole = ", ".join(file.name for file in whole_checkpoints(path.parent))
        others = f" Whole ones beside it: {whole}; --load-epoch chooses." if whole else ""
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({_first_line(error)}). It is damaged or cut "
            f"off, or no program of this family wrote it.{others}"
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise ValueError(f"{path} holds no state_dict; give a file that a trainer saved.")
    return checkpoint


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _read_whole(path: Path):
    """What a file holds; an exception of any kind where it is not as it was written."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}
        if not about.keys() <= {"sha256", "learner"}:  # learner: of older versions, unchecked
            raise ValueError(f"it says {', '.join(about)} instead of sha256")
        digest = state_digest(state)
        if about.get("sha256", digest) != digest:
            raise ValueError("the checksum of its tensors does not fit")
        return {"state_dict": state, "epoch": epoch_of(path)}
    if zipfile.is_zipfile(path):  # files of torch before 1.6 have no checksums
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken:
            raise ValueError(f"the checksum of {broken} does not fit")
    return _load_inert(path)


def whole_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of epochs that can be read, oldest first."""
    whole = []
    for path in folder.glob("*"):
        with contextlib.suppress(Exception):  # torch raises many kinds for a broken file
            if epoch_of(path) is not None and _read_whole(path):
                whole.append(path)
    return sorted(whole, key=lambda path: (epoch_of(path), path.name))


def _load_inert(path: Path):
    named: list[str] = []
    while True:
        try:
            stand_ins = [(_STAND_INS.get(name, _Inert), name) for name in named]
            with torch.serialization.safe_globals(stand_ins):
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            unsafe = re.search(r"Unsupported global: GLOBAL (\S+) was not", str(error))
            name = unsafe and (unsafe[1] if "." in unsafe[1] else f"builtins.{unsafe[1]}")
            if not name or name in named or len(named) == _MOST_NAMES:
                raise
            named.append(name)


_MOST_NAMES = 100  # distinct classes in one file; real ones have fewer than five


def translate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under our names, in float32, without frozen towers and class-name tokens.

    Names that are neither official nor frozen stay as they are.
    """
    ours = {}
    for name, value in state.items():
        for pattern, replacement in _OFFICIAL:
            match = re.fullmatch(pattern, name)
            if match:
                # Layer 0 of a text tower has the context itself, so deep prompts count from 1.
                own = (
                    replacement.format(int(match[1]) - 1)
                    if "{}" in replacement
                    else match.expand(replacement)
                )
                break
        else:
            if _NOT_LEARNED.fullmatch(name):
                continue
            own = name
        ours[own] = value.float() if value.is_floating_point() else value
    return ours


def load_prompts(learner: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a learner's parameters, under our names or official ones; every one must fit.

    Raises:
        ValueError: the file is of another method, depth, context length or width; says how the
            two differ. Or a number in it is not finite.
    """
    found, own = translate(state), learner.state_dict()
    missing, unexpected = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    if missing or unexpected:
        raise ValueError(
            f"{path} holds {_describe(found)}; this run has {_describe(own)} "
            f"(missing {_short(missing)}, unexpected {_short(unexpected)}). Check --trainer, "
            "and the depths and N_CTX of its config."
        )
    for key, value in found.items():
        if value.shape != own[key].shape:
            raise ValueError(
                f"{path}: {key} has shape {tuple(value.shape)}, this run's {tuple(own[key].shape)} "
                "(tokens x width; with one more axis for class-specific contexts, which serve "
                "their own classes only). Check N_CTX, CTX_INIT, CSC, --backbone and the classes."
            )
        if not value.isfinite().all():
            raise ValueError(
                f"{path}: {key} holds NaN or infinity. The training that wrote it diverged: choose "
                "an earlier epoch (--load-epoch), or train again with a lower OPTIM.LR."
            )
    learner.load_state_dict(found)


def _describe(state: Mapping[str, Tensor]) -> str:
    """What a state dict is of, for people: "prompts of MaPLe, text depth 9"."""

    def count(prefix: str) -> int:
        return len({key.split(".")[1] for key in state if key.startswith(prefix + ".")})

    text, vision = count("deep_text"), count("vision")
    if "proj.weight" in state:
        kind = f"prompts of MaPLe, depth {text + 1}"
    elif "meta_net.linear1.weight" in state:
        kind = "prompts of CoCoOp"
    elif "projector.0.weight" in state:
        kind = f"prompts of PromptKD, depth {vision}"
    elif vision and "ctx" in state:
        kind = (
            f"prompts of both towers (IVLP, PromptSRC), depths {vision} (vision), {text + 1} (text)"
        )
    elif vision:
        kind = f"prompts of VPT, depth {vision}"
    elif "ctx" in state:
        kind = "a text context (CoOp, IVLP)" + (f", depth {text + 1}" if text else "")
    else:
        kind = "no prompts"
    return kind + (" with a negative twin" if "negative_ctx" in state else "")


def _short(names: list[str]) -> str:
    return (
        str(names) if len(names) <= 4 else f"[{', '.join(map(repr, names[:3]))}, ... {len(names)}]"
    )
