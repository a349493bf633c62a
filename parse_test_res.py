r"""Runs -> mean and spread over seeds, and one table that compares methods.

    python parse_test_res.py output/base2new/train_base/oxford_pets/shots_16/CoOp/vit_b32_ctxv1
    python parse_test_res.py output/base2new/test_new/oxford_pets/shots_16/CoOp/vit_b32_ctxv1 \
        --test-log
    python parse_test_res.py output --compare --format markdown --out table.md
    python parse_test_res.py output --compare --protocol few_shot --published --pictures pictures
    python parse_test_res.py output --compare --baseline CoOp

Without --compare it reads log.txt, as the tools of CoOp's family do and also for their runs. With
--compare it reads results.json, which keeps full precision.
"""

from __future__ import annotations

# First, since a signal may come during the imports below.
from entry import run_script

# isort: split
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from reporting.compare import compare, protocols_below
from reporting.logs import LogError, subfolders, summarise
from reporting.methods import PROTOCOLS
from reporting.results import ResultError, write_text
from reporting.tables import FORMATS, Table, render


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Mean and standard deviation over seeds, or a table that compares methods."
    )
    parser.add_argument("directory", nargs="?", help="folder of seed folders; --compare: output")
    parser.add_argument("--ci95", action="store_true", help="95%% confidence interval, not std")
    parser.add_argument("--test-log", action="store_true", help="logs of --eval-only runs")
    parser.add_argument("--multi-exp", action="store_true", help="folder of such folders")
    parser.add_argument("--keyword", default="accuracy", help="accuracy, macro_f1 or error")
    table = parser.add_argument_group("one table, methods side by side")
    table.add_argument("--compare", action="store_true", help="tables from results.json")
    table.add_argument("--protocol", choices=PROTOCOLS, help="only this; default: all there are")
    table.add_argument("--baseline", default="", help="trainer that paired differences are to")
    table.add_argument(
        "--published", action="store_true", help="beside numbers that others printed"
    )
    table.add_argument("--sweep", action="store_true", help="a row per share of the hand-written "
                       "prompt that was tested")  # fmt: skip
    table.add_argument("--pictures", type=Path, help="draw into this folder, as PNG and PDF")
    table.add_argument("--trainers", nargs="+", default=[], help="only these")
    table.add_argument("--datasets", nargs="+", default=[], help="only these yaml stems or names")
    table.add_argument("--configs", nargs="+", default=[], help="only these yaml stems")
    table.add_argument("--shots", nargs="+", default=[], type=int, help="only these")
    table.add_argument("--format", choices=FORMATS, default="text")
    table.add_argument("--out", type=Path, help="write here instead of to the screen")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_script(lambda: run(argv), again="")


def run(argv: Sequence[str] | None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.directory is None and not args.compare:
        parser.error("give the folder that holds the seed folders, or --compare")
    if args.compare:
        print_comparison(args)
    elif args.multi_exp:
        print_experiments(args)
    else:
        print(summarise(args.directory, args.keyword, args.test_log, args.ci95).text)


def print_comparison(args: argparse.Namespace) -> None:
    root = args.directory or "output"
    tables: dict[str, Table] = {}
    for protocol in [args.protocol] if args.protocol else protocols_below(root):
        tables[protocol] = compare(
            protocol,
            root,
            published=args.published,
            ci95=args.ci95,
            trainers=args.trainers,
            datasets=args.datasets,
            configs=args.configs,
            shots=args.shots,
            baseline=args.baseline,
            sweep=args.sweep,
        )
    text = "\n\n".join(render(table, args.format) for table in tables.values())
    if len(tables) > 1 and args.format in ("csv", "json"):
        raise ResultError(
            f"{root} holds {', '.join(tables)}: {args.format} takes one table, choose by --protocol"
        )
    if args.format == "csv":  # nothing but the table fits in there
        for table in tables.values():
            for line in [*table.caption, *table.notes]:
                print(line, file=sys.stderr)
    if args.out:
        write_text(args.out, text)
        print(f"wrote {args.out}")
    else:
        print(text, end="")
    if args.pictures:
        from reporting.plots import draw_all  # matplotlib takes a while

        for protocol, table in tables.items():
            for path in draw_all(protocol, table, args.pictures):
                print(f"wrote {path}")


def print_experiments(args: argparse.Namespace) -> None:
    """Summarise every folder in the directory, then average their means."""
    if not Path(args.directory).is_dir():
        raise LogError(f"{args.directory} is not a folder; give the one that holds the runs.")
    means = []
    for folder in subfolders(args.directory):
        try:
            text, mean = summarise(folder, args.keyword, args.test_log, args.ci95)
        except LogError as error:
            print(f"{error}\n{folder.name}: left out of the average")
            continue
        print(text)
        means.append(mean)
    if not means:
        raise LogError(f"Nothing found in {args.directory}")
    print("Average performance")
    print(f"* {args.keyword}: {fmean(means):.2f}%")
    print(f"experiments: {len(means)}")


if __name__ == "__main__":
    sys.exit(main())
