"""Training and testing loops: TrainerBase, SimpleTrainer, TrainerX, TrainerXU."""

from __future__ import annotations

import datetime
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from yacs.config import CfgNode

from dassl.data import DataManager
from dassl.evaluation import build_evaluator
from dassl.utils import (
    AverageMeter,
    MetricMeter,
    load_checkpoint,
    mkdir_if_missing,
    save_checkpoint,
    tolist_if_not,
)
from dassl.utils.rng import get_rng_state, set_rng_state
from dassl.utils.torchtools import BEST, checkpoint_name, load_complete_set, restore


class TrainerBase:
    """Registered models with their optimizers and schedules: mode, update, save, resume."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, torch.optim.Optimizer | None] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()
        self._writer = None
        self._resumed_rng: dict | None = None

    # ---- models ----

    def register_model(
        self,
        name: str = "model",
        model: nn.Module | None = None,
        optim: torch.optim.Optimizer | None = None,
        sched: Any = None,
    ) -> None:
        """Add a model under the name of its checkpoint folder.

        Raises:
            AttributeError: called before super().__init__().
            ValueError: the name is taken.
        """
        if "_models" not in self.__dict__:
            raise AttributeError("Call super().__init__() before register_model().")
        if name in self._models:
            raise ValueError(f"A model {name!r} is registered already; choose another name.")
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names: str | list[str] | None = None) -> list[str]:
        """All registered names, or the given ones, checked."""
        if names is None:
            return list(self._models)
        names = tolist_if_not(names)
        for name in names:
            if name not in self._models:
                raise ValueError(f"No model {name!r}; registered: {', '.join(self._models)}")
        return names

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        """Switch models to "train", or to "test" (also called "eval")."""
        if mode not in ("train", "test", "eval"):
            raise KeyError(f"mode is {mode!r}; it is train, test or eval.")
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    # ---- checkpoints ----

    def save_model(
        self,
        epoch: int,
        directory: str,
        is_best: bool = False,
        val_result: float | None = None,
        model_name: str = "",
    ) -> None:
        """Write every registered model, with what a resumed run needs to end with the same bits."""
        run_state = self._run_state()
        for name, model in self._models.items():
            optim, sched = self._optims[name], self._scheds[name]
            save_checkpoint(
                {
                    "state_dict": model.state_dict(),
                    "epoch": epoch + 1,
                    "optimizer": None if optim is None else optim.state_dict(),
                    "scheduler": None if sched is None else sched.state_dict(),
                    "val_result": None if val_result is None else float(val_result),
                    **run_state,
                },
                os.path.join(directory, name),
                is_best=is_best,
                model_name=model_name,
            )

    def resume_model_if_exist(self, directory: str) -> int:
        """Load the newest epoch that every registered model has; return the epoch to start at."""
        names = self.get_model_names()
        if not names:
            return 0
        folders = [os.path.join(directory, name) for name in names]
        if not all(os.path.isdir(folder) for folder in folders):
            print("No checkpoint found, train from scratch")
            return 0
        found = load_complete_set(folders)
        if found is None:
            print(f"{directory} has no epoch with a checkpoint of each of: {', '.join(names)}")
            print("No checkpoint found, train from scratch")
            return 0
        print(f"Found checkpoint at {directory} (will resume training)")
        for name, (path, checkpoint) in zip(names, found, strict=True):
            model, optim, sched = self._models[name], self._optims[name], self._scheds[name]
            start_epoch = restore(checkpoint, path, model, optim, sched)
        self._load_run_state(checkpoint)
        return start_epoch

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load weights of an epoch, by default of the best one; "" loads nothing and says so.

        Raises:
            FileNotFoundError: a model has no such checkpoint.
            ValueError: the models' checkpoints are of different epochs.
        """
        if not directory:
            print(
                "Note: load_model() loads nothing, as no folder is given "
                "(as it should be where there is nothing to load)"
            )
            return
        file_name = BEST if epoch is None else checkpoint_name(epoch)
        epochs = {}
        for name, model in self._models.items():
            path = os.path.join(directory, name, file_name)
            if not os.path.exists(path):
                raise FileNotFoundError(f"No model at {path}")
            checkpoint = load_checkpoint(path)
            epochs[path] = checkpoint["epoch"]
            if len(set(epochs.values())) > 1:
                raise ValueError(
                    f"Checkpoints of different epochs: {epochs}. The run was killed between them; "
                    f"run it again (it resumes), or choose a whole epoch with --load-epoch."
                )
            result = checkpoint.get("val_result")
            shown = "none" if result is None else f"{result:.1f}"
            print(f"Load {path} to {name} (epoch={checkpoint['epoch']}, val_result={shown})")
            model.load_state_dict(checkpoint["state_dict"])

    def _run_state(self) -> dict[str, Any]:
        """What belongs to the run, not to one of its models."""
        best, scaler = getattr(self, "best_result", None), getattr(self, "scaler", None)
        return {
            "best_result": None if best is None else float(best),
            "rng": get_rng_state(),
            "scaler": scaler.state_dict() if hasattr(scaler, "state_dict") else None,  # amp
        }

    def _load_run_state(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint.get("best_result") is not None:
            self.best_result = checkpoint["best_result"]
        if checkpoint.get("scaler") and hasattr(getattr(self, "scaler", None), "load_state_dict"):
            self.scaler.load_state_dict(checkpoint["scaler"])
        self._resumed_rng = checkpoint.get("rng")  # put back right before the first epoch

    # ---- tensorboard ----

    def init_writer(self, log_dir: str) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import; training alone

            print(f"Initialize tensorboard (log_dir={log_dir})")
            self._writer = SummaryWriter(log_dir=log_dir)

    def close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Send a number to tensorboard; outside training there is none, and nothing happens."""
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    # ---- the loop and its hooks ----

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """Run epochs; before_train() may move ``self.start_epoch`` to resume."""
        self.start_epoch, self.max_epoch = start_epoch, max_epoch
        self.before_train()
        self._continue_run()
        for epoch in range(self.start_epoch, self.max_epoch):
            self.epoch = epoch
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def before_train(self) -> None:
        pass

    def after_train(self) -> None:
        pass

    def before_epoch(self) -> None:
        pass

    def after_epoch(self) -> None:
        pass

    def run_epoch(self) -> None:
        raise NotImplementedError

    def test(self) -> float:
        raise NotImplementedError

    def parse_batch_train(self, batch: dict) -> Any:
        raise NotImplementedError

    def parse_batch_test(self, batch: dict) -> Any:
        raise NotImplementedError

    def forward_backward(self, batch: dict) -> dict[str, float] | None:
        raise NotImplementedError

    def model_inference(self, input: Tensor) -> Tensor:
        raise NotImplementedError

    def _continue_run(self) -> None:
        """Last step before the first epoch: random numbers go on where the checkpoint left them."""
        if self._resumed_rng is not None:
            set_rng_state(self._resumed_rng)
            self._resumed_rng = None

    # ---- one update ----

    def update_lr(self, names: str | list[str] | None = None) -> None:
        """Step the schedules; once per epoch."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def detect_anomaly(self, loss: Tensor) -> None:
        """Stop on a loss that is not finite, with a FloatingPointError."""
        if not torch.isfinite(loss).all():
            epoch, batch = getattr(self, "epoch", 0) + 1, getattr(self, "batch_idx", 0) + 1
            raise FloatingPointError(f"Loss is infinite or NaN! (epoch {epoch}, batch {batch})")

    def model_zero_grad(self, names: str | list[str] | None = None) -> None:
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss: Tensor) -> None:
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names: str | list[str] | None = None) -> None:
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].step()

    def model_backward_and_update(self, loss: Tensor, names: str | list[str] | None = None) -> None:
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)


class SimpleTrainer(TrainerBase):
    """Data, evaluator, device, checkpoints and the final test. A method adds build_model()."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        for key, known in (("FINAL_MODEL", ("last_step", "best_val")), ("SPLIT", ("test", "val"))):
            if cfg.TEST[key] not in known:
                raise ValueError(f"TEST.{key} is {cfg.TEST[key]!r}. Known: {', '.join(known)}")
        self.check_cfg(cfg)
        use_cuda = torch.cuda.is_available() and cfg.USE_CUDA
        self.device = torch.device("cuda" if use_cuda else "cpu")
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.cfg = cfg
        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.best_result = float("-inf")

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse a config the method cannot run with."""

    def build_data_loader(self) -> None:
        """Set the loaders, num_classes, num_source_domains, lab2cname and dm.

        An own version sets the same names; train_loader_u and val_loader may be None.
        """
        dm = DataManager(self.cfg)
        self.train_loader_x = dm.train_loader_x
        self.train_loader_u = dm.train_loader_u
        self.val_loader = dm.val_loader
        self.test_loader = dm.test_loader
        self.num_classes = dm.num_classes
        self.num_source_domains = dm.num_source_domains
        self.lab2cname = dm.lab2cname
        self.dm = dm

    def build_model(self) -> None:
        """Build ``self.model`` and register what is trained; every method writes its own."""
        raise NotImplementedError(
            f"{type(self).__name__} needs a build_model(); dassl-lite brings no backbones."
        )

    def train(self) -> None:
        if not self._has_training():
            print(f"{type(self).__name__} has nothing to train")
            self.max_epoch = self.start_epoch
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self) -> None:
        directory = self.cfg.RESUME or self.output_dir
        self.start_epoch = self.resume_model_if_exist(directory)
        if self.start_epoch and os.path.abspath(directory) != os.path.abspath(self.output_dir):
            self._copy_best_model(directory)
        if self._has_training():
            writer_dir = os.path.join(self.output_dir, "tensorboard")
            mkdir_if_missing(writer_dir)
            self.init_writer(writer_dir)
        self.time_start = time.time()

    def after_train(self) -> None:
        print("Finish training")
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val" and self._has_training():
                print("Deploy the model with the best val performance")
                self.load_model(self.output_dir)
            else:
                print("Deploy the last-epoch model")
            self.test()
        elapsed = datetime.timedelta(seconds=round(time.time() - self.time_start))
        print(f"Elapsed: {elapsed}")
        self.close_writer()

    def after_epoch(self) -> None:
        if not self.cfg.TEST.NO_TEST and self.cfg.TEST.FINAL_MODEL == "best_val":
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name=BEST)
        if self._checkpoint_due(self.epoch + 1):
            self.save_model(self.epoch, self.output_dir)

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on "test" or "val" (TEST.SPLIT by default) and return the first result."""
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = split or self.cfg.TEST.SPLIT
        loader = self.val_loader if split == "val" else self.test_loader
        if loader is None:  # no val set
            split, loader = "test", self.test_loader
        print(f"Evaluate on the *{split}* set")
        for batch in tqdm(loader, disable=None):
            input, label = self.parse_batch_test(batch)
            self.evaluator.process(self.model_inference(input), label)
        results = self.evaluator.evaluate()
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(results.values()))

    def model_inference(self, input: Tensor) -> Tensor:
        return self.model(input)

    def parse_batch_test(self, batch: dict) -> tuple[Tensor, Tensor]:
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def get_current_lr(self, names: str | list[str] | None = None) -> float:
        """Learning rate of the first model that has an optimizer."""
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                return self._optims[name].param_groups[0]["lr"]
        raise ValueError(f"{type(self).__name__} has no optimizer; pass one to register_model().")

    def _has_training(self) -> bool:
        """A zero-shot method registers no model, or writes no training step: a test is all."""
        own_step = type(self).forward_backward is not TrainerBase.forward_backward
        loops = (TrainerBase.run_epoch, TrainerX.run_epoch, TrainerXU.run_epoch)
        return bool(self._models) and (own_step or type(self).run_epoch not in loops)

    def _copy_best_model(self, directory: str) -> None:
        """The best result so far is resumed, so its model must be where the final test looks."""
        for name in self._models:
            source = os.path.join(directory, name, BEST)
            if os.path.isfile(source):
                mkdir_if_missing(os.path.join(self.output_dir, name))
                shutil.copyfile(source, os.path.join(self.output_dir, name, BEST))

    def _checkpoint_due(self, epochs_done: int) -> bool:
        freq = self.cfg.TRAIN.CHECKPOINT_FREQ
        return epochs_done == self.max_epoch or (freq > 0 and epochs_done % freq == 0)

    def _continue_run(self) -> None:
        resumed = self._resumed_rng is not None
        super()._continue_run()
        self.epoch = max(0, self.start_epoch - 1)  # tested without another epoch: the last one's
        # Killed after the best model was saved and before the regular save of the same epoch.
        if resumed and self._checkpoint_due(self.start_epoch):
            file_name = checkpoint_name(self.start_epoch)
            paths = [os.path.join(self.output_dir, name, file_name) for name in self._models]
            if not all(os.path.isfile(path) for path in paths):
                self.save_model(self.start_epoch - 1, self.output_dir)

    def _run_batches(self, batches: Iterable[tuple], num_batches: int) -> None:
        """Train on tuples of arguments for forward_backward(); log, count and time them."""
        self.set_model_mode("train")
        self.num_batches = num_batches
        losses, batch_time, data_time = MetricMeter(), AverageMeter(), AverageMeter()
        print_freq = self.cfg.TRAIN.PRINT_FREQ
        end = time.time()
        for self.batch_idx, arguments in enumerate(batches):
            data_time.update(time.time() - end)
            losses.update(self.forward_backward(*arguments))
            batch_time.update(time.time() - end)
            if (self.batch_idx + 1) % print_freq == 0 or num_batches < print_freq:
                self._print_progress(losses, batch_time, data_time)
            step = self.epoch * num_batches + self.batch_idx
            for name, meter in losses.meters.items():
                self.write_scalar(f"train/{name}", meter.avg, step)
            self.write_scalar("train/lr", self.get_current_lr(), step)
            end = time.time()

    def _print_progress(
        self, losses: MetricMeter, batch_time: AverageMeter, data_time: AverageMeter
    ) -> None:
        epochs_left = self.max_epoch - self.epoch - 1
        batches_left = self.num_batches - self.batch_idx - 1 + epochs_left * self.num_batches
        eta = datetime.timedelta(seconds=int(batch_time.avg * batches_left))
        print(
            f"epoch [{self.epoch + 1}/{self.max_epoch}] "
            f"batch [{self.batch_idx + 1}/{self.num_batches}] "
            f"time {batch_time.val:.3f} ({batch_time.avg:.3f}) "
            f"data {data_time.val:.3f} ({data_time.avg:.3f}) "
            f"{losses} lr {self.get_current_lr():.4e} eta {eta}"
        )


class TrainerX(SimpleTrainer):
    """Trains on labelled images: forward_backward(batch)."""

    def run_epoch(self) -> None:
        loader = self.train_loader_x
        self._run_batches(((batch,) for batch in loader), len(loader))

    def parse_batch_train(self, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(batch[key].to(self.device) for key in ("img", "label", "domain"))


class TrainerXU(SimpleTrainer):
    """Trains on labelled and unlabelled images side by side: forward_backward(batch_x, batch_u)."""

    def run_epoch(self) -> None:
        len_x, len_u = len(self.train_loader_x), len(self.train_loader_u)
        lengths = {"train_x": len_x, "train_u": len_u, "smaller_one": min(len_x, len_u)}
        count = self.cfg.TRAIN.COUNT_ITER
        if count not in lengths:
            raise ValueError(f"TRAIN.COUNT_ITER is {count!r}. Known: {', '.join(lengths)}")
        batches_x, batches_u = _again(self.train_loader_x), _again(self.train_loader_u)
        pairs = ((next(batches_x), next(batches_u)) for _ in range(lengths[count]))
        self._run_batches(pairs, lengths[count])

    def parse_batch_train(self, batch_x: dict, batch_u: dict) -> tuple[Tensor, Tensor, Tensor]:
        tensors = batch_x["img"], batch_x["label"], batch_u["img"]
        return tuple(tensor.to(self.device) for tensor in tensors)


def _again(loader: Iterable) -> Iterator:
    """Go through a loader over and over."""
    while True:
        yield from loader
