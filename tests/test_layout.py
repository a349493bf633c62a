"""The house keeps its order: imports point one way, nothing is pickled, no device is assumed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
DASSL_SIDE = {"dassl", "datasets", "trainers", "configs", "train"}
TABLES = {"reporting", "protocols"}
OURS_ALL = DASSL_SIDE | {"models", "regions", "losses"} | TABLES
FORBIDDEN = {  # folder or file -> what it may not import
    "inputs.py": OURS_ALL | {"torch"},  # everybody's, predict and tables included
    "wording.py": OURS_ALL | {"torch"},
    "files.py": OURS_ALL | {"torch"},
    "entry.py": OURS_ALL | {"torch"},
    "losses.py": DASSL_SIDE | {"models", "regions"} | TABLES,
    "models": DASSL_SIDE | {"regions", "losses", "yacs"} | TABLES,
    "regions": DASSL_SIDE | {"models", "losses", "yacs"} | TABLES,
    "reporting": DASSL_SIDE | {"models", "regions", "losses", "torch", "yacs", "protocols"},
    "protocols": DASSL_SIDE - {"configs"} | {"models", "regions", "losses", "torch"},
    "datasets": {"trainers", "models", "regions", "losses"} | TABLES,
    "configs": {"trainers", "models", "regions", "losses", "datasets"} | TABLES,
    "trainers": {"train", "datasets"} | TABLES,
    "dassl-lite/dassl": {"trainers", "models", "regions", "losses", "datasets"} | TABLES,
}
OURS = [
    path
    for path in REPO.rglob("*.py")
    if not {".venv", "tests", "output", "build"} & set(path.relative_to(REPO).parts)
]


def files_of(name: str) -> list[Path]:
    path = REPO / name
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of every import in a file, also those inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


def modules_imported(path: Path) -> set[str]:
    """Full names of what a file imports, also inside functions, but for its annotations' types."""
    names, tree = set(), ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not ast.unparse(node).startswith("if TYPE_CHECKING")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("part", FORBIDDEN)
def test_imports_point_one_way(part):
    assert files_of(part)
    for path in files_of(part):
        allowed = {"losses"} if path.parent.name == "tools" else set()  # the region weight
        wrong = imported(path) & FORBIDDEN[part] - allowed
        assert not wrong, f"{path.relative_to(REPO)} imports {sorted(wrong)}"


# In reading order: each imports from those before it alone.
REGIONS = ["store", "boxes", "dataset", "loader", "features", "dump", "tools", "__main__"]
STORE = [
    *("tensors", "images", "kinds", "spec", "fit", "contents", "layout", "reader", "writer"),
    "record",
    *("teacher_text", "__init__"),
]


def test_regions_are_few_files_and_import_only_what_comes_before_them():
    """No circle, nothing upwards; the store knows nothing of the rest, and needs no torch."""
    folder = REPO / "regions"
    assert {path.stem for path in folder.glob("*.py")} <= {*REGIONS, "__init__"}
    assert len(list(folder.glob("*.py"))) <= 8
    for path in files_of("regions"):
        part = path.relative_to(folder).parts[0].removesuffix(".py")
        before = {"regions", *REGIONS[: REGIONS.index(part) + 1]} if part != "__init__" else set()
        parts = {name.split(".")[1] for name in modules_imported(path) if name[:8] == "regions."}
        assert parts <= before, f"{path} imports {sorted(parts - before)}"
        if part == "store":
            own = {n.split(".")[2] for n in modules_imported(path) if n[:14] == "regions.store."}
            own = {name for name in own if name in STORE}
            earlier = set(STORE[: STORE.index(path.stem)])
            assert own <= earlier, f"{path} imports {sorted(own - earlier)}"
            others = imported(path) - {"regions", "files", "numpy", "safetensors", "wording"}
            assert others <= sys.stdlib_module_names, f"{path} imports {sorted(others)}"


def test_training_does_not_import_the_dump():
    code = "import sys, train; sys.exit('regions.dump' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0


def test_models_know_neither_config_nor_trainers():
    trainers = ("CoOp_", "FDBPL(", "ZeroshotCLIP", "cfg.", "cfg:")
    for path in files_of("models"):
        text = path.read_text()
        assert not [word for word in trainers if word in text], path


def test_nothing_is_pickled_and_no_device_is_assumed():
    for path in OURS:
        tree = ast.parse(path.read_text())
        assert not imported(path) & {"dill", "joblib", "cloudpickle"}, path
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            assert not name.endswith(".cuda"), f"{path}:{call.lineno}"
            assert not name.startswith("pickle."), f"{path}:{call.lineno}"
            if name == "torch.load":
                keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
                assert keywords.get("weights_only") == "True", f"{path}:{call.lineno}"


def test_every_module_opens_with_what_it_is():
    for path in OURS:
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_tables_and_plans_start_without_torch():
    """Tables must not take seconds: the check is on what is loaded, not on a clock."""
    code = "import sys, parse_test_res, run_protocol; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0


def test_trainers_use_public_names_of_dassl_only():
    """The list that upstream Dassl 0.6.3 has too."""
    known = {
        "dassl.config": {"get_cfg_default"},
        "dassl.engine": {"TRAINER_REGISTRY", "TrainerX", "build_trainer"},
        "dassl.metrics": {"compute_accuracy"},
        "dassl.optim": {"build_optimizer", "build_lr_scheduler"},
        "dassl.data": {"DataManager"},
        "dassl.data.transforms": {"build_transform"},
        "dassl.data.datasets": {"DATASET_REGISTRY", "Datum", "DatasetBase", "build_dataset"},
        "dassl.utils": {"set_random_seed", "setup_logger"},
    }
    for path in OURS:
        if "dassl-lite" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dassl"):
                names = {alias.name for alias in node.names}
                assert names <= known.get(node.module, set()), f"{path}: {node.module} {names}"
