"""Recipes: each merges, says what it is, holds the published values and builds its trainer.

The expected values are written here once more, by hand, from the configs, scripts and trainers of
the official repositories, so that a slip in a yaml file does not pass.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY, build_trainer
from yacs.config import CfgNode

import trainers  # noqa: F401  (importing registers them)
from configs.cli import merge_yaml
from configs.defaults import extend_cfg
from datasets import toy

REPO = Path(__file__).resolve().parents[1]
FOLDER = REPO / "configs" / "trainers"
FILES = {f"{path.parent.name}/{path.stem}": path for path in sorted(FOLDER.rglob("*.yaml"))}
TOY = [name for name in FILES if name.endswith("/toy")]
FAST = [name for name in FILES if name.endswith("_fast")]  # ours, beside the faithful ones
REAL = [name for name in FILES if name not in (*TOY, *FAST)]
ZERO_SHOT = ("ZeroshotCLIP", "ZeroshotCLIP2")
HOSTS = {
    "CoOp": "COOP",
    "CoCoOp": "COCOOP",
    "VPT": "VPT",
    "IVLP": "IVLP",
    "MaPLe": "MAPLE",
    "PromptSRC": "PROMPTSRC",
}
BACKBONES = {
    "rn50": "RN50",
    "rn101": "RN101",
    "vit_b32": "ViT-B/32",
    "vit_b16": "ViT-B/16",
    "vit_l14": "ViT-L/14",
}
WORDS = "a photo of a"
METHODS = {  # trainer -> name that the scripts give it, where it is not the name in lower case
    "ZeroshotCLIP": "zsclip",
    "ZeroshotCLIP2": "zsclip2",
}

DEFAULTS = get_cfg_default()
extend_cfg(DEFAULTS)


def parsed(path: Path) -> CfgNode:
    with path.open() as file:
        return CfgNode.load_cfg(file)


ALIASES = [name for name, path in FILES.items() if "\n_BASE_: ../" in path.read_text()]
DATASETS = [parsed(path) for path in sorted((REPO / "configs" / "datasets").glob("*.yaml"))]


def merged(name: str, dataset: CfgNode | None = None) -> CfgNode:
    """As configs.cli merges them: defaults, then the data set, then the recipe."""
    cfg = DEFAULTS.clone()
    if dataset is not None:
        cfg.merge_from_other_cfg(dataset)
    merge_yaml(cfg, FILES[name])
    return cfg


def host_of(trainer: str) -> str:
    """CoOp of CoOp_KDPL; FDBPL's host is CoOp, and so is the node of the zero-shot trainers."""
    host = trainer.removesuffix("_KDPL").removesuffix("_FDBPL")
    return "CoOp" if host in ("FDBPL", *ZERO_SHOT) else host


def node_of(trainer: str) -> str:
    return "PROMPTKD" if trainer == "PromptKD" else HOSTS[host_of(trainer)]


# Form


@pytest.mark.parametrize("name", FILES)
def test_merges_with_every_data_set(name):
    assert len(DATASETS) >= 8
    for dataset in DATASETS:
        cfg = merged(name, dataset)
        assert cfg.MODEL.BACKBONE.NAME and cfg.DATASET.NAME == dataset.DATASET.NAME


@pytest.mark.parametrize("name", [name for name in FILES if name not in ALIASES])
def test_opens_with_purpose_command_time_and_source(name):
    trainer, stem = name.split("/")
    text = FILES[name].read_text()
    head = text[: text.index("\n\n")].splitlines()
    assert all(line.startswith("# ") for line in head)
    assert not re.match(r"# (Run|Takes|Source):", head[0]) and len(head[0]) > 20, "purpose first"
    for word in ("Run", "Source"):
        assert sum(line.startswith(f"# {word}: ") for line in head) == 1, word
    assert "not measured." not in text  # what was not timed says nothing of time
    assert "#" not in re.sub(r"(?m)^ .*  # .*$|^# .*$", "", text), "a comment in an odd place"
    # The command is the one that uses this file.
    command = " ".join(line.removeprefix("#").rstrip("\\") for line in head)
    command = re.split("Takes: |Source: ", command[command.index("Run: ") :])[0].split()[1:]
    if stem != "toy":
        assert command.pop(0) == f"CFG={stem}"
    method = METHODS.get(trainer, trainer.lower())
    if command[0] == "python":
        assert command[1] == "run_protocol.py" and command[3:5] == ["--trainers", trainer]
    elif command[1] in ("scripts/base2new.sh", "scripts/run.sh"):
        assert command[0] == "bash" and command[2] == method
    else:
        assert command[0] == "bash" and re.fullmatch(rf"scripts/{method}/\w+\.sh", command[1])
    for script in re.findall(r"scripts/[\w/-]+\.sh", text):
        assert (REPO / script).exists(), script


@pytest.mark.parametrize("name", ALIASES)
def test_an_alias_says_of_what_in_two_lines(name):
    trainer, stem = name.split("/")
    other = {"CoOp_FDBPL": "FDBPL", "ZeroshotCLIP2": "ZeroshotCLIP"}[trainer]
    about, base = FILES[name].read_text().splitlines()
    assert about.startswith("# ") and base == f"_BASE_: ../{other}/{stem}.yaml"
    assert merged(name) == merged(f"{other}/{stem}")


def test_recipes_with_equal_content_are_one_file_and_an_alias():
    found = [parsed(FILES[name]) for name in FILES if name not in ALIASES]
    assert all(node not in found[:place] for place, node in enumerate(found))


def test_every_trainer_has_a_toy_recipe_and_every_folder_is_a_trainer():
    folders = {name.split("/")[0] for name in FILES}
    family = [*HOSTS, *(f"{host}_{way}" for host in HOSTS for way in ("KDPL", "FDBPL"))]
    assert folders == {*family, "FDBPL", "PromptKD", *ZERO_SHOT}
    assert {name.split("/")[0] for name in TOY} == folders
    registered = set(TRAINER_REGISTRY.registered_names())
    of_this_repository = {
        name for name in registered if TRAINER_REGISTRY.get(name).__module__.startswith("trainers.")
    }
    assert of_this_repository <= folders, "a trainer without a toy recipe"
    assert folders <= registered


# Published values


def coop(epochs: int, words: str = WORDS, tokens: int = 4) -> tuple:
    keys = dict(N_CTX=tokens, CTX_INIT=words, CSC=False, CLASS_TOKEN_POSITION="end")
    return 32, 0.002, epochs, keys


def cocoop(tokens: int, words: str) -> tuple:
    return 1, 0.002, 10, dict(N_CTX=tokens, CTX_INIT=words)


def vpt() -> tuple:
    return 4, 0.0025, 5, dict(N_CTX_VISION=8, PROMPT_DEPTH_VISION=12, CTX_INIT=WORDS)


def both_towers(batch, lr, epochs, tokens, depths, **more) -> tuple:
    """Prompts of the vision and of the text tower, in this order."""
    keys = dict(zip(("N_CTX_VISION", "N_CTX_TEXT"), tokens, strict=True), CTX_INIT=WORDS)
    keys |= zip(("PROMPT_DEPTH_VISION", "PROMPT_DEPTH_TEXT"), depths, strict=True)
    return batch, lr, epochs, keys | more


def maple(batch: int, lr: float, epochs: int, depth: int) -> tuple:
    return batch, lr, epochs, dict(N_CTX=2, CTX_INIT=WORDS, PROMPT_DEPTH=depth)


def promptsrc(epochs: int, depth: int, mean: float, std: float, batch=4, lr=0.0025) -> tuple:
    weights = dict(TEXT_LOSS_WEIGHT=25.0, IMAGE_LOSS_WEIGHT=10.0, GPA_MEAN=mean, GPA_STD=std)
    return both_towers(batch, lr, epochs, (4, 4), (depth, depth), **weights)


def promptkd(depth: int, transductive: bool = True) -> tuple:
    keys = dict(N_CTX_VISION=4, PROMPT_DEPTH_VISION=depth, TEACHER_NAME="ViT-L/14")
    keys |= dict(TEMPERATURE=1.0, KD_WEIGHT=1000.0, TRANSDUCTIVE=transductive)
    return 8, 0.005, 20, keys


VALUES = {  # recipe -> batch size, learning rate, epochs, keys of its prompts
    # CoCoOp
    "CoCoOp/vit_b16_c4_ep10_batch1_ctxv1": cocoop(4, WORDS),
    "CoCoOp/vit_b16_c4_ep10_batch1": cocoop(4, ""),
    "CoCoOp/vit_b16_c8_ep10_batch1": cocoop(8, ""),
    "CoCoOp/vit_b16_c16_ep10_batch1": cocoop(16, ""),
    # VPT
    "VPT/vit_b16_c2_ep5_batch4_4": vpt(),
    # IVLP and language-only
    "IVLP/vit_b16_c2_ep5_batch4_2+2ctx": both_towers(4, 0.0035, 5, (2, 2), (12, 12)),
    "IVLP/vit_b16_c2_ep5_batch4_4ctx_language_only": both_towers(4, 0.0025, 5, (0, 4), (0, 12)),
    "IVLP/vit_b16_c2_ep20_batch4_4+4ctx": both_towers(4, 0.0025, 20, (4, 4), (9, 9)),
    "IVLP/vit_b16_c2_ep20_batch8_4+4ctx": both_towers(8, 0.005, 20, (4, 4), (9, 9)),
    "IVLP/vit_b32_c2_ep5_batch4_4ctx_language_only": both_towers(4, 0.0025, 5, (0, 4), (0, 12)),
    # MaPLe
    "MaPLe/vit_b16_c2_ep5_batch4_2ctx": maple(4, 0.0035, 5, 9),
    "MaPLe/vit_b16_c2_ep5_batch4_2ctx_cross_datasets": maple(4, 0.0026, 2, 3),
    "MaPLe/vit_b16_c2_ep20_batch8_2ctx": maple(8, 0.005, 20, 9),
    "MaPLe/vit_b32_c2_ep5_batch4_2ctx_cross_datasets": maple(4, 0.0026, 2, 3),
    # PromptSRC
    "PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx": promptsrc(20, 9, 15.0, 1.0),
    "PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets": promptsrc(20, 3, 6.0, 10.0),
    "PromptSRC/vit_b16_c2_ep50_batch4_4+4ctx_few_shot": promptsrc(50, 9, 30.0, 30.0),
    "PromptSRC/vit_b16_c2_ep50_batch4_4+4ctx_few_shot_gpa45": promptsrc(50, 9, 45.0, 5.0),
    "PromptSRC/vit_b32_c2_ep50_batch4_4+4ctx_few_shot": promptsrc(50, 9, 30.0, 30.0),
    "PromptSRC/vit_b32_c2_ep50_batch4_4+4ctx_few_shot_gpa45": promptsrc(50, 9, 45.0, 5.0),
    "PromptSRC/vit_l14_c2_ep20_batch8_4+4ctx": promptsrc(20, 9, 15.0, 1.0, batch=8, lr=0.005),
    # PromptKD
    "PromptKD/vit_b16_c2_ep20_batch8_4+4ctx": promptkd(9),
    "PromptKD/vit_b16_c2_ep20_batch8_4+4ctx_cross_datasets": promptkd(3),
    "PromptKD/vit_b16_c2_ep20_batch8_4+4ctx_inductive": promptkd(9, transductive=False),
    "PromptKD/vit_b32_c2_ep20_batch8_4+4ctx": promptkd(9),
    "PromptKD/vit_b32_c2_ep20_batch8_4+4ctx_cross_datasets": promptkd(3),
}
# CoOp: epochs by file name; _ctxv1 starts from words
for backbone in ("rn50", "rn101", "vit_b32", "vit_b16"):
    for suffix, epochs in (("", 200), ("_ep100", 100), ("_ep50", 50)):
        VALUES[f"CoOp/{backbone}{suffix}"] = coop(epochs, words="", tokens=16)
        VALUES[f"CoOp/{backbone}{suffix}_ctxv1"] = coop(epochs)
# Hosts of a teacher: KDPL's schedules, plain, with its online teacher, and with stored regions
for host, stem, expected in (
    ("CoOp", "vit_b32_ctxv1", coop(50)),
    ("CoOp", "rn50_ctxv1", coop(50)),
    ("CoOp", "vit_b16_ctxv1", coop(50)),
    ("CoCoOp", "vit_b32_c4_ep10_batch1_ctxv1", cocoop(4, WORDS)),
    ("CoCoOp", "rn50_c4_ep10_batch1_ctxv1", cocoop(4, WORDS)),
    ("VPT", "vit_b32_c2_ep5_batch4_4", vpt()),
    ("IVLP", "vit_b32_c2_ep5_batch4_2+2ctx", both_towers(4, 0.0035, 5, (2, 2), (12, 12))),
    ("MaPLe", "vit_b32_c2_ep5_batch4_2ctx", maple(4, 0.0035, 5, 9)),
    ("PromptSRC", "vit_b32_c2_ep20_batch4_4+4ctx", promptsrc(20, 9, 15.0, 1.0)),
    ("PromptSRC", "vit_b32_c2_ep20_batch4_4+4ctx_cross_datasets", promptsrc(20, 3, 6.0, 10.0)),
):
    VALUES[f"{host}_KDPL/{stem}"] = VALUES[f"{host}_FDBPL/{stem}"] = expected
    if host == "CoOp":  # plain CoOp of that name is the CoOp repository's, 200 epochs
        VALUES[f"FDBPL/{stem}"] = expected
    else:
        VALUES[f"{host}/{stem}"] = expected
TRAINED = [name for name in REAL if name.split("/")[0] not in ZERO_SHOT]


def test_the_table_of_values_is_complete():
    assert set(VALUES) == set(TRAINED)
    zero_shot = {f"{name}/{backbone}" for name in ZERO_SHOT for backbone in BACKBONES}
    assert set(REAL) - set(TRAINED) == {name for name in zero_shot if "vit_l14" not in name}


@pytest.mark.parametrize("name", TRAINED)
def test_schedule_and_prompts_are_the_published_ones(name):
    cfg = merged(name)
    batch, lr, epochs, prompts = VALUES[name]
    assert (cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.OPTIM.LR) == (batch, lr)
    assert cfg.OPTIM.MAX_EPOCH == epochs
    node = cfg.TRAINER[node_of(name.split("/")[0])]
    assert {key: node[key] for key in prompts} == prompts
    assert set(node) == {*prompts, "PREC"} | ({"TEACHER_DIR", "TEACHER_EPOCH"} & set(node))


@pytest.mark.parametrize("name", TRAINED)
def test_what_all_methods_share(name):
    cfg, trainer = merged(name), name.split("/")[0]
    optim = cfg.OPTIM
    assert (optim.NAME, optim.MOMENTUM, optim.WEIGHT_DECAY) == ("sgd", 0.9, 5e-4)
    assert (optim.SGD_NESTEROV, optim.LR_SCHEDULER) == (False, "cosine")
    assert (optim.WARMUP_EPOCH, optim.WARMUP_TYPE) == (1, "constant")
    assert (optim.WARMUP_CONS_LR, cfg.TEST.FINAL_MODEL) == (1e-5, "last_step")
    assert cfg.TRAIN.PRINT_FREQ == (5 if host_of(trainer) == "CoOp" else 20)
    assert 1 <= cfg.TRAIN.CHECKPOINT_FREQ <= optim.MAX_EPOCH
    assert tuple(cfg.INPUT.RRCROP_SCALE) == (0.08, 1.0)


@pytest.mark.parametrize("name", REAL)
def test_what_clip_needs(name):
    cfg, (trainer, stem) = merged(name), name.split("/")
    size = "_".join(stem.split("_")[:2]) if stem.startswith("vit") else stem.split("_")[0]
    assert cfg.MODEL.BACKBONE.NAME == BACKBONES[size]
    assert (tuple(cfg.INPUT.SIZE), cfg.INPUT.INTERPOLATION) == ((224, 224), "bicubic")
    assert list(cfg.INPUT.PIXEL_MEAN) == [0.48145466, 0.4578275, 0.40821073]
    assert list(cfg.INPUT.PIXEL_STD) == [0.26862954, 0.26130258, 0.27577711]
    assert list(cfg.INPUT.TRANSFORMS) == ["random_resized_crop", "random_flip", "normalize"]
    assert (cfg.DATALOADER.TEST.BATCH_SIZE, cfg.DATALOADER.NUM_WORKERS) == (100, 8)
    assert cfg.TRAINER[node_of(trainer)].PREC == "fp16"


@pytest.mark.parametrize("name", [name for name in REAL if "KDPL" in name or "FDBPL" in name])
def test_teacher_and_regions(name):
    cfg = merged(name)
    keys = cfg.TRAINER.KDPL if "KDPL" in name else cfg.TRAINER.FDBPL
    assert (keys.TEACHER, keys.TEACHER_PREC) == ("ViT-H-14-quickgelu", "fp32")
    if "KDPL" in name:
        distill = cfg.TRAINER.DISTILL
        assert (distill.CLASS_AGNOSTIC, distill.K_MAX) == (False, 1000)
        return
    assert (keys.NUM_REGIONS, keys.REGIONS_PER_STEP, keys.STORE_KIND) == (50, 1, "logits")
    assert (tuple(keys.REGION_SCALE), keys.REGION_FLIP) == ((0.08, 0.936), 0.5)
    assert tuple(keys.REGION_RATIO) == (3 / 4, 4 / 3)
    assert (keys.REGION_WEIGHT, keys.NEGATIVE_INIT) == ("entropy", "a photo of no")
    weights = (keys.DISTILL_WEIGHT, keys.REJECT_WEIGHT, keys.SIMILARITY_WEIGHT, keys.CASCADE_WEIGHT)
    assert weights == (1.0, 1.0, 0.001, 0.1)


@pytest.mark.parametrize("name", FAST)
def test_a_fast_recipe_differs_from_the_faithful_one_in_its_schedule_alone(name):
    faithful = name.removesuffix("_fast") + ("" if name.endswith("toy_fast") else "_ctxv1")
    fast, slow = merged(name), merged(faithful)
    assert fast.OPTIM.MAX_EPOCH < slow.OPTIM.MAX_EPOCH
    assert fast.TRAINER.FDBPL.REGIONS_PER_STEP > slow.TRAINER.FDBPL.REGIONS_PER_STEP
    for cfg in (fast, slow):
        for key in ("MAX_EPOCH", "LR", "WARMUP_EPOCH"):
            cfg.OPTIM[key] = 0
        cfg.TRAINER.FDBPL.REGIONS_PER_STEP = cfg.TRAIN.CHECKPOINT_FREQ = cfg.TRAIN.PRINT_FREQ = 0
    assert fast == slow


def test_fdbpl_and_its_long_name_have_the_same_recipes():
    for name in FILES:
        if name.startswith("FDBPL/"):
            assert merged(name) == merged(f"CoOp_{name}"), name


def test_knobs_of_our_own_are_off_in_every_recipe():
    for name in FILES:
        cfg = merged(name)
        assert cfg.TRAINER.DISTILL == DEFAULTS.TRAINER.DISTILL
        assert tuple(cfg.TEST.TEXT_INTERPOLATION) == (0.0,)
        assert cfg.TRAINER.FDBPL.TUNE_TEACHER_EPOCHS == 0


@pytest.mark.parametrize("name", TOY)
def test_toy_recipes_run_on_a_cpu(name):
    cfg, trainer = merged(name), name.split("/")[0]
    assert (cfg.MODEL.BACKBONE.NAME, tuple(cfg.INPUT.SIZE)) == ("toy-student", (48, 48))
    assert (cfg.TRAINER[node_of(trainer)].PREC, cfg.DATALOADER.NUM_WORKERS) == ("fp32", 0)
    if trainer.endswith("FDBPL"):
        assert cfg.TRAINER.FDBPL.TEACHER == "toy-teacher"
    if trainer.endswith("_KDPL"):
        assert cfg.TRAINER.KDPL.TEACHER == "toy-teacher"
    if trainer == "PromptKD":
        assert cfg.TRAINER.PROMPTKD.TEACHER_NAME == "toy-teacher"


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("PromptSRC")])
def test_the_prompts_that_weigh_most_are_of_an_epoch_that_runs(name):
    cfg = merged(name)
    assert 1 <= cfg.TRAINER.PROMPTSRC.GPA_MEAN <= cfg.OPTIM.MAX_EPOCH


# Building


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data root whose ToyShapes is drawn in a moment."""
    patch = pytest.MonkeyPatch()
    small = replace(toy.TOY_SETS["ToyShapes"], counts={"train": 2, "val": 1, "test": 1})
    patch.setitem(toy.TOY_SETS, "ToyShapes", small)
    yield tmp_path_factory.mktemp("data")
    patch.undo()


@pytest.fixture(scope="module")
def teacher_dir(root):
    """A run folder of PromptSRC on the teacher, as PromptKD wants one; untrained."""
    cfg = on_the_toy("PromptSRC/toy", root, backbone="toy-teacher")
    cfg.freeze()
    build_trainer(cfg).save_model(0, str(root / "teacher"))
    return root / "teacher"


TOY_DEPTHS = {"PROMPT_DEPTH_VISION": 3, "PROMPT_DEPTH_TEXT": 2, "PROMPT_DEPTH": 2}  # its layers


def on_the_toy(name: str, root: Path, backbone: str = "toy-student") -> CfgNode:
    """A recipe's config, not frozen, with nothing changed but what the toy CLIP cannot do."""
    cfg = merged(name, parsed(REPO / "configs/datasets/toy_shapes.yaml"))
    cfg.DATASET.ROOT = str(root)
    cfg.DATASET.NUM_SHOTS = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.MODEL.BACKBONE.NAME = backbone
    cfg.INPUT.SIZE = (48, 48)
    cfg.TRAINER.NAME = name.split("/")[0]
    cfg.TRAINER.PROMPTKD.TEACHER_NAME = "toy-teacher"
    for node in cfg.TRAINER.values():
        if isinstance(node, CfgNode):
            if "PREC" in node:
                node.PREC = "fp32"
            for key, most in TOY_DEPTHS.items():
                if key in node:
                    node[key] = min(node[key], most)
    return cfg


@pytest.mark.parametrize("name", FILES)
def test_builds_its_trainer(name, root, request):
    cfg = on_the_toy(name, root)
    if name.startswith("PromptKD"):
        cfg.TRAINER.PROMPTKD.TEACHER_DIR = str(request.getfixturevalue("teacher_dir"))
    cfg.freeze()
    trainer = build_trainer(cfg)
    assert type(trainer).__name__ == name.split("/")[0]
    learned = [p for p in trainer.model.parameters() if p.requires_grad]
    assert bool(learned) == (trainer.cfg.TRAINER.NAME not in ZERO_SHOT)
