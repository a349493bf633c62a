r"""Draw toy images into class folders and a CSV: something to try own data with.

    python -m datasets.export_toy data/my_data --classes 8 --images 20

Writes data/my_data/images/<class>/0000.png, ... and data/my_data/list.csv (path,label).
"""

from __future__ import annotations

# First, since a signal may come during the imports below.
from entry import run_script

# isort: split
import argparse
import csv
import sys
from pathlib import Path

from datasets.toy import TOY_SETS
from wording import counted


def main(argv: list[str] | None = None) -> None:
    """Draw what the flags say; a folder that holds something is refused."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.export_toy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="where to; must not exist, or be empty")
    parser.add_argument("--data-set", default="ToyShapesNone", choices=list(TOY_SETS))
    parser.add_argument("--classes", type=int, default=8)
    parser.add_argument("--images", type=int, default=20, help="per class")
    args = parser.parse_args(argv)
    if args.folder.exists() and any(args.folder.iterdir()):
        raise ValueError(f"{args.folder} is not empty. Give another folder, or remove it.")
    toy_set = TOY_SETS[args.data_set]
    rows = []
    for label, thing in enumerate(toy_set.classes[: args.classes]):
        for index in range(args.images):
            path = Path("images", thing.name.replace(" ", "_"), f"{index:04d}.png")
            (args.folder / path).parent.mkdir(parents=True, exist_ok=True)
            toy_set.picture("train", label, index).save(args.folder / path)
            rows.append((path.as_posix(), thing.name))
    with (args.folder / "list.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    wrote = f"{counted(len(rows), 'image')} of {counted(args.classes, 'class')}"
    print(f"Wrote {wrote} and list.csv to {args.folder}.")


if __name__ == "__main__":
    sys.exit(run_script(main))
