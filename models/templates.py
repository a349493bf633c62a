"""The hand-written prompt of each data set: zero-shot CLIP's and the teacher's."""

from __future__ import annotations

DEFAULT = "a photo of a {}."
TEMPLATES = {  # data sets that DEFAULT does not serve; CoOp's list
    "OxfordPets": "a photo of a {}, a type of pet.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "Food101": "a photo of {}, a type of food.",
    "UCF101": "a photo of a person doing {}.",
}


SEPARATOR = " | "  # between the templates of an ensemble


def template_for(dataset_name: str, override: str = "") -> str:
    """The template of a data set (registry name), or `override` when one is given.

    Several templates joined by " | " are an ensemble: see HandwrittenCLIP.

    Raises:
        ValueError: the override has no place for the class name.
    """
    template = override or TEMPLATES.get(dataset_name, DEFAULT)
    if any(part.count("{}") != 1 for part in template.split(SEPARATOR)):
        raise ValueError(
            f"DATASET.TEMPLATE is {template!r}; it needs one {{}} for the class name, "
            f"for example {DEFAULT!r}; templates of an ensemble are joined by {SEPARATOR!r}."
        )
    return template


def spoken(classname: str) -> str:
    """A class name as prompts say it: underscores become spaces."""
    return classname.replace("_", " ")


def fill(template: str, classnames: list[str]) -> list[str]:
    """One prompt per class name."""
    return [template.format(spoken(name)) for name in classnames]


# The frozen text side of PromptSRC: 60 of the templates that CLIP's authors published for ImageNet.
IMAGENET_TEMPLATES = (
    "a photo of a {}.",
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
)

# Seven of them that CLIP's authors found to do nearly as well together as all.
ENSEMBLE = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
