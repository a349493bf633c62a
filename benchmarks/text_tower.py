r"""Time and memory of the text tower, forward and backward, against all 77 tokens of every prompt.

    python -m benchmarks.text_tower --classes 50 100
    python -m benchmarks.text_tower --memory --classes 1000

Random weights at ViT-B/16's text size, 512 wide with 12 layers of 8 heads, one thread, the first
ImageNet class names (repeated with a number where more are asked for); medians of CPU time over
rounds in which every variant runs once. With --memory: the peak of an FDBPL step (two prompts,
batch 32, stored image features) above the loaded model, resident memory of a child process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from pathlib import Path

import clip
import torch
from clip.model import CLIP
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from torch import Tensor
from torch.nn import functional as F

import losses
from models.clip import LoadedClip
from models.learners import ContextLearner, initial_context
from models.plain_text import PlainTextEncoder
from models.prompt_layout import PromptLayout
from models.prompted_clip import PromptedCLIP
from models.text import TextEncoder

WORDS = {"4 words": "a photo of a", "16 tokens": " ".join(["X"] * 16)}
CASES = {  # name -> (words, position, one context per class)
    "end": ("4 words", "end", False),
    "middle": ("4 words", "middle", False),
    "front": ("4 words", "front", False),
    "class-specific": ("4 words", "end", True),
    "16 at the end": ("16 tokens", "end", False),
}


def random_clip() -> CLIP:
    """ViT-B/16's text tower with random weights; the image tower is as small as can be."""
    torch.manual_seed(0)
    return CLIP(512, 32, 1, 64, 16, 77, 49408, 512, 8, 12).float().eval().requires_grad_(False)


def tokenize(texts: list[str]) -> Tensor:
    return clip.tokenize(texts).long()


def saved_bytes(encoder: TextEncoder, context: Tensor) -> int:
    """Bytes that a forward pass keeps for backward, weights not counted."""
    own = {value.untyped_storage().data_ptr() for value in encoder.parameters()}
    kept: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        features = encoder(context)
    del features
    return sum(kept.values())


def classnames(count: int) -> list[str]:
    rounds = range(-(-count // len(IMAGENET_CLASSNAMES)))
    names = [f"{name} {turn}" if turn else name for turn in rounds for name in IMAGENET_CLASSNAMES]
    return names[:count]


def measure_step_memory(count: int, piece: int, taught: int) -> None:
    """Print the peak of one FDBPL step above what the loaded model takes.

    Args:
        taught: train that many of the classes, as class-agnostic distillation does; 0: all.
    """
    torch.manual_seed(0)
    tower = CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12).float().eval().requires_grad_(False)
    clip_of = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "device": torch.device("cpu")}
    loaded = LoadedClip(
        "random", tower, tokenize, "", 224, precision="fp32", text_chunk=piece, **clip_of
    )
    start = initial_context(loaded, "a photo of a", 4)
    learner = ContextLearner(start)
    learner.add_negative(initial_context(loaded, "a photo of no", 4))
    before = resident("VmRSS")
    model = PromptedCLIP(loaded, learner, classnames(count), "a photo of a")
    began = time.process_time()
    if taught:
        with torch.no_grad():
            model.text_features()
        print(
            f"all {count} without gradient: {time.process_time() - began:.0f} s, peak "
            f"{(resident('VmHWM') - before) / 1e9:.2f} GB above the model",
            flush=True,
        )
        began = time.process_time()
    classes = torch.randperm(count)[:taught].sort().values if taught else None
    image_BD = F.normalize(torch.randn(32, 512), dim=-1)
    teacher_BC = 5 * torch.randn(32, taught or count)
    positive_BC, negative_BC = model.logits(image_BD, model.text_features(classes=classes))
    weight_B = losses.region_weight(teacher_BC)
    loss = (weight_B * losses.symmetric_kl(positive_BC, teacher_BC)).mean()
    loss += ((1 - weight_B) * losses.rejection(negative_BC)).mean()
    loss += losses.cascaded_difference(positive_BC - negative_BC, teacher_BC, weight_B, 0.2)
    loss.backward()
    print(
        f"{taught or count} of {count} classes, TEXT_CHUNK {piece}: "
        f"{time.process_time() - began:.0f} s, peak {(resident('VmHWM') - before) / 1e9:.2f} GB "
        f"above the model's {before / 1e9:.2f} GB",
        flush=True,
    )


def resident(key: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at its highest so far (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[50, 100])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", choices=CASES, default="end")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--text-chunk", type=int, default=0)
    parser.add_argument("--taught", type=int, default=0, help="with --memory: classes of the step")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory:
        for count in args.classes:  # each in a fresh process, whose peak is the step's alone
            child = multiprocessing.get_context("spawn").Process(
                target=measure_step_memory, args=(count, args.text_chunk, args.taught)
            )
            child.start()
            child.join()
            if child.exitcode:
                raise SystemExit(child.exitcode)
        return
    model = random_clip()
    kind, position, per_class = CASES[args.case]
    words = WORDS[kind]
    for count in args.classes:
        layout = PromptLayout.build(classnames(count), tokenize, words, position, per_class)
        shape = (count,) * per_class + (layout.num_context, 512)
        context = torch.randn(shape).mul_(0.02).requires_grad_()
        encoders = {
            "77 tokens": PlainTextEncoder(model, layout),
            "here": TextEncoder(model, layout),
        }
        seconds = {name: [] for name in encoders}
        grads = {}
        for turn in range(args.rounds + 1):
            for name, encoder in encoders.items():
                context.grad = None
                start = time.process_time()
                encoder(context).square().sum().backward()
                if turn:  # the first one warms up
                    seconds[name].append(time.process_time() - start)
                grads[name] = context.grad
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        kept = {name: saved_bytes(encoder, context) for name, encoder in encoders.items()}
        plain, own = grads.values()
        plan = encoders["here"]._whole[1].live.all
        print(
            f"{args.case}, {count} classes, {plan.stem} + {plan.chunks[0]} x {plan.chunks[1]} rows "
            f"for {77 * count} tokens: "
            f"{medians['77 tokens']:.2f} s -> {medians['here']:.3f} s "
            f"({medians['77 tokens'] / medians['here']:.1f}x), kept "
            f"{kept['77 tokens'] / 2**20:.0f} MiB -> {kept['here'] / 2**20:.1f} MiB "
            f"({kept['77 tokens'] / kept['here']:.1f}x), largest gradient difference "
            f"{(plain - own).abs().max() / plain.abs().max():.1e} of the largest gradient",
            flush=True,
        )


if __name__ == "__main__":
    main()
