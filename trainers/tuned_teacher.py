"""The teacher's own prompt, tuned with labels on the stored features of the training regions.

The image tower's work is in the store already, so only the text tower runs. The tuned text
features are kept beside the store as a variant; the raw ones stay. Letters: N images, M regions of
each, C classes, D width of the teacher's joint embedding.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from yacs.config import CfgNode

from models.clip import LoadedClip, load_clip, supported_precision
from models.learners import ContextLearner, initial_context
from models.prompted_clip import PromptedCLIP
from regions.store import RegionStore, RunNeeds
from regions.store.teacher_text import read_text, write_text

WORDS = "a photo of a"  # the context starts from them, as CoOp's does
BATCH = 256  # regions per step
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4  # as every prompt model here is trained


def with_tuned_text(
    store: RegionStore,
    needs: RunNeeds,
    labels: Sequence[int],
    cfg: CfgNode,
    device: torch.device,
) -> RegionStore:
    """The store with logits of the tuned prompt; tuned now, or read if it was tuned before.

    Args:
        labels: classes of needs.images.
    Raises:
        ValueError: the store is not of kind features.
    """
    keys = cfg.TRAINER.FDBPL
    if store.spec.kind != "features":
        raise ValueError(
            f"TRAINER.FDBPL.TUNE_TEACHER_EPOCHS is {keys.TUNE_TEACHER_EPOCHS}, which needs the "
            f"teacher's features, but {store.path} holds {store.spec.kind}. Dump again with "
            "TRAINER.FDBPL.STORE_KIND features, or set it to 0."
        )
    keys_N = store.contents.keys(store.image_indices(needs.images))  # of paths and their bytes
    named = "\n".join(needs.images).encode("utf-8", "surrogateescape")
    images = hashlib.sha256(named + keys_N.tobytes()).hexdigest()[:16]
    variant = (
        f"tuned {keys.TUNE_TEACHER_EPOCHS} epochs lr {keys.TUNE_TEACHER_LR:g} "
        f"seed {cfg.SEED} images {images}"
    )
    text_CD = read_text(store, needs.classnames, needs.template, variant)
    if text_CD is None:
        print(f"Tuning the prompt of {keys.TEACHER} on {len(needs.images)} images' stored regions")
        precision = supported_precision(keys.TEACHER_PREC, device)
        clip = load_clip(keys.TEACHER, "amp" if precision == "fp16" else precision, device)
        store.check_teacher(keys.TEACHER, clip.digest)
        places = store.image_indices(needs.images)
        features_NMD = torch.from_numpy(store.features(places)).to(device)
        text_CD = tune_text(
            clip,
            list(needs.classnames),
            features_NMD.flatten(0, 1),
            torch.tensor(labels).repeat_interleave(features_NMD.shape[1]).to(device),
            keys.TUNE_TEACHER_EPOCHS,
            keys.TUNE_TEACHER_LR,
            max(cfg.SEED, 0),
        )
        with contextlib.suppress(OSError):  # a store that cannot be written beside: once per run
            print(
                f"Kept as {write_text(store, needs.classnames, needs.template, text_CD, variant)}"
            )
    return store.with_text(needs.classnames, needs.template, text_CD, variant)


def tune_text(
    clip: LoadedClip,
    classnames: list[str],
    feature_RD: Tensor,
    label_R: Tensor,
    epochs: int,
    lr: float,
    seed: int,
) -> np.ndarray:
    """Text features (C, D) of a context that tells the regions' classes apart; prints accuracies.

    Cross-entropy at the teacher's logit scale, SGD with a cosine from lr to 0.
    """
    model = PromptedCLIP(clip, ContextLearner(initial_context(clip, WORDS, 0)), classnames, WORDS)
    feature_RD = F.normalize(feature_RD, dim=-1)
    optimizer = torch.optim.SGD(
        model.learner.parameters(), lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    steps = epochs * math.ceil(len(label_R) / BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    before = _accuracy(model, feature_RD, label_R)
    for _ in range(epochs):
        for batch in torch.randperm(len(label_R), generator=generator).split(BATCH):
            batch = batch.to(label_R.device)
            logits_BC = model.logits(feature_RD[batch], model.text_features())
            optimizer.zero_grad()
            F.cross_entropy(logits_BC, label_R[batch]).backward()
            optimizer.step()
            schedule.step()
    after = _accuracy(model, feature_RD, label_R)
    print(f"Teacher on the regions it was tuned on: {before:.1f} % before, {after:.1f} % after")
    with torch.no_grad():
        return model.text_features().float().cpu().numpy()


@torch.no_grad()
def _accuracy(model: PromptedCLIP, feature_RD: Tensor, label_R: Tensor) -> float:
    said_R = model.logits(feature_RD, model.text_features()).argmax(dim=-1)
    return 100 * (said_R == label_R).float().mean().item()
