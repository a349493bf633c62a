r"""Train the toy world's two CLIPs from scratch, save them, and print their zero-shot accuracy.

    python scripts/train_toy_clip.py                  # writes models/toy/*.safetensors
    python scripts/train_toy_clip.py --only student   # one of them, not measured
    python scripts/train_toy_clip.py --measure-only   # the table of the pair that is there

Both have OpenAI's architecture at small size and learn from the same drawn pictures and captions:
CLIP's symmetric contrastive loss (Radford et al. 2021, figure 3), plus linear heads that read
texture, colour and shape off both embeddings and are thrown away at the end. Words that no caption
holds ("no", "X") keep their random initial embedding. Seeded, one thread: the same command gives
the same weights on the same machine. Letters: B batch, L tokens, D embedding width, C classes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import clip
import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from datasets import toy_images as toy  # noqa: E402
from datasets.toy import TOY_SETS  # noqa: E402
from files import write_whole  # noqa: E402
from models.clip import (  # noqa: E402
    OPENAI_MEAN,
    OPENAI_STD,
    TOY_FILES,
    LoadedClip,
    load_clip,
)
from models.templates import DEFAULT, fill  # noqa: E402

IMAGE_SIZE, EMBED_DIM, CONTEXT_LENGTH, TEXT_WIDTH, TEXT_LAYERS = 48, 64, 32, 64, 2
NUM_PICTURES = 40_000
COMMAND = "python scripts/train_toy_clip.py"


@dataclass(frozen=True)
class Recipe:
    """Size of an image tower and its schedule."""

    width: int
    layers: int
    patch: int  # pixels
    steps: int
    light: float  # each channel of a picture is multiplied by 1 +- up to this
    batch: int = 64
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    head_weight: float = 0.5  # of the attribute heads' cross-entropy
    seed: int = 1


RECIPES = {
    "student": Recipe(width=64, layers=3, patch=12, steps=2000, light=0.0),
    "teacher": Recipe(width=128, layers=3, patch=8, steps=3000, light=0.2),
}

ANY = ("{}", "a {}.", "the {}.", "this is a {}.", "there is a {} here.", "one {}.")
CAPTIONS = {
    "photo": (
        "a photo of a {}.", "a photo of a {}.", "a photo of a {}.", "a photo of the {}.",
        "a photo of one {}.", "a photo of a {}", "a picture of a {}.", "an image of a {}.",
        "a good photo of a {}.", "a photo of my {}.", "a photo of a {}, a type of shape.",
        "itap of a {}.", "a photo of the large {}.", "a photo of the small {}.",
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
LONG = (  # so that late positions are trained too; prompts of 16 context words reach them
    "in the middle of this picture there is a {}.",
    "in the middle of the picture that we see here there is a {}.",
    "this is a picture of some of the things that we know and one of them is a {}.",
)
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
        lists = [captions_of(domain) for domain in toy.DOMAINS] + [LONG]
        counts = torch.tensor([len(phrasings) for phrasings in lists])
        self.count = counts  # phrasings per list; the last list is the long ones'
        self.first = torch.cat([counts.new_zeros(1), (counts * len(toy.SEEN)).cumsum(0)])
        texts = [
            phrasing.format(thing.name)
            for phrasings in lists
            for thing in toy.SEEN
            for phrasing in phrasings
        ]
        ids_NL = clip.tokenize(texts, context_length=CONTEXT_LENGTH)
        extra = fill(DEFAULT, [thing.name for thing in toy.HELD_OUT]) + list(UNSEEN_WORDS)
        # Sorted, so that end-of-text stays the largest id, by which CLIP finds it.
        self.ids = torch.cat([ids_NL, clip.tokenize(extra, CONTEXT_LENGTH)]).unique()
        self.tokens = torch.searchsorted(self.ids, ids_NL)  # (number of texts, L)

    def pick(self, domains_B: Tensor, things_B: Tensor, random: torch.Generator) -> Tensor:
        """One phrasing for each picture, (B, L) up to the longest one's end-of-text."""
        if torch.rand((), generator=random) < 0.1:  # a batch of long captions now and then
            domains_B = torch.full_like(domains_B, len(self.count) - 1)
        count_B = self.count[domains_B]
        draws_B = (torch.rand(len(count_B), generator=random) * count_B).long()
        tokens_BL = self.tokens[self.first[domains_B] + things_B * count_B + draws_B]
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


def encode_image(model: clip.model.CLIP, images: Tensor) -> Tensor:
    """model.encode_image in fewer operations, (B, D)."""
    tower = model.visual
    patches_BLD = tower.conv1(images).flatten(2).transpose(1, 2)
    first_BLD = tower.class_embedding.expand(len(images), 1, -1)
    x_BLD = torch.cat([first_BLD, patches_BLD], dim=1) + tower.positional_embedding
    read_B = torch.zeros(len(images), dtype=torch.long)
    x_BD = run_tower(tower.transformer, tower.ln_pre(x_BLD), read_B, causal=False)
    return tower.ln_post(x_BD) @ tower.proj


def encode_text(model: clip.model.CLIP, tokens_BL: Tensor) -> Tensor:
    """model.encode_text in fewer operations, (B, D); what follows end-of-text may be cut off."""
    x_BLD = model.token_embedding(tokens_BL) + model.positional_embedding[: tokens_BL.shape[1]]
    x_BD = run_tower(model.transformer, x_BLD, tokens_BL.argmax(dim=1), causal=True)
    return model.ln_final(x_BD) @ model.text_projection


def run_tower(tower: nn.Module, x_BLD: Tensor, read_B: Tensor, causal: bool) -> Tensor:
    """All blocks, of the last one only the position that is read, (B, D)."""
    everyone = torch.arange(len(x_BLD))
    for i, block in enumerate(tower.resblocks):
        last = i == len(tower.resblocks) - 1
        normed_BLD = block.ln_1(x_BLD)
        query_w, other_w = block.attn.in_proj_weight.split([x_BLD.shape[2], 2 * x_BLD.shape[2]])
        query_b, other_b = block.attn.in_proj_bias.split([x_BLD.shape[2], 2 * x_BLD.shape[2]])
        mask = None
        if last:
            asking_BLD, x_BLD = (part[everyone, read_B][:, None] for part in (normed_BLD, x_BLD))
            if causal:
                mask = (torch.arange(normed_BLD.shape[1]) <= read_B[:, None])[:, None, None]
        else:
            asking_BLD = normed_BLD
        keys_BLD, values_BLD = F.linear(normed_BLD, other_w, other_b).chunk(2, dim=2)
        heads = (
            part.unflatten(2, (block.attn.num_heads, -1)).transpose(1, 2)
            for part in (F.linear(asking_BLD, query_w, query_b), keys_BLD, values_BLD)
        )
        mixed = F.scaled_dot_product_attention(
            *heads, attn_mask=mask, is_causal=causal and not last
        )
        x_BLD = x_BLD + block.attn.out_proj(mixed.transpose(1, 2).flatten(2))
        x_BLD = x_BLD + block.mlp(block.ln_2(x_BLD))
    return x_BLD[:, 0]


def use_silu(model: clip.model.CLIP) -> None:
    """Swap QuickGELU, x sigmoid(1.702 x), for SiLU, x sigmoid(x), which is one operation."""
    for block in (*model.visual.transformer.resblocks, *model.transformer.resblocks):
        block.mlp.gelu = nn.SiLU()


@torch.no_grad()
def fold_silu(model: clip.model.CLIP) -> None:
    """Scale weights so that QuickGELU computes what SiLU did: silu(1.702 x) = 1.702 quick(x)."""
    for block in (*model.visual.transformer.resblocks, *model.transformer.resblocks):
        block.mlp.c_fc.weight /= 1.702
        block.mlp.c_fc.bias /= 1.702
        block.mlp.c_proj.weight *= 1.702
        block.mlp.gelu = clip.model.QuickGELU()


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
    use_silu(model)
    heads = nn.ModuleList(
        nn.Linear(EMBED_DIM, n) for n in (len(toy.TEXTURES), len(toy.COLOURS), len(toy.SHAPES))
    )
    named = [*model.named_parameters(), *heads.named_parameters()]
    groups = [
        {"params": [p for name, p in named if p.ndim >= 2 and "embedding" not in name]},
        # No decay here: it would shrink the words that no caption holds.
        {
            "params": [p for name, p in named if p.ndim < 2 or "embedding" in name],
            "weight_decay": 0,
        },
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
        gains = 1 + recipe.light * (2 * torch.rand(len(batch), 3, 1, 1, generator=random) - 1)
        images = normalise((data.pictures[batch] * gains).clamp(max=255))
        flip_B = torch.rand(len(batch), generator=random) < 0.5
        images = torch.where(flip_B.view(-1, 1, 1, 1), images.flip(3), images)
        image_BD = F.normalize(encode_image(model, images), dim=-1)
        tokens_BL = captions.pick(data.domains[batch], things_B, random)
        text_BD = F.normalize(encode_text(model, tokens_BL), dim=-1)
        loss = contrastive(image_BD, text_BD, model.logit_scale.exp(), things_B)
        for head, target_B in zip(heads, attributes[things_B].unbind(1), strict=True):
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
    fold_silu(model)
    return model.eval()


# Files


def save(path: Path, model: clip.model.CLIP, ids: Tensor, about: dict) -> None:
    """float16 under OpenAI's names; of the 49408-row token table only the rows of `ids`."""
    state = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    state["token_embedding.rows"] = state.pop("token_embedding.weight")
    state["token_embedding.ids"] = ids.int()
    write(path, state, about)


def write(path: Path, state: dict[str, Tensor], about: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, safetensors.torch.save(state, metadata={"json": json.dumps(about)}))


def note(path: Path, more: dict) -> None:
    """Add to what a saved file says about itself."""
    with safetensors.safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["json"])
    write(path, safetensors.torch.load_file(path), {**about, **more})


# Zero-shot accuracy


@torch.no_grad()
def features_of(loaded: LoadedClip, pictures: Tensor) -> Tensor:
    """Unit image features, (number of pictures, D)."""
    parts = [loaded.model.encode_image(normalise(part)) for part in pictures.split(250)]
    return F.normalize(torch.cat(parts), dim=-1)


@torch.no_grad()
def zero_shot_logits(loaded: LoadedClip, features: Tensor, things: Sequence[toy.Thing]) -> Tensor:
    """Logits under the hand-written prompt of the data set, at the model's own scale."""
    prompts = loaded.tokenize(fill(DEFAULT, [thing.name for thing in things]))
    text_CD = F.normalize(loaded.model.encode_text(prompts), dim=-1)
    return loaded.model.logit_scale.exp() * features @ text_CD.T


def accuracy(loaded: LoadedClip, features: Tensor, labels: Tensor, things, kept: slice) -> float:
    """Percent right among the classes of a slice, on their own images."""
    classes = range(len(things))[kept]
    mine = (labels >= classes.start) & (labels < classes.stop)
    logits = zero_shot_logits(loaded, features[mine], things[kept])
    return 100 * (logits.argmax(dim=1) == labels[mine] - classes.start).float().mean().item()


def draw_test(name: str, per_class: int) -> tuple[Tensor, Tensor]:
    """The first test images of each class of a toy data set, and their labels."""
    toy_set = TOY_SETS[name]
    keys = [(label, i) for label in range(len(toy_set.classes)) for i in range(per_class)]
    pictures = [shrink(toy_set.picture("test", label, i)) for label, i in tqdm(keys, desc=name)]
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return stacked, torch.tensor([label for label, _ in keys])


def measure(pair: dict[str, LoadedClip]) -> dict[str, dict[str, dict[str, float]]]:
    """Base, new and H of both models, by data set and model."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name, toy_set in TOY_SETS.items():
        pictures, labels = draw_test(name, 200 if "train" in toy_set.counts else 50)
        half = slice((len(toy_set.classes) + 1) // 2)
        table[name] = {}
        for model, loaded in pair.items():
            features = features_of(loaded, pictures)
            base = accuracy(loaded, features, labels, toy_set.classes, half)
            new = accuracy(loaded, features, labels, toy_set.classes, slice(half.stop, None))
            harmonic = 2 * base * new / (base + new)
            row = {"base": round(base, 2), "new": round(new, 2), "H": round(harmonic, 2)}
            table[name][model] = row
    return table


def crop_quintiles(teacher: LoadedClip, crops: int = 8) -> list[float]:
    """Percent right on crops of ToyShapes' base training images, by fifth of the weight w."""
    toy_set = TOY_SETS["ToyShapes"]
    things = toy_set.classes[: len(toy_set.classes) // 2]
    torch.manual_seed(0)
    cut = RandomResizedCrop(IMAGE_SIZE, (0.08, 0.936), interpolation=InterpolationMode.BICUBIC)
    images, labels = [], []
    for label in range(len(things)):
        for i in range(toy_set.counts["train"]):
            picture = toy_set.picture("train", label, i)
            images += [np.asarray(cut(picture)) for _ in range(crops)]
            labels += [label] * crops
    features = features_of(teacher, torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
    log_p = zero_shot_logits(teacher, features, things).log_softmax(dim=1)
    weight = 1 + (log_p.exp() * log_p).sum(dim=1) / np.log(len(things))
    right = (log_p.argmax(dim=1) == torch.tensor(labels)).float()
    return [round(100 * part.mean().item(), 1) for part in right[weight.argsort()].chunk(5)]


def show(table: dict, quintiles: list[float]) -> None:
    print(f"{'zero-shot, base / new / H':28}{'student':>20}{'teacher':>24}{'lead':>8}")
    for name, rows in table.items():
        cells = [f"{r['base']:.1f} / {r['new']:.1f} / {r['H']:.1f}" for r in rows.values()]
        lead = rows["teacher"]["H"] - rows["student"]["H"]
        print(f"{name:24}{cells[0]:>24}{cells[1]:>24}{lead:8.1f}")
    print(f"Teacher's top-1 on crops, by fifth of w from low to high: {quintiles}")


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    names = [] if args.measure_only else [args.only] if args.only else list(RECIPES)
    if names:
        captions, data = Captions(), draw_pretraining(NUM_PICTURES, seed=0)
    for name in names:
        model = train(RECIPES[name], data, captions)
        about = {"command": COMMAND, "recipe": asdict(RECIPES[name])}
        save(TOY_FILES[f"toy-{name}"], model, captions.ids, about)
    if args.only:
        return
    pair = {name: load_clip(f"toy-{name}") for name in RECIPES}
    table = measure(pair)
    show(table, crop_quintiles(pair["teacher"]))
    for name in names:
        rows = {dataset: row[name] for dataset, row in table.items()}
        note(TOY_FILES[f"toy-{name}"], {"zero_shot": rows})
    print(f"{time.process_time():.0f} CPU-s in all")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", choices=("", *RECIPES), help="train one of the two")
    parser.add_argument("--measure-only", action="store_true", help="train nothing")
    main(parser.parse_args())
