"""Words of messages that more than one part of the code says."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """1 class, 2 classes, 1,000 images."""
    plural = "es" if noun.endswith(("s", "ch")) else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"
