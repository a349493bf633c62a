"""Learning-rate schedules in closed form: the rate is a function of the epoch alone.

A checkpoint therefore keeps one integer per schedule, and a resumed run goes on at the same rate.
Sequences equal those of Dassl's chained schedulers (tests/data/lr_schedules.json).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode

KNOWN = ("single_step", "multi_step", "cosine")
Decay = Callable[[int], float]  # epoch after warm-up -> factor on the base learning rate


class WarmupSchedule(LRScheduler):
    """Warm-up for some epochs, then a decay. Step it once per epoch.

    Args:
        decay: factor at epoch t of the main schedule.
        first: t of the first epoch after warm-up; its factor is 1 by definition.
        warmup_epochs: 0 for none.
        warmup_lr: learning rate of warm-up epoch e for a base rate, both given to it.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        decay: Decay,
        first: int = 0,
        warmup_epochs: int = 0,
        warmup_lr: Callable[[int, float], float] | None = None,
    ) -> None:
        self.decay, self.first = decay, first
        self.warmup_epochs, self.warmup_lr = warmup_epochs, warmup_lr
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        epoch = self.last_epoch
        if epoch < self.warmup_epochs:
            return [self.warmup_lr(epoch, base) for base in self.base_lrs]
        start = self.decay(self.first) or 1.0  # 0 where warm-up takes all epochs
        factor = self.decay(self.first + epoch - self.warmup_epochs) / start
        return [base * factor for base in self.base_lrs]

    def state_dict(self) -> dict:
        return {"last_epoch": self.last_epoch, "base_lrs": [float(lr) for lr in self.base_lrs]}

    def load_state_dict(self, state_dict: dict) -> None:
        """Go to the saved epoch and set the optimizer's learning rates to that epoch's."""
        self.last_epoch, self.base_lrs = state_dict["last_epoch"], list(state_dict["base_lrs"])
        self._step_count = self.last_epoch + 1
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


def build_lr_scheduler(optimizer: Optimizer, optim_cfg: CfgNode) -> WarmupSchedule:
    """Build OPTIM.LR_SCHEDULER with its warm-up.

    Raises:
        ValueError: an unknown schedule or warm-up type, or a STEPSIZE of the wrong kind.
    """
    decay = _decay(optim_cfg)
    warmup_epochs = max(0, optim_cfg.WARMUP_EPOCH)
    if warmup_epochs == 0:
        return WarmupSchedule(optimizer, decay)
    kind, constant_lr, min_lr = (
        optim_cfg.WARMUP_TYPE,
        optim_cfg.WARMUP_CONS_LR,
        optim_cfg.WARMUP_MIN_LR,
    )
    if kind == "constant":

        def warmup_lr(epoch: int, base: float) -> float:
            return constant_lr

    elif kind == "linear":

        def warmup_lr(epoch: int, base: float) -> float:
            return min_lr if epoch == 0 else base * epoch / warmup_epochs

    else:
        raise ValueError(f"OPTIM.WARMUP_TYPE is {kind!r}. Known: constant, linear")
    first = 0 if optim_cfg.WARMUP_RECOUNT else warmup_epochs
    return WarmupSchedule(optimizer, decay, first, warmup_epochs, warmup_lr)


def _decay(optim_cfg: CfgNode) -> Decay:
    name, steps, gamma = optim_cfg.LR_SCHEDULER, optim_cfg.STEPSIZE, optim_cfg.GAMMA
    max_epoch = optim_cfg.MAX_EPOCH
    if name == "cosine":
        # Loshchilov and Hutter, ICLR 2017, eq. 5 with a minimum of 0.
        return lambda t: (1 + math.cos(math.pi * t / max_epoch)) / 2
    if name == "single_step":
        size = steps[-1] if isinstance(steps, tuple | list) else steps
        if not isinstance(size, int):
            raise ValueError(f"OPTIM.STEPSIZE is {steps!r}; single_step takes whole epochs.")
        size = size if size > 0 else max_epoch
        return lambda t: gamma ** (t // size)
    if name == "multi_step":
        if not isinstance(steps, tuple | list):
            raise ValueError(f"OPTIM.STEPSIZE is {steps!r}; multi_step takes a list of epochs.")
        return lambda t: gamma ** sum(milestone <= t for milestone in steps)
    raise ValueError(f"OPTIM.LR_SCHEDULER is {name!r}. Known: {', '.join(KNOWN)}")
