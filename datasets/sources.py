"""Where each data set comes from: files, addresses, checksums and what each file unpacks to.

Addresses and Drive ids: CoOp's DATASETS.md, the READMEs of the ImageNet variants, torchvision's
loaders and PromptKD's mirror. Checksums (MD5): torchvision 0.29's loaders, the only published ones
found; a part without one is checked by its length, its kind and the counts of the images alone.
None of the addresses could be called from where this was written.
"""

from __future__ import annotations

from dataclasses import dataclass

DRIVE = "drive:"  # and an id: a file on Google Drive
CALTECH = "http://www.vision.caltech.edu/Image_Datasets/Caltech101"
VGG = "https://www.robots.ox.ac.uk/~vgg/data"
CARS = "http://ai.stanford.edu/~jkrause/car196"
SUN = "http://vision.princeton.edu/projects/2010/SUN"
HENDRYCKS = "https://people.eecs.berkeley.edu/~hendrycks"
UDACITY = "https://raw.githubusercontent.com/udacity/pytorch_challenge/master"
CRCV = "https://www.crcv.ucf.edu/data/UCF101"
HUGGING = "https://huggingface.co"
MIRROR = f"{HUGGING}/zhengli97/prompt_learning_dataset/resolve/main"
GB = 10**9


@dataclass(frozen=True)
class Part:
    """One file to fetch.

    Without `makes` it is used as it is. An archive is unpacked, and each of `makes` is moved to the
    data set's folder from wherever it lies in it; "images<-sketch" renames it on the way. Parts
    that make the same thing are tried in order.
    """

    file: str
    urls: tuple[str, ...]  # tried in order; those that start with DRIVE go through gdown
    md5: str = ""
    makes: tuple[str, ...] = ()
    inner: str = ""  # an archive inside the archive, which holds what is wanted
    limit: int = 2 * GB  # bytes that unpacking may write
    annotations: bool = False  # a list that the published split is made of

    @property
    def products(self) -> tuple[str, ...]:
        """What lies in the data set's folder afterwards."""
        return tuple(name.partition("<-")[0] for name in self.makes) or (self.file,)


@dataclass(frozen=True)
class Source:
    """How a data set is put together in its folder."""

    parts: tuple[Part, ...]
    mirror: str = ""  # one archive of the whole folder, tried where a part cannot be had
    limit: int = 2 * GB  # of the mirror's archive
    copied: tuple[str, ...] = ()  # files taken from another folder under the root, if there
    manual: str = ""  # what a user does where all addresses fail

    @property
    def wanted(self) -> tuple[str, ...]:
        """What a usable data set has in its folder."""
        products = [name for part in self.parts if not part.annotations for name in part.products]
        return tuple(dict.fromkeys(products))


def _drive(file: str, drive_id: str, **more) -> Part:
    return Part(file, (DRIVE + drive_id,), **more)


def _archive(file: str, urls: tuple[str, ...], makes: tuple[str, ...], **more) -> Part:
    return Part(file, urls, makes=makes, **more)


CLASSNAMES = _drive("classnames.txt", "1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF")
IMAGENET_FILES = {  # name -> MD5; behind a login, so they are put into the folder by hand
    "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
    "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
    "ILSVRC2012_devkit_t12.tar.gz": "fa75699e90414af021442c21a62c3abf",
}

SOURCES = {
    "ImageNet": Source(
        (CLASSNAMES,),
        mirror="imagenetv2.zip",  # for its copy of classnames.txt
        manual="register at https://image-net.org, download ILSVRC2012_img_train.tar, "
        "ILSVRC2012_img_val.tar (Training and Validation images, Task 1 & 2) and "
        "ILSVRC2012_devkit_t12.tar.gz (Development kit, Task 1 & 2) of ILSVRC2012 into "
        "{folder}, and run this command again: it unpacks them and sorts the validation images",
    ),
    "Caltech101": Source(
        (
            _archive(
                "caltech-101.zip",
                ("https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",),
                ("101_ObjectCategories",),
                md5="3138e1922a9193bfa496528edbbc45d0",
                inner="101_ObjectCategories.tar.gz",
            ),
            _archive(
                "101_ObjectCategories.tar.gz",
                (f"{CALTECH}/101_ObjectCategories.tar.gz",),
                ("101_ObjectCategories",),
            ),
            _drive("split_zhou_Caltech101.json", "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN"),
        ),
        mirror="caltech-101.zip",
    ),
    "OxfordPets": Source(
        (
            _archive(
                "images.tar.gz",
                (f"{VGG}/pets/data/images.tar.gz",),
                ("images",),
                md5="5c4f3ee8e5d25df40f4fd59a7f44e54c",
            ),
            _archive(
                "annotations.tar.gz",
                (f"{VGG}/pets/data/annotations.tar.gz",),
                ("annotations",),
                md5="95a8c909bbe2e81eed6a22bccdf3f68f",
                annotations=True,
            ),
            _drive("split_zhou_OxfordPets.json", "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs"),
        ),
        mirror="oxford_pets.zip",
    ),
    "StanfordCars": Source(
        (
            _archive("cars_train.tgz", (f"{CARS}/cars_train.tgz",), ("cars_train",), limit=4 * GB),
            _archive("cars_test.tgz", (f"{CARS}/cars_test.tgz",), ("cars_test",), limit=4 * GB),
            _drive("split_zhou_StanfordCars.json", "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT"),
            _archive(
                "car_devkit.tgz",
                ("https://ai.stanford.edu/~jkrause/cars/car_devkit.tgz",),
                ("devkit",),
                annotations=True,
            ),
            Part(
                "cars_test_annos_withlabels.mat",
                (f"{CARS}/cars_test_annos_withlabels.mat",),
                annotations=True,
            ),
        ),
        mirror="stanford_cars.zip",
        limit=8 * GB,
        manual="the authors' server has not answered since 2023. Get the folders cars_train and "
        "cars_test from somebody who has them (a copy is said to be in "
        f"{HUGGING}/zhengli97/prompt_learning_dataset) and put them into {{folder}}, then run "
        "this command again",
    ),
    "OxfordFlowers": Source(
        (
            _archive(
                "102flowers.tgz",
                (f"{VGG}/flowers/102/102flowers.tgz",),
                ("jpg",),
                md5="52808999861908f626f3c1f4e79d11fa",
            ),
            Part(
                "imagelabels.mat",
                (f"{VGG}/flowers/102/imagelabels.mat",),
                md5="e0620be6f572b9609742df49c70aed4d",
                annotations=True,
            ),
            Part(
                "cat_to_name.json",
                (f"{UDACITY}/cat_to_name.json", DRIVE + "1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0"),
                annotations=True,
            ),
            _drive("split_zhou_OxfordFlowers.json", "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT"),
        ),
        mirror="oxford_flowers.zip",
    ),
    "Food101": Source(
        (
            _archive(
                "food-101.tar.gz",
                ("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",),
                ("images",),
                md5="85eeb15f3717b99a5da872d97d918f87",
                limit=12 * GB,
            ),
            _drive("split_zhou_Food101.json", "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl"),
        ),
        mirror="food101.zip",
        limit=12 * GB,
    ),
    "FGVCAircraft": Source(
        (
            _archive(
                "fgvc-aircraft-2013b.tar.gz",
                (f"{VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",),
                (
                    "images",
                    "variants.txt",
                    "images_variant_train.txt",
                    "images_variant_val.txt",
                    "images_variant_test.txt",
                ),
                limit=6 * GB,
            ),
        ),
        mirror="fgvc_aircraft.zip",
        limit=6 * GB,
    ),
    "SUN397": Source(
        (
            _archive(
                "SUN397.tar.gz",
                (f"{SUN}/SUN397.tar.gz",),
                ("SUN397",),
                md5="8ca2778205c41d23104230ba66911c7a",
                limit=60 * GB,
            ),
            _drive("split_zhou_SUN397.json", "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq"),
            _archive(
                "Partitions.zip",
                ("https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip",),
                ("ClassName.txt", "Training_01.txt", "Testing_01.txt"),
                annotations=True,
            ),
        ),
        mirror="sun397.zip",
        limit=60 * GB,
        manual="the authors' server no longer has the file. Get SUN397.tar.gz (37 GB) from "
        "somebody who has it, or from OpenDataLab, into {folder}, and run this command again",
    ),
    "DescribableTextures": Source(
        (
            _archive(
                "dtd-r1.0.1.tar.gz",
                (f"{VGG}/dtd/download/dtd-r1.0.1.tar.gz",),
                ("images",),
                md5="fff73e5086ae6bdbea199a49dfb8a4c1",
            ),
            _drive("split_zhou_DescribableTextures.json", "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x"),
        ),
        mirror="dtd.zip",
    ),
    "EuroSAT": Source(
        (
            _archive(
                "EuroSAT.zip",
                (
                    "http://madm.dfki.de/files/sentinel/EuroSAT.zip",
                    f"{HUGGING}/datasets/torchgeo/eurosat/resolve/"
                    "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
                ),
                ("2750",),
                md5="c8fa014336c82ac7804f0398fcb19387",
            ),
            _drive("split_zhou_EuroSAT.json", "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o"),
        ),
        mirror="eurosat.zip",
    ),
    "UCF101": Source(
        (
            _archive(
                "UCF-101-midframes.zip",
                (DRIVE + "10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O",),
                ("UCF-101-midframes",),
            ),
            _archive(
                "UCF101TrainTestSplits-RecognitionTask.zip",
                (f"{CRCV}/UCF101TrainTestSplits-RecognitionTask.zip",),
                ("ucfTrainTestlist",),
                annotations=True,
            ),
            _drive("split_zhou_UCF101.json", "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y"),
        ),
        mirror="ucf101.zip",
    ),
    "ImageNetV2": Source(
        (
            CLASSNAMES,
            _archive(
                "imagenetv2-matched-frequency.tar.gz",
                (
                    "https://s3-us-west-2.amazonaws.com/imagenetv2public/"
                    "imagenetv2-matched-frequency.tar.gz",
                    f"{HUGGING}/datasets/vaishaal/ImageNetV2/resolve/main/"
                    "imagenetv2-matched-frequency.tar.gz",
                ),
                ("imagenetv2-matched-frequency-format-val",),
                limit=4 * GB,
            ),
        ),
        mirror="imagenetv2.zip",
        limit=4 * GB,
        copied=("imagenet/classnames.txt",),
    ),
    "ImageNetSketch": Source(
        (
            CLASSNAMES,
            _archive(
                "ImageNet-Sketch.zip",
                (DRIVE + "1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA",),
                ("images<-sketch",),
                limit=20 * GB,
            ),
        ),
        mirror="imagenet-sketch.zip",
        limit=20 * GB,
        copied=("imagenet/classnames.txt",),
    ),
    "ImageNetA": Source(
        (
            CLASSNAMES,
            _archive(
                "imagenet-a.tar", (f"{HENDRYCKS}/imagenet-a.tar",), ("imagenet-a",), limit=4 * GB
            ),
        ),
        mirror="imagenet-adversarial.zip",
        limit=4 * GB,
        copied=("imagenet/classnames.txt",),
    ),
    "ImageNetR": Source(
        (
            CLASSNAMES,
            _archive(
                "imagenet-r.tar", (f"{HENDRYCKS}/imagenet-r.tar",), ("imagenet-r",), limit=8 * GB
            ),
        ),
        mirror="imagenet-rendition.zip",
        limit=8 * GB,
        copied=("imagenet/classnames.txt",),
    ),
}
