"""train.py --seeds: seeds in one process end as their own runs do."""

from __future__ import annotations

import sys

import pytest
import torch
from toy_runs import flags, options, run, stopped_in

import dump_teacher_logits
import train
from reporting.results import RunResult

NAMES = {
    "CoOp": {},
    "FDBPL": {},
    "CoOp_KDPL": {"TRAINER.COOP.CSC": True, "TRAINER.COOP.CTX_INIT": "", "TRAINER.COOP.N_CTX": 3},
    "VPT": {},
}
SEEDS = (1, 2)


@pytest.fixture(scope="module")
def stores(world):
    """A folder of stores, one per seed."""
    for seed in SEEDS:
        command = flags(world, "FDBPL", seed=seed)
        path = str(world / "stores" / str(seed))
        assert dump_teacher_logits.run(["--store", path, *command, *options()]) == 0
    return world / "stores"


def together(world, stores, name, out, *, seeds=SEEDS, extra=(), **keys):
    """One call of train.py for several seeds."""
    if name.endswith("FDBPL"):
        keys.setdefault("TRAINER.FDBPL.STORE", stores / "{seed}")
    command = flags(world, name)
    place = command.index("--seed")
    command[place : place + 2] = ["--seeds", *map(str, seeds)]
    command += [*extra, "--output-dir", str(world / out)]
    return train.main([*command, *options(**keys)])


def alone(world, stores, name, out, seed, **keys):
    if name.endswith("FDBPL"):
        keys["TRAINER.FDBPL.STORE"] = stores / str(seed)
    return run(world, "", name, f"{out}/seed{seed}", seed=seed, **keys)


def learned(trainer) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in trainer.model.learner.parameters()])


@pytest.mark.parametrize("name", NAMES)
def test_seeds_in_one_process_end_with_the_bits_of_their_own_runs(world, stores, name):
    stdout = sys.stdout
    found = together(world, stores, name, f"t/{name}", **NAMES[name])
    assert sys.stdout is stdout
    assert found[0].model.clip.model is found[1].model.clip.model  # kept once
    for seed, trainer in zip(SEEDS, found, strict=True):
        own = alone(world, stores, name, f"a/{name}", seed, **NAMES[name])
        assert torch.equal(learned(trainer), learned(own))
        folder, own_folder = (world / kind / name / f"seed{seed}" for kind in "ta")
        result, expected = RunResult.read(folder), RunResult.read(own_folder)
        assert (result.seed, result.together, expected.together) == (seed, list(SEEDS), [])
        assert result.accuracy == expected.accuracy
        logs = [(path / "log.txt").read_text() for path in (folder, own_folder)]
        assert _epochs(logs[0]) == _epochs(logs[1])  # nothing of another seed's
    assert not torch.equal(learned(found[0]), learned(found[1]))


def _epochs(log: str) -> list[str]:
    """Progress lines up to the times in them."""
    return [line.split(" time ")[0] for line in log.splitlines() if line.startswith("epoch [")]


def test_a_seed_that_fails_stops_no_other(world, stores):
    with pytest.raises(ValueError, match=r"1 of 2 seeds failed. seed 7: .*stores/7"):
        together(world, stores, "FDBPL", "failing", seeds=(7, 1))
    assert RunResult.read(world / "failing" / "seed1").seed == 1
    assert not (world / "failing" / "seed7" / "results.json").exists()


def test_seeds_that_stopped_apart_go_on(world, stores):
    """Seed 1 stops in epoch 2, seed 2 is not begun: both end as if nothing had happened."""
    whole = together(world, stores, "FDBPL", "whole")
    stdout = sys.stdout
    with stopped_in("FDBPL", epoch=1):
        together(world, stores, "FDBPL", "cut")
    assert sys.stdout is stdout and not (world / "cut" / "seed2").exists()
    found = together(world, stores, "FDBPL", "cut")
    assert [trainer.start_epoch for trainer in found] == [1, 0]
    for before, after in zip(whole, found, strict=True):
        assert torch.equal(learned(before), learned(after))


def test_seeds_are_evaluated_in_one_process(world, stores):
    trained = together(world, stores, "CoOp", "eval/base")
    extra = ["--eval-only", "--model-dir", str(world / "eval/base"), "--load-epoch", "3"]
    found = together(world, stores, "CoOp", "eval/again", extra=extra)
    assert [t.scores for t in found] == [t.scores for t in trained]


@pytest.mark.parametrize(
    ("extra", "told"),
    [(["--seed", "3"], "no --seed"), (["--seeds", "1", "1"], "different numbers")],
)
def test_odd_seeds_are_refused(world, stores, extra, told):
    with pytest.raises(ValueError, match=told):
        together(world, stores, "CoOp", "odd", extra=extra)


def test_no_output_folder_is_refused():
    with pytest.raises(ValueError, match="--output-dir"):
        train.main(["--seeds", "1", "2", "--trainer", "CoOp"])
