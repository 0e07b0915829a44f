"""What a new version changes in params.yaml: its new keys go in, with their comments; what it no longer knows comes out.

The file is edited by its lines, so that everything else in it stays as its user wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel

from headstart.base.params import Params
from headstart.base.yaml_file import value_of


@dataclass(frozen=True)
class UpgradedParams:
    """A params.yaml, and what is different in it.

    Attributes:
        text: of the file.
        added: dotted keys that are new in it.
        gone: those that are no longer in it, with what they said: "finetune.dropout: 0.1".
        unwritten: keys that are new but have no place in it, as their section is written in one line; their defaults hold.
    """

    text: str
    added: tuple[str, ...]
    gone: tuple[str, ...]
    unwritten: tuple[str, ...]


def upgraded(text: str, shipped: str) -> UpgradedParams:
    """The user's params.yaml, brought to the keys of the one that headstart ships."""
    known = list(_keys(Params()))
    have, theirs = yaml.safe_load(text) or {}, yaml.safe_load(shipped)
    lines = text.splitlines()
    added: list[str] = []
    gone: list[str] = []
    unwritten: list[str] = []
    for key in _unknown(have, known):
        if key in (blocks := _blocks(lines)):
            gone.append(f"{key}: {value_of(have, key)}")
            del lines[blocks[key].start : blocks[key].stop]
    source, shipped_blocks = shipped.splitlines(), _blocks(shipped.splitlines())
    for key in known:
        if _holds(have, key) or not _holds(theirs, key) or any(key.startswith(f"{whole}.") for whole in added):
            continue
        section = key.rpartition(".")[0]
        new = key if not section or _holds(have, section) else _outermost_new(key, have)
        if (at := _place(lines, new, list(shipped_blocks))) is None:
            unwritten.append(key)
            continue
        position, indent = at
        block = source[shipped_blocks[new].start : shipped_blocks[new].stop]
        lines[position:position] = _indented(block, indent)
        added.append(new)
    return UpgradedParams("\n".join(lines) + "\n", tuple(added), tuple(gone), tuple(unwritten))


def _keys(model: BaseModel, prefix: str = "") -> Iterator[str]:
    """Every dotted key, in the order of the models; not those within a value, such as those of tune.space."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _unknown(have: Mapping[str, Any], known: list[str], prefix: str = "") -> Iterator[str]:
    """The keys of ``have`` that are neither known nor sections, the outermost of each."""
    for name, value in have.items():
        key = f"{prefix}{name}"
        if key in known:
            continue
        if not any(one.startswith(f"{key}.") for one in known):
            yield key
        elif isinstance(value, dict):
            yield from _unknown(value, known, f"{key}.")


def _holds(values: Any, key: str) -> bool:
    return value_of(values, key, missing := object()) is not missing


def _outermost_new(key: str, have: Mapping[str, Any]) -> str:
    """``key``, or the section around it that is new as well."""
    parts = key.split(".")
    return next(name for n in range(1, len(parts) + 1) if not _holds(have, name := ".".join(parts[:n])))


def _blocks(lines: list[str]) -> dict[str, range]:
    """The lines of each dotted key, with the comments before it; of keys in sections that are written line by line."""
    root = yaml.compose("\n".join(lines), yaml.SafeLoader)
    return dict(_within(root, len(lines), "", lines)) if isinstance(root, yaml.MappingNode) else {}


def _within(node: yaml.MappingNode, end: int, prefix: str, lines: list[str]) -> Iterator[tuple[str, range]]:
    if node.flow_style:
        return
    starts = [_with_comments(key.start_mark.line, lines) for key, _ in node.value]
    for (key, value), start, stop in zip(node.value, starts, [*starts[1:], end], strict=True):
        name = f"{prefix}{key.value}"
        yield name, range(start, stop)
        if isinstance(value, yaml.MappingNode):
            yield from _within(value, stop, f"{name}.", lines)


def _with_comments(line: int, lines: list[str]) -> int:
    while line and (not lines[line - 1].strip() or lines[line - 1].lstrip().startswith("#")):
        line -= 1
    return line


def _place(lines: list[str], key: str, order: list[str]) -> tuple[int, int] | None:
    """The line that ``key`` goes before, and its indentation: after what stands before it in the shipped file."""
    blocks, section = _blocks(lines), key.rpartition(".")[0]
    siblings = [one for one in order if one.rpartition(".")[0] == section]
    here = [one for one in siblings if one in blocks]
    if not here:
        return None
    indent = next(len(line) - len(line.lstrip()) for line in lines[blocks[here[0]].start :] if _is_key(line))
    before = [one for one in here if siblings.index(one) < siblings.index(key)]
    if before:
        return blocks[before[-1]].stop, indent
    return blocks[here[0]].start, indent


def _is_key(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _indented(block: list[str], indent: int) -> list[str]:
    own = next(len(line) - len(line.lstrip()) for line in block if _is_key(line))
    return [f"{' ' * max(0, len(line) - len(line.lstrip()) + indent - own)}{line.lstrip()}" for line in block]
