"""Prompt model x objective: each is written once, every pair is a registered trainer.

    @prompt_model              class MaPLe(PromptTrainer)      -> MaPLe, MaPLe_KDPL, MaPLe_FDBPL
    @objective("KDPL")         class OnlineTeacher(...)        -> CoOp_KDPL, MaPLe_KDPL, ...

The order in which modules are imported does not matter. docs/ADDING.md shows how to add one.
"""

from __future__ import annotations

from collections.abc import Callable

from dassl.engine import TRAINER_REGISTRY

PROMPT_MODELS: list[type] = []
OBJECTIVES: dict[str, type] = {}  # by suffix of the trainers' names


def prompt_model(cls: type) -> type:
    """Register a prompt model, taught by labels, and with every objective: <cls>_<suffix>."""
    TRAINER_REGISTRY.register()(cls)
    PROMPT_MODELS.append(cls)
    for suffix, mixin in OBJECTIVES.items():
        _register_pair(cls, suffix, mixin)
    return cls


def objective(suffix: str) -> Callable[[type], type]:
    """Register an objective, a mixin, with every prompt model: <model>_<suffix>."""

    def register(mixin: type) -> type:
        OBJECTIVES[suffix] = mixin
        for cls in PROMPT_MODELS:
            _register_pair(cls, suffix, mixin)
        return mixin

    return register


def _register_pair(cls: type, suffix: str, mixin: type) -> None:
    own = {
        "__doc__": f"{cls.__doc__}\n\n    Objective: {mixin.__doc__}",
        "__module__": mixin.__module__,
    }
    TRAINER_REGISTRY.register()(type(f"{cls.__name__}_{suffix}", (mixin, cls), own))
