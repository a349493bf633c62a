"""FDBPL: a prompt model taught by stored region logits, with a negative twin of its prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import losses
from models.clip import LoadedClip, supported_precision, weights_digest
from models.learners import initial_context
from models.prompted_clip import PromptedCLIP
from models.teacher import Teacher
from regions.dataset import RegionDataset
from regions.features import RegionFeatures
from regions.loader import RegionSampler, as_it_is, collate_regions
from regions.store import RegionStore, RunNeeds
from regions.store.contents import contents_memory
from regions.store.spec import relative_path
from regions.store.teacher_text import with_text_of_run
from trainers.coop import CoOp
from trainers.distillation import Distillation
from trainers.feature_cache import cached_regions, has_frozen_images
from trainers.registry import objective
from trainers.tuned_teacher import with_tuned_text
from wording import counted

REGION_WEIGHTS = ("entropy", "none")


@objective("FDBPL")
class StoredRegions(Distillation):
    """The student follows teacher logits that are read from a region store.

    A negative twin of the prompt learns to reject. The teacher network is not loaded for it.
    Source: FDBPL, arXiv:2505.18053 (docs/METHOD.md: the terms, and how they act on each host).
    """

    OBJECTIVE = "FDBPL"

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
        if keys.TUNE_TEACHER_EPOCHS and cfg.TRAINER.DISTILL.CLASS_AGNOSTIC:
            raise ValueError(
                "TRAINER.FDBPL.TUNE_TEACHER_EPOCHS tunes the teacher's prompt on labels, which the "
                "words of TRAINER.DISTILL.CLASS_AGNOSTIC do not have. Switch one of them off."
            )
        if not any(_weights(keys).values()) and not cfg.TRAINER.DISTILL.LABEL_WEIGHT:
            raise ValueError(
                "Every weight under TRAINER.FDBPL and TRAINER.DISTILL.LABEL_WEIGHT is 0: nothing "
                "is left to learn."
            )

    def build_student(self, clip: LoadedClip) -> PromptedCLIP:
        student = super().build_student(clip)
        words = self.cfg.TRAINER.FDBPL.NEGATIVE_INIT if self.context_init() else ""
        student.learner.add_negative(initial_context(clip, words, student.learner.num_words))
        student.learner.to(self.device)
        return student

    def knobs(self) -> list[str]:
        epochs = self.cfg.TRAINER.FDBPL.TUNE_TEACHER_EPOCHS
        return [*([f"TUNE_TEACHER_EPOCHS {epochs}"] if epochs else []), *super().knobs()]

    # Reading the store

    def before_train(self) -> None:
        # Whether the teacher's text is computed or found beside the store: the same bits after it.
        with torch.random.fork_rng():
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
            template=self.teacher_template(),
            classnames=self.taught_classnames(),
            images=[relative_path(item.impath, cfg.DATASET.ROOT) for item in dataset.train_x],
            teacher_digest=weights_digest(cfg.TRAINER.FDBPL.TEACHER),
        )
        store = with_text_of_run(store, needs, self.teacher_text)
        store.check_run(needs)
        require_images(store, needs.images, cfg)
        if cfg.TRAINER.FDBPL.TUNE_TEACHER_EPOCHS:
            labels = [item.label for item in dataset.train_x]
            store = with_tuned_text(store, needs, labels, cfg, self.device)
        print(f"Teacher logits of {counted(len(needs.images), 'image')} are read from {path}")
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
            store.columns(self.taught_classnames()),
            cfg.TRAINER.FDBPL.REGIONS_PER_STEP,
            image_size=self.model.clip.image_size,
            mean=self.model.clip.mean,
            std=self.model.clip.std,
            root=cfg.DATASET.ROOT,
        )
        batch_size = min(cfg.DATALOADER.TRAIN_X.BATCH_SIZE, len(regions))
        at_once = self.whole_batches(regions)
        return DataLoader(
            regions if at_once is None else at_once,
            batch_size=batch_size,
            sampler=RegionSampler(regions),
            drop_last=True,
            num_workers=cfg.DATALOADER.NUM_WORKERS if at_once is None else 0,
            collate_fn=collate_regions if at_once is None else as_it_is,
            pin_memory=self.device.type == "cuda" and at_once is None,
        )

    def whole_batches(self, regions: RegionDataset) -> Dataset | None:
        """The regions as features, where these never change; None: they are cut from images."""
        cfg = self.cfg
        if cfg.TRAINER.FDBPL.CACHE_FEATURES and has_frozen_images(self.model):
            workers = cfg.DATALOADER.NUM_WORKERS
            kept = cached_regions(self.model, regions, cfg.DATASET.ROOT, workers)
            return RegionFeatures(regions, kept)
        return None

    # Learning from it

    def teacher_logits(self, batch: dict) -> Tensor:
        return batch["teacher_logits"]

    def distill(self, logits: Tensor, target_BC: Tensor, weight_B: Tensor) -> dict[str, Tensor]:
        keys = self.cfg.TRAINER.FDBPL
        positive_BC, negative_BC = logits
        if keys.REGION_WEIGHT == "none":
            weight_B = torch.ones_like(weight_B)
        scale = self.model.clip_model.logit_scale.exp().to(logits.dtype)

        terms = {
            "distill": lambda: (weight_B * losses.symmetric_kl(positive_BC, target_BC)).mean(),
            "reject": lambda: ((1 - weight_B) * losses.rejection(negative_BC)).mean(),
            "similarity": lambda: (
                weight_B * losses.logit_similarity(positive_BC, negative_BC)
            ).mean(),
            "cascade": lambda: losses.cascaded_difference(
                (positive_BC - negative_BC) / scale, target_BC, weight_B, keys.CASCADE_MARGIN
            ),
        }
        weights = _weights(keys)
        return {name: weights[name] * terms[name]() for name in terms if weights[name]}


def require_images(store: RegionStore, images: Sequence[str], cfg) -> None:
    """Refuse images that are not those whose regions the teacher saw.

    Raises:
        RegionStoreError: it names them.
    """
    places = store.image_indices(images)
    known, _ = store.contents.of(places)
    if not known.all():
        unknown = f"{len(places) - int(known.sum())} of {len(places)} images"
        print(f"What the bytes of {unknown} were is not kept beside {store.path}: not compared")
    trust = cfg.TRAINER.FDBPL.TRUST_MTIME
    store.contents.require_unchanged(
        store.spec, places, cfg.DATASET.ROOT, trust, contents_memory(cfg)
    )


def _weights(keys) -> dict[str, float]:
    """Weight of each loss term, by the name it has in the log."""
    return {
        "distill": keys.DISTILL_WEIGHT,
        "reject": keys.REJECT_WEIGHT,
        "similarity": keys.SIMILARITY_WEIGHT,
        "cascade": keys.CASCADE_WEIGHT,
    }


@TRAINER_REGISTRY.register()
class FDBPL(StoredRegions, CoOp):
    """CoOp_FDBPL under the method's name: CoOp's prompt with a negative twin."""
