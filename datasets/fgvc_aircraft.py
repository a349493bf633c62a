"""FGVCAircraft: variants of aircraft, 100 classes."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from datasets.base import FamilyDataset
from datasets.fewshot import SPLITS, Entry, Split


@DATASET_REGISTRY.register()
class FGVCAircraft(FamilyDataset):
    """The official lists are the split. Names may hold spaces, / and -."""

    dataset_dir = "fgvc_aircraft"
    image_dir = "images"
    needed = ("variants.txt", *(f"images_variant_{part}.txt" for part in SPLITS))

    @classmethod
    def make_split(cls, folder, rng):
        names, *lists = (_lines(folder / name) for name in cls.needed)
        label = {name: i for i, name in enumerate(names)}
        pairs = [[line.split(" ", 1) for line in lines] for lines in lists]
        return Split(*([Entry(f"{image}.jpg", label[name], name) for image, name in part]
                       for part in pairs))  # fmt: skip


def _lines(path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
