r"""Recognise images with the prompts of a run.

    python predict.py --model-dir output/base2new/train_base/oxford_pets/.../seed1 cat.jpg photos/
    ls photos/*.jpg | python predict.py --model-dir RUN --classnames "tabby cat" "Persian cat" -- -

Takes images, folders (searched for images), and - for a list of paths on stdin. The data set of the
run is not needed. Prints the top classes of each image with their probabilities.
"""

from __future__ import annotations

# First, since a signal may come during the imports below.
from entry import UsageError, run_script

# isort: split
import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from dassl.data.transforms import build_transform

from inputs import SUFFIXES, is_image, read_image, read_text
from trained import add_run_flags, open_run
from wording import printable

LISTS = (".csv", ".json", ".list", ".lst", ".tsv", ".txt")  # how files of names may end


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_run_flags(parser)
    parser.add_argument("--top", type=int, default=5, help="classes to print per image")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument("images", nargs="+", help="images, folders, or - for paths on stdin")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    names, paths = read_names(args.classnames), list(find_images(args.images))
    if len(names) == 1:
        raise UsageError(f"--classnames has one name, {names[0]!r}: every image would be it")
    if not paths:
        raise UsageError(f"no image in {' '.join(args.images)} ({', '.join(SUFFIXES)})")
    told = sys.stdout
    sys.stdout = sys.stderr  # what the trainer says on loading is not the answer
    try:
        trainer = open_run(args.model_dir, names, args.load_epoch)
        transform = build_transform(trainer.cfg, is_train=False)
    finally:
        sys.stdout = told
    for start in range(0, len(paths), args.batch_size):
        batch = paths[start : start + args.batch_size]
        probabilities_BC = recognise(trainer, transform, batch)
        for path, probability_C in zip(batch, probabilities_BC, strict=True):
            print(line(path, probability_C, trainer, args))


def find_images(given: Sequence[str]) -> Iterator[Path]:
    """Images as they are named, those below folders sorted, and paths read from stdin.

    Raises:
        UsageError: a path does not exist.
    """
    for word in given:
        if word == "-":
            yield from find_images([text.strip() for text in sys.stdin if text.strip()])
            continue
        path = Path(word)
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if _is_seen(file, path))
        elif path.is_file():
            yield path
        else:
            raise UsageError(f"there is no image or folder {path}")


def _is_seen(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return is_image(file.name) and not hidden


def read_names(given: Sequence[str]) -> list[str]:
    """Class names, or those in a file.

    Raises:
        UsageError: a file is absent, has no name, or is not alone; a name is given twice.
        ValueError: the file is not in UTF-8.
    """
    names, one = list(given), len(given) == 1
    if one and Path(names[0]).is_file():
        names = [text.strip() for text in read_text(names[0]).splitlines() if text.strip()]
        if not names:
            raise UsageError(f"--classnames {given[0]}: the file has no name in it")
    else:
        for name in names:
            if name.lower().endswith(LISTS) or (one and set("/\\") & set(name)):
                there = "is not alone" if Path(name).exists() else "does not exist"
                raise UsageError(
                    f"--classnames {name} {there}; give names, or one file with a name a line"
                )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"--classnames has {', '.join(twice)} twice")
    return names


@torch.no_grad()
def recognise(trainer, transform: Callable, paths: Sequence[Path]) -> torch.Tensor:
    """Probabilities (B, C) of image files, prepared by the transform of the run's test."""
    images = torch.stack([transform(read_image(path)) for path in paths]).to(trainer.device)
    return trainer.model_inference(images).float().softmax(dim=-1).cpu()


def line(path: Path, probability_C: torch.Tensor, trainer, args: argparse.Namespace) -> str:
    top = probability_C.topk(min(args.top, len(probability_C)))
    names = [trainer.lab2cname[label] for label in top.indices.tolist()]
    pairs = list(zip(names, top.values.tolist(), strict=True))
    if args.format == "json":
        return json.dumps({"image": str(path), "top": dict(pairs)}, ensure_ascii=False)
    said = ", ".join(f"{name} {100 * share:.1f} %" for name, share in pairs)
    return printable(f"{path}: {said}")  # one line, whatever is in a file's name


if __name__ == "__main__":
    sys.exit(run_script(main, again=""))
