"""Data sets, registered with Dassl under DATASET.NAME by being imported here."""

from __future__ import annotations

from datasets import toy

__all__ = ["toy"]
