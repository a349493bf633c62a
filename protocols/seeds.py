"""Jobs that differ in their seed alone as one process: train.py --seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from protocols.plan import REFUSE, RUN, SKIP, Job
from reporting.methods import Method
from reporting.results import ResultError


@dataclass(frozen=True)
class SeedsJob:
    """Trainings, or tests, of one method on one data set: a Job for several seeds."""

    jobs: tuple[Job, ...]
    needs: tuple[Job | SeedsJob, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        first, seeds = str(self.jobs[0]), [str(job.seed) for job in self.jobs]
        return f"{first.rsplit(' seed ', 1)[0]} seeds {' '.join(seeds)}"

    @property
    def kind(self) -> str:
        return self.jobs[0].kind

    @property
    def method(self) -> Method:
        return self.jobs[0].method

    @property
    def dataset(self) -> str:
        return self.jobs[0].dataset

    @property
    def shots(self) -> int:
        return self.jobs[0].shots

    @property
    def root(self) -> Path:
        return self.jobs[0].root

    @property
    def folder(self) -> Path:
        """The folder that holds those of the seeds."""
        return self.jobs[0].folder.parent

    @property
    def name(self) -> str:
        seeds = "_".join(str(job.seed) for job in self.jobs)
        return f"{self.jobs[0].name.rsplit('_seed', 1)[0]}_seeds{seeds}"

    def decide(self) -> tuple[str, str]:
        """RUN where a seed is to be run, REFUSE where one must not be; see Job.decide."""
        decided = [job.decide() for job in self.jobs]
        for verdict in (REFUSE, RUN, SKIP):
            whys = [why for found, why in decided if found == verdict]
            if whys:
                return verdict, " ".join(why for why in whys if why)
        raise AssertionError("a job without seeds")

    def command(self, epochs: str = "") -> list[str]:
        """One command for the seeds that are not finished; see Job.command.

        Raises:
            ResultError: the seeds' trainings have no results, or reached different epochs.
        """
        jobs = [job for job in self.jobs if job.decide()[0] != SKIP] or list(self.jobs)
        if len(jobs) == 1:
            return jobs[0].command(epochs)
        (words, *others) = (_for_any_seed(job.command(epochs), job) for job in jobs)
        if any(other != words for other in others):
            raise ResultError(
                f"{self}: their commands differ in more than the seed. Run without --together."
            )
        at = words.index("--seed")
        return [*words[:at], "--seeds", *(str(job.seed) for job in jobs), *words[at + 2 :]]

    def is_finished(self) -> bool:
        return all(job.is_finished() for job in self.jobs)

    def reached(self) -> str:
        return "".join(f"{job.reached()} (seed {job.seed})" for job in self.jobs)


def join_seeds(jobs: Sequence[Job]) -> list[Job | SeedsJob]:
    """The same jobs, those of several seeds in one, none before what it needs; dumps stay."""
    groups: dict[tuple, list[Job]] = {}
    for job in jobs:
        words = [job.script, *job.flags, str(job.trained), *job.opts]
        key = (job.folder,) if job.kind == "dump" else tuple(_for_any_seed(words, job))
        groups.setdefault(key, []).append(job)
    group_of = {job.folder: group for group in groups.values() for job in group}
    joined: dict[Path, Job | SeedsJob] = {}  # by the first job's folder

    def join(group: list[Job]) -> Job | SeedsJob:
        first = group[0]
        if first.folder not in joined:
            needs = [join(group_of[need.folder]) for job in group for need in job.needs]
            unique = tuple({need.folder: need for need in needs}.values())
            one = first if first.kind == "dump" else SeedsJob(tuple(group), unique)
            joined[first.folder] = one
        return joined[first.folder]

    for group in groups.values():
        join(group)
    return list(joined.values())


def _for_any_seed(words: Sequence[str], job: Job) -> list[str]:
    """The words of a job's command with {seed} where its seed stands."""
    words, own = list(words), f"seed{job.seed}"
    words[words.index("--seed") + 1] = "{seed}"
    return [
        "/".join("seed{seed}" if part == own else part for part in word.split("/"))
        for word in words
    ]
