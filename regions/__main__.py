"""Tools for region stores: python -m regions verify|info|show STORE"""

from __future__ import annotations

# First, since a signal may come during the imports below.
from entry import run_script

# isort: split
import argparse
import sys

from files import human
from wording import counted


def verify(args: argparse.Namespace) -> int:
    from regions.tools.verify import verify as check

    found = check(args.store, args.threads)
    for name in found.strangers:
        print(f"not part of the store: {name}")
    for damage in found.damages:
        print(f"damaged: {damage.file}: {damage.why}", file=sys.stderr)
    size = f"{counted(found.files, 'file')}, {human(found.bytes)}"
    if found.damages:
        print(f"{args.store}: {len(found.damages)} of {size} damaged.")
        return 1
    print(f"{args.store} is whole: {size}.")
    return 0


def info(args: argparse.Namespace) -> int:
    from regions.tools.info import info as told_of  # it brings torch

    print(told_of(args.store))
    return 0


def show(args: argparse.Namespace) -> int:
    from regions.tools.show import show as write_page

    print(
        f"Wrote {write_page(args.store, args.root, args.out, args.images, args.image, args.seed)}"
    )
    return 0


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m regions", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(call, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(call.__name__, help=text, description=text)
        command.set_defaults(call=call)
        command.add_argument("store", metavar="STORE")
        return command

    command = add(verify, "check every file; exit code 1 and the names of damaged ones")
    command.add_argument("--threads", type=int, help="files at a time; default: up to 8")
    add(info, "what a store holds, how large it is, and how often its teacher is right")
    command = add(show, "a page of regions, in order of their weight w")
    command.add_argument("--root", required=True, help="data root, as in the dump")
    command.add_argument("--out", required=True, help="folder for index.html")
    command.add_argument("--images", type=int, default=6, help="how many random images; default 6")
    command.add_argument("--image", action="append", default=[], help="this image; may repeat")
    command.add_argument("--seed", type=int, default=0, help="of the random images; default 0")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run one tool: 0 done, 1 error or damage, 2 wrong usage, 130 interrupted.

    Errors are one line on stderr; set FDBPL_TRACEBACK=1 to see where one comes from.
    """
    args = parse_args(argv)
    return run_script(lambda: args.call(args), again="")


if __name__ == "__main__":
    sys.exit(main())
