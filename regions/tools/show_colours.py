"""The colours of the region weight w: a ramp that every kind of colour vision can order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Viridis (van der Walt and Smith, 2015), low to high: violet, blue, green, yellow. Its lightness
# rises evenly, so the order survives in grey and with every kind of colour vision.
STOPS = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30",
         "#fde725")  # fmt: skip


@dataclass(frozen=True)
class Ramp:
    """The colours of weights from low to high; beyond them the end colours stay."""

    low: float
    high: float

    @classmethod
    def over(cls, weights: np.ndarray) -> Ramp:
        """From the 2nd to the 98th percentile, rounded outwards to twentieths.

        Many teachers are sure of nearly all: on the full range their regions would look alike.
        """
        low, high = np.quantile(weights, (0.02, 0.98)).tolist()
        low, high = math.floor(20 * low) / 20, math.ceil(20 * high) / 20
        return cls(max(0.0, min(low, high - 0.1)), min(1.0, max(high, low + 0.1)))

    def colour(self, weight: float) -> str:
        """The colour of a weight, as #rrggbb."""
        place = (weight - self.low) / (self.high - self.low) * (len(STOPS) - 1)
        place = min(max(place, 0.0), len(STOPS) - 1.0)
        first = min(int(place), len(STOPS) - 2)
        parts = zip(_parts(STOPS[first]), _parts(STOPS[first + 1]), strict=True)
        mixed = (round(a + (b - a) * (place - first)) for a, b in parts)
        return "#" + "".join(f"{part:02x}" for part in mixed)

    def halo(self, weight: float) -> str:
        """White around dark colours, black around bright ones: a line that shows anywhere."""
        return "#ffffff" if weight < (self.low + self.high) / 2 else "#000000"

    def ends(self) -> tuple[str, str]:
        """What stands at the two ends of the legend."""
        low = f"{self.low:.2f} or less" if self.low > 0 else "0, cannot tell"
        high = f"{self.high:.2f} or more" if self.high < 1 else "1, certain"
        return low, high


def _parts(text: str) -> tuple[int, int, int]:
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
