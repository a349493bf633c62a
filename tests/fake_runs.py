"""Made-up result trees, and runs that only write what train.py would have written."""

from __future__ import annotations

from pathlib import Path

from protocols.planned import planned_identity
from reporting.identity import options_identity, write_identity
from reporting.paired import write_predictions
from reporting.paths import PHASE_OF_SCOPE, run_dir
from reporting.results import RunResult, now


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


def fake_identity(result: RunResult, trained: dict | None = None) -> dict:
    """The few keys of an identity that these tests look at, and the run's options."""
    own = {
        "method version": 1,
        "TRAINER.NAME": result.trainer,
        "SEED": result.seed,
        "MODEL.BACKBONE.NAME": result.backbone,
        "DATASET.NAME": result.dataset,
        "TEST.FINAL_MODEL": "last_step",
        "classes": f"{result.num_classes} {result.scope} classes",
        "test images": f"{result.num_images} images",
        **options_identity(result.opts),
    }
    if trained is not None:
        return {**own, "trained": {**trained, "epoch": result.load_epoch}}
    return own if result.eval_only else {**own, "OPTIM.MAX_EPOCH": result.epochs}


def write_run(root: Path, scope: str, accuracy: float, seed: int, **changes) -> Path:
    """Write one half of a base-to-new run where it belongs; returns its folder."""
    stem = changes.pop("stem", "oxford_pets")
    values = dict(scope=scope, accuracy=accuracy, seed=seed)
    if scope == "new":
        values |= dict(eval_only=True, load_epoch=50, finished="2025-01-01T01:00:00.000+00:00")
        values["opts"] = ["DATASET.NUM_SHOTS", "16", "DATASET.SUBSAMPLE_CLASSES", "new"]
    result = fake_result(**{**values, **changes})
    where = (stem, result.shots, result.trainer, result.config, seed, root)
    if "identity" not in changes:
        base = run_dir(PHASE_OF_SCOPE["base"], *where)
        known = (base / "results.json").exists() and not result.trainer.startswith("Zeroshot")
        trained = RunResult.read(base).identity if known and scope == "new" else None
        result.identity = fake_identity(result, trained)
    folder = run_dir(PHASE_OF_SCOPE[scope], *where)
    result.write(folder)
    return folder


def flag(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def finish(root: Path, command: list[str], accuracy: float = 50.0, **changes):
    """Write what a dump or a run with this command leaves behind, below the repository `root`."""
    if "--store" in command:
        store = root / flag(command, "--store")
        store.mkdir(parents=True)
        (store / "manifest.json").write_text("{}")
        return
    if "--seeds" in command:
        first = command.index("--seeds")
        count = next(i for i, word in enumerate(command[first + 1 :]) if word.startswith("--"))
        for seed in command[first + 1 : first + 1 + count]:
            own = [*command[:first], "--seed", seed, *command[first + 1 + count :]]
            own = [word.replace("{seed}", seed) for word in own]
            finish(root, own, accuracy, **changes)
        return
    first = next(i for i, word in enumerate(command) if word.startswith(("DATASET.", "TRAINER.")))
    folder = root / flag(command, "--output-dir")
    eval_only = "--eval-only" in command
    trained = flag(command, "--model-dir") if "--model-dir" in command else None
    epoch = int(flag(command, "--load-epoch")) if "--load-epoch" in command else None
    identity = planned_identity(command[1:], root, trained, epoch)
    values = dict(
        scope=flag(command, "DATASET.SUBSAMPLE_CLASSES"),
        accuracy=accuracy,
        seed=int(flag(command, "--seed")),
        trainer=flag(command, "--trainer"),
        dataset=Path(flag(command, "--dataset-config-file")).stem,
        config=Path(flag(command, "--config-file")).stem,
        config_files=[flag(command, "--dataset-config-file"), flag(command, "--config-file")],
        opts=command[first:],
        shots=int(flag(command, "DATASET.NUM_SHOTS")),
        eval_only=eval_only,
        epochs=identity.get("trained", identity).get("OPTIM.MAX_EPOCH"),
        load_epoch=epoch,
        transductive="PromptKD" in command,
        finished=now(),
        identity=identity,
    )
    fake_result(**{**values, **changes}).write(folder)
    write_identity(folder, identity)
    signal = "=> result" if eval_only else "Finish training"
    (folder / "log.txt").write_text(f"{signal}\n* accuracy: {accuracy}%\n")


def answer(folder: Path, correct: list[bool]) -> None:
    """Write predictions of images 0.jpg, 1.jpg, ... of which some are right."""
    paths = [f"/data/{index}.jpg" for index in range(len(correct))]
    write_predictions(folder, paths, [1] * len(correct), [int(right) for right in correct])
