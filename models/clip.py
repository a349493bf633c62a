"""The only place that loads CLIP weights: OpenAI, open_clip, local files, and the toy pair.

A name is one of
    ViT-B/16, RN50, ...            OpenAI's models, downloaded once and checked by sha256
    toy-student, toy-teacher       small models shipped in models/toy
    open_clip:<arch>/<tag>         for example open_clip:ViT-H-14-quickgelu/dfn5b
    open_clip:<arch>/<file>        the same architecture with weights from a local file
    path/to/weights                a state dict (.pt, .safetensors) or TorchScript archive
Weights are required: nothing here falls back to random ones.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.templates import spoken
from models.text import text_blocks
from wording import counted

with warnings.catch_warnings():  # it imports pkg_resources, which warns of its end
    warnings.simplefilter("ignore")
    import clip
    from clip.model import build_model, convert_weights

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
PRECISIONS = ("fp32", "fp16", "amp", "bf16")
TOY_FILES = {
    "toy-student": Path(__file__).parent / "toy" / "student.safetensors",
    "toy-teacher": Path(__file__).parent / "toy" / "teacher.safetensors",
}
KDPL_TEACHER = "ViT-H-14-quickgelu"  # KDPL's name for open_clip:ViT-H-14-quickgelu/dfn5b
_OPENAI_CACHE = Path.home() / ".cache" / "clip"
_VOCABULARY = 49408
_shared: dict[tuple, LoadedClip] | None = None  # see shared_clips()


@dataclass(frozen=True)
class LoadedClip:
    """A frozen CLIP in eval mode and what a caller must know of it."""

    name: str
    model: nn.Module
    tokenize: Callable[[list[str]], Tensor]  # texts -> (len(texts), context_length) token ids
    digest: str  # sha256 of the weights
    image_size: int  # side of the square input, in pixels
    mean: tuple[float, float, float]  # of pixels in [0, 1], per channel
    std: tuple[float, float, float]
    precision: str
    device: torch.device
    text_path: str = "fast"  # how prompts go through the text tower: see models/prompted_clip.py
    text_chunk: int = 0  # classes that the text tower encodes at a time; 0: as many as fit

    @property
    def feature_width(self) -> int:
        """D: width of the joint embedding."""
        projection = self.model.text_projection
        if projection is None:
            return self.model.ln_final.weight.shape[0]
        is_module = isinstance(projection, nn.Module)
        return projection.out_features if is_module else projection.shape[1]

    @property
    def text_layers(self) -> int:
        """Layers of the text tower; ValueError where it is not CLIP's."""
        return len(text_blocks(self.model))

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context in which this model computes: autocast for amp and bf16, else nothing."""
        return autocast(self.precision, self.device)


def load_clip(name: str, precision: str = "fp32", device: str | torch.device = "cpu") -> LoadedClip:
    """Load a CLIP by name (see the module's first lines), frozen and in eval mode.

    Args:
        precision: fp32; fp16 (weights in half, as the family's code); amp and bf16 (float32
            weights under autocast). A CPU has fp32 and bf16; asked for another, it computes in
            fp32 and says so once.
    Raises:
        ValueError: the name is unknown, or its weights are neither here nor to be had; the
            message says which file to put where. Or a weight is NaN or infinite.
    """
    device = torch.device(device)
    precision = supported_precision(precision, device)
    if name.startswith("open_clip:") or name == KDPL_TEACHER:
        loaded = _load_open_clip(name, precision, device)
    else:
        loaded = _load_openai(name, precision, device)
    for key, value in loaded.model.state_dict().items():
        if not value.isfinite().all():
            raise ValueError(
                f"{name}: the weight {key} holds NaN or infinity. Fetch the file again."
            )
    loaded.model.requires_grad_(False)
    loaded.model.eval().to(device)
    if _shared is not None:
        return _shared.setdefault((name, loaded.digest, precision, device), loaded)
    return loaded


@contextlib.contextmanager
def shared_clips() -> Iterator[None]:
    """Inside it, load_clip gives the same model for the same weights; nobody may change it.

    It is loaded each time all the same: that draws random numbers, on which a seed's run depends.
    """
    global _shared
    before, _shared = _shared, {}
    try:
        yield
    finally:
        _shared = before


def weights_digest(name: str) -> str | None:
    """sha256 of a model's weights without loading it, or None where only loading can tell."""
    if name in TOY_FILES:
        return _file_digest(TOY_FILES[name])
    if name in clip.available_models():
        return _openai_url(name).split("/")[-2]
    if not name.startswith("open_clip:") and Path(name).is_file():
        return _file_digest(Path(name))
    return None


def supported_precision(precision: str, device: torch.device) -> str:
    """The precision that a device computes in: the wanted one, or fp32 where a CPU lacks it."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; choose one of {PRECISIONS}.")
    if device.type == "cpu" and precision not in ("fp32", "bf16"):
        _tell_once(f"Precision {precision} is for GPUs; this run computes in fp32 on the CPU.")
        return "fp32"
    return precision


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """Autocast to float16 for amp and to bfloat16 for bf16; no change for fp32 and fp16."""
    dtype = {"amp": torch.float16, "bf16": torch.bfloat16}.get(precision)
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def tell_unknown_words(clip: LoadedClip, classnames: Sequence[str]) -> None:
    """Say once which words of class names a model cannot know: the toy pair knows a few only."""
    table = getattr(clip.model, "token_embedding", None)
    known_V = None if table is None else table.weight.any(dim=1).cpu()
    if known_V is None or known_V.all():  # a token that no training has seen is zero
        return
    split = {name: spoken(name).split() for name in classnames}
    words = list(dict.fromkeys(word for parts in split.values() for word in parts))
    unknown = set()
    for word, token_L in zip(words, clip.tokenize(words) if words else (), strict=True):
        own_L = token_L[1 : int(token_L.argmax())]  # between start- and end-of-text
        if not known_V[own_L].all():
            unknown.add(word)
    if unknown:
        shown = [word for word in words if word in unknown]
        more = f" and {len(shown) - 20} more" if len(shown) > 20 else ""
        alike = sum(unknown >= set(parts) for parts in split.values())
        _tell_once(
            f"Warning: {clip.name} does not know the words {', '.join(shown[:20])}{more}."
            + (f" {alike} of {counted(len(split), 'class')} consist of such words alone: to it "
               "they are all alike." if alike else "")
        )  # fmt: skip


@functools.cache
def _tell_once(message: str) -> None:
    print(message)


# OpenAI's architecture: published models, local files, the toy pair


def _load_openai(name: str, precision: str, device: torch.device) -> LoadedClip:
    if name in TOY_FILES:
        state, digest = _toy_state(TOY_FILES[name]), _file_digest(TOY_FILES[name])
    elif name in clip.available_models():
        state, digest = _published_state(name), _openai_url(name).split("/")[-2]
    elif Path(name).is_file():
        state, digest = _read_state(Path(name)), _file_digest(Path(name))
    else:
        raise ValueError(
            f"CLIP model {name!r} is unknown. Known: "
            f"{', '.join(clip.available_models())}, {', '.join(TOY_FILES)}, "
            "open_clip:<arch>/<tag>, or the path of a weights file."
        )
    model = _build_openai(name, state)
    if precision == "fp16":
        convert_weights(model)
    context_length = model.positional_embedding.shape[0]
    return LoadedClip(
        name=name,
        model=model,
        tokenize=functools.partial(
            _tokenize, functools.partial(clip.tokenize, truncate=True), context_length
        ),
        digest=digest,
        image_size=model.visual.input_resolution,
        mean=OPENAI_MEAN,
        std=OPENAI_STD,
        precision=precision,
        device=device,
    )


def _build_openai(name: str, state: dict[str, Tensor]) -> nn.Module:
    sizes = ("input_resolution", "context_length", "vocab_size")  # stored by TorchScript archives
    state = {key: value for key, value in state.items() if key not in sizes}
    try:
        model = build_model(dict(state)).float()  # build_model rounds weights to float16 ...
        model.load_state_dict(state)  # ... so they are read once more in full
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"{name} holds no CLIP weights under OpenAI's names: {error}. For another "
            "architecture use open_clip:<arch>/<file>."
        ) from error
    return model


def _published_state(name: str) -> dict[str, Tensor]:
    url = _openai_url(name)
    target = _OPENAI_CACHE / url.rsplit("/", 1)[-1]
    try:
        with warnings.catch_warnings():  # torch.jit.load is deprecated, and still what reads these
            warnings.filterwarnings("ignore", message=".*torch.jit.load")
            model, _ = clip.load(name, device="cpu", download_root=str(_OPENAI_CACHE))
    except (OSError, RuntimeError) as error:
        state = "does not match its checksum" if target.is_file() else "is not there"
        raise ValueError(
            f"Weights of {name}: {target} {state} and the download failed ({error}). "
            f"Fetch {url} on a machine with network access and save it as {target}."
        ) from error
    return model.state_dict()


def _openai_url(name: str) -> str:
    # .../<sha256>/<file>, as every repository of the family uses it
    return clip.clip._MODELS[name]


def _toy_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path} is missing. Run `git checkout {path}` or `make toy-weights`.")
    state = load_file(path)
    rows, ids = state.pop("token_embedding.rows"), state.pop("token_embedding.ids")
    table = rows.new_zeros(_VOCABULARY, rows.shape[1])  # words the toy world does not know: zeros
    state["token_embedding.weight"] = table.index_copy(0, ids.long(), rows)
    return state


def _read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from safetensors, a TorchScript archive, or torch.save; nothing is executed."""
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.load")
            return torch.jit.load(path, map_location="cpu").state_dict()
    except RuntimeError:
        pass  # not an archive: a saved state dict
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is no state dict
        raise ValueError(
            f"{path} is neither a TorchScript archive, nor safetensors, nor a saved state dict: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return state.get("state_dict", state)


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# open_clip


def _load_open_clip(name: str, precision: str, device: torch.device) -> LoadedClip:
    import open_clip  # half a second that other models need not pay

    if name == KDPL_TEACHER:
        name = f"open_clip:{KDPL_TEACHER}/dfn5b"
    arch, _, tag = name.removeprefix("open_clip:").partition("/")
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if arch not in open_clip.list_models() or not (tag in tags or Path(tag).is_file()):
        raise ValueError(
            f"{name}: open_clip:<arch>/<tag> needs an architecture of open_clip.list_models() and "
            f"one of its tags or a weights file; tags of {arch!r}: {', '.join(tags) or 'none'}."
        )
    try:
        model = open_clip.create_model(
            arch,
            pretrained=tag,
            precision="fp16" if precision == "fp16" else "fp32",
            device=device,
        )
    except Exception as error:  # hub, network and file errors have no common class
        source = open_clip.get_pretrained_cfg(arch, tag)
        where = source.get("url") or f"https://huggingface.co/{source.get('hf_hub', '')}"
        raise ValueError(
            f"Weights of {name} could not be read ({str(error).splitlines()[0]}). Fetch them from "
            f"{where} on a machine with network access and name the file: open_clip:{arch}/<file>."
        ) from error
    tokenizer = open_clip.get_tokenizer(arch)
    pixels = getattr(model.visual, "preprocess_cfg", {})
    size = model.visual.image_size
    return LoadedClip(
        name=name,
        model=model,
        tokenize=functools.partial(_tokenize, tokenizer, model.context_length),
        digest=state_digest(model.state_dict()),
        image_size=size[0] if isinstance(size, (tuple, list)) else size,
        mean=tuple(pixels.get("mean", OPENAI_MEAN)),
        std=tuple(pixels.get("std", OPENAI_STD)),
        precision=precision,
        device=device,
    )


def state_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 of the names and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _tokenize(tokenizer: Callable, context_length: int, texts: list[str]) -> Tensor:
    """(len(texts), context_length) int64 ids.

    Args:
        tokenizer: cuts off what does not fit; so it is asked for one token more.
    Raises:
        ValueError: a text does not fit.
    """
    ids = tokenizer(texts, context_length=context_length + 1).long()
    padding = tokenizer([""], context_length=context_length + 1)[0, -1]
    for text, last in zip(texts, ids[:, -1], strict=True):
        if last != padding:
            raise ValueError(
                f"{text!r} does not fit the model's {context_length} tokens. Shorten the class "
                "name, the template or N_CTX."
            )
    return ids[:, :context_length]
