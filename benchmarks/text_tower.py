r"""Time and memory of the text tower, forward and backward, against all 77 tokens of every prompt.

    python -m benchmarks.text_tower --classes 50 100

Random weights at ViT-B/16's text size, 512 wide with 12 layers of 8 heads, one thread, the first
ImageNet class names; medians of CPU time over rounds in which every variant runs once. What a step
takes of memory: benchmarks/text_memory.py.
"""

from __future__ import annotations

import argparse
import statistics
import time

import clip
import torch
from clip.model import CLIP
from torch import Tensor

from benchmarks.clips import class_names
from models.plain_text import PlainTextEncoder
from models.prompt_layout import PromptLayout
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[50, 100])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", choices=CASES, default="end")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = random_clip()
    kind, position, per_class = CASES[args.case]
    words = WORDS[kind]
    for count in args.classes:
        layout = PromptLayout.build(class_names(count), tokenize, words, position, per_class)
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
