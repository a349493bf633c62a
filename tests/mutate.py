r"""Does a test notice? Change a file in one place, run its tests, and see whether one fails.

    python tests/mutate.py losses.py regions/boxes.py
    python tests/mutate.py models/text.py --sample 150 --seed 1

Changes: < for <=, + for -, and for or, another number, a return of nothing, a statement or raise
left out, arguments swapped or left out, a condition turned round. Words of messages, annotations
and asserts are left alone. Each changed file is compiled in a forked process that has the libraries
loaded already; the file on disk is not touched. tests/README.md has figures and the changes that no
test can notice; survivors that are written there are counted as known.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import gc
import importlib
import importlib.abc
import importlib.util
import json
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
    "regions/store.py": "test_store.py test_region_kinds.py",
    "trainers/fdbpl.py": "test_trainers.py test_distillation.py",
}
SLOW = (
    "not browser and not 20000_names and not card and not memory and not imagenet and not full_size"
)
SKIPPED = {"annotation", "returns", "decorator_list", "bases", "type_params", "msg", "exc", "cause"}
KEYWORDS_KEPT = {"encoding", "strict"}  # leaving them out changes nothing here
C = ast  # the classes of operators, by name
OPERATORS = {
    C.Lt: (C.LtE, C.GtE), C.LtE: (C.Lt, C.Gt), C.Gt: (C.GtE, C.LtE), C.GtE: (C.Gt, C.Lt),
    C.Eq: (C.NotEq,), C.NotEq: (C.Eq,), C.In: (C.NotIn,), C.NotIn: (C.In,),
    C.Is: (C.IsNot,), C.IsNot: (C.Is,), C.And: (C.Or,), C.Or: (C.And,),
    C.Add: (C.Sub,), C.Sub: (C.Add,), C.Mult: (C.Div,), C.Div: (C.Mult,), C.FloorDiv: (C.Div,),
    C.Mod: (C.Mult,), C.Pow: (C.Mult,), C.BitAnd: (C.BitOr,), C.BitOr: (C.BitAnd,),
    C.LShift: (C.RShift,), C.RShift: (C.LShift,),
}  # fmt: skip
NAMES = {"min": "max", "any": "all", "argmax": "argmin", "floor": "ceil", "sorted": "list"}
NAMES |= {new: old for old, new in NAMES.items() if old != "sorted"}


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
        before, after = [ast.unparse(self.node)], [ast.unparse(self.new)]
        if self.statement:
            before = ast.unparse(self.statement).splitlines()
            self.put(self.new)
            after = ast.unparse(self.statement).splitlines()
            self.put(self.node)
        old, new = next(pair for pair in zip(before, after, strict=False) if pair[0] != pair[1])
        return f"`{old.strip()}` -> `{new.strip()}`"

    def put(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


def mutants_of(node: ast.AST, statement: ast.stmt | None = None) -> Iterator[Mutant]:
    """All changes below a node, in the order of the file."""
    for field, value in ast.iter_fields(node):
        if field in SKIPPED:
            continue
        single = not isinstance(value, list)
        for index, child in enumerate([value] if single else value):
            if not isinstance(child, ast.AST) or isinstance(child, (ast.JoinedStr, ast.Assert)):
                continue
            if isinstance(child, ast.keyword) and child.arg in KEYWORDS_KEPT:
                continue
            is_statement = isinstance(child, ast.stmt)
            within = None if is_statement else statement
            turned = [opposite(child)] if field in ("test", "ifs") else []
            for new in (*changes(child), *turned):
                if new is not None:
                    ast.copy_location(new, child)
                    yield Mutant(within, node, field, None if single else index, child, new)
            yield from mutants_of(child, child if is_statement else statement)


def opposite(test: ast.expr) -> ast.expr | None:
    """A condition turned round, where no other change does so."""
    if isinstance(test, ast.UnaryOp):
        return None
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        return None
    return ast.UnaryOp(ast.Not(), test)


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of a node."""

    def but(**fields) -> ast.AST:
        new = copy.copy(node)
        vars(new).update(fields)
        return new

    match node:
        case ast.Compare(ops=ops):
            for place, op in enumerate(ops):
                for other in OPERATORS[type(op)]:
                    yield but(ops=[*ops[:place], other(), *ops[place + 1 :]])
        case ast.BinOp(op=op) | ast.BoolOp(op=op):
            for other in OPERATORS.get(type(op), ()):
                yield but(op=other())
        case ast.AugAssign(op=op):
            yield from (but(op=other()) for other in OPERATORS.get(type(op), ()))
            yield ast.Pass()
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.UnaryOp(op=ast.USub(), operand=operand) if not isinstance(operand, ast.Constant):
            yield operand
        case ast.Constant(value=bool(value)):
            yield but(value=not value)
        case ast.Constant(value=int(value)):
            yield from (but(value=value + 1), but(value=value - 1))
        case ast.Constant(value=float(value)):
            yield from (but(value=value + 1), but(value=value * 0.9))
        case ast.Return(value=value) if value and ast.unparse(value) != "None":
            yield but(value=ast.Constant(None))
        case ast.Raise() | ast.Delete():
            yield ast.Pass()
        case ast.Expr(value=value) if not isinstance(value, ast.Constant):
            yield ast.Pass()
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
        case ast.Name(id=name) if name in NAMES:
            yield but(id=NAMES[name])
        case ast.Attribute(attr=name) if name in NAMES:
            yield but(attr=NAMES[name])
        case ast.Call(args=args, keywords=keywords):
            fixed = any(isinstance(arg, ast.Starred) for arg in args)
            fixed |= isinstance(node.func, ast.Name) and node.func.id in ("min", "max")
            for i in range(0 if fixed else len(args) - 1):
                if ast.unparse(args[i]) != ast.unparse(args[i + 1]):
                    yield but(args=[*args[:i], args[i + 1], args[i], *args[i + 2 :]])
            for i, keyword in enumerate(keywords):
                if keyword.arg not in KEYWORDS_KEPT:
                    yield but(keywords=[*keywords[:i], *keywords[i + 1 :]])


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module of the repository from a tree instead of its file."""

    def __init__(self, file: str, tree: ast.Module) -> None:
        self.name, self.path, self.tree = module_name(file), str(REPO / file), tree

    def find_spec(self, fullname, path=None, target=None):
        if fullname == self.name:
            return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def create_module(self, spec):
        return None

    def exec_module(self, module) -> None:
        exec(compile(ast.fix_missing_locations(self.tree), self.path, "exec"), vars(module))


def module_name(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def status_of_tests(
    file: str, tree: ast.Module, tests: list[str], limit: float, change: Mutant | None, loaded: Path
) -> int:
    """Wait status of a forked process that imports the changed tree as the file and runs tests."""
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
            with tempfile.TemporaryDirectory() as folder:
                flags = [
                    "-x",
                    "-k",
                    SLOW,
                    "-p",
                    "no:cacheprovider",
                    "--basetemp",
                    f"{folder}/tests",
                ]
                code = int(pytest.main([*flags, *tests]))
            if not change:
                loaded.write_text(json.dumps([name for name in sys.modules if is_library(name)]))
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what its tests had started
    return status


def is_library(name: str) -> bool:
    return not str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(REPO))


def survivors_of(file: str, tests: list[str], sample: int | None, seed: int, loaded: Path):
    """How many changes there are, how many were tried, and those that no test noticed."""
    tree, started = ast.parse((REPO / file).read_text(encoding="utf-8")), time.monotonic()
    if status_of_tests(file, tree, tests, 600, None, loaded):
        sys.exit(f"{file} unchanged: its tests fail, or take 10 minutes: pytest {' '.join(tests)}")
    limit = 10 + 3 * (time.monotonic() - started)
    for name in json.loads(loaded.read_text()):  # so that no child has to load them
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.freeze()  # or every child would copy the libraries' memory at its first collection
    every = list(mutants_of(tree))
    tried = every
    if sample is not None and sample < len(every):
        places = random.Random(seed).sample(range(len(every)), sample)
        tried = [every[place] for place in sorted(places)]
    survivors = []
    for done, change in enumerate(tried, start=1):
        if status_of_tests(file, tree, tests, limit, change, loaded) == 0:
            survivors.append(f"{file}: {change}")
            known = " (known)" if survivors[-1] in README.read_text(encoding="utf-8") else ""
            print(f"line {change.node.lineno}{known}: {survivors[-1]}", flush=True)
        if sys.stderr.isatty():
            print(f"{done} of {len(tried)}", end="\r", file=sys.stderr)
    return len(every), len(tried), survivors


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="from the repository's root")
    parser.add_argument("--sample", type=int, metavar="N", help="try N changes of each file")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--tests", nargs="+", help="what pytest is given, instead of TESTS' files")
    args = parser.parse_args()
    os.chdir(REPO)
    sys.path.insert(0, str(REPO))
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    unknown = False
    for file in args.files:
        if not (args.tests or file in TESTS):
            parser.error(f"{file} is not in TESTS of tests/mutate.py; give --tests")
        tests = args.tests or [f"tests/{name}" for name in TESTS[file].split()]
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            count, tried, survivors = survivors_of(
                file, tests, args.sample, args.seed, Path(folder, "loaded.json")
            )
        caught = tried - len(survivors)
        print(
            f"{file}: {count} changes, {tried} tried, {caught} caught ({100 * caught / tried:.1f} "
            f"%), in {time.monotonic() - started:.0f} s",
            flush=True,
        )
        told = README.read_text(encoding="utf-8")
        unknown |= any(survivor not in told for survivor in survivors)
    return int(unknown)


if __name__ == "__main__":
    sys.exit(main())
