r"""Get the data sets, lay out their folders and check them.

    python -m datasets.prepare eurosat dtd --root $DATA       # or: all
    python -m datasets.prepare all --root $DATA --verify      # only look at what is there
    python -m datasets.prepare eurosat --root $DATA --verify --decode
    python -m datasets.prepare photos/my_data photos/list.csv --verify --decode

Names are those of configs/datasets (dtd), of the folders (caltech-101) or of the registry
(DescribableTextures). A path with a slash, or of a .csv file, is own data (docs/OWN_DATA.md): they
are checked, nothing else. Called again, it continues: nothing is downloaded or unpacked twice.
Where a file cannot be had, what to do by hand is printed. docs/DATASETS.md tells about each data
set.
"""

from __future__ import annotations

# First, since a signal may come during the imports below.
from entry import UsageError, run_script

# isort: split
import argparse
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY
from tabulate import tabulate

from datasets import imagenet_files
from datasets.base import FALLBACK, OTHER_FILE, FamilyDataset
from datasets.decoding import Checked, check_images
from datasets.download import DownloadError, fetch, fetch_member
from datasets.own_files import read_own
from datasets.sizes import SIZES, Sizes
from datasets.sources import MIRROR, SOURCES, Part, Source
from datasets.split import SPLITS
from datasets.unpack import UnpackError, unpack
from files import Lock
from wording import nearest

STEMS = {  # yaml of configs/datasets -> registry name; ImageNet first: others copy its names
    "imagenet": "ImageNet",
    "caltech101": "Caltech101",
    "oxford_pets": "OxfordPets",
    "stanford_cars": "StanfordCars",
    "oxford_flowers": "OxfordFlowers",
    "food101": "Food101",
    "fgvc_aircraft": "FGVCAircraft",
    "sun397": "SUN397",
    "dtd": "DescribableTextures",
    "eurosat": "EuroSAT",
    "ucf101": "UCF101",
    "imagenetv2": "ImageNetV2",
    "imagenet_sketch": "ImageNetSketch",
    "imagenet_a": "ImageNetA",
    "imagenet_r": "ImageNetR",
}
SMALL = (".json", ".txt")  # split files and lists, beside the images


def main(argv: list[str] | None = None) -> bool:
    """Do what the flags say; True when every data set is complete."""
    args = parse_args(argv)
    own = [name for name in args.names if is_path(name)]
    names = registry_names([name for name in args.names if name not in own])
    given = args.root or os.environ.get("DATA", "")
    if names and not given:
        raise UsageError("where to? Give --root FOLDER, or set DATA in the environment.")
    root = Path(given).expanduser().absolute()
    if args.verify and not root.is_dir():
        raise UsageError(f"--root {root} is no folder.")
    reports = [verify_own(path, args.decode) for path in own]
    for name in names:
        by_hand = [] if args.verify else prepare_alone(name, root, args.delete_archives)
        report = verify(name, root, args.decode)
        if not report.complete and by_hand:
            report.next_step = "by hand, see below"
            report.problems = by_hand + (report.problems if report.counts else [])
        reports.append(report)
    print(table(reports))
    for report in reports:
        lines = [report.note] if report.note else []
        lines += report.problems[:20]
        if lines:
            print(f"\n{report.name}:")
            print("\n".join(f"  - {line}" for line in lines))
            if len(report.problems) > 20:
                print(f"  - and {len(report.problems) - 20} more")
    return all(report.complete for report in reports)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"all, or {', '.join(STEMS)}")
    parser.add_argument("--root", help="folder that holds the data sets; default $DATA")
    parser.add_argument("--verify", action="store_true", help="download nothing, only check")
    parser.add_argument("--decode", action="store_true", help="also decode every image")
    parser.add_argument(
        "--delete-archives", action="store_true", help="remove archives once they are unpacked"
    )
    return parser.parse_args(argv)


def is_path(name: str) -> bool:
    """Whether a word is the folder or table of own data and no name of a data set."""
    return "/" in name or os.sep in name or name.lower().endswith((".csv", ".tsv"))


def registry_names(given: Iterable[str]) -> list[str]:
    """Registry names in the order of STEMS, of yaml, folder or registry names."""
    known = {"all": list(STEMS.values())}
    for stem, name in STEMS.items():
        for spelling in (stem, name, dataset(name).dataset_dir):
            known[spelling.lower()] = [name]
    unknown = [name for name in given if name.lower() not in known]
    if unknown:
        close = nearest(unknown[0].lower(), known)
        hint = f" Do you mean {close!r}?" * bool(close)
        raise UsageError(f"{', '.join(unknown)}: not known.{hint} Known: all, {', '.join(STEMS)}.")
    wanted = {name for one in given for name in known[one.lower()]}
    return [name for name in STEMS.values() if name in wanted]


def dataset(name: str) -> type[FamilyDataset]:
    return DATASET_REGISTRY.get(name)


# Getting


def prepare_alone(name: str, root: Path, delete_archives: bool = False) -> list[str]:
    """prepare(), while no other process does it in the same folder. Raises Busy otherwise."""
    folder = root / dataset(name).dataset_dir
    folder.mkdir(parents=True, exist_ok=True)
    doing = f"preparing {name} in {folder}"
    with Lock(folder / ".prepare.lock", doing, "Wait for it, then run the same line again."):
        return prepare(name, root, delete_archives)


def prepare(name: str, root: Path, delete_archives: bool = False) -> list[str]:
    """Bring a data set's files into its folder; return what is left to do by hand."""
    cls, source = dataset(name), SOURCES[name]
    folder = root / cls.dataset_dir
    folder.mkdir(parents=True, exist_ok=True)
    print(f"== {name}: {folder}", flush=True)
    for other in source.copied:
        copy, original = folder / Path(other).name, root / other
        if original.is_file() and not copy.exists():
            shutil.copyfile(original, copy)
    failures: list[str] = []
    for part in sorted(source.parts, key=lambda part: part.file == cls.split_file):
        if part.file != cls.split_file or cls.split_file in _absent(name, folder):
            _get(part, folder, failures, delete_archives)
    if _absent(name, folder) and source.mirror:
        _get_from_mirror(name, folder, failures, delete_archives)
    if name == "ImageNet":
        failures += imagenet_files.lay_out(folder)
    absent = _absent(name, folder)
    images = [product for product in absent if not product.endswith(SMALL)]
    if name == "ImageNet":  # its archives are no parts: they are behind a login
        images = [part for part in ("train", "val") if not (folder / "images" / part).is_dir()]
        steps = failures
    else:
        steps = failures if absent else []
    if images and source.manual:
        steps.append(source.manual.format(folder=folder))
        absent = [product for product in absent if product.endswith(SMALL)]
    if absent:
        steps.append(_by_hand(source, folder, absent, cls.split_file))
    return steps


def _absent(name: str, folder: Path) -> list[str]:
    """What a usable data set lacks; a split file only where the lists it is made of lack too."""
    cls = dataset(name)
    wanted = [one for one in SOURCES[name].wanted if not (folder / one).exists()]
    if cls.reproducible and all((folder / one).exists() for one in cls.needed):
        wanted = [one for one in wanted if one != cls.split_file]
    return wanted


def _get(part: Part, folder: Path, failures: list[str], delete_archives: bool) -> None:
    if all((folder / product).exists() for product in part.products):
        return
    try:
        path = fetch(part.urls, folder / part.file, part.md5)
        if part.makes:
            _install(path, folder, part)
            if delete_archives:
                path.unlink()
    except (DownloadError, UnpackError) as error:
        failures.append(str(error))


def _get_from_mirror(name: str, folder: Path, failures: list[str], delete_archives: bool) -> None:
    """Take what is absent from the archive of the whole folder, or only a small file of it."""
    source, absent = SOURCES[name], _absent(name, folder)
    url = f"{MIRROR}/{source.mirror}"
    small = [name for name in absent if name.endswith(SMALL)]
    try:
        if absent == small:
            for name in small:
                fetch_member(url, name, folder / name)
        else:
            part = Part(f"mirror-{source.mirror}", (url,), makes=tuple(absent), limit=source.limit)
            path = fetch(part.urls, folder / part.file)
            _install(path, folder, part)
            if delete_archives:
                path.unlink()
    except (DownloadError, UnpackError) as error:
        failures.append(str(error))


def _install(archive: Path, folder: Path, part: Part) -> None:
    """Unpack beside, then move: what lies under its own name is whole."""
    staging = folder / f".unpacking-{archive.name}"
    try:
        unpack(archive, staging, part.limit)
        if part.inner:
            inner = _find(staging, part.inner)
            if inner is None:
                raise UnpackError(f"{archive} has no {part.inner} in it")
            unpack(inner, staging / ".inner", part.limit)
            staging_of_product = staging / ".inner"
        else:
            staging_of_product = staging
        for wish in part.makes:
            product, _, name = wish.partition("<-")
            if (folder / product).exists():
                continue
            found = _find(staging_of_product, name or product)
            if found is None:
                raise UnpackError(f"{archive} has no {name or product} in it")
            os.replace(found, folder / product)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _find(folder: Path, name: str, depth: int = 4) -> Path | None:
    """The file or folder of that name that lies least deep."""
    level = [folder]
    for _ in range(depth):
        for place in level:
            if (place / name).exists():
                return place / name
        level = [Path(item) for place in level for item in os.scandir(place) if item.is_dir()]
    return None


def _by_hand(source: Source, folder: Path, absent: list[str], split_file: str) -> str:
    """What to download where to, for parts whose addresses do not answer."""
    steps = []
    if split_file in absent:  # the lists do instead
        lists = [one for part in source.parts if part.annotations for one in part.products]
        absent = [one for one in absent if one != split_file or not lists] + lists
    for part in source.parts:
        if set(part.products) & set(absent):
            urls = " or ".join(url.replace("drive:", "https://drive.google.com/uc?id=")
                               for url in part.urls)  # fmt: skip
            steps.append(f"{part.file} from {urls}")
    text = f"download into {folder}: " + "; ".join(steps)
    if source.mirror:
        text += f" (or all of it: {MIRROR}/{source.mirror}, saved as mirror-{source.mirror})"
    return text + ". Then run this command again"


# Checking


@dataclass
class Report:
    """What verify() found of a data set."""

    name: str
    classes: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    verdict: str = "missing"
    split: str = ""  # where it is from
    note: str = ""  # what it is
    problems: list[str] = field(default_factory=list)
    next_step: str = ""

    @property
    def complete(self) -> bool:
        return self.verdict == "complete"


def verify(name: str, root: Path, decode: bool = False) -> Report:
    """Compare a data set's folder with the counts of sizes.py, and maybe decode its images."""
    cls, report = dataset(name), Report(name)
    folder = root / cls.dataset_dir
    again = f"python -m datasets.prepare {folder.name} --root {root}"
    report.next_step = again
    try:
        split, problems, report.split, _, report.note = cls.inspect(folder)
    except (ValueError, OSError) as error:
        report.problems = [] if not folder.exists() else [" ".join(str(error).split())]
        return report
    report.classes = len({entry.label for part in split for entry in part})
    report.counts = {part: len(getattr(split, part)) for part in SPLITS}
    report.problems = problems
    if decode:
        paths = sorted({entry.path for part in split for entry in part})
        images = folder / cls.image_dir
        report.problems += broken(check_images([os.path.join(images, path) for path in paths]))
    if report.problems:
        report.verdict = "incomplete"
        report.next_step = f"remove what is incomplete in {folder}, then {again}"
    elif report.split in (FALLBACK, OTHER_FILE):
        report.verdict, report.next_step = "split not the published one", "see below"
    else:
        report.verdict, report.next_step = "complete", "-"
    return report


def verify_own(place: str, decode: bool = False) -> Report:
    """What ImageFolder or CSV would make of a folder or table, and maybe of its images."""
    report = Report(place, next_step="correct what is listed below")
    try:
        listing = read_own(place)
    except (ValueError, OSError) as error:
        report.problems = [" ".join(str(error).split())]
        return report
    report.classes = len({entry.label for part in listing.split for entry in part})
    report.counts = {part: len(getattr(listing.split, part)) for part in SPLITS}
    report.problems = list(listing.problems)
    notes = list(listing.notes)
    if decode:
        checked = check_images(listing.paths())
        report.problems += broken(checked)
        notes += checked.notes()
    report.verdict = "incomplete" if report.problems else "complete"
    if report.complete:
        report.next_step = "-"
    print("".join(f"{place}: {note}.\n" for note in notes), end="")
    return report


def broken(checked: Checked) -> list[str]:
    """Images that cannot be decoded to the last pixel, with the reason."""
    return [f"{path}: broken ({why}); fetch it again" for path, why in checked.broken.items()]


def table(reports: list[Report]) -> str:
    """One row per data set; a number beside the one expected where they differ."""

    def cell(found: int | None, expected: int | None) -> str:
        if expected is None and not found:
            return "-"
        if expected is None or found == expected:
            return f"{found:,}"
        return f"{found or 0:,} / {expected:,}"

    rows = []
    for report in reports:
        sizes = SIZES.get(report.name, Sizes(report.classes, None, None, None))
        counts = [cell(report.counts.get(part), getattr(sizes, part)) for part in SPLITS]
        if report.name == "ImageNet" and report.counts:
            counts[1] = "= test"
        classes = f"{report.classes} / {sizes.classes}"
        rows.append(
            [report.name, classes, *counts, report.split or "-", report.verdict, report.next_step]
        )
    headers = ["data set", "classes found / expected", *SPLITS, "split", "verdict", "next step"]
    return tabulate(rows, headers, disable_numparse=True)


def run(argv: list[str] | None = None) -> int:
    """The command as a function; 0: all complete, 1: something is missing, 2: wrong usage."""
    return run_script(lambda: int(not main(argv)))


if __name__ == "__main__":
    sys.exit(run())
