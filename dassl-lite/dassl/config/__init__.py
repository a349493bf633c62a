"""The default config tree and the tools to copy and trim it."""

from __future__ import annotations

from yacs.config import CfgNode

from .defaults import DEFAULTS

__all__ = ["clean_cfg", "get_cfg_default"]


def get_cfg_default() -> CfgNode:
    """Return a fresh, unfrozen config with every default; changing it changes no other copy."""
    return CfgNode(DEFAULTS)


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Drop, in place, the TRAINER nodes of other methods, so that a printed config stays short."""
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer.upper()):
            del cfg.TRAINER[key]
