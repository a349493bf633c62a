r"""Train the toy world's two CLIPs from scratch, save them, and print their zero-shot accuracy.

    python scripts/train_toy_clip.py                  # writes models/toy/{student,teacher}.safetensors
    python scripts/train_toy_clip.py --only student   # one of them
    python scripts/train_toy_clip.py --steps 0        # trains nothing, prints the shipped pair's table

Both have OpenAI's architecture at small size and learn from the same drawn pictures and captions:
CLIP's symmetric contrastive loss (Radford et al. 2021, figure 3), plus linear heads that read
texture, colour and shape off both embeddings and are thrown away at the end. Words that no caption
holds ("no", "X") keep their random initial embedding. Seeded, one thread: the same command gives
the same weights on the same machine. Letters: B batch, L tokens, D embedding width, C classes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from datasets import toy_images as toy  # noqa: E402
from models.clip import OPENAI_MEAN, OPENAI_STD, TOY_FILES, clip, load_clip  # noqa: E402
from models.templates import DEFAULT, fill  # noqa: E402

IMAGE_SIZE, EMBED_DIM, CONTEXT_LENGTH, TEXT_WIDTH, TEXT_LAYERS = 48, 64, 32, 64, 2
NUM_PICTURES = 40_000


@dataclass(frozen=True)
class Recipe:
    """Size of an image tower and its schedule."""

    width: int
    layers: int
    patch: int  # pixels
    steps: int
    batch: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.05
    head_weight: float = 0.5  # of the attribute heads' cross-entropy
    seed: int = 1


RECIPES = {
    "student": Recipe(width=64, layers=3, patch=12, steps=4000),
    "teacher": Recipe(width=128, layers=3, patch=8, steps=6000),
}

ANY = ("{}", "a {}.", "the {}.", "this is a {}.", "there is a {} here.", "one {}.")
CAPTIONS = {
    "photo": (
        "a photo of a {}.", "a photo of a {}.", "a photo of a {}.", "a photo of the {}.",
        "a photo of one {}.", "a photo of a {}", "a picture of a {}.", "an image of a {}.",
        "a good photo of a {}.", "a photo of my {}.", "a photo of a {}, a type of shape.",
        "itap of a {}.", "a photo of the large {}.", "a photo of the small {}.",
        "in the middle of this picture there is a {}.",
        "this is a photo of some of the things that we know, and one of them is a {}.",
        "some things are in this photo and the one that we see here is a {}.",
    ),
    "drawing": (
        "a drawing of a {}.", "a drawing of the {}.", "a drawing of one {}.", "art of the {}.",
        "a {} in a video game.", "an origami {}.",
    ),
    "sketch": ("a sketch of a {}.", "a sketch of the {}.", "a sketch of one {}."),
    "blurry": ("a blurry photo of a {}.", "a blurry photo of the {}.", "a bad photo of the {}."),
    "dark": ("a dark photo of a {}.", "a dark photo of the {}.", "a bad photo of the {}."),
    "old": ("an old photo of a {}.", "an old photo of the {}.", "an old picture of a {}."),
}  # fmt: skip
UNSEEN_WORDS = ("no", "X")  # of negative prompts and of placeholders


def captions_of(domain: str) -> tuple[str, ...]:
    """Phrasings for a picture of a domain; "{}" is the thing's name."""
    return (*CAPTIONS[domain], *ANY)


# Pictures and captions


@dataclass(frozen=True)
class Pretraining:
    """Everything the towers learn from, in memory."""

    pictures: Tensor  # (N, 3, IMAGE_SIZE, IMAGE_SIZE) uint8
    things: Tensor  # (N,) index into toy.SEEN
    domains: Tensor  # (N,) index into toy.DOMAINS


def draw_pretraining(count: int, seed: int) -> Pretraining:
    """Draw things that are not held out: half photos, half centred and large."""
    rng = np.random.default_rng([seed, 0])
    things = rng.integers(len(toy.SEEN), size=count)
    domains = np.where(rng.random(count) < 0.5, 0, rng.integers(1, len(toy.DOMAINS), size=count))
    pictures = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    for i in tqdm(range(count), desc="drawing", mininterval=10):
        look = toy.Look(domain=toy.DOMAINS[domains[i]], scene=bool(rng.random() < 0.5))
        pictures[i] = shrink(toy.draw(toy.SEEN[things[i]], look, seed=(seed, 1, i)))
    return Pretraining(
        torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(things),
        torch.from_numpy(domains),
    )


def shrink(picture: Image.Image) -> np.ndarray:
    """To the towers' input size, as the trainers' test transform does."""
    return np.asarray(picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))


def normalise(pictures: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (OPENAI_MEAN, OPENAI_STD))
    return (pictures.float() / 255 - mean) / std


class Captions:
    """Tokens of every phrasing of every thing, over a vocabulary of only the words that occur."""

    def __init__(self) -> None:
        texts, self.start = [], {}  # (domain, thing) -> first row and number of rows
        for d, domain in enumerate(toy.DOMAINS):
            for t, thing in enumerate(toy.SEEN):
                phrasings = captions_of(domain)
                self.start[d, t] = (len(texts), len(phrasings))
                texts += [phrasing.format(thing.name) for phrasing in phrasings]
        ids_NL = clip.tokenize(texts, context_length=CONTEXT_LENGTH)
        extra = fill(DEFAULT, [thing.name for thing in toy.HELD_OUT]) + list(UNSEEN_WORDS)
        # Sorted, so that end-of-text stays the largest id, by which CLIP finds it.
        self.ids = torch.cat([ids_NL, clip.tokenize(extra, CONTEXT_LENGTH)]).unique()
        self.tokens = torch.searchsorted(self.ids, ids_NL)  # (number of texts, L)

    def pick(self, domains_B: Tensor, things_B: Tensor, random: torch.Generator) -> Tensor:
        """One phrasing for each picture, (B, L) up to the longest one's end-of-text."""
        rows = [self.start[d, t] for d, t in zip(domains_B.tolist(), things_B.tolist())]
        first_B, count_B = torch.tensor(rows).unbind(1)
        draws_B = (torch.rand(len(rows), generator=random) * count_B).long()
        tokens_BL = self.tokens[first_B + draws_B]
        return tokens_BL[:, : int(tokens_BL.argmax(dim=1).max()) + 1]


# Training


def build(recipe: Recipe, vocabulary: int) -> clip.model.CLIP:
    return clip.model.CLIP(
        embed_dim=EMBED_DIM,
        image_resolution=IMAGE_SIZE,
        vision_layers=recipe.layers,
        vision_width=recipe.width,
        vision_patch_size=recipe.patch,
        context_length=CONTEXT_LENGTH,
        vocab_size=vocabulary,
        transformer_width=TEXT_WIDTH,
        transformer_heads=TEXT_WIDTH // 64,  # as clip.build_model will derive it
        transformer_layers=TEXT_LAYERS,
    )


def encode_text(model: clip.model.CLIP, tokens_BL: Tensor) -> Tensor:
    """CLIP's encode_text on as many positions as the batch needs: nothing after end-of-text counts."""
    length = tokens_BL.shape[1]
    x_BLD = model.token_embedding(tokens_BL) + model.positional_embedding[:length]
    x_LBD = x_BLD.transpose(0, 1)
    for block in model.transformer.resblocks:
        block.attn_mask = model_mask(length)
        x_LBD = block(x_LBD)
    x_BLD = model.ln_final(x_LBD.transpose(0, 1))
    return x_BLD[torch.arange(len(x_BLD)), tokens_BL.argmax(dim=-1)] @ model.text_projection


def model_mask(length: int) -> Tensor:
    return torch.full((length, length), float("-inf")).triu(1)


def attributes_of(things: tuple[toy.Thing, ...]) -> Tensor:
    """(number of things, 3): index of texture, colour and shape."""
    colours, shapes = list(toy.COLOURS), list(toy.SHAPES)
    return torch.tensor(
        [[toy.TEXTURES.index(t), colours.index(c), shapes.index(s)] for t, c, s in things]
    )


def contrastive(image_BD: Tensor, text_BD: Tensor, scale: Tensor, things_B: Tensor) -> Tensor:
    """CLIP's loss; pairs of the same thing are right too, so they are no negatives."""
    logits_BB = scale * image_BD @ text_BD.T
    twins_BB = (things_B[:, None] == things_B[None]) & ~torch.eye(len(things_B), dtype=torch.bool)
    logits_BB = logits_BB.masked_fill(twins_BB, float("-inf"))
    target_B = torch.arange(len(things_B))
    return (F.cross_entropy(logits_BB, target_B) + F.cross_entropy(logits_BB.T, target_B)) / 2


def train(recipe: Recipe, data: Pretraining, captions: Captions) -> clip.model.CLIP:
    """Train one CLIP with AdamW: linear warm-up over 5 % of the steps, then a cosine to zero."""
    torch.manual_seed(recipe.seed)
    random = torch.Generator().manual_seed(recipe.seed)
    model = build(recipe, len(captions.ids))
    heads = nn.ModuleList(
        nn.Linear(EMBED_DIM, n) for n in (len(toy.TEXTURES), len(toy.COLOURS), len(toy.SHAPES))
    )
    named = [*model.named_parameters(), *heads.named_parameters()]
    groups = [
        {"params": [p for name, p in named if p.ndim >= 2 and "embedding" not in name]},
        # No decay here: it would shrink the words that no caption holds.
        {"params": [p for name, p in named if p.ndim < 2 or "embedding" in name], "weight_decay": 0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay)
    warm_up = max(1, recipe.steps // 20)

    def factor(step: int) -> float:
        done = max(0, step - warm_up) / max(1, recipe.steps - warm_up)
        return min((step + 1) / warm_up, 0.5 * (1 + np.cos(np.pi * done)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    attributes = attributes_of(toy.SEEN)
    order, progress = torch.empty(0, dtype=torch.long), tqdm(range(recipe.steps), mininterval=10)
    for step in progress:
        if len(order) < recipe.batch:
            order = torch.randperm(len(data.pictures), generator=random)
        batch, order = order[: recipe.batch], order[recipe.batch :]
        things_B = data.things[batch]
        images = normalise(data.pictures[batch])
        flip_B = torch.rand(len(batch), generator=random) < 0.5
        images = torch.where(flip_B.view(-1, 1, 1, 1), images.flip(3), images)
        image_BD = F.normalize(model.encode_image(images), dim=-1)
        tokens_BL = captions.pick(data.domains[batch], things_B, random)
        text_BD = F.normalize(encode_text(model, tokens_BL), dim=-1)
        loss = contrastive(image_BD, text_BD, model.logit_scale.exp(), things_B)
        for head, target_B in zip(heads, attributes[things_B].unbind(1)):
            for features_BD in (image_BD, text_BD):
                logits = head(features_BD * EMBED_DIM**0.5)
                loss = loss + recipe.head_weight / 2 * F.cross_entropy(logits, target_B)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=np.log(100))
        if step % 200 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}", scale=f"{model.logit_scale.exp():.1f}")
    return model.eval()


# Files


def save(path: Path, model: clip.model.CLIP, ids: Tensor, about: dict) -> None:
    """float16 under OpenAI's names; of the 49408-row token table only the rows of `ids`."""
    state = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    state["token_embedding.rows"] = state.pop("token_embedding.weight")
    state["token_embedding.ids"] = ids.int()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    safetensors.torch.save_file(state, partial, metadata={"json": json.dumps(about)})
    os.replace(partial, path)


def about(path: Path) -> dict:
    """What the training noted in the file."""
    with safetensors.safe_open(path, "pt") as file:
        return json.loads(file.metadata()["json"])
