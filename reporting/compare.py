"""One entry to the tables of all protocols."""

from __future__ import annotations

from pathlib import Path

from reporting import base2new, columns
from reporting.methods import BASE2NEW, FEW_SHOT, PROTOCOLS, is_domain
from reporting.paths import FEW_SHOT_TRAIN, PHASE_OF_SCOPE, XD_TEST, parse_run_dir
from reporting.published import with_published
from reporting.results import FILE_NAME, ResultError
from reporting.tables import Table, with_ci95


def protocols_below(root: str | Path) -> list[str]:
    """The protocols that have a result below `root`; base-to-new where none has.

    Raises:
        ResultError: `root` is not a folder.
    """
    if not Path(root).is_dir():
        raise ResultError(f"{root} is not a folder; give the folder that --output-dir lies in.")
    found = set()
    for path in Path(root).rglob(FILE_NAME):
        place = parse_run_dir(path.parent)
        if place is None:
            continue
        if place.phase in PHASE_OF_SCOPE.values():
            found.add(BASE2NEW)
        elif place.phase == FEW_SHOT_TRAIN:
            found.add(FEW_SHOT)
        elif place.phase == XD_TEST:
            found.add(PROTOCOLS[2] if is_domain(place.dataset) else PROTOCOLS[1])
    return [name for name in PROTOCOLS if name in found] or [BASE2NEW]


def compare(
    protocol: str,
    root: str | Path,
    published: bool = False,
    ci95: bool = False,
    **choices,
) -> Table:
    """The table of one protocol; `choices` are the filters, baseline and sweep of base2new.compare.

    Raises:
        ResultError: `root` is not a folder.
    """
    if protocol == BASE2NEW:
        table = base2new.compare(root, **choices)
    else:
        table = columns.compare_columns(protocol, root, **choices)
    if ci95:
        table = with_ci95(table)
    if published:
        table = with_published(
            table, protocol, choices.get("trainers", ()), choices.get("datasets", ())
        )
    return table
