"""The bars that speed is held against, and which of them a run met."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

CPU, GPU = "cpu", "cuda"


class Bar(NamedTuple):
    """A ratio that a benchmark prints, and what it has to be."""

    ratio: str
    wanted: float
    classes: int
    device: str = CPU
    student: str = ""  # "": any
    at_most: bool = False  # else at least

    def check(self, found: float) -> bool:
        return found <= self.wanted if self.at_most else found >= self.wanted


# One-thread CPU time on a CPU, GPU time on one H200-class device; batch 32, teacher ViT-H/14.
STEP = (
    Bar("fdbpl_vs_kdpl_online", 130, 50),
    Bar("fdbpl_vs_kdpl_online", 25, 500),
    Bar("fdbpl_vs_coop_official", 20, 50, student="ViT-B/16"),
    Bar("fdbpl_vs_coop_official", 12, 50, student="ViT-B/32"),
    Bar("fdbpl_vs_coop_official", 11, 500),
    Bar("fdbpl_vs_fdbpl_authors", 20, 50),
    Bar("fdbpl_vs_fdbpl_authors", 20, 500),
    Bar("text_vs_77", 17, 50),
    Bar("text_vs_77", 20, 100),
    Bar("saved_activations_vs_77", 18, 50),
    Bar("regions_32x8_vs_32", 1.1, 50, at_most=True),
    Bar("coop_vs_official", 1.5, 50),
    Bar("coop_cached_vs_official", 15, 50),
    Bar("fdbpl_vs_kdpl_online_bf16", 15, 50, GPU),
    Bar("fdbpl_vs_kdpl_online", 60, 50, GPU),
    Bar("fdbpl_vs_coop_official", 3, 50, GPU),
    Bar("fdbpl_vs_coop_official", 8, 500, GPU),
    Bar("fdbpl_vs_coop_official_with_data", 8, 50, GPU),
)


def check_step(
    ratios: Mapping[int, Mapping[str, float]], device: str, student: str
) -> list[dict[str, Any]]:
    """Every bar whose ratio was measured: what was wanted, what was found, whether it was met."""
    checked = []
    for bar in STEP:
        found = ratios.get(bar.classes, {}).get(bar.ratio)
        if found is None or bar.device != device or bar.student not in ("", student):
            continue
        checked.append(
            {
                "ratio": bar.ratio,
                "classes": bar.classes,
                "wanted": f"{'at most' if bar.at_most else 'at least'} {bar.wanted:g}x",
                "found": found,
                "met": bar.check(found),
            }
        )
    return checked


def lines(checked: list[dict[str, Any]]) -> str:
    """One line a bar, for the terminal."""
    return "\n".join(
        f"{'met    ' if bar['met'] else 'NOT MET'}  {bar['ratio']} at {bar['classes']} classes: "
        f"{bar['found']:g}x, wanted {bar['wanted']}"
        for bar in checked
    )
