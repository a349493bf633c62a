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
