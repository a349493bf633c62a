"""Protocol, methods, data sets and seeds -> jobs: what to run, in which folder, after what.

Every training, dump and test of this repository is planned here: by scripts/run.sh for one step,
by run_protocol.py for all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from protocols.planned import planned_identity
from reporting.identity import (
    Identity,
    differences,
    holds_run,
    options_identity,
    refusal,
    require_same,
)
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
from wording import nearest

RUN, SKIP, REFUSE = "run", "skip", "refuse"
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
        finished run of the same identity is skipped; another, finished or interrupted, is neither
        overwritten nor continued. An evaluation older than its training is repeated.
        """
        if self.kind == "dump":
            done = is_dumped(self.root / self.folder)
            return (SKIP, f"{self.folder} is dumped; skipped.") if done else (RUN, "")
        return _decide(self)

    def identity(self) -> Identity:
        """What its run would be, as far as it is known before it runs; see planned_identity."""
        words, epoch = [*self.flags, *self.opts], None
        if self.trained is not None and (self.root / self.trained / FILE_NAME).exists():
            epoch = RunResult.read(self.root / self.trained).epochs
        return planned_identity(words, self.root, self.trained, epoch)

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
    if not holds_run(path.parent):
        return RUN, ""
    try:
        result = RunResult.read(path) if path.exists() else None
    except ResultError as error:
        return RUN, f"{error} It is repeated now."
    training = None if job.trained is None else job.root / job.trained
    if result and training and not (training / FILE_NAME).exists():
        return RUN, f"{folder} is older than {job.trained}; it is repeated now."
    if result is not None and result.identity is None:
        refused = _older_kind(folder, job, result)
    else:
        refused = _other_run(job, result)
    if refused:
        return REFUSE, refused
    if result is None:
        return RUN, ""
    if training and RunResult.read(training).finished > result.finished:
        return RUN, f"{folder} is older than {job.trained}; it is repeated now."
    return SKIP, (
        f"{folder} is finished ({result.accuracy:.2f} % on {result.finished}, commit "
        f"{str(result.commit)[:12]}); skipped. Delete the folder to repeat it."
    )


WAYS_OUT = "Set another OUT, or delete the folder."


def _other_run(job: Job, result: RunResult | None) -> str:
    """How the run in the job's folder is another one; "" where it is the same."""
    try:
        here = job.identity()
        if result is None:
            require_same(job.root / job.folder, here, WAYS_OUT)
        elif found := differences(result.identity, here):
            return refusal(job.folder, found, WAYS_OUT)
    except ValueError as error:  # of an identity, or of the config files of now
        return str(error)
    return ""


def _older_kind(folder: Path, job: Job, result: RunResult) -> str:
    """The same of a run that has no identity, by its flags and options."""
    place = parse_run_dir(folder)
    assert place is not None, folder
    stems = [Path(file).stem for file in result.config_files]
    wanted, found = options_identity(job.opts), options_identity(result.opts)
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
            return (
                f"{folder} holds another run: {name} is {there!r} there and {here!r} now. "
                f"{WAYS_OUT}"
            )
    return ""


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
    last = _last(Where(protocol, method, dataset, shots, seed, settings))
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
    where = Where(protocol, method, dataset, shots, seed, settings)
    if kind == "test":
        return _with_teacher(_last(where)[-1])
    if protocol == CROSS and dataset != source_of(dataset):
        raise PlanError(f"{dataset} is a target; the prompts are trained on {source_of(dataset)}")
    trained = _training(TRAIN_BASE if protocol == BASE2NEW else XD_TRAIN, where)
    if kind == "dump":
        return [need for need in trained.needs if need.kind == "dump"]
    return _with_teacher(trained)


def _with_teacher(job: Job) -> list[Job]:
    if job.trained is not None:
        return [job]
    return [*(need for need in job.needs if need.kind == "train"), job]


@dataclass(frozen=True)
class Where:
    """What a job is about, and what holds for every job of its plan."""

    protocol: str
    method: Method
    dataset: str
    shots: int
    seed: int
    settings: Settings

    def flags(self, phase: str, stem: str = "") -> tuple[Path, tuple[str, ...]]:
        """The run's folder, and the flags that every script takes; stem: another recipe."""
        method, settings = self.method, self.settings
        stem = stem or settings.config or self._recipe()
        files = (
            f"configs/datasets/{self.dataset}.yaml",
            f"configs/trainers/{method.trainer}/{stem}.yaml",
        )
        for file in files:
            path = settings.root / file
            if not path.is_file():
                there = sorted(other.stem for other in path.parent.glob("*.yaml"))
                close = nearest(path.stem, there)
                raise PlanError(
                    f"there is no {file}; "
                    + f"do you mean {close}? " * bool(close)
                    + f"{Path(file).parent} holds: {' '.join(there) or 'nothing'}"
                )
        place = self.dataset, self.shots, method.trainer, stem, self.seed, settings.out
        return run_dir(phase, *place), (
            *("--root", settings.data, "--seed", str(self.seed)),
            *("--dataset-config-file", files[0], "--config-file", files[1]),
            *("--trainer", method.trainer),
        )

    def _recipe(self) -> str:
        stem = self.method.recipe(self.protocol, self.dataset, self.shots, self.settings.backbone)
        if stem is None:
            raise PlanError(
                f"{self.method.trainer} is not defined under {self.protocol}; leave it out"
            )
        return stem

    def opts(self, scope: str) -> tuple[str, ...]:
        """KEY VALUE pairs: what the protocol decides, the method's own, the user's."""
        data = "DATASET.NUM_SHOTS", str(self.shots), "DATASET.SUBSAMPLE_CLASSES", scope
        return (*data, *self.method.options.get(self.dataset, ()), *self.settings.opts)

    def job(self, kind: str, folder: Path, script: str, flags: tuple[str, ...], **own) -> Job:
        about = self.method, self.protocol, self.dataset, self.shots, self.seed
        return Job(kind, *about, folder, script, flags, root=self.settings.root, **own)


def _last(where: Where) -> list[Job]:
    protocol, method, dataset = where.protocol, where.method, where.dataset
    if protocol == BASE2NEW:
        train = _training(TRAIN_BASE, where)
        return [train, _test(TEST_NEW, where, train)]
    if protocol == FEW_SHOT:
        return [_training(FEW_SHOT_TRAIN, where if method.trained else replace(where, shots=0))]
    source = source_of(dataset)
    if dataset == source:
        return [_training(XD_TRAIN, where)]
    if method.transductive:  # it learns from the target's own training images
        if is_domain(dataset):
            raise PlanError(
                f"{method.trainer} learns from each target's own training images, and {dataset} "
                "has none; leave it out"
            )
        return [_training(XD_TEST, where)]
    train = _training(XD_TRAIN, replace(where, dataset=source))
    return [train, _test(XD_TEST, where, train)]


def _training(phase: str, where: Where) -> Job:
    method, scope = where.method, SCOPE_OF_PHASE[phase]
    folder, common = where.flags(phase)
    flags = (*common, "--output-dir", str(folder))
    if not method.trained:
        flags += ("--eval-only",)
    opts, needs = where.opts(scope), []
    if method.needs_dump:
        store, scope = _store(where, scope)
        opts = ("TRAINER.FDBPL.STORE", str(store), *opts)
        own = (*common, "--store", str(store))
        needs.append(
            where.job("dump", store, "dump_teacher_logits.py", own, opts=where.opts(scope))
        )
    if method.teacher is not None:
        needs.append(_teacher(phase, where))
        opts = ("TRAINER.PROMPTKD.TEACHER_DIR", str(needs[-1].folder), *opts)
    return where.job("train", folder, "train.py", flags, opts=opts, needs=tuple(needs))


def _store(where: Where, scope: str) -> tuple[Path, str]:
    """The store that a training reads and the classes in it: one of all classes has what a base run
    asks for, and more."""
    stores = {
        name: store_dir(where.dataset, where.shots, name, where.seed, where.settings.stores)
        for name in (scope, "all")
    }
    found = "all" if is_dumped(where.settings.root / stores["all"]) else scope
    return stores[found], found


def _teacher(phase: str, where: Where) -> Job:
    """Training of the method's teacher: on the base classes of the data set, or on the source."""
    folder, stem = where.method.teacher
    opts: tuple[str, ...] = ()
    dataset = where.dataset
    if phase in (XD_TEST, XD_TRAIN):
        phase, dataset = XD_TRAIN, source_of(dataset)
    if is_toy(dataset):
        stem, opts = "toy", ("MODEL.BACKBONE.NAME", "toy-teacher")
    out = str(Path(where.settings.out, TEACHERS))
    settings = replace(where.settings, out=out, config=stem, opts=opts)
    teacher = replace(where, method=find_method(folder), dataset=dataset, settings=settings)
    return _training(phase, teacher)


def _test(phase: str, where: Where, trained: Job) -> Job:
    """The prompts of `trained` on another scope or data set; hand-written ones as they are."""
    method, place = where.method, parse_run_dir(trained.folder)
    assert place is not None
    # The recipe of the training, also where the target has another.
    folder, common = where.flags(phase, place.config)
    opts = where.opts(SCOPE_OF_PHASE[phase])
    if method.teacher is not None:  # its text features are the student's classifier
        opts = (*trained.opts[: trained.opts.index("DATASET.NUM_SHOTS")], *opts)
    flags = (*common, "--output-dir", str(folder), "--eval-only")
    if not method.trained:
        return where.job("test", folder, "train.py", flags, opts=opts)
    own = {"trained": trained.folder, "needs": (trained,)}
    return where.job("test", folder, "train.py", flags, opts=opts, **own)


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
