"""What a planned run would be, as far as config files and folders tell it now: no data are read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from reporting.identity import LATER, Identity, read_identity, run_identity


def planned_identity(
    words: Sequence[str],
    root: str | Path,
    trained: str | Path | None = None,
    epoch: int | None = None,
) -> Identity:
    """The identity of a run of train.py.

    Args:
        words: its flags and KEY VALUE pairs.
        root: folder that relative paths in them start from.
        trained: folder of the training that a test reads, and the epoch it reads.
    Raises:
        ValueError: the config files of now do not fit.
        IdentityError: the training's identity.json is damaged.
    """
    from configs.cli import add_family_flags, setup_cfg  # a plan of new runs needs no config

    parser = argparse.ArgumentParser()
    add_family_flags(parser)
    args = parser.parse_args(list(words))
    for name in ("config_file", "dataset_config_file"):
        if getattr(args, name):
            setattr(args, name, str(Path(root, getattr(args, name))))
    own = run_identity(setup_cfg(args), dict.fromkeys(LATER), args.eval_only, root)
    if trained is not None:
        known = read_identity(Path(root, trained)) or {"identity": "unknown", "weights": None}
        own["trained"] = {**known, "epoch": epoch}
    return own
