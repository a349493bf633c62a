"""UCF101: actions, 101 classes; the middle frame of each video."""

from __future__ import annotations

import re

from dassl.data.datasets import DATASET_REGISTRY

from datasets.base import FamilyDataset
from datasets.fewshot import Entry, Split, hold_out

LISTS = "ucfTrainTestlist"


@DATASET_REGISTRY.register()
class UCF101(FamilyDataset):
    """ApplyEyeMakeup is called Apply_Eye_Makeup. A split made here uses list 01."""

    dataset_dir = "ucf101"
    image_dir = "UCF-101-midframes"
    split_file = "split_zhou_UCF101.json"
    reproducible = True
    needed = (f"{LISTS}/classInd.txt", f"{LISTS}/trainlist01.txt", f"{LISTS}/testlist01.txt")

    @classmethod
    def make_split(cls, folder, rng):
        numbers, trainval, test = (_rows(folder / name) for name in cls.needed)
        label = {action: int(number) - 1 for number, action in numbers}
        trainval, test = ([_entry(row[0], label) for row in rows] for rows in (trainval, test))
        return Split(*hold_out(trainval, rng), test)


def _entry(video: str, label: dict[str, int]) -> Entry:
    """From ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi."""
    action, _, name = video.partition("/")
    words = "_".join(re.findall("[A-Z][^A-Z]*", action))
    return Entry(f"{words}/{name.replace('.avi', '.jpg')}", label[action], words)


def _rows(path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines() if line.strip()]
