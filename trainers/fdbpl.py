"""FDBPL: a method taught by stored region logits, with a positive and a negative prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

import losses
from models.clip import LoadedClip, supported_precision, weights_digest
from models.learners import DualContextLearner, initial_context
from models.teacher import Teacher
from models.templates import template_for
from regions.dataset import RegionDataset, RegionSampler, collate_regions
from regions.spec import relative_path
from regions.store import RegionStore, RunNeeds
from regions.text import with_text_of_run
from trainers.coop import CoOp

REGION_WEIGHTS = ("entropy", "none")


class StoredRegions:
    """Objective: the student follows teacher logits that are read from a region store.

    The teacher network is not loaded for it. Source: FDBPL, arXiv:2505.18053 (docs/METHOD.md).
    """

    def teacher_name(self) -> str:
        return self.cfg.TRAINER.FDBPL.TEACHER

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        keys = cfg.TRAINER.FDBPL
        if keys.REGION_WEIGHT not in REGION_WEIGHTS:
            raise ValueError(
                f"TRAINER.FDBPL.REGION_WEIGHT is {keys.REGION_WEIGHT!r}; choose one of "
                f"{REGION_WEIGHTS}."
            )
        if not 1 <= keys.REGIONS_PER_STEP <= keys.NUM_REGIONS:
            raise ValueError(
                f"TRAINER.FDBPL.REGIONS_PER_STEP is {keys.REGIONS_PER_STEP}; it needs 1 to "
                f"NUM_REGIONS ({keys.NUM_REGIONS})."
            )
        if not any(_weights(keys).values()):
            raise ValueError("Every weight under TRAINER.FDBPL is 0: nothing is left to learn.")

    def build_learner(self, clip: LoadedClip, num_classes: int | None) -> DualContextLearner:
        keys = self.cfg.TRAINER.COOP
        negative_words = self.cfg.TRAINER.FDBPL.NEGATIVE_INIT if keys.CTX_INIT else ""
        positive_ND, negative_ND = (
            initial_context(clip, words, keys.N_CTX) for words in (keys.CTX_INIT, negative_words)
        )
        return DualContextLearner(positive_ND, negative_ND, num_classes)

    def class_features(self) -> Tensor:
        """Images are recognised with the positive prompt alone."""
        return self.model.text_features()[0]

    # Reading the store

    def before_train(self) -> None:
        self.store = self.open_store()
        self.train_loader_x = self.build_region_loader(self.store)
        super().before_train()

    def open_store(self) -> RegionStore:
        """
        Raises:
            RegionStoreError: there is no store, it is damaged, or it does not fit this run.
        """
        cfg, dataset = self.cfg, self.dm.dataset
        path = cfg.TRAINER.FDBPL.STORE
        if not path:
            raise ValueError(
                "TRAINER.FDBPL.STORE is empty; name the folder that dump_teacher_logits.py wrote "
                "(with the same --root, configs and --seed as this run)."
            )
        store = RegionStore.open(path)
        needs = RunNeeds.from_cfg(
            cfg,
            template=template_for(cfg.DATASET.NAME, cfg.DATASET.TEMPLATE),
            classnames=dataset.classnames,
            images=[relative_path(item.impath, cfg.DATASET.ROOT) for item in dataset.train_x],
            teacher_digest=weights_digest(cfg.TRAINER.FDBPL.TEACHER),
        )
        store = with_text_of_run(store, needs, self.teacher_text)
        store.check_run(needs)
        print(f"Teacher logits of {len(needs.images)} images are read from {path}")
        return store

    def teacher_text(self, classnames: Sequence[str], template: str) -> tuple[np.ndarray, str]:
        """The teacher's text features (C, D), and the digest of its weights.

        Asked for by a store of kind features whose text is of other classes or another template.
        """
        keys = self.cfg.TRAINER.FDBPL
        precision = supported_precision(keys.TEACHER_PREC, self.device)
        teacher = Teacher.load(keys.TEACHER, classnames, template, precision, self.device)
        return teacher.text_features().float().cpu().numpy(), teacher.digest

    def build_region_loader(self, store: RegionStore) -> DataLoader:
        """Batches as Dassl draws them; every image brings REGIONS_PER_STEP of its regions."""
        cfg, dataset = self.cfg, self.dm.dataset
        regions = RegionDataset(
            dataset.train_x,
            store,
            store.columns(dataset.classnames),
            cfg.TRAINER.FDBPL.REGIONS_PER_STEP,
            image_size=self.model.clip.image_size,
            mean=self.model.clip.mean,
            std=self.model.clip.std,
            root=cfg.DATASET.ROOT,
        )
        batch_size = min(cfg.DATALOADER.TRAIN_X.BATCH_SIZE, len(regions))
        return DataLoader(
            regions,
            batch_size=batch_size,
            sampler=RegionSampler(regions),
            drop_last=True,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            collate_fn=collate_regions,
            pin_memory=self.device.type == "cuda",
        )

    # Learning from it

    def losses(self, batch: dict) -> tuple[dict[str, Tensor], Tensor]:
        keys = self.cfg.TRAINER.FDBPL
        teacher_BC = batch["teacher_logits"]
        image_BD = self.model.image_features(batch["img"])
        text_2CD = self.model.text_features()
        positive_CD, negative_CD = text_2CD
        positive_BC, negative_BC = self.model.logits(image_BD, text_2CD)
        weight_B = losses.region_weight(teacher_BC)
        if keys.REGION_WEIGHT == "none":
            weight_B = torch.ones_like(weight_B)

        terms = {
            "distill": lambda: (weight_B * losses.symmetric_kl(positive_BC, teacher_BC)).mean(),
            "reject": lambda: ((1 - weight_B) * losses.rejection(negative_BC)).mean(),
            "similarity": lambda: (
                weight_B * losses.logit_similarity(positive_BC, negative_BC)
            ).mean(),
            "cascade": lambda: losses.cascaded_difference(
                image_BD, positive_CD, negative_CD, teacher_BC, weight_B, keys.CASCADE_MARGIN
            ),
            "labels": lambda: F.cross_entropy(positive_BC, batch["label"]),
        }
        weights = _weights(keys)
        return {name: weights[name] * terms[name]() for name in terms if weights[name]}, positive_BC


def _weights(keys) -> dict[str, float]:
    """Weight of each loss term, by the name it has in the log."""
    return {
        "distill": keys.DISTILL_WEIGHT,
        "reject": keys.REJECT_WEIGHT,
        "similarity": keys.SIMILARITY_WEIGHT,
        "cascade": keys.CASCADE_WEIGHT,
        "labels": keys.LABEL_WEIGHT,
    }


@TRAINER_REGISTRY.register()
class FDBPL(StoredRegions, CoOp):
    """CoOp's prompt with a negative twin, taught by stored region logits."""


@TRAINER_REGISTRY.register()
class CoOp_FDBPL(FDBPL):
    """FDBPL under the name that says its host."""
