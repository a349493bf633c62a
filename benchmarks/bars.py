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

    def result(self, found: float, student: str) -> dict[str, Any]:
        """What was wanted, what was found, and whether that is enough."""
        return {
            "ratio": self.ratio,
            "student": student,
            "classes": self.classes,
            "wanted": f"{'at most' if self.at_most else 'at least'} {self.wanted:g}x",
            "found": found,
            "met": found <= self.wanted if self.at_most else found >= self.wanted,
        }


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

# A whole run of three seeds at 50 classes, dump and all; M regions per image.
WHOLE = (
    Bar("whole_vs_kdpl_online_m16", 2.8, 50),
    Bar("whole_vs_kdpl_online_m4", 10, 50),
)


def check_step(
    ratios: Mapping[int, Mapping[str, float]], device: str, student: str
) -> list[dict[str, Any]]:
    """Every bar of a step whose ratio was measured."""
    return [
        bar.result(ratios[bar.classes][bar.ratio], student)
        for bar in STEP
        if bar.device == device
        and bar.student in ("", student)
        and bar.ratio in ratios.get(bar.classes, {})
    ]


def check_whole(ratios: Mapping[str, float], classes: int, student: str) -> list[dict[str, Any]]:
    """Every bar of a whole run whose ratio was measured."""
    return [
        bar.result(ratios[bar.ratio], student)
        for bar in WHOLE
        if bar.classes == classes and bar.ratio in ratios
    ]


def lines(checked: list[dict[str, Any]]) -> str:
    """One line a bar, for the terminal."""
    return "\n".join(
        f"{'met    ' if bar['met'] else 'NOT MET'}  {bar['ratio']} at {bar['classes']} classes, "
        f"{bar['student']}: {bar['found']:g}x, wanted {bar['wanted']}"
        for bar in checked
    )
