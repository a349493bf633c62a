"""What a run is: everything that moves its numbers. The one place that decides it.

An identity is a dict of JSON values: every key of the merged config but those of NOT_IDENTITY under
its dotted name, and facts under names in small letters: what the files hold that the config names,
the classes, the images, the weights, METHOD_VERSION. A test holds that of its training as
"trained". A fact that nobody knows yet is None, and is not compared.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reporting.results import FILE_NAME as RESULTS
from reporting.results import write_text

FILE_NAME = "identity.json"

# Raise it by one when a change of the code moves the numbers of a run whose config is the same.
# tests/test_identity.py notices such a change by the prompts of three toy runs. Runs of different
# versions are neither resumed nor averaged.
METHOD_VERSION = 1

# Keys of the config that do not say what a run is, and why. A path never does: where a file moves
# numbers, what it holds is a fact.
NOT_IDENTITY = {
    "OUTPUT_DIR": "a path: of the run itself",
    "RESUME": "a path: what is resumed has an identity of its own, which is compared",
    "DATASET.ROOT": "a path: names, labels and sizes of the images are facts",
    "DATASET.FOLDER": "a path: names, labels and sizes of the images are facts",
    "DATASET.CSV": "a path: names, labels and sizes of the images are facts",
    "MODEL.INIT_WEIGHTS": "a path: what the file holds is a fact",
    "TRAINER.DISTILL.VOCABULARY": "a path: what the file holds is a fact",
    "TRAINER.FDBPL.STORE": "a path: what the store holds is a fact",
    "TRAINER.FDBPL.TRUST_MTIME": "how closely images are compared with those of the dump",
    "TRAINER.PROMPTKD.TEACHER_DIR": "a path: the identity of the run there is a fact",
    "TEST.FEATURES_DIR": "a path: of a cache",
    "TEST.CACHE_FEATURES": "a cache: the same numbers with and without",
    "USE_CUDA": "the device",
    "DATALOADER.NUM_WORKERS": "workers; but see workers_count()",
    "VERBOSE": "logging",
    "TRAIN.PRINT_FREQ": "logging",
    "TRAIN.CHECKPOINT_FREQ": "how often a run is saved",
    "TEST.NO_TEST": "whether a test follows",
    "TEST.PER_CLASS_RESULT": "logging",
    "TEST.COMPUTE_CMAT": "a file beside the numbers",
}
WORKERS = "DATALOADER.NUM_WORKERS"
EPOCHS = "OPTIM.MAX_EPOCH"
# Transforms that draw no random numbers.
FIXED_TRANSFORMS = {"center_crop", "instance_norm", "normalize"}
# What of a store's spec is the same for all seeds.
STORE_FIELDS = (
    "teacher", "teacher_digest", "teacher_precision", "image_size", "kind", "dtype", "top_k",
)  # fmt: skip
# What follows from the seed; nested ones too.
OF_SEED = {"SEED", "train images", "val images", "id", "weights"}
# What a test must say of its training as it was; data and classes are its own matter. How many
# epochs there were, --load-epoch says.
OF_TRAINING = (
    "TRAINER.", "OPTIM.", "MODEL.BACKBONE.", "MODEL.HEAD.", "student weights", "tuned teacher",
)  # fmt: skip
CHECKPOINTS = ("*/model*.pth.tar*", "*/prompts-*.safetensors")  # in a run's folder
# Facts that only data and loaded models tell.
LATER = ("classes", "train images", "val images", "test images", "student weights",
         "teacher weights")  # fmt: skip
SHOWN = 6  # differences that a message lists

Identity = dict[str, Any]


class IdentityError(ValueError):
    """A folder holds another run. The message names what differs and the ways out."""


# --- making one


def run_identity(
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    eval_only: bool = False,
    root: str | Path = ".",
) -> Identity:
    """The identity of a run.

    Args:
        config: the merged config, nested.
        facts: what only the caller knows; see data_facts.
        eval_only: nothing is trained: what only training reads does not count.
        root: folder that relative paths of the config start from.
    """
    flat = dict(flatten(config))
    known = {key: value for key, value in flat.items() if key not in NOT_IDENTITY}
    if eval_only:
        del known[EPOCHS]
    elif workers_count(flat):
        known[WORKERS] = flat[WORKERS]
    known |= {"kind": "test" if eval_only else "training", "method version": METHOD_VERSION}
    return known | _file_facts(flat, eval_only, Path(root)) | dict(facts)


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with JSON values; 10.0 is 10, and a tuple a list."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def workers_count(flat: Mapping[str, Any]) -> bool:
    """Whether the number of loader workers moves a training: each draws its own augmentation.

    Stored regions are drawn by the sampler, in the main process: any number of workers serves.
    """
    name = flat["TRAINER.NAME"]
    if name.endswith("FDBPL") or name.startswith("Zeroshot") or flat["INPUT.NO_TRANSFORM"]:
        return False
    return not set(flat["INPUT.TRANSFORMS"]) <= FIXED_TRANSFORMS


def data_facts(
    classnames: Sequence[str],
    test: Iterable[tuple[str, int]],
    train: Iterable[tuple[str, int]] = (),
    val: Iterable[tuple[str, int]] = (),
) -> dict[str, str]:
    """The facts of classes and images, each image given by its path and label."""
    parts = {"train images": list(train), "val images": list(val), "test images": list(test)}
    paths = [path for part in parts.values() for path, _ in part]
    top = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    found = {name: _listing(part, top) for name, part in parts.items() if part}
    return {"classes": digest(list(classnames)), **found}


def _listing(images: list[tuple[str, int]], top: str) -> str:
    rows = [f"{os.path.relpath(path, top)}\t{label}\t{_size(path)}" for path, label in images]
    return digest(sorted(rows))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _file_facts(flat: Mapping[str, Any], eval_only: bool, root: Path) -> dict[str, Any]:
    """What the files and folders hold that the config names."""
    facts = {}
    teacher = flat.get("TRAINER.PROMPTKD.TEACHER_DIR")
    if teacher:
        facts["tuned teacher"] = identity_there(root / teacher)
    if eval_only:
        return facts
    for key, name in (
        ("MODEL.INIT_WEIGHTS", "initial prompts"),
        ("TRAINER.DISTILL.VOCABULARY", "vocabulary"),
    ):
        if flat.get(key):
            facts[name] = file_digest(root / Path(flat[key]).expanduser())
    if flat.get("TRAINER.FDBPL.STORE"):
        facts["store"] = _store(root / Path(flat["TRAINER.FDBPL.STORE"]).expanduser())
    return facts


def _store(folder: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        spec = manifest["spec"]
        return {"id": manifest["spec_id"][:16], **{key: spec[key] for key in STORE_FIELDS}}
    except (OSError, ValueError, KeyError, TypeError):  # opening it for training says what is wrong
        return None


def identity_there(folder: Path) -> Identity | None:
    """Of a folder that another run reads; of one without an identity, what its prompts are."""
    try:
        known = read_identity(folder)
    except IdentityError:
        known = None
    if known is not None:
        return known
    files = _checkpoints(folder)
    if not files:
        return None
    return {"identity": "unknown", "weights": digest([file_digest(path) for path in files])}


def trained_identity(folder: str | Path, path: str | Path, epoch: int | None) -> Identity:
    """Of what a test loads: the training in `folder`, checkpoint `path` of `epoch`."""
    known = read_identity(folder)
    if known is None:
        known = {"identity": "unknown", "weights": file_digest(Path(path))}
    return {**known, "epoch": epoch}


def file_digest(path: Path) -> str | None:
    """16 hex digits of a file's content, None where it cannot be read."""
    content = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
    except OSError:
        return None
    return content.hexdigest()[:16]


def digest(value: Any) -> str:
    """16 hex digits of a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def options_identity(opts: Sequence[Any]) -> Identity:
    """All that KEY VALUE pairs tell of a run that has no identity."""
    pairs = zip(opts[::2], opts[1::2], strict=True)
    known = {str(key): str(value) for key, value in pairs}
    return {key: value for key, value in known.items() if key == WORKERS or key not in NOT_IDENTITY}


# --- in a folder


def read_identity(folder: str | Path) -> Identity | None:
    """The identity of the run in a folder; None where an older version or other code ran.

    Raises:
        IdentityError: identity.json is damaged.
    """
    path = Path(folder, FILE_NAME)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise IdentityError(f"{path} cannot be read ({error}). {_WAYS_OUT}") from error
    if not isinstance(found, dict) or not found.get("method version"):
        raise IdentityError(f"{path} holds no identity of a run. {_WAYS_OUT}")
    return found


def write_identity(folder: str | Path, identity: Identity) -> None:
    write_text(Path(folder, FILE_NAME), json.dumps(identity, indent=1, sort_keys=True) + "\n")


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for pattern in CHECKPOINTS for path in Path(folder).glob(pattern))


def holds_run(folder: str | Path) -> bool:
    """Whether there is something that could be taken for another run's: a checkpoint or result."""
    return Path(folder, RESULTS).exists() or bool(_checkpoints(Path(folder)))


_WAYS_OUT = "Choose another --output-dir, or add --fresh to set aside what is there and start anew."


# --- comparing


class Difference(NamedTuple):
    field: str
    there: Any  # ABSENT where a side has no such field
    here: Any

    def __str__(self) -> str:
        return f"{self.field} is {shown(self.there)} there and {shown(self.here)} now"


ABSENT = "absent"


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[Difference]:
    """Fields in which two identities differ; unknown facts are passed over."""
    found = []
    first = "kind", "TRAINER.NAME"
    for field in sorted({*there, *here}, key=lambda name: (name not in first, name)):
        old, new = there.get(field, ABSENT), here.get(field, ABSENT)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            nested = differences(old, new)
            found += [each._replace(field=f"{field}: {each.field}") for each in nested]
        elif old != new and not (None in (old, new) and field[:1].islower()):
            found.append(Difference(field, _short(old), _short(new)))
    return found


def _short(value: Any) -> Any:
    return f"that of {digest(value)}" if isinstance(value, Mapping) else value


def completed(here: Identity, there: Identity | None) -> Identity:
    """An identity whose unknown facts are taken from the same run's of before."""
    known = there or {}
    return {name: known.get(name) if value is None else value for name, value in here.items()}


def shown(value: Any) -> str:
    """A value as one writes it in a command."""
    if isinstance(value, (list, tuple)):
        inner = ",".join(map(repr, value)) + "," * (len(value) == 1)
        return f"({inner})"
    return repr(value) if value == "" else str(value)


def told(found: Sequence[Difference]) -> str:
    """Differences in a sentence, the first few of them."""
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(map(str, found[:SHOWN])) + more


def old_values(found: Sequence[Difference]) -> str:
    """Flags and KEY VALUE pairs that ask for what is there; "" where they are none or many."""
    words = []
    for field, there, _ in found:
        if field[:1].islower() or there == ABSENT:  # a fact: it follows from a file, or from a key
            continue
        flag = {"TRAINER.NAME": "--trainer", "SEED": "--seed"}.get(field, field)
        value = shown(there)
        words.append(f"{flag} {value!r}" if " " in value or "(" in value else f"{flag} {value}")
    return " ".join(words) if len(words) <= SHOWN else ""


def require_same(folder: str | Path, here: Identity, way: str = _WAYS_OUT, more: str = "") -> None:
    """What is in a folder is the run that is asked for.

    Raises:
        IdentityError: it is another run, or nobody knows which.
    """
    there = read_identity(folder)
    if there is None:
        raise IdentityError(
            f"{folder} holds a run without {FILE_NAME}: an older version made it, or other code, "
            f"and nothing tells what it is. {way} Its prompts can be tested: --eval-only "
            f"--model-dir {folder} with another --output-dir."
        )
    found = differences(there, here)
    if found:
        raise IdentityError(refusal(folder, found, way) + more)


def refusal(folder: str | Path, found: Sequence[Difference], way: str = _WAYS_OUT) -> str:
    values = old_values(found)
    back = f" Or give the old values: {values}." if values else ""
    return f"{folder} holds another run: {told(found)}. {way}{back}"


def require_trained(folder: str | Path, here: Identity) -> bool:
    """What trained in `folder` is what a test calls it: method, student, seed; not data or classes.

    Returns:
        False where the folder does not tell.
    Raises:
        IdentityError: it is another method, student or recipe; see OF_TRAINING.
    """
    there = read_identity(folder)
    if there is None:
        return False
    found = [
        each
        for each in differences(there, here)
        if each.field.startswith(OF_TRAINING)
        and each.field != EPOCHS
        and not each.field.endswith(".PREC")
    ]
    if not any(each.field == "student weights" for each in found):  # one file under two names
        found = [each for each in found if each.field != "MODEL.BACKBONE.NAME"]
    for key, lowest in (("SEED", 0), ("DATASET.NUM_SHOTS", 0)):  # where the test says them
        old, new = there.get(key), here.get(key)
        if old != new and lowest <= new:
            found.append(Difference(key, old, new))
    if found:
        values = old_values(found)
        back = f"Give the values of the training: {values}" if values else "Give those values"
        raise IdentityError(
            f"--model-dir {folder} was trained as something else: {told(found)}. {back}; or name "
            "the --model-dir that was trained so."
        )
    return True


# --- going on, and starting anew


def can_extend(here: Identity) -> bool:
    """Whether the epochs so far are the same for every OPTIM.MAX_EPOCH."""
    name, steps = here["OPTIM.LR_SCHEDULER"], here["OPTIM.STEPSIZE"]
    if here["TRAINER.NAME"].startswith("PromptSRC"):  # its average weighs epochs by their number
        return False
    if name == "single_step":
        last = steps[-1] if isinstance(steps, list) else steps
        return last > 0
    return name == "multi_step"


def check_resume(folder: str | Path, here: Identity, extend: bool = False) -> bool:
    """What a training goes on from is the same run, or one that is extended.

    Returns:
        Whether it is extended.
    Raises:
        IdentityError: it is another run.
    """
    there, more = read_identity(folder), ""
    found = differences(there, here) if there else []
    if [each.field for each in found] == [EPOCHS] and found[0].there < found[0].here:
        if not can_extend(here):
            schedule = here["OPTIM.LR_SCHEDULER"]
            more = (
                f" It cannot be extended: its epochs depend on {EPOCHS} ({schedule}, "
                f"{here['TRAINER.NAME']})."
            )
        elif extend:
            return True
        else:
            more = f" Or add --extend: it goes on from epoch {found[0].there}."
    require_same(folder, here, more=more)
    return False


def set_aside(folder: str | Path) -> Path | None:
    """Move what a run has left in its folder to FOLDER/earlier-<n>; None where there is nothing.

    Other folders below, such as those of other runs, stay.
    """
    folder = Path(folder)
    names = {path.parent.name for path in _checkpoints(folder)} | {
        name for name in _LEFT if (folder / name).exists()
    }
    if not names:
        return None
    number = 1
    while (target := folder / f"earlier-{number}").exists():
        number += 1
    target.mkdir()
    for name in sorted(names):
        (folder / name).rename(target / name)
    return target


_LEFT = (
    RESULTS, FILE_NAME, "predictions.npz", "config.yaml", "classnames.json", "log.txt",
    "tensorboard", "cmat.pt",
)  # fmt: skip
