"""Made-up result trees, for the tests of reporting and of the scripts."""

from __future__ import annotations

from pathlib import Path

from reporting.paths import PHASE_OF_SCOPE, run_dir
from reporting.results import RunResult


def fake_result(**changes) -> RunResult:
    values = dict(
        trainer="CoOp", dataset="OxfordPets", scope="base", split="test", shots=16, seed=1,
        backbone="ViT-B/32", precision="fp32", device="cpu", teacher=None, config="vit_b32_ctxv1",
        config_files=["datasets/oxford_pets.yaml", "trainers/CoOp/vit_b32_ctxv1.yaml"],
        opts=["DATASET.NUM_SHOTS", "16", "DATASET.SUBSAMPLE_CLASSES", "base"], eval_only=False,
        model_dir=None, load_epoch=None, epochs=50, accuracy=90.0, macro_f1=89.5, error_rate=10.0,
        num_images=1881, num_classes=19,
        seconds={"setup": 1.0, "train": 60.0, "test": 3.0, "dump": None},
        peak_memory_bytes={"rss": 10**9, "device": None}, store=None, commit="c0ffee" + "0" * 34,
        versions={"python": "3.11.0"}, finished="2025-01-01T00:00:00.000+00:00",
    )  # fmt: skip
    values.update(changes)
    return RunResult(**values)


def write_run(root: Path, scope: str, accuracy: float, seed: int, **changes) -> Path:
    """Write one half of a base-to-new run where it belongs; returns its folder."""
    stem = changes.pop("stem", "oxford_pets")
    values = dict(scope=scope, accuracy=accuracy, seed=seed)
    if scope == "new":
        values |= dict(eval_only=True, load_epoch=50, finished="2025-01-01T01:00:00.000+00:00")
        values["opts"] = ["DATASET.NUM_SHOTS", "16", "DATASET.SUBSAMPLE_CLASSES", "new"]
    result = fake_result(**{**values, **changes})
    phase = PHASE_OF_SCOPE[scope]
    folder = run_dir(phase, stem, result.shots, result.trainer, result.config, seed, root)
    result.write(folder)
    return folder
