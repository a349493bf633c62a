r"""Does a test notice? Change a file in one place, run its tests, and see whether one fails.

    python tests/mutate.py losses.py regions/boxes.py
    python tests/mutate.py models/text.py --sample 120 --seed 1

Changes: < for <=, + for -, and for or, another number, nothing returned, a statement or raise
left out, arguments swapped or left out, a condition turned round; not words, annotations, asserts.
The file on disk is left alone: each change is compiled in a forked process that has the libraries
loaded already. tests/README.md has figures, and the changes that no test can notice.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import gc
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
README = REPO / "tests" / "README.md"
TESTS = {  # what pytest is given, the quick ones first
    "losses.py": "test_losses.py",
    "regions/boxes.py": "test_boxes.py",
    "datasets/fewshot.py": "test_fewshot.py test_datasets_family.py",
    "models/text.py": "test_text.py",
    "reporting/results.py": "test_reporting.py",
    "reporting/tables.py": "test_reporting.py",
    "regions/store/reader.py": (
        "test_store.py test_region_kinds.py test_region_dataset.py test_dump.py"
    ),
    "trainers/fdbpl.py": "test_trainers.py test_distillation.py test_feature_cache.py",
}
SLOW = (  # parts of names of tests that take seconds and tell nothing more
    "browser 20000_names on_a_card memory_benchmark imagenet full_size official_loaders "
    "trains_and_tests_across full_size_textures clips_own never_opened pictures_of bars_are "
    "regions_are_drawn_in are_compact one_colour training_from ensemble bf16 that_stopped killed "
    "flipped_byte redoes_every one_line 1000] workers_do"
)
SKIPPED = {"annotation", "returns", "decorator_list", "bases", "msg", "exc", "cause"}
KEPT = {"encoding", "strict"}  # keywords that change nothing here
OPERATORS = {
    "Lt": "LtE GtE", "LtE": "Lt Gt", "Gt": "GtE LtE", "GtE": "Gt Lt", "Eq": "NotEq", "NotEq": "Eq",
    "In": "NotIn", "NotIn": "In", "Is": "IsNot", "IsNot": "Is", "And": "Or", "Or": "And",
    "Add": "Sub", "Sub": "Add", "Mult": "Div", "Div": "Mult", "FloorDiv": "Div", "Mod": "Mult",
    "Pow": "Mult", "BitAnd": "BitOr", "BitOr": "BitAnd", "LShift": "RShift", "RShift": "LShift",
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "argmax": "argmin",
         "floor": "ceil", "sorted": "list"}  # fmt: skip


@dataclass
class Mutant:
    """One node of a tree and what is to stand in its place."""

    statement: ast.stmt | None  # that the node is a part of
    parent: ast.AST
    field: str
    index: int | None
    node: ast.AST
    new: ast.AST

    def __str__(self) -> str:
        before, after = ast.unparse(self.node), ast.unparse(self.new)
        if self.statement:
            before = ast.unparse(self.statement)
            self.put(self.new)
            after = ast.unparse(self.statement)
            self.put(self.node)
        lines = zip(before.splitlines(), after.splitlines(), strict=False)
        old, new = next(pair for pair in lines if pair[0] != pair[1])
        return f"`{old.strip()}` -> `{new.strip()}`"

    def put(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


def mutants_of(node: ast.AST, statement: ast.stmt | None = None) -> Iterator[Mutant]:
    """All changes below a node, in the order of the file."""
    for field, value in ast.iter_fields(node):
        single = not isinstance(value, list)
        for index, child in enumerate([value] if single else value):
            if field in SKIPPED or not isinstance(child, ast.AST):
                continue
            if isinstance(child, (ast.JoinedStr, ast.Assert)) or getattr(child, "arg", 0) in KEPT:
                continue
            is_statement = isinstance(child, ast.stmt)
            found = list(changes(child))
            if field in ("test", "ifs") and not found:
                found = [ast.UnaryOp(ast.Not(), child)]
            for new in found:
                ast.copy_location(new, child)
                within = None if is_statement else statement
                yield Mutant(within, node, field, None if single else index, child, new)
            yield from mutants_of(child, child if is_statement else statement)


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of a node."""

    def but(**fields) -> ast.AST:
        new = copy.copy(node)
        vars(new).update(fields)
        return new

    def others(op: ast.AST) -> list[ast.AST]:
        return [getattr(ast, name)() for name in OPERATORS.get(type(op).__name__, "").split()]

    match node:
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                yield from (but(ops=[*ops[:i], new, *ops[i + 1 :]]) for new in others(op))
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op):
            yield from (but(op=new) for new in others(op))
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            if not isinstance(operand, ast.Constant):
                yield operand
        case ast.Constant(value=bool(value)):
            yield but(value=not value)
        case ast.Constant(value=int(value)):
            yield from (but(value=value + 1), but(value=value - 1))
        case ast.Constant(value=float(value)):
            yield from (but(value=value + 1), but(value=value * 0.9 or -1.0))
        case ast.Return(value=value) if value and ast.unparse(value) != "None":
            yield but(value=ast.Constant(None))
        case ast.Raise() | ast.Expr(value=ast.Call() | ast.Attribute() | ast.Yield()):
            yield ast.Pass()
        case ast.Break() | ast.Continue():
            yield ast.Continue() if isinstance(node, ast.Break) else ast.Break()
        case ast.Name(id=name) if name in NAMES:
            yield but(id=NAMES[name])
        case ast.Attribute(attr=name) if name in NAMES:
            yield but(attr=NAMES[name])
        case ast.Call(func=func, args=args, keywords=keywords):
            if ast.unparse(func) not in NAMES and not any(isinstance(a, ast.Starred) for a in args):
                for i in range(len(args) - 1):
                    if ast.unparse(args[i]) != ast.unparse(args[i + 1]):
                        yield but(args=[*args[:i], args[i + 1], args[i], *args[i + 2 :]])
            for i, keyword in enumerate(keywords):
                if keyword.arg not in KEPT:
                    yield but(keywords=[*keywords[:i], *keywords[i + 1 :]])


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module of the repository from a tree instead of its file."""

    def __init__(self, file: str, tree: ast.Module) -> None:
        self.name, self.path, self.tree = file[:-3].replace("/", "."), str(REPO / file), tree

    def find_spec(self, fullname, path=None, target=None):
        if fullname == self.name:
            return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def exec_module(self, module) -> None:
        exec(compile(ast.fix_missing_locations(self.tree), self.path, "exec"), vars(module))


class Order:
    """A plugin of pytest: the tests that noticed a change of late come first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = path.read_text().split("\n") if path.exists() else []

    def pytest_collection_modifyitems(self, items) -> None:
        rank = {name: place for place, name in enumerate(self.names)}
        items.sort(key=lambda item: rank.get(item.nodeid, len(rank)))

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed:
            others = [name for name in self.names if name != report.nodeid]
            self.path.write_text("\n".join([report.nodeid, *others]))


def status_of_tests(
    file: str, tree: ast.Module, tests: list[str], limit: float, change: Mutant | None, folder: str
) -> int:
    """Wait status of a forked process that imports the tree, changed, as the file and tests it."""
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.setitimer(signal.ITIMER_REAL, limit)
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        code = 1
        try:
            import pytest

            if change:
                change.put(change.new)
            sys.meta_path.insert(0, Changed(file, tree))
            left_out = " and ".join(f"not {name}" for name in SLOW.split())
            flags = ["-x", "-k", left_out, "-p", "no:cacheprovider", f"--basetemp={folder}/tests"]
            code = int(pytest.main([*flags, *tests], [Order(Path(folder, "order"))]))
            if not change:
                libraries = [name for name, module in sys.modules.items() if is_library(module)]
                Path(folder, "libraries").write_text("\n".join(libraries))
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what its tests had started
    return status


def is_library(module: object) -> bool:
    return not str(getattr(module, "__file__", None) or "").startswith(str(REPO))


def try_changes(file: str, tests: list[str], sample: int | None, seed: int) -> bool:
    """Print the changes that no test notices and how many there are; whether README has them."""
    started, survivors = time.monotonic(), []
    tree = ast.parse((REPO / file).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        if status_of_tests(file, tree, tests, 600, None, folder):
            sys.exit(f"{file}: tests of the unchanged file fail: pytest -x {' '.join(tests)}")
        limit = 10 + 3 * (time.monotonic() - started)
        for name in (
            Path(folder, "libraries").read_text().split("\n")
        ):  # so that no child has to load them
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        gc.freeze()  # or every child would copy their memory at its first collection
        every = list(mutants_of(tree))
        places = range(len(every))
        if sample is not None and sample < len(every):
            places = sorted(random.Random(seed).sample(places, sample))
        for change in (every[place] for place in places):
            if status_of_tests(file, tree, tests, limit, change, folder) == 0:
                survivors.append(f"{file}: {change}")
                print(f"line {change.node.lineno}: {survivors[-1]}", flush=True)
    caught, seconds = len(places) - len(survivors), time.monotonic() - started
    known = [text for text in survivors if text in README.read_text(encoding="utf-8")]
    print(
        f"{file}: {len(every)} changes, {len(places)} tried, {caught} caught "
        f"({100 * caught / len(places):.1f} %), {len(known)} of the others in tests/README.md; "
        f"{seconds:.0f} s",
        flush=True,
    )
    return len(known) == len(survivors)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="from the repository's root")
    parser.add_argument("--sample", type=int, metavar="N", help="try N changes of each file")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--tests", nargs="+", help="what pytest is given for them")
    args = parser.parse_args()
    os.chdir(REPO)
    sys.path.insert(0, str(REPO))
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    os.environ |= {**one_thread, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    known = True
    for file in args.files:
        if not (args.tests or file in TESTS):
            parser.error(f"{file} is not in TESTS of tests/mutate.py: give --tests")
        tests = args.tests or [f"tests/{name}" for name in TESTS[file].split()]
        known &= try_changes(file, tests, args.sample, args.seed)
    return 0 if known else 1


if __name__ == "__main__":
    sys.exit(main())
