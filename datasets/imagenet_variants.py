"""ImageNetV2, -Sketch, -A and -R: other images of ImageNet's classes, for evaluation only."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from datasets.base import ListedDataset
from datasets.imagenet import name_problems, read_classnames
from datasets.split import ClassFolder, Listing, Split


class _Variant(ListedDataset):
    """Class folders are WordNet ids; a label is the folder's place among those present."""

    evaluation_only = True

    @classmethod
    def of_files(cls, folder, names):
        classnames = read_classnames(folder)
        present = [wnid for wnid in names if wnid in classnames]
        return Split([], [], Listing(
            ClassFolder(wnid, label, classnames[wnid], names[wnid])
            for label, wnid in enumerate(present)
        ))  # fmt: skip

    @classmethod
    def more_problems(cls, folder, split):
        return name_problems(folder)


@DATASET_REGISTRY.register()
class ImageNetV2(_Variant):
    """Matched frequency. Folders are numbers: the line of classnames.txt, from 0."""

    dataset_dir = "imagenetv2"
    image_dir = "imagenetv2-matched-frequency-format-val"

    @classmethod
    def of_files(cls, folder, names):
        classnames = read_classnames(folder).values()
        return Split([], [], Listing(
            ClassFolder(str(label), label, name, names.get(str(label), ""))
            for label, name in enumerate(classnames)
        ))  # fmt: skip


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
