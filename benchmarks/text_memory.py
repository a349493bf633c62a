r"""Peak memory of a training step over many names, above the loaded model.

    python -m benchmarks.text_memory --classes 1000 20000
    python -m benchmarks.text_memory --classes 1000 20000 --device cuda

ViT-B/16 with random weights, fp32, contexts of 4 tokens, batch 32, image features and the teacher's
logits stored, one thread. FDBPL learns from all names, class-agnostic KDPL from those K_MAX that
the teacher finds likeliest; "features" encodes every name without gradient, as evaluation does.
Each runs in a process of its own: resident memory on a CPU, torch.cuda.max_memory_allocated else.

ImageNet has 1000 names; more of them are these with a number before, so that not many begin alike.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from torch import Tensor

import losses
from benchmarks.clips import random_student, random_unit
from benchmarks.report import add_flags, keep, markdown
from benchmarks.steps import BATCH, Bench
from models.learners import ContextLearner, initial_context
from models.prompted_clip import PromptedCLIP
from trainers.distillation import likely_classes

LARGEST_PEAK = {("FDBPL", 1000): 3_000_000_000}  # bytes above the loaded model


def names(count: int) -> list[str]:
    """Different names, the first of them ImageNet's."""
    every = list(dict.fromkeys(IMAGENET_CLASSNAMES))
    turns = range(-(-count // len(every)))
    return [f"{turn} {name}" if turn else name for turn in turns for name in every][:count]


def fdbpl(model: PromptedCLIP, image_BD: Tensor, teacher_BV: Tensor, k_max: int) -> None:
    """All names, a positive and a negative prompt, all four terms."""
    loss = Bench(model.clip).fdbpl_loss(teacher_BV.shape[1])
    loss(model.logits(image_BD, model.text_features())).backward()


def class_agnostic(model: PromptedCLIP, image_BD: Tensor, teacher_BV: Tensor, k_max: int) -> None:
    """The likeliest names, one prompt."""
    classes = likely_classes(teacher_BV, k_max)
    logits_BC = model.logits(image_BD, model.text_features(classes=classes))
    losses.symmetric_kl(logits_BC, teacher_BV[:, classes]).mean().backward()


def features(model: PromptedCLIP, image_BD: Tensor, teacher_BV: Tensor, k_max: int) -> None:
    """All names, one prompt, no gradient."""
    with torch.no_grad():
        model.logits(image_BD, model.text_features())


STEPS: dict[str, Callable[[PromptedCLIP, Tensor, Tensor, int], None]] = {
    "FDBPL": fdbpl,
    "KDPL, class-agnostic": class_agnostic,
    "features": features,
}


def in_new_process(*args: Any) -> dict[str, Any]:
    """measure(), in a process whose peak is the step's alone."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, args)


def measure(
    name: str, count: int, device: str, k_max: int = 1000, student: str = "ViT-B/16"
) -> dict[str, Any]:
    """One step: a row with its time and this process's peak."""
    torch.set_num_threads(1)
    loaded = random_student(student, "fp32", torch.device(device))
    learner = ContextLearner(initial_context(loaded, "a photo of a", 4))
    if name == "FDBPL":
        learner.add_negative(initial_context(loaded, "a photo of no", 4))
    image_BD = random_unit(BATCH, loaded.feature_width, device=loaded.device)
    generator = torch.Generator().manual_seed(3)
    teacher_BV = 5 * torch.randn(BATCH, count, generator=generator).to(loaded.device)
    before = _now(device)
    began = time.process_time()
    model = PromptedCLIP(loaded, learner, names(count), "a photo of a")
    STEPS[name](model, image_BD, teacher_BV, k_max)
    peak = _peak(device)
    return {
        "name": name,
        "names": count,
        "learned": min(count, k_max) if name == "KDPL, class-agnostic" else count,
        "prompts": 2 if name == "FDBPL" else 1,
        "cpu_seconds": round(time.process_time() - began, 1),
        "model_bytes": before,
        "peak_bytes": peak - before,
    }


def _now(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else _resident("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _resident("VmHWM")


def _resident(key: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at its highest so far (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def table(rows: Sequence[dict[str, Any]]) -> str:
    head = ("step", "names", "learned from", "prompts", "CPU s", "peak, GB", "at most, GB")
    return markdown(
        head,
        [
            (
                row["name"],
                f"{row['names']:,}",
                f"{row['learned']:,}",
                str(row["prompts"]),
                f"{row['cpu_seconds']:,.0f}",
                f"{row['peak_bytes'] / 1e9:.2f}",
                f"{bar / 1e9:.0f}"
                if (bar := LARGEST_PEAK.get((row["name"], row["names"])))
                else "",
            )
            for row in rows
        ],
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, nargs="+", default=[1000, 20000])
    parser.add_argument("--k-max", type=int, default=1000)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    add_flags(parser)
    args = parser.parse_args(argv)
    rows = []
    for count in args.classes:
        for name in STEPS if count > args.k_max else ("FDBPL",):
            rows.append(in_new_process(name, count, args.device, args.k_max))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table(rows))
    options = {key: value for key, value in vars(args).items() if key != "json"}
    keep(args.json, "text_memory", options, rows=rows)


if __name__ == "__main__":
    main()
