r"""Write the prompts of a run for use with plain clip or open_clip, without this repository.

    python export.py --model-dir RUN --out prompts.safetensors [--classnames "tabby cat" ...]

The file holds class embeddings that stand for the text tower's output, and the learned tokens:

    image = model.encode_image(pixels)                        # clip or open_clip, same weights
    image = image / image.norm(dim=-1, keepdim=True)
    logits = file["logit_scale"] * image @ file["class_embeddings"].T
    names = json.loads(metadata["classnames"])

docs/REPRODUCE.md lists every tensor, and says which methods can be used how.
"""

from __future__ import annotations

# First, since a signal may come during the imports below.
from entry import run_script

# isort: split
import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from files import write_whole
from predict import read_names
from reporting.results import git_commit
from trained import add_run_flags, open_run


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_run_flags(parser)
    parser.add_argument("--out", type=Path, required=True, help="file to write: .safetensors")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    trainer = open_run(args.model_dir, read_names(args.classnames), args.load_epoch)
    tensors, about = export(trainer)
    tensors = {name: value.cpu().clone().contiguous() for name, value in tensors.items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(args.out, save(tensors, about))
    print(f"wrote {args.out}")
    for name, value in tensors.items():
        print(f"  {name:24s} {' x '.join(map(str, value.shape)) or 'one number'}")
    print(about["use"])


@torch.no_grad()
def export(trainer) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and description of a run's prompts.

    Letters: C classes, D width of the joint embedding, N context tokens, J layers with prompts.
    """
    model = trainer.model
    tensors = {"logit_scale": model.clip_model.logit_scale.exp().float()}
    text_CD = trainer.evaluation().class_features()
    if text_CD is not None:
        tensors["class_embeddings"] = text_CD.float()
    learner = getattr(model, "learner", None)
    tensors |= _learned(learner)
    about = {
        "trainer": trainer.cfg.TRAINER.NAME,
        "backbone": model.clip.name,
        "weights_sha256": model.clip.digest,
        "classnames": json.dumps([trainer.lab2cname[i] for i in sorted(trainer.lab2cname)]),
        "image_size": str(model.clip.image_size),
        "pixel_mean": json.dumps(list(model.clip.mean)),
        "pixel_std": json.dumps(list(model.clip.std)),
        "commit": git_commit() or "unknown",
        "use": _use(trainer, tensors),
    }
    return tensors, about


def _learned(learner) -> dict[str, Tensor]:
    """The learned tokens as they enter the towers, and every parameter by its own name."""
    if learner is None:
        return {}
    tensors = {f"parameters.{name}": value for name, value in learner.state_dict().items()}
    if hasattr(learner, "contexts"):
        contexts, deep = learner.contexts(), learner.deep()
        twins = learner.negative_ctx is not None
        tensors["context"] = contexts[0] if twins else contexts
        if twins:
            tensors["negative_context"] = contexts[1]
        if deep is not None:
            tensors["deep_context"] = deep[0] if twins else deep
    if getattr(learner, "has_vision", False) and not getattr(learner, "conditional", False):
        tensors["vision_prompts"] = learner().vision
    elif hasattr(learner, "vision"):  # PromptKD's
        tensors["vision_prompts"] = torch.stack(list(learner.vision))
    return tensors


def _use(trainer, tensors: dict[str, Tensor]) -> str:
    """In words: what the file can be used for."""
    model = trainer.model
    if "class_embeddings" not in tensors:
        return (
            "Class embeddings depend on the image (CoCoOp): none are written. For an image feature "
            "f of length 1 the context is `context` + meta_net(f), and the text tower makes the "
            "embeddings from it: predict.py does."
        )
    if "projector" in " ".join(tensors):
        return (
            "The image tower has prompts and a projector of its own: class_embeddings are of the "
            "teacher and do not fit plain clip's image features. Use predict.py."
        )
    if "vision_prompts" in tensors:
        return (
            "The image tower has prompts of its own: class_embeddings fit images that were encoded "
            "with vision_prompts beside the patches, not those of plain clip's image tower. Use "
            "predict.py, or put the prompts into that tower."
        )
    return (
        f"logits = logit_scale * image @ class_embeddings.T, image features of length 1 from "
        f"{model.clip.name} in clip or open_clip."
    )


if __name__ == "__main__":
    sys.exit(run_script(main, again=""))
