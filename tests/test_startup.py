"""A run imports what it uses: the check is on what is loaded, not on a clock."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import clip
import pytest
import torch
from toy_runs import flags, options

from models import openai_clip

REPO = Path(__file__).resolve().parents[1]
NOT_NEEDED = (  # by a run on the toy world, from its first line to its last
    "clip",  # two of its files are loaded by themselves
    "gdown",
    "matplotlib",
    "open_clip",
    "pandas",
    "pkg_resources",
    "scipy",
    "sklearn",
    "submitit",
    "sympy",
    "timm",
    "torch._dynamo",
    "torch._inductor",
    "torchvision",
    "transformers",
)
NOT_BEFORE_TRAINING = ("tensorboard", "torch.utils.tensorboard")


SMALL_WORLD = (  # in the process that is looked at, as the fixture has it in this one
    "from dataclasses import replace; from datasets import toy; "
    "small = replace(toy.TOY_SETS['ToyShapes'], counts={'train': 4, 'val': 2, 'test': 4}); "
    "toy.TOY_SETS['ToyShapes'] = small; "
)


def loaded_of(names: tuple[str, ...], code: str, *arguments: str) -> list[str]:
    """Which modules are loaded after some code, told by a process of its own."""
    code += f"; import json; print(); print(json.dumps(sorted(set({names!r}) & set(sys.modules))))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_train_and_dump_start_without_what_they_may_never_use():
    code = "import sys, train, dump_teacher_logits"
    assert loaded_of(NOT_NEEDED + NOT_BEFORE_TRAINING, code) == []


@pytest.mark.parametrize("trainer", ["CoOp", "FDBPL"])
def test_a_whole_run_does_without_them(world, store, trainer):
    """Dump, training on images or on stored regions, evaluation and results."""
    call = [*flags(world, trainer), "--output-dir", str(world / f"startup_{trainer}")]
    keys = options(epochs=1, **{"TRAINER.FDBPL.STORE": store})
    code = SMALL_WORLD + "import sys, train; train.main(sys.argv[1:])"
    assert loaded_of(NOT_NEEDED, code, *call, *keys) == []


def test_a_whole_dump_does_without_them(world):
    call = ["--store", str(world / "startup_store"), *flags(world, "FDBPL"), *options()]
    dump = "import sys, dump_teacher_logits; assert dump_teacher_logits.run(sys.argv[1:]) == 0"
    code = SMALL_WORLD + dump
    assert loaded_of(NOT_NEEDED + NOT_BEFORE_TRAINING, code, *call) == []


def test_tokens_are_those_of_the_package():
    texts = [
        "a photo of a cat.",
        "",
        "2012 BMW M3 coupe!",
        "Cafe\u0301 &amp; \u201cna\u00efve\u201d  x",
    ]
    assert torch.equal(openai_clip.tokenize(texts), clip.tokenize(texts))
    assert torch.equal(openai_clip.tokenize(texts, 40), clip.tokenize(texts, 40))
    with pytest.raises(RuntimeError, match="has 12 tokens of at most 5"):
        openai_clip.tokenize(["one two three four five six seven eight nine ten"], 5)


def test_published_names_are_those_of_the_package():
    assert all(openai_clip.is_published(name) for name in clip.available_models())
    assert not openai_clip.is_published("toy-student")
    assert not openai_clip.is_published("weights/ViT-B-16.pt")
