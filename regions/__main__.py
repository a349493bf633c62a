"""Tools for region stores: python -m regions verify|info|merge|convert|diff|show STORE..."""

from __future__ import annotations

# First, since a signal may come during the imports below.
from entry import run_script

# isort: split
import argparse
import sys

from regions import tools, tools_merge, tools_text
from regions.kinds import KINDS, VALUES
from wording import counted


def verify(args: argparse.Namespace) -> int:
    found = tools.verify(args.store, args.threads)
    for name in found.strangers:
        print(f"not part of the store: {name}")
    for damage in found.damages:
        print(f"damaged: {damage.file}: {damage.why}", file=sys.stderr)
    size = f"{counted(found.files, 'file')}, {tools_text.human(found.bytes)}"
    if found.damages:
        print(f"{args.store}: {len(found.damages)} of {size} damaged.")
        return 1
    print(f"{args.store} is whole: {size}.")
    return 0


def info(args: argparse.Namespace) -> int:
    print(tools_text.info(args.store))
    return 0


def merge(args: argparse.Namespace) -> int:
    merged = tools_merge.merge(args.store, args.out)
    if merged.shared:
        print(
            f"{merged.shared} images were in several stores: the first was taken. "
            f"Their logits differ by at most {merged.difference:.3g}."
        )
    spec = merged.store.spec
    size = counted(len(spec.images), "image"), counted(spec.num_regions, "region")
    print(f"Wrote {args.out}: {' x '.join(size)}.")
    return 0


def convert(args: argparse.Namespace) -> int:
    store = tools.convert(args.store, args.out, args.to, args.dtype, args.top_k)
    size = tools_text.human(sum(file.stat().st_size for file in store.path.iterdir()))
    print(f"Wrote {args.out}: {store.spec.kind} in {store.spec.dtype}, {size}.")
    return 0


def diff(args: argparse.Namespace) -> int:
    lines = tools_text.diff(args.store, args.other)
    print("\n".join(lines) or "no difference")
    return 1 if lines else 0


def show(args: argparse.Namespace) -> int:
    from regions.show import show  # it brings torch and Pillow

    print(f"Wrote {show(args.store, args.root, args.out, args.images, args.image, args.seed)}")
    return 0


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m regions", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(call, text: str, many: bool = False) -> argparse.ArgumentParser:
        command = commands.add_parser(call.__name__, help=text, description=text)
        command.set_defaults(call=call)
        command.add_argument("store", metavar="STORE", nargs="+" if many else None)
        return command

    command = add(verify, "check every file; exit code 1 and the names of damaged ones")
    command.add_argument("--threads", type=int, help="files at a time; default: up to 8")
    add(info, "what a store holds, how large it is, and how often its teacher is right")
    command = add(merge, "one store of several: shards of one dump, or different images", many=True)
    command.add_argument("--out", required=True, help="folder of the new store")
    command = add(convert, "the same regions kept as another kind, where that is possible")
    command.add_argument("--to", required=True, choices=KINDS)
    command.add_argument("--out", required=True, help="folder of the new store")
    command.add_argument("--top-k", type=int, default=0, help="classes kept by topk; default 10")
    command.add_argument("--dtype", choices=VALUES, help="of the values; default: as they are")
    command = add(diff, "what differs between two stores; exit code 1 when anything does")
    command.add_argument("other", metavar="OTHER")
    command = add(show, "a page and pictures of regions, in order of their weight w")
    command.add_argument("--root", required=True, help="data root, as in the dump")
    command.add_argument("--out", required=True, help="folder for index.html and the pictures")
    command.add_argument("--images", type=int, default=6, help="how many random images; default 6")
    command.add_argument("--image", action="append", default=[], help="this image; may repeat")
    command.add_argument("--seed", type=int, default=0, help="of the random images; default 0")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run one tool: 0 done, 1 error, damage or difference, 2 wrong usage, 130 interrupted.

    Errors are one line on stderr; set FDBPL_TRACEBACK=1 to see where one comes from.
    """
    args = parse_args(argv)
    return run_script(lambda: args.call(args), again="")


if __name__ == "__main__":
    sys.exit(main())
