"""Mutation testing of the code that decides: is each of its comparisons, constants and signs held by a test?

    python bench/mutants.py                                            # all of TESTS: hours
    python bench/mutants.py headstart/data/splits.py
    python bench/mutants.py headstart/tracking/judge.py judge _gain     # these functions only

Changes one thing at a time (< to <=, 1 to 2, and to or, + to -, ...), runs the module's tests until one fails, and prints
the changes that none notices. docs/promises.md explains those that are left. Each runs in a fork of one warm process.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import pandas
import pytest
import scipy.stats
import sklearn.metrics
import torch

PROJECT = Path(__file__).resolve().parents[1]
TESTS = {
    "headstart/data/splits.py": ["tests/data/test_splits.py", "tests/evaluation/test_metrics.py"],
    "headstart/tracking/gate.py": ["tests/tracking/test_gate.py"],
    "headstart/tracking/judge.py": ["tests/tracking/test_gate.py"],
    "headstart/evaluation/metrics.py": ["tests/evaluation/test_metrics.py"],
    "headstart/evaluation/intervals.py": ["tests/evaluation/test_intervals.py"],
    "headstart/base/identity.py": ["tests/base/test_identity.py"],
}
SECONDS = 300  # a change that makes a test run longer is noticed too
WARM = (mlflow, pandas, scipy.stats, sklearn.metrics, torch)  # what takes long to import, and is not changed
SWAPS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,), ast.And: (ast.Or,), ast.Or: (ast.And,), ast.Add: (ast.Sub,), ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,), ast.Div: (ast.Mult,), ast.BitAnd: (ast.BitOr,), ast.BitOr: (ast.BitAnd,),
}  # fmt: skip


def mutants(tree: ast.Module, functions: list[str]) -> Iterator[tuple[str, ast.Module]]:
    """(what was changed, the changed tree) for every change, in the order of the lines."""
    for place in sorted(_decides(tree, not functions, functions), key=lambda node: (node.lineno, node.col_offset)):
        for number in range(len(_changes(place))):
            memo: dict[int, Any] = {}
            changed = copy.deepcopy(tree, memo)
            mutant = memo[id(place)]
            _changes(mutant)[number]()
            yield f"{place.lineno}: {ast.unparse(place)}  →  {ast.unparse(mutant)}", changed


def _decides(node: ast.AST, within: bool, functions: list[str]) -> Iterator[Any]:
    """The nodes below whose change could change a decision: no annotations, decorators or docstrings."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                inside = within or getattr(child, "name", None) in functions
                if inside and hasattr(child, "lineno") and _changes(child):
                    yield child
                yield from _decides(child, inside, functions)


def _changes(node: Any) -> list[Callable[[], None]]:
    """What can be done to a node, each a function that does it."""

    def put(field: str, value: object) -> Callable[[], None]:
        return lambda: setattr(node, field, value)

    found: list[Callable[[], None]] = []
    match node:
        case ast.Compare():
            pairs = [(at, other) for at, op in enumerate(node.ops) for other in SWAPS[type(op)]]
            found = [put("ops", [*node.ops[:at], other(), *node.ops[at + 1 :]]) for at, other in pairs]
        case ast.BoolOp() | ast.BinOp() | ast.AugAssign():
            found = [put("op", other()) for other in SWAPS.get(type(node.op), ())]
        case ast.UnaryOp():  # done twice, which is as good as not at all
            found = [put("operand", ast.UnaryOp(node.op, node.operand))]
        case ast.Constant(value=bool()):
            found = [put("value", not node.value)]
        case ast.Constant(value=int() | float()):
            found = [put("value", node.value + 1), put("value", node.value - 1)]
        case ast.Return(value=ast.expr()):
            found = [put("value", ast.Constant(None))]
    return found


class _Instead(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a changed tree in the place of a module."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self.name, self.code = name, compile(ast.fix_missing_locations(tree), str(path), "exec")

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self) if name == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        exec(self.code, module.__dict__)


def survives(file: str, tree: ast.Module, tests: list[str]) -> bool:
    """Whether the module's tests pass although it is changed to ``tree``."""
    child = os.fork()
    if not child:
        quiet = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(quiet, stream)
        os.setpgid(0, 0)
        signal.alarm(SECONDS)
        sys.meta_path.insert(0, _Instead(file.removesuffix(".py").replace("/", "."), PROJECT / file, tree))
        os._exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "--hypothesis-seed=0", "-m", "not slow", *tests]))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", choices=TESTS)
    parser.add_argument("functions", nargs="*", help="functions or classes of it")
    asked = parser.parse_args()
    os.chdir(PROJECT)
    for file in [asked.file] if asked.file else TESTS:
        tree = ast.parse((PROJECT / file).read_text(encoding="utf-8"))
        if not survives(file, tree, TESTS[file]):
            sys.exit(f"the tests of {file} fail although nothing is changed")
        made = left = 0
        for change, mutant in mutants(tree, asked.functions):
            made += 1
            if survives(file, mutant, TESTS[file]):
                left += 1
                print(f"{file}:{change}", flush=True)
        print(f"{file}: {made} changes, of which no test notices {left}", flush=True)


if __name__ == "__main__":
    main()
