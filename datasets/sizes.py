"""How many classes and images each data set has: what a complete copy is checked against."""

from __future__ import annotations

from typing import NamedTuple


class Sizes(NamedTuple):
    """Counts of a complete data set; None: there is no such split, or nothing to check."""

    classes: int
    train: int | None
    val: int | None
    test: int | None
    test_base: int | None = None  # test images of the first ceil(classes / 2) labels


# Train, test and test_base: PromptKD, Table 8; val: the official totals less the others. The sum of
# base and new test images only comes out if the labels are in the family's order.
SIZES = {
    "ImageNet": Sizes(1000, 1_281_167, None, 50_000, 25_000),
    "Caltech101": Sizes(100, 4_128, 1_649, 2_465, 1_549),
    "OxfordPets": Sizes(37, 2_944, 736, 3_669, 1_881),
    "StanfordCars": Sizes(196, 6_509, 1_635, 8_041, 4_002),
    "OxfordFlowers": Sizes(102, 4_093, 1_633, 2_463, 1_053),
    "Food101": Sizes(101, 50_500, 20_200, 30_300, 15_300),
    "FGVCAircraft": Sizes(100, 3_334, 3_333, 3_333, 1_666),
    "SUN397": Sizes(397, 15_880, 3_970, 19_850, 9_950),
    "DescribableTextures": Sizes(47, 2_820, 1_128, 1_692, 864),
    "EuroSAT": Sizes(10, 13_500, 5_400, 8_100, 4_200),
    "UCF101": Sizes(101, 7_639, 1_898, 3_783, 1_934),
    # The authors' counts; train and val do not exist.
    "ImageNetV2": Sizes(1000, None, None, 10_000),
    "ImageNetSketch": Sizes(1000, None, None, 50_889),
    "ImageNetA": Sizes(200, None, None, 7_500),
    "ImageNetR": Sizes(200, None, None, 30_000),
}
