"""What a complete copy is checked against: counts of classes and images, digests of splits."""

from __future__ import annotations

from typing import NamedTuple

from datasets.split import SPLITS, Split


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


class Published(NamedTuple):
    """The split that the family's papers use."""

    digest: str  # Split.digest() with the other parts empty
    parts: tuple[str, ...] = SPLITS

    @property
    def what(self) -> str:
        if self.parts == SPLITS:
            return "published split"
        return f"{' and '.join(self.parts)} of the published split (no digest of the rest is known)"

    def of(self, split: Split) -> str:
        return split._replace(**{part: [] for part in SPLITS if part not in self.parts}).digest()


# Of the published files, but SUN397: the split made of Training_01.txt with seed 1, which agrees
# with 14,872 of the 15,880 rows of train and 3,954 of the 3,970 of val, all that draws of another
# laboratory show of the file, and differs in none (docs/LOG.md).
PUBLISHED = {
    "Caltech101": Published("17c403faec919d37"),
    "OxfordPets": Published("fbb12e86a2462a06"),
    "StanfordCars": Published("dcea0404a53aa645"),
    "OxfordFlowers": Published("a93b5800cd8892ae"),
    "SUN397": Published("8292292b12f929ee", ("train", "val")),
    "DescribableTextures": Published("460b9ea269753f33"),
    "EuroSAT": Published("3c417b259c8aff68"),
    "UCF101": Published("86e0d907236fc556"),
}
