"""What a Python file says: a digest of what it does, and what it imports and names."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from headstart.base.errors import HeadstartError


@dataclass(frozen=True)
class Source:
    """What one file says about itself.

    Attributes:
        digest: of its parsed code, or of its bytes where it is not Python.
        imports: names of modules, with and without the names imported from them.
        strings: its short string constants, which may name modules or files of headstart.
    """

    digest: str
    imports: tuple[str, ...]
    strings: tuple[str, ...]


def source_of(path: Path, content: bytes) -> Source:
    """What the Python file at ``path`` says.

    Raises:
        HeadstartError: it cannot be parsed.
    """
    try:
        tree = without_docstrings(ast.parse(content))
    except SyntaxError as error:
        raise HeadstartError(f"{path}, line {error.lineno}: {error.msg}") from None
    canonical: list[str] = []
    _write_canonical(tree, canonical.append)
    digest = hashlib.sha256("".join(canonical).encode("utf-8", "surrogatepass"))
    imports: set[str] = set()
    strings: set[str] = set()
    for node in _run_nodes(tree):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value and " " not in node.value:
            strings.add(node.value)
    return Source(digest.hexdigest()[:16], tuple(sorted(imports)), tuple(sorted(s for s in strings if len(s) < 100)))


def without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, False
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _write_canonical(node: object, write: Callable[[str], None]) -> None:
    """Write a tree as text that is the same in every version of Python: fields that are empty are left out, since new
    versions add such."""
    if isinstance(node, ast.AST):
        write(f"({type(node).__name__}")
        for name in node._fields:
            value = getattr(node, name, None)
            if value is not None and value != []:
                write(f" {name}=")
                _write_canonical(value, write)
        write(")")
    elif isinstance(node, list):
        for item in node:
            _write_canonical(item, write)
            write(",")
    else:
        write(f"{type(node).__name__}:{node!r}")


def _run_nodes(tree: ast.Module) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING:``."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and _is_for_type_checkers(node.test):
            waiting += node.orelse
        else:
            yield node
            waiting += ast.iter_child_nodes(node)


def _is_for_type_checkers(test: ast.expr) -> bool:
    return any("TYPE_CHECKING" in (getattr(node, "id", ""), getattr(node, "attr", "")) for node in ast.walk(test))
