"""Protocol, methods, data sets and seeds -> jobs: what to run, in which folder, after what.

Every training, dump and test of this repository is planned here: by scripts/run.sh for one step,
by run_protocol.py for all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from reporting.methods import (
    BASE2NEW,
    CROSS,
    DOMAINS,
    FEW_SHOT,
    Method,
    find_method,
    is_domain,
    is_toy,
    source_of,
)
from reporting.paths import (
    FEW_SHOT_TRAIN,
    SCOPE_OF_PHASE,
    TEACHERS,
    TEST_NEW,
    TRAIN_BASE,
    XD_TEST,
    XD_TRAIN,
    parse_run_dir,
    run_dir,
    store_dir,
)
from reporting.results import FILE_NAME, REPO, ResultError, RunResult

RUN, SKIP, REFUSE = "run", "skip", "refuse"
# Where things lie does not change what a run is.
PLACES = ("TRAINER.FDBPL.STORE", "TRAINER.PROMPTKD.TEACHER_DIR", "OUTPUT_DIR", "DATASET.ROOT")
DECIDED = ("DATASET.NUM_SHOTS", "DATASET.SUBSAMPLE_CLASSES")
STEPS = {  # METHOD's scripts, and what scripts/run.sh takes
    "base2new_dump": (BASE2NEW, "dump"),
    "base2new_train": (BASE2NEW, "train"),
    "base2new_test": (BASE2NEW, "test"),
    "xd_dump": (CROSS, "dump"),
    "xd_train": (CROSS, "train"),
    "xd_test": (CROSS, "test"),
    "few_shot": (FEW_SHOT, "train"),
}


class PlanError(ValueError):
    """What was asked for cannot be planned. The message says what to change."""


@dataclass(frozen=True)
class Settings:
    """What holds for every job of a plan."""

    data: str = "data"
    out: str = "output"
    stores: str = "stores"
    backbone: str = ""  # prefix of the recipes; "" takes each method's own
    config: str = ""  # one recipe stem instead of the table's
    opts: tuple[str, ...] = ()  # KEY VALUE pairs for every run
    root: Path = REPO  # of the repository: relative folders start there

    def __post_init__(self):
        if len(self.opts) % 2:
            raise PlanError(f"a KEY without a VALUE among: {' '.join(self.opts)}")
        for key in self.opts[::2]:
            if key in DECIDED:
                raise PlanError(
                    f"{key} follows from the protocol and the shots; it is no KEY to give"
                )


@dataclass(frozen=True)
class Job:
    """One process: dump_teacher_logits.py, or train.py with or without --eval-only."""

    kind: str  # dump, train or test
    method: Method
    protocol: str
    dataset: str
    shots: int
    seed: int
    folder: Path  # of the run, or the store
    script: str
    flags: tuple[str, ...]
    opts: tuple[str, ...]
    trained: Path | None = None  # folder of the training that a test reads
    root: Path = REPO
    needs: tuple[Job, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        shots = f" {self.shots} shots" if self.protocol == FEW_SHOT else ""
        return f"{self.method.trainer} {self.kind} {self.dataset}{shots} seed {self.seed}"

    @property
    def name(self) -> str:
        """For the log's file: unique among the jobs of all plans with one output folder."""
        parts = (self.protocol, self.method.trainer, *self.folder.parts[-2:-1], self.kind)
        return "_".join([*parts, self.dataset, f"shots{self.shots}", f"seed{self.seed}"])

    def command(self, epochs: str = "") -> list[str]:
        """The script and its flags. A test loads the epoch that its training has reached.

        `epochs` stands in for that where the training is not there yet.

        Raises:
            ResultError: there is no result of the training to read the epoch from.
        """
        words = [self.script, *self.flags]
        if self.trained is not None:
            if not (epochs and not (self.root / self.trained / FILE_NAME).exists()):
                epochs = str(RunResult.read(self.root / self.trained).epochs)
            words += ["--model-dir", str(self.trained), "--load-epoch", epochs]
        return [*words, *self.opts]

    def decide(self) -> tuple[str, str]:
        """RUN it, SKIP it, or REFUSE to overwrite something else; and why.

        A crashed run has no results.json and is run again (the trainer resumes by itself). A
        finished run of the same kind is skipped; one with other options is not overwritten. An
        evaluation older than its training is repeated.
        """
        if self.kind == "dump":
            done = is_dumped(self.root / self.folder)
            return (SKIP, f"{self.folder} is dumped; skipped.") if done else (RUN, "")
        return _decide(self)

    def is_finished(self) -> bool:
        """Whether what the job writes last is there."""
        folder = self.root / self.folder
        return is_dumped(folder) if self.kind == "dump" else (folder / FILE_NAME).exists()

    def reached(self) -> str:
        """What a finished run says of itself in a line; empty for a dump."""
        if self.kind == "dump":
            return ""
        result = RunResult.read(self.root / self.folder)
        return f", {result.accuracy:.2f} % on {result.scope} classes"


def is_dumped(store: Path) -> bool:
    """The manifest is what a dump writes last."""
    return (store / "manifest.json").exists()


def _decide(job: Job) -> tuple[str, str]:
    folder, path = job.folder, job.root / job.folder / FILE_NAME
    if not path.exists():
        return RUN, ""
    try:
        result = RunResult.read(path)
    except ResultError as error:
        return RUN, f"{error} It is repeated now."
    place = parse_run_dir(folder)
    assert place is not None, folder
    stems = [Path(file).stem for file in result.config_files]
    wanted, found = _options(job.opts), _options(result.opts)
    checks = {
        "trainer": (result.trainer, place.trainer),
        "scope": (result.scope, SCOPE_OF_PHASE[place.phase]),
        "seed": (result.seed, place.seed),
        "shots": (result.shots, place.shots),
        "config files": (sorted(stems), sorted([place.dataset, place.config])),
        **{key: (found.get(key), wanted.get(key)) for key in sorted({*found, *wanted})},
    }
    for name, (there, here) in checks.items():
        if there != here:
            return REFUSE, (
                f"{folder} holds a finished run of another kind: {name} is {there!r} there and "
                f"{here!r} now. Set another OUT, or delete the folder."
            )
    if job.trained is not None:
        training = job.root / job.trained
        if not (training / FILE_NAME).exists() or (
            RunResult.read(training).finished > result.finished
        ):
            return RUN, f"{folder} is older than {job.trained}; it is repeated now."
    return SKIP, (
        f"{folder} is finished ({result.accuracy:.2f} % on {result.finished}, commit "
        f"{str(result.commit)[:12]}); skipped. Delete the folder to repeat it."
    )


def _options(opts: Sequence[object]) -> dict[str, str]:
    pairs = zip(opts[::2], opts[1::2], strict=True)
    return {str(key): str(value) for key, value in pairs if key not in PLACES}


# --- planning


def plan(
    protocol: str,
    methods: Sequence[Method],
    datasets: Sequence[str],
    seeds: Sequence[int],
    shots: Sequence[int],
    settings: Settings,
) -> list[Job]:
    """Every job of a protocol, each folder once, none before what it needs.

    `datasets` are the targets of cross-data-set transfer and domain generalisation; with the
    source among them, its own test images count, too. A dump serves every method.

    Raises:
        PlanError: a recipe or data set file is missing.
    """
    jobs: dict[Path, Job] = {}
    for method, dataset, seed, shot in itertools.product(methods, datasets, seeds, shots):
        if protocol in (CROSS, DOMAINS) and method.transductive and dataset == source_of(dataset):
            continue  # it learns on each target itself
        for job in chain(protocol, method, dataset, shot, seed, settings):
            jobs.setdefault(job.folder, job)
    return list(jobs.values())


def chain(
    protocol: str, method: Method, dataset: str, shots: int, seed: int, settings: Settings
) -> Iterator[Job]:
    """The jobs that end with one method's results on one data set, in order."""
    last = _last(protocol, method, dataset, shots, seed, settings)
    seen: dict[Path, Job] = {}

    def visit(job: Job) -> None:
        for need in job.needs:
            visit(need)
        seen.setdefault(job.folder, job)

    for job in last:
        visit(job)
    yield from seen.values()


def step_jobs(
    step: str, method: Method, dataset: str, shots: int, seed: int, settings: Settings
) -> list[Job]:
    """The jobs of one step of STEPS: one; few_shot dumps and PromptKD trains its teacher first.

    Raises:
        PlanError: the method has no such step, or a file is missing.
    """
    protocol, kind = STEPS[step]
    if kind == "dump" and not method.needs_dump:
        raise PlanError(
            f"{method.folder} reads no region store; only the fdbpl methods have a dump"
        )
    if protocol == FEW_SHOT:
        return list(chain(protocol, method, dataset, shots, seed, settings))
    if kind == "test":
        return _with_teacher(_last(protocol, method, dataset, shots, seed, settings)[-1])
    if protocol == BASE2NEW:
        trained = _training(TRAIN_BASE, BASE2NEW, method, dataset, shots, seed, settings)
    else:
        if dataset != source_of(dataset):
            raise PlanError(
                f"{dataset} is a target; the prompts are trained on {source_of(dataset)}"
            )
        trained = _training(XD_TRAIN, CROSS, method, dataset, shots, seed, settings)
    if kind == "dump":
        return [need for need in trained.needs if need.kind == "dump"]
    return _with_teacher(trained)


def _with_teacher(job: Job) -> list[Job]:
    if job.trained is not None:
        return [job]
    return [*(need for need in job.needs if need.kind == "train"), job]


def _last(
    protocol: str, method: Method, dataset: str, shots: int, seed: int, settings: Settings
) -> list[Job]:
    where = method, dataset, shots, seed, settings
    if protocol == BASE2NEW:
        train = _training(TRAIN_BASE, BASE2NEW, *where)
        return [train, _test(TEST_NEW, BASE2NEW, *where, train)]
    if protocol == FEW_SHOT:
        if method.trained:
            return [_training(FEW_SHOT_TRAIN, FEW_SHOT, *where)]
        return [_training(FEW_SHOT_TRAIN, FEW_SHOT, method, dataset, 0, seed, settings)]
    source = source_of(dataset)
    if dataset == source:
        return [_training(XD_TRAIN, protocol, *where)]
    if method.transductive:  # it learns from the target's own training images
        if is_domain(dataset):
            raise PlanError(
                f"{method.trainer} learns from each target's own training images, and {dataset} "
                "has none; leave it out"
            )
        return [_training(XD_TEST, protocol, *where)]
    train = _training(XD_TRAIN, protocol, method, source, shots, seed, settings)
    return [train, _test(XD_TEST, protocol, *where, train)]


def _recipe(
    protocol: str, method: Method, dataset: str, shots: int, settings: Settings
) -> tuple[str, tuple[str, ...]]:
    """The recipe's stem, and the flags that name both files."""
    stem = settings.config or method.recipe(protocol, dataset, shots, settings.backbone)
    if stem is None:
        raise PlanError(f"{method.trainer} is not defined under {protocol}; leave it out")
    files = f"configs/datasets/{dataset}.yaml", f"configs/trainers/{method.trainer}/{stem}.yaml"
    for file in files:
        path = settings.root / file
        if not path.is_file():
            there = sorted(other.stem for other in path.parent.glob("*.yaml"))
            raise PlanError(
                f"there is no {file}; {Path(file).parent} holds: {' '.join(there) or 'nothing'}"
            )
    return stem, ("--dataset-config-file", files[0], "--config-file", files[1])


def _training(
    phase: str,
    protocol: str,
    method: Method,
    dataset: str,
    shots: int,
    seed: int,
    settings: Settings,
) -> Job:
    scope = SCOPE_OF_PHASE[phase]
    stem, files = _recipe(protocol, method, dataset, shots, settings)
    folder = run_dir(phase, dataset, shots, method.trainer, stem, seed, settings.out)
    common = ("--root", settings.data, "--seed", str(seed), *files, "--trainer", method.trainer)
    flags = (*common, "--output-dir", str(folder))
    if not method.trained:
        flags += ("--eval-only",)
    own = (*method.options.get(dataset, ()), *settings.opts)
    opts = (*_data_opts(shots, scope), *own)
    needs: list[Job] = []
    if method.needs_dump:
        store = store_dir(dataset, shots, scope, seed, settings.stores)
        everything = store_dir(dataset, shots, "all", seed, settings.stores)
        if is_dumped(settings.root / everything):  # it holds what a base run asks for, and more
            store, scope = everything, "all"
        opts = ("TRAINER.FDBPL.STORE", str(store), *opts)
        needs.append(
            Job(
                "dump", method, protocol, dataset, shots, seed, store, "dump_teacher_logits.py",
                (*common, "--store", str(store)), (*_data_opts(shots, scope), *own),
                root=settings.root,
            )
        )  # fmt: skip
    if method.teacher is not None:
        teacher = _teacher(phase, protocol, method, dataset, shots, seed, settings)
        needs.append(teacher)
        opts = ("TRAINER.PROMPTKD.TEACHER_DIR", str(teacher.folder), *opts)
    return Job(
        "train", method, protocol, dataset, shots, seed, folder, "train.py", flags, opts,
        root=settings.root, needs=tuple(needs),
    )  # fmt: skip


def _teacher(
    phase: str,
    protocol: str,
    method: Method,
    dataset: str,
    shots: int,
    seed: int,
    settings: Settings,
) -> Job:
    """Training of the method's teacher: on the base classes of the data set, or on the source."""
    folder, stem = method.teacher
    opts: tuple[str, ...] = ()
    if phase in (XD_TEST, XD_TRAIN):
        phase, dataset = XD_TRAIN, source_of(dataset)
    if is_toy(dataset):
        stem, opts = "toy", ("MODEL.BACKBONE.NAME", "toy-teacher")
    where = replace(settings, out=str(Path(settings.out, TEACHERS)), config=stem, opts=opts)
    return _training(phase, protocol, find_method(folder), dataset, shots, seed, where)


def _test(
    phase: str,
    protocol: str,
    method: Method,
    dataset: str,
    shots: int,
    seed: int,
    settings: Settings,
    trained: Job,
) -> Job:
    """The prompts of `trained` on another scope or data set; hand-written ones as they are."""
    stem, files = _recipe(protocol, method, dataset, shots, settings)
    place = parse_run_dir(trained.folder)
    assert place is not None
    stem = place.config  # the recipe of the training, also where the target has another
    files = (*files[:3], f"configs/trainers/{method.trainer}/{stem}.yaml")
    folder = run_dir(phase, dataset, shots, method.trainer, stem, seed, settings.out)
    common = ("--root", settings.data, "--seed", str(seed), *files, "--trainer", method.trainer)
    opts = (*method.options.get(dataset, ()), *settings.opts)
    opts = (*_data_opts(shots, SCOPE_OF_PHASE[phase]), *opts)
    if method.teacher is not None:  # its text features are the student's classifier
        opts = (*trained.opts[: trained.opts.index("DATASET.NUM_SHOTS")], *opts)
    return Job(
        "test", method, protocol, dataset, shots, seed, folder, "train.py",
        (*common, "--output-dir", str(folder), "--eval-only"),
        opts,
        trained=trained.folder if method.trained else None,
        root=settings.root,
        needs=(trained,) if method.trained else (),
    )  # fmt: skip


def _data_opts(shots: int, scope: str) -> tuple[str, ...]:
    return ("DATASET.NUM_SHOTS", str(shots), "DATASET.SUBSAMPLE_CLASSES", scope)


def check_datasets(protocol: str, datasets: Sequence[str]) -> None:
    """
    Raises:
        PlanError: a target belongs to the other of the two transfer protocols.
    """
    for dataset in datasets:
        if protocol == CROSS and is_domain(dataset):
            raise PlanError(f"{dataset} has its source's classes: it is of {DOMAINS}")
        if protocol == DOMAINS and not (is_domain(dataset) or dataset == source_of(dataset)):
            raise PlanError(f"{dataset} has other classes than its source: it is of {CROSS}")
