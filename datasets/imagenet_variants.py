"""ImageNetV2, -Sketch, -A and -R: other images of ImageNet's classes, for evaluation only."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from datasets.base import FamilyDataset
from datasets.fewshot import Entry, Split, files, subfolders
from datasets.imagenet import name_problems, read_classnames


class _Variant(FamilyDataset):
    """Class folders are WordNet ids; a label is the folder's place among those present."""

    needed = ("classnames.txt",)  # ImageNet's
    listed = True
    evaluation_only = True

    @classmethod
    def make_split(cls, folder, rng):
        names, images = read_classnames(folder), folder / cls.image_dir
        present = [wnid for wnid in subfolders(images) if wnid in names]
        test = [
            Entry(f"{wnid}/{image}", label, names[wnid])
            for label, wnid in enumerate(present)
            for image in files(images / wnid)
        ]
        return Split([], [], test)

    @classmethod
    def more_problems(cls, folder, split):
        return name_problems(folder)


@DATASET_REGISTRY.register()
class ImageNetV2(_Variant):
    """Matched frequency. Folders are numbers: the line of classnames.txt, from 0."""

    dataset_dir = "imagenetv2"
    image_dir = "imagenetv2-matched-frequency-format-val"

    @classmethod
    def make_split(cls, folder, rng):
        names, images = list(read_classnames(folder).values()), folder / cls.image_dir
        test = [
            Entry(f"{label}/{image}", label, name)
            for label, name in enumerate(names)
            for image in files(images / str(label))
        ]
        return Split([], [], test)


@DATASET_REGISTRY.register()
class ImageNetSketch(_Variant):
    """Black and white sketches of all 1000 classes."""

    dataset_dir = "imagenet-sketch"
    image_dir = "images"


@DATASET_REGISTRY.register()
class ImageNetA(_Variant):
    """Natural images that fool ResNet-50. 200 classes: accuracy is among those 200 names."""

    dataset_dir = "imagenet-adversarial"
    image_dir = "imagenet-a"


@DATASET_REGISTRY.register()
class ImageNetR(_Variant):
    """Renditions: art, toys, games. 200 classes: accuracy is among those 200 names."""

    dataset_dir = "imagenet-rendition"
    image_dir = "imagenet-r"
