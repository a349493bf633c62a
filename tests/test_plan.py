"""The table of methods and the planner: recipes, folders, what comes after what."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fake_runs import finish, flag

from protocols.plan import PlanError, Settings, check_datasets, plan, step_jobs
from reporting.compare import compare
from reporting.identity import STORE_FIELDS
from reporting.methods import (
    BASE2NEW,
    CROSS,
    CROSS_TARGETS,
    DOMAIN_TARGETS,
    DOMAINS,
    ELEVEN,
    FEW_SHOT,
    FEW_SHOTS,
    METHODS,
    PROTOCOLS,
    SOURCE,
    common_backbone,
    find_method,
    is_domain,
    source_of,
)
from reporting.paths import SCOPE_OF_PHASE, parse_run_dir

REPO = Path(__file__).resolve().parents[1]
TARGETS = {
    BASE2NEW: ("dtd", "eurosat"),
    CROSS: (SOURCE, "dtd", "eurosat"),
    DOMAINS: (SOURCE, "imagenet_a", "imagenet_r"),
    FEW_SHOT: ("dtd", "eurosat"),
}


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A repository with every recipe of the table and no code."""
    root = tmp_path_factory.mktemp("repo")
    files = {f"datasets/{name}" for name in (*ELEVEN, *DOMAIN_TARGETS, "toy_shapes")}
    for method in METHODS.values():
        for case in every_case():
            for backbone in ("", "vit_b32"):
                stem = method.recipe(*case, backbone)
                files |= {f"trainers/{method.trainer}/{stem}"} if stem else set()
        if method.teacher:
            teacher, stem = find_method(method.teacher[0]), method.teacher[1]
            files.add(f"trainers/{teacher.trainer}/{stem}")
    for file in files:
        path = root / f"configs/{file}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return root


@pytest.fixture
def settings(repo, tmp_path):
    return Settings(root=repo, out=str(tmp_path / "output"), stores=str(tmp_path / "stores"))


def every_case():
    for protocol in PROTOCOLS:
        for dataset in (*ELEVEN, "toy_shapes"):
            for shots in FEW_SHOTS if protocol == FEW_SHOT else (16,):
                yield protocol, dataset, shots


# --- the table


@pytest.mark.parametrize("folder", METHODS)
def test_every_recipe_of_the_table_is_there(folder):
    method, missing = METHODS[folder], set()
    for case in every_case():
        stem = method.recipe(*case)
        path = REPO / f"configs/trainers/{method.trainer}/{stem}.yaml"
        if stem and not path.is_file():
            missing.add(f"{case[0]}: {path.name}")
    assert not missing


def test_every_data_set_of_a_protocol_is_there():
    for name in (*ELEVEN, *DOMAIN_TARGETS, "toy_shapes", "toy_drawings"):
        assert (REPO / f"configs/datasets/{name}.yaml").is_file(), name


def test_methods_side_by_side_have_recipes_for_one_student():
    """With a distilled method among them that is ViT-B/32."""
    assert common_backbone([METHODS["coop"], METHODS["fdbpl"]]) == "vit_b32"
    assert common_backbone([METHODS["coop"], METHODS["maple"]]) == "vit_b16"
    for method in METHODS.values():
        for case in every_case():
            stem = method.recipe(*case, "vit_b32")
            path = REPO / f"configs/trainers/{method.trainer}/{stem}.yaml"
            assert stem is None or path.is_file(), path


@pytest.mark.parametrize(
    ("folder", "case", "stem"),
    [
        ("coop", (BASE2NEW, "dtd", 16), "vit_b16_ctxv1"),
        ("coop", (BASE2NEW, "imagenet", 16), "vit_b16_ep50_ctxv1"),
        ("coop", (BASE2NEW, "dtd", 16, "vit_b32"), "vit_b32_ep50_ctxv1"),
        ("coop", (FEW_SHOT, "dtd", 1), "vit_b16_ep50"),
        ("coop", (FEW_SHOT, "dtd", 4), "vit_b16_ep100"),
        ("coop", (FEW_SHOT, "dtd", 8), "vit_b16"),
        ("coop", (FEW_SHOT, "imagenet", 8), "vit_b16_ep50"),
        ("maple", (CROSS, "imagenet", 16), "vit_b16_c2_ep5_batch4_2ctx_cross_datasets"),
        ("promptsrc", (DOMAINS, "imagenet", 16), "vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets"),
        ("promptsrc", (FEW_SHOT, "dtd", 2), "vit_b16_c2_ep50_batch4_4+4ctx_few_shot_gpa45"),
        ("promptsrc", (FEW_SHOT, "sun397", 2), "vit_b16_c2_ep50_batch4_4+4ctx_few_shot"),
        ("maple_kdpl", (CROSS, "imagenet", 16), "vit_b32_c2_ep5_batch4_2ctx"),
        ("fdbpl", (CROSS, "toy_shapes", 16), "toy"),
        ("promptkd", (FEW_SHOT, "dtd", 16), None),
    ],
)
def test_recipes_are_those_of_the_family(folder, case, stem):
    assert METHODS[folder].recipe(*case) == stem


def test_every_registered_trainer_is_in_the_table():
    from dassl.engine import TRAINER_REGISTRY

    import trainers  # noqa: F401

    ours = {name for name in TRAINER_REGISTRY.registered_names()
            if TRAINER_REGISTRY.get(name).__module__.startswith("trainers.")}  # fmt: skip
    assert ours == {method.trainer for method in METHODS.values()}
    assert {m.trainer for m in METHODS.values() if m.transductive} == {"PromptKD"}


def test_names_of_methods():
    assert find_method("FDBPL").folder == find_method("fdbpl").folder == "fdbpl"
    assert find_method("IVLP").folder == "ivlp"
    with pytest.raises(ValueError, match="METHOD is 'CoOp_OFF', not one of zsclip"):
        find_method("CoOp_OFF")


# --- the plan


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("folder", METHODS)
def test_train_test_and_table_agree_on_every_folder(settings, protocol, folder):
    """Finish each planned job as its command says; the table must find every one of them."""
    method, datasets = METHODS[folder], TARGETS[protocol]
    if method.stems(protocol).default is None:
        with pytest.raises(PlanError, match="PromptKD is not defined under few_shot"):
            plan(protocol, [method], datasets, [1], [16], settings)
        return
    if method.transductive and protocol == DOMAINS:
        with pytest.raises(PlanError, match="and imagenet_a has none; leave it out"):
            plan(protocol, [method], datasets, [1], [16], settings)
        return
    shots = (2, 16) if protocol == FEW_SHOT else (16,)
    jobs = plan(protocol, [method], datasets, [1, 2], shots, settings)
    done: set[Path] = set()
    for job in jobs:
        assert {need.folder for need in job.needs} <= done
        assert job.decide()[0] == "run"
        command = job.command()
        finish(settings.root, command)
        done.add(job.folder)
        if job.trained:
            assert flag(command, "--model-dir") == str(job.trained)
            assert job.trained in done and flag(command, "--load-epoch") == "10"
        if "--store" not in command:
            assert flag(command, "--output-dir") == str(job.folder)
            place = parse_run_dir(job.folder)
            assert SCOPE_OF_PHASE[place.phase] == flag(command, "DATASET.SUBSAMPLE_CLASSES")
        for key in ("TRAINER.FDBPL.STORE", "TRAINER.PROMPTKD.TEACHER_DIR"):
            if key in command:
                assert Path(flag(command, key)) in done
    assert all(job.decide()[0] == "skip" for job in jobs)
    assert len({str(job) + str(job.folder) for job in jobs}) == len({j.name for j in jobs})

    table = compare(protocol, settings.out)
    assert table.notes == []
    assert {row.trainer for row in table.rows} == {method.trainer}
    for row in table.rows:
        wanted = set(table.columns)
        if method.transductive and protocol == CROSS:
            wanted -= {SOURCE}  # it learns on the targets themselves
        assert {name for name, cell in row.cells.items() if cell} == wanted
        assert all(seeds == (1, 2) for seeds in row.seeds.values())
    marks = "(transductive)" if method.transductive else ""
    assert all(row.method == f"{method.trainer} {marks}".strip() for row in table.rows)


def test_one_dump_serves_every_method(settings):
    methods = [METHODS[name] for name in ("fdbpl", "maple_fdbpl", "coop_fdbpl")]
    jobs = plan(BASE2NEW, methods, ["dtd"], [1], [16], settings)
    assert [job.kind for job in jobs].count("dump") == 1 and len(jobs) == 7
    stores = {flag(list(job.opts), "TRAINER.FDBPL.STORE") for job in jobs if job.kind == "train"}
    assert stores == {str(jobs[0].folder)}


def test_a_base_run_reads_the_store_of_all_classes_where_there_is_one(settings):
    method = METHODS["fdbpl"]
    (dump, *_) = plan(FEW_SHOT, [method], ["dtd"], [1], [16], settings)
    finish(settings.root, dump.command())
    (dump, train, _) = plan(BASE2NEW, [method], ["dtd"], [1], [16], settings)
    assert dump.decide()[0] == "skip"
    assert flag(list(train.opts), "TRAINER.FDBPL.STORE").endswith("stores/dtd/shots_16/all/seed1")
    assert flag(list(train.opts), "DATASET.SUBSAMPLE_CLASSES") == "base"


def test_cross_data_set_and_domain_generalisation_share_their_training(settings):
    method = [METHODS["maple"]]
    cross = plan(CROSS, method, ["dtd"], [1], [16], settings)
    domains = plan(DOMAINS, method, ["imagenet_a"], [1], [16], settings)
    assert [job.folder for job in cross][0] == [job.folder for job in domains][0]


def test_promptkd_trains_its_teacher_first_and_keeps_it_out_of_the_table(settings):
    teacher, train, test = plan(BASE2NEW, [METHODS["promptkd"]], ["dtd"], [1], [16], settings)
    assert teacher.method.trainer == "PromptSRC" and "teachers" in teacher.folder.parts
    assert flag(list(train.opts), "TRAINER.PROMPTKD.TEACHER_DIR") == str(teacher.folder)
    assert flag(list(test.opts), "TRAINER.PROMPTKD.TEACHER_DIR") == str(teacher.folder)
    assert flag(list(train.opts), "TRAINER.PROMPTKD.KD_WEIGHT") == "200"
    (_, other, _) = plan(BASE2NEW, [METHODS["promptkd"]], ["eurosat"], [1], [16], settings)
    assert "TRAINER.PROMPTKD.KD_WEIGHT" not in other.opts
    # On each target of a transfer it learns from that target's own images.
    jobs = plan(CROSS, [METHODS["promptkd"]], [SOURCE, "dtd"], [1], [16], settings)
    assert [(job.kind, job.dataset) for job in jobs] == [("train", SOURCE), ("train", "dtd")]
    assert jobs[1].trained is None and "--eval-only" not in jobs[1].flags


def test_a_single_step_of_promptkd_trains_its_teacher_first(settings):
    for step in ("base2new_train", "xd_test"):
        jobs = step_jobs(step, METHODS["promptkd"], "dtd", 16, 1, settings)
        assert [job.method.trainer for job in jobs] == ["PromptSRC", "PromptKD"]
        assert jobs[1].kind == "train"
    (test,) = step_jobs("base2new_test", METHODS["promptkd"], "dtd", 16, 1, settings)
    assert test.kind == "test"
    (train,) = step_jobs("base2new_train", METHODS["fdbpl"], "dtd", 16, 1, settings)
    assert train.kind == "train"  # its dump is a step of its own


def test_a_refused_folder_names_what_differs(settings):
    (job,) = plan(FEW_SHOT, [METHODS["coop"]], ["dtd"], [1], [16], settings)
    finish(settings.root, [*job.command(), "OPTIM.LR", "0.1"])
    verdict, why = job.decide()
    assert verdict == "refuse" and "OPTIM.LR is 0.1 there and 0.0003 now" in why
    assert "Set another OUT, or delete the folder." in why
    assert why.endswith("Or give the old values: OPTIM.LR 0.1.")


def test_a_run_without_an_identity_is_told_apart_by_its_options(settings):
    (job,) = plan(FEW_SHOT, [METHODS["coop"]], ["dtd"], [1], [16], settings)
    finish(settings.root, job.command(), identity=None)
    assert job.decide()[0] == "skip"
    finish(settings.root, [*job.command(), "OPTIM.LR", "0.1"], identity=None)
    verdict, why = job.decide()
    assert verdict == "refuse" and "OPTIM.LR is '0.1' there and None now" in why


def test_a_recipe_that_was_edited_is_another_run(settings, repo):
    (job,) = plan(FEW_SHOT, [METHODS["coop"]], ["dtd"], [1], [16], settings)
    finish(settings.root, job.command())
    recipe = repo / flag(job.command(), "--config-file")
    recipe.write_text("OPTIM: {LR: 0.1}")
    try:
        verdict, why = job.decide()
        assert verdict == "refuse" and "OPTIM.LR is 0.0003 there and 0.1 now" in why
        recipe.write_text("OPTIM: {LLR: 0.1}")
        assert job.decide()[0] == "refuse" and "LLR" in job.decide()[1]
    finally:
        recipe.write_text("{}")
    assert job.decide()[0] == "skip"


def test_an_interrupted_run_goes_on_only_as_what_it_is(settings):
    (job,) = plan(FEW_SHOT, [METHODS["coop"]], ["dtd"], [1], [16], settings)
    finish(settings.root, job.command())
    folder = settings.root / job.folder
    (folder / "results.json").unlink()
    (folder / "prompt_learner").mkdir()
    (folder / "prompt_learner/model.pth.tar-10").touch()
    assert job.decide() == ("run", "")
    (other,) = plan(FEW_SHOT, [METHODS["coop"]], ["dtd"], [1], [16],
                    replace(settings, opts=("OPTIM.LR", "0.5")))  # fmt: skip
    verdict, why = other.decide()
    assert verdict == "refuse" and "OPTIM.LR is 0.0003 there and 0.5 now" in why
    (folder / "identity.json").unlink()
    verdict, why = job.decide()
    assert verdict == "refuse" and "a run without identity.json" in why


def test_a_store_or_a_training_that_was_replaced_makes_another_run(settings):
    dump, train, test = plan(BASE2NEW, [METHODS["fdbpl"]], ["dtd"], [1], [16], settings)
    manifest = settings.root / dump.folder / "manifest.json"
    finish(settings.root, dump.command())
    fields = dict.fromkeys(STORE_FIELDS, 0)
    manifest.write_text(json.dumps({"spec_id": "a" * 64, "spec": fields}))
    for job in (train, test):
        finish(settings.root, job.command())
        assert job.decide()[0] == "skip"
    manifest.write_text(json.dumps({"spec_id": "b" * 64, "spec": {**fields, "dtype": "float32"}}))
    verdict, why = train.decide()
    assert verdict == "refuse" and "store: id is aaaaaaaaaaaaaaaa there" in why
    assert "store: dtype is 0 there and float32 now" in why
    assert test.decide()[0] == "skip"  # it tests what was trained
    finish(settings.root, train.command())
    verdict, why = test.decide()
    assert verdict == "refuse" and "trained: store: dtype is 0 there" in why


def test_what_cannot_be_planned_is_told(settings):
    with pytest.raises(PlanError, match="there is no configs/trainers/CoOp/rn18_ctxv1.yaml"):
        plan(BASE2NEW, [METHODS["coop"]], ["dtd"], [1], [16],
             Settings(root=settings.root, backbone="rn18"))  # fmt: skip
    with pytest.raises(PlanError, match="configs/datasets holds: caltech101 dtd"):
        plan(BASE2NEW, [METHODS["coop"]], ["mnist"], [1], [16], settings)
    with pytest.raises(PlanError, match="a KEY without a VALUE"):
        Settings(opts=("OPTIM.LR",))
    with pytest.raises(PlanError, match="it is of domain_generalization"):
        check_datasets(CROSS, ["imagenet_a"])
    with pytest.raises(PlanError, match="it is of cross_dataset"):
        check_datasets(DOMAINS, ["dtd"])


def test_targets_and_their_sources():
    assert len(ELEVEN) == 11 and len(CROSS_TARGETS) == 10 and SOURCE not in CROSS_TARGETS
    assert [source_of(name) for name in ("dtd", "toy_drawings")] == ["imagenet", "toy_shapes"]
    assert is_domain("toy_shapes_noise") and not is_domain("toy_drawings")
    assert not is_domain("toy_shapes") and all(map(is_domain, DOMAIN_TARGETS))
