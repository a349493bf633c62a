"""Small helpers for files, images, seeds and names."""

from __future__ import annotations

import difflib
import json
import os
import platform
import random
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image


def mkdir_if_missing(dirname: str | os.PathLike) -> None:
    """Create a folder and its parents; "" is the current folder and needs nothing."""
    if os.fspath(dirname):
        os.makedirs(dirname, exist_ok=True)


def check_isfile(fpath: str | os.PathLike) -> bool:
    """Tell whether a file exists, and warn when it does not."""
    exists = os.path.isfile(fpath)
    if not exists:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return exists


def read_json(fpath: str | os.PathLike) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: the content is not JSON; the message names the file.
    """
    with open(fpath, encoding="utf-8") as file:
        try:
            return json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"{fpath} is not valid JSON ({error}); fetch it again.") from error


def write_json(obj: Any, fpath: str | os.PathLike) -> None:
    """Write a JSON file, creating its folder."""
    mkdir_if_missing(os.path.dirname(fpath))
    with open(fpath, "w", encoding="utf-8") as file:
        json.dump(obj, file, indent=4)


def set_random_seed(seed: int) -> None:
    """Seed python, numpy and torch on every device. 0 is a seed like any other.

    Raises:
        ValueError: the seed is outside [0, 2**32 - 1], numpy's range.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; a seed lies in [0, 2**32 - 1]. Leave unseeded instead?")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # seeds CUDA as well, also when it is initialised later


def read_image(path: str | os.PathLike) -> Image.Image:
    """Read an image file as RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a readable image; the message names it.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"No image at {path}; check DATASET.ROOT.") from None
    except Exception as error:  # decoders raise many kinds, such as SyntaxError for a broken PNG
        raise ValueError(f"{path} is not a readable image ({error}); fetch it again.") from error


def listdir_nohidden(path: str | os.PathLike, sort: bool = False) -> list[str]:
    """Names in a folder that do not start with a dot."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def check_availability(requested: str, available: Iterable[str]) -> None:
    """Refuse a name that is not registered.

    Raises:
        ValueError: with the known names and the closest one.
    """
    known = list(available)
    if requested in known:
        return
    alike = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(requested.casefold(), alike, n=1)
    hint = f" Do you mean {alike[close[0]]!r}?" if close else ""
    listing = ", ".join(known) if known else "none: is the module that registers them imported?"
    raise ValueError(f"{requested!r} is not known.{hint} Known: {listing}")


def tolist_if_not(x: Any) -> list:
    """Wrap anything but a list into a list of one."""
    return x if isinstance(x, list) else [x]


def collect_env_info() -> str:
    """Versions and devices, one per line, without starting other programs."""
    import torchvision

    lines = {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "Pillow": PIL.__version__,
        "CPU cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "CUDA (torch build)": torch.version.cuda or "none",
    }
    if torch.cuda.is_available():
        lines["cuDNN"] = torch.backends.cudnn.version()
        for index in range(torch.cuda.device_count()):
            lines[f"GPU {index}"] = torch.cuda.get_device_name(index)
    return "\n".join(f"{name}: {value}" for name, value in lines.items())
