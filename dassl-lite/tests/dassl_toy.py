"""A toy data set and trainers that draw from every random generator. As a script, it trains.

python dassl_toy.py IMAGES OUT KEY VALUE ...
"""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import set_random_seed, setup_logger

DATA = Path(__file__).parent / "data"
CLASSNAMES = ("ant", "bee", "cat")
IMAGES = 22  # with a batch of 4: five batches and two images that are dropped


def draw_images(root: Path) -> None:
    for number in range(IMAGES):
        pixels = np.random.RandomState(number).randint(0, 256, (20, 28, 3), dtype=np.uint8)
        pixels[..., number % 3] //= 4
        Image.fromarray(pixels).save(root / f"{number}.png")


def make_cfg(image_root: Path, output_dir: Path, opts=()):
    cfg = get_cfg_default()
    cfg.merge_from_list(
        [
            *("DATASET.NAME", "Toy", "DATASET.ROOT", str(image_root)),
            *("OUTPUT_DIR", str(output_dir), "TRAINER.NAME", "OneModel", "USE_CUDA", False),
            *("INPUT.SIZE", (16, 16), "SEED", 0),
            *("INPUT.TRANSFORMS", ("random_resized_crop", "random_flip", "cutout", "normalize")),
            *("DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 4),
            *("OPTIM.NAME", "sgd", "OPTIM.LR", 0.02, "OPTIM.MAX_EPOCH", 4),
            *("OPTIM.LR_SCHEDULER", "cosine", "OPTIM.WARMUP_EPOCH", 1),
            *("OPTIM.WARMUP_TYPE", "constant", "TRAIN.PRINT_FREQ", 5),
        ]
    )
    cfg.merge_from_list(list(opts))
    return cfg


@DATASET_REGISTRY.register()
class Toy(DatasetBase):
    def __init__(self, cfg) -> None:
        items = [
            Datum(f"{cfg.DATASET.ROOT}/{i}.png", i % 3, 0, CLASSNAMES[i % 3]) for i in range(IMAGES)
        ]
        super().__init__(train_x=items, val=items[:9], test=items)


@TRAINER_REGISTRY.register()
class OneModel(TrainerX):
    def build_model(self) -> None:
        pixels = 3 * self.cfg.INPUT.SIZE[0] * self.cfg.INPUT.SIZE[1]
        layers = nn.Flatten(), nn.Dropout(0.2), nn.Linear(pixels, self.num_classes)
        self.model = nn.Sequential(*layers).to(self.device)
        self.register("toy_model", self.model)

    def register(self, name: str, model: nn.Module) -> None:
        optim = build_optimizer(model, self.cfg.OPTIM)
        self.register_model(name, model, optim, build_lr_scheduler(optim, self.cfg.OPTIM))

    def forward_backward(self, batch):
        image, label, _ = self.parse_batch_train(batch)
        # Noise from python and numpy, so that a resumed run needs their states too.
        output = self.model(image * (1 + 0.1 * random.random()) + 0.1 * np.random.randn())
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}


@TRAINER_REGISTRY.register()
class TwoModels(OneModel):
    def build_model(self) -> None:
        super().build_model()
        self.second = nn.Linear(self.num_classes, self.num_classes).to(self.device)
        self.register("second_model", self.second)
        self.model = nn.Sequential(self.model, self.second)


@TRAINER_REGISTRY.register()
class NoTraining(OneModel):
    def build_model(self) -> None:
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, self.num_classes))


def run(cfg) -> TrainerX:
    """What train.py does."""
    set_random_seed(cfg.SEED)
    setup_logger(cfg.OUTPUT_DIR)
    trainer = build_trainer(cfg)
    trainer.train()
    return trainer


def kill_at(moment: str) -> None:
    """Arrange that this process is killed with SIGKILL at a moment of its run.

    before:PATH and after:PATH are about the rename that completes a file whose path ends in PATH;
    while:PATH is halfway through writing it; batch:N is the N-th training step.
    """
    when, what = moment.split(":")
    replace, save, forward_backward = os.replace, torch.save, OneModel.forward_backward
    steps = iter(range(1, 1000))

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def killing_replace(source, target):
        if when == "before" and target.endswith(what):
            die()
        replace(source, target)
        if when == "after" and target.endswith(what):
            die()

    def killing_save(state, file):
        save(state, file)
        if when == "while" and file.name.endswith(f"{what}.partial"):
            file.flush()
            os.truncate(file.name, os.path.getsize(file.name) // 2)
            die()

    def killing_step(self, batch):
        if when == "batch" and next(steps) == int(what):
            die()
        return forward_backward(self, batch)

    os.replace, torch.save, OneModel.forward_backward = killing_replace, killing_save, killing_step


if __name__ == "__main__":
    torch.set_num_threads(1)
    slow = {"gdown", "scipy", "sklearn", "tensorboard"} & set(sys.modules)
    print(f"imported at start: {slow or 'none of the slow modules'}")
    run(make_cfg(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
