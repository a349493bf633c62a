"""OpenAI's CLIP as the package `clip` has it: networks and tokenizer at once, the rest when asked.

`import clip` also imports torchvision and pkg_resources, and with them torch's compiler: as long as
torch itself takes, for image transforms that are not used. Two of the package's files need none of
that, and are loaded by themselves.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor


def _file_of_clip(name: str) -> ModuleType:
    """clip/<name>.py as a module of its own, without clip/__init__.py."""
    (folder,) = importlib.util.find_spec("clip").submodule_search_locations
    spec = importlib.util.spec_from_file_location(f"clip_{name}", Path(folder, f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


model = _file_of_clip("model")
build_model, convert_weights = model.build_model, model.convert_weights
_tokenizer = _file_of_clip("simple_tokenizer").SimpleTokenizer()


def package() -> ModuleType:
    """The whole package: addresses and download of the published models."""
    with warnings.catch_warnings():  # it imports pkg_resources, which warns of its end
        warnings.simplefilter("ignore")
        import clip
    return clip


def is_published(name: str) -> bool:
    """Whether OpenAI published weights under that name; a file's name, with its ending, is none."""
    return not Path(name).suffix and name in package().available_models()


def tokenize(texts: Sequence[str], context_length: int = 77) -> Tensor:
    """Ids (len(texts), context_length) int64 of start, text, end and zeros, as clip.tokenize's.

    Raises:
        RuntimeError: a text has more tokens (clip.tokenize's kind; models.clip words it for users).
    """
    start, end = (_tokenizer.encoder[f"<|{name}oftext|>"] for name in ("start", "end"))
    ids = torch.zeros(len(texts), context_length, dtype=torch.long)
    for row, text in zip(ids, texts, strict=True):
        tokens = [start, *_tokenizer.encode(text), end]
        if len(tokens) > context_length:
            raise RuntimeError(f"{text!r} has {len(tokens)} tokens of at most {context_length}")
        row[: len(tokens)] = torch.tensor(tokens)
    return ids
