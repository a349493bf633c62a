"""The methods: script folder, trainer, recipe per protocol, and what a run needs beforehand.

Recipe stems start with the backbone, written {} here: "{}_ctxv1" is vit_b16_ctxv1.yaml in
configs/trainers/<Trainer>. They are the file names of CoOp, MaPLe, PromptSRC, KDPL and PromptKD.
Data sets named toy_* have one recipe per trainer, toy.yaml, whatever the protocol.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from wording import nearest

BASE2NEW, CROSS, DOMAINS, FEW_SHOT = PROTOCOLS = (
    "base2new",
    "cross_dataset",
    "domain_generalization",
    "few_shot",
)
ELEVEN = (
    "imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101",
    "fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101",
)  # fmt: skip
SOURCE, TOY_SOURCE = "imagenet", "toy_shapes"
CROSS_TARGETS = ELEVEN[1:]
DOMAIN_TARGETS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
FEW_SHOTS = (1, 2, 4, 8, 16)


def is_toy(dataset: str) -> bool:
    return dataset.startswith("toy_")


def source_of(dataset: str) -> str:
    """The data set that is trained on before `dataset` is a target."""
    return TOY_SOURCE if is_toy(dataset) else SOURCE


def is_domain(dataset: str) -> bool:
    """Whether a target has its source's classes in other pictures: a shift of domain."""
    return dataset in DOMAIN_TARGETS or dataset.startswith(TOY_SOURCE + "_")


@dataclass(frozen=True)
class Stems:
    """Recipes of one protocol: the most particular one counts. None: not defined."""

    default: str | None
    of_dataset: dict[str, str] = field(default_factory=dict)
    of_shots: dict[int, str] = field(default_factory=dict)
    of_backbone: dict[str, str] = field(default_factory=dict)  # before the data set and the shots

    def find(self, dataset: str, shots: int, backbone: str) -> str | None:
        return (
            self.of_backbone.get(backbone)
            or self.of_dataset.get(dataset)
            or self.of_shots.get(shots)
            or self.default
        )


@dataclass(frozen=True)
class Method:
    """One line of the table of methods."""

    folder: str  # METHOD of scripts/run.sh, and the folder in scripts/ where there is one
    trainer: str  # registered name, and folder in configs/trainers
    base2new: Stems
    cross: Stems  # cross-data-set and domain generalisation: one training serves both
    few_shot: Stems
    backbone: str = "vit_b16"  # of the family's numbers, where none is asked for
    trained: bool = True
    needs_dump: bool = False
    transductive: bool = False  # sees unlabelled images of the classes it is tested on
    teacher: tuple[str, str] | None = None  # script folder and recipe of a teacher to train first
    options: dict[str, tuple[str, ...]] = field(default_factory=dict)  # data set -> KEY VALUE pairs

    def stems(self, protocol: str) -> Stems:
        return {BASE2NEW: self.base2new, FEW_SHOT: self.few_shot}.get(protocol, self.cross)

    def recipe(self, protocol: str, dataset: str, shots: int, backbone: str = "") -> str | None:
        """The stem of the recipe; None where the method is not defined under the protocol."""
        backbone = backbone or self.backbone
        stem = self.stems(protocol).find(dataset, shots, backbone)
        if stem is None or is_toy(dataset):
            return stem and "toy"
        return stem.replace("{}", backbone)


def _everywhere(stem: str) -> dict[str, Stems]:
    return dict(base2new=Stems(stem), cross=Stems(stem), few_shot=Stems(stem))


# KDPL's baselines differ from the family's recipes: its students are ViT-B/32 and RN50.
_KDPL_COOP = dict.fromkeys(("vit_b32", "rn50"), "{}_ep50_ctxv1")
# CoOp's epochs go with the number of images (its COOP.md).
_COOP = dict(
    base2new=Stems("{}_ctxv1", {"imagenet": "{}_ep50_ctxv1"}, of_backbone=_KDPL_COOP),
    cross=Stems("{}_ep50_ctxv1"),
    few_shot=Stems(
        "{}", {"imagenet": "{}_ep50"}, {1: "{}_ep50", 2: "{}_ep100", 4: "{}_ep100"}
    ),
)  # fmt: skip
_COCOOP = _everywhere("{}_c4_ep10_batch1_ctxv1")
_VPT = _everywhere("{}_c2_ep5_batch4_4")
_IVLP_22 = "{}_c2_ep5_batch4_2+2ctx"
_MAPLE = _everywhere("{}_c2_ep5_batch4_2ctx")
_SRC = "{}_c2_ep20_batch4_4+4ctx"
_IVLP = Stems(_SRC, of_backbone={"vit_b32": _IVLP_22})
_PROMPTSRC = _everywhere(_SRC) | dict(cross=Stems(_SRC + "_cross_datasets"))
# Data sets for which PromptSRC's few-shot recipe asks for another Gaussian: mean 45, std 5.
_SRC_FEW = "{}_c2_ep50_batch4_4+4ctx_few_shot"
_GPA_45 = ("stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat")
# PromptKD's script: 1000, its recipe's weight, and this for three data sets.
_KD_200 = dict.fromkeys(
    ("fgvc_aircraft", "oxford_flowers", "dtd"), ("TRAINER.PROMPTKD.KD_WEIGHT", "200")
)

_HAND = dict(_everywhere("{}"), trained=False)
_PLAIN = (
    Method("zsclip", "ZeroshotCLIP", **_HAND),
    Method("zsclip2", "ZeroshotCLIP2", **_HAND),
    Method("coop", "CoOp", **_COOP),
    Method("cocoop", "CoCoOp", **_COCOOP),
    Method("vpt", "VPT", **_VPT),
    Method("ivlp", "IVLP", _IVLP, _IVLP, _IVLP),
    # MaPLe's two reference baselines: IVLP with other recipes.
    Method("independent-vlp", "IVLP", **_everywhere(_IVLP_22)),
    Method("language-prompting", "IVLP", **_everywhere("{}_c2_ep5_batch4_4ctx_language_only")),
    Method(
        "maple", "MaPLe",
        **_MAPLE | dict(cross=Stems("{}_c2_ep5_batch4_2ctx_cross_datasets")),
    ),
    Method(
        "promptsrc", "PromptSRC",
        **_PROMPTSRC
        | dict(few_shot=Stems(_SRC_FEW, dict.fromkeys(_GPA_45, _SRC_FEW + "_gpa45"))),
    ),
    Method(
        "promptkd", "PromptKD",
        base2new=Stems("{}_c2_ep20_batch8_4+4ctx"),
        cross=Stems("{}_c2_ep20_batch8_4+4ctx_cross_datasets"),
        few_shot=Stems(None),
        transductive=True,
        teacher=("promptsrc", "vit_l14_c2_ep20_batch8_4+4ctx"),
        options=_KD_200,
    ),
)  # fmt: skip

# KDPL's recipes: a ViT-B/32, 50 epochs of CoOp everywhere, MaPLe's cross-data-set runs as the
# others. FDBPL takes the same. IVLP is in neither paper: ours, MaPLe's baseline at this student.
_DISTILLED = {
    "coop": ("CoOp", _everywhere("{}_ctxv1")),
    "cocoop": ("CoCoOp", _COCOOP),
    "vpt": ("VPT", _VPT),
    "ivlp": ("IVLP", _everywhere(_IVLP_22)),
    "maple": ("MaPLe", _MAPLE),
    "promptsrc": ("PromptSRC", _PROMPTSRC),
}
_B32 = dict(backbone="vit_b32")
_KDPL = tuple(
    Method(f"{host}_kdpl", f"{trainer}_KDPL", **stems, **_B32)
    for host, (trainer, stems) in _DISTILLED.items()
)
_FDBPL = (
    Method("fdbpl", "FDBPL", **_DISTILLED["coop"][1], **_B32, needs_dump=True),
    *(
        Method(f"{host}_fdbpl", f"{trainer}_FDBPL", **stems, **_B32, needs_dump=True)
        for host, (trainer, stems) in _DISTILLED.items()
    ),
)
PLAIN = tuple(dict.fromkeys(method.trainer for method in _PLAIN))  # the order of rows in a table
METHODS = {method.folder: method for method in (*_PLAIN, *_KDPL, *_FDBPL)}


def find_method(name: str) -> Method:
    """A method by script folder or by trainer; IVLP is scripts/ivlp.

    Raises:
        ValueError: there is none of that name.
    """
    if name in METHODS:
        return METHODS[name]
    for method in METHODS.values():
        if name == method.trainer:
            return method
    close = nearest(name, [*METHODS, *(method.trainer for method in METHODS.values())])
    hint = f" Do you mean {close!r}?" * bool(close)
    raise ValueError(
        f"METHOD is {name!r}, not one of {', '.join(METHODS)}, nor one of their trainers.{hint}"
    )


def common_backbone(methods: list[Method]) -> str:
    """The student of a comparison: KDPL's where a distilled method takes part, else the family's.

    Methods side by side must have one student; ViT-B/32 is the one with recipes everywhere.
    """
    return "vit_b32" if any(method.backbone == "vit_b32" for method in methods) else "vit_b16"
