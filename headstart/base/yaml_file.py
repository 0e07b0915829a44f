"""params.yaml as it stands: read without running what it may hold, refused where reading it would not end, and edited with
its comments kept."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from headstart.base.errors import HeadstartError
from headstart.base.files import write_text
from headstart.base.safe_text import shortened

MOST_CHARACTERS, MOST_VALUES, DEEPEST, LONGEST_NUMBER = 250_000, 10_000, 50, 300


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, except that 1e-05 is a number: so YAML 1.2 has it, and so DVC writes what -S was given."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    if len(node.value) > LONGEST_NUMBER:  # of more than 4300 digits Python makes no text, so that no message could name it
        raise yaml.MarkedYAMLError(problem=f"a number of more than {LONGEST_NUMBER} digits", problem_mark=node.start_mark)
    return int(loader.construct_yaml_int(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of params.yaml, as they stand there.

    Raises:
        HeadstartError: the file is missing, is not YAML, is deeper or larger than any such file, or holds no keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_bombs(path, text)
        raw = yaml.load(text, _Loader)
    except FileNotFoundError:
        raise HeadstartError(f"{path} is not here; run this from the project's top folder") from None
    except OSError as error:
        raise HeadstartError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date such as 2020-13-45
        raise HeadstartError(f"{path} is not valid YAML: {shortened(str(error), 500)}") from None
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise HeadstartError(f"{path} must hold keys and values, found {type(raw).__name__}")
    return raw


def value_of(values: Any, key: str, missing: object = None) -> Any:
    """That of a dotted key in what ``read_yaml`` gave: 0.001 of finetune.lr; ``missing`` where there is none."""
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            return missing
        values = values[part]
    return values


def _refuse_bombs(path: Path, text: str) -> None:
    """Whatever is nested so deep, or stands for so many values by its aliases, that reading it would not end.

    Raises:
        HeadstartError: it does.
    """
    if len(text) > MOST_CHARACTERS:
        raise HeadstartError(f"{path} has {len(text):,} characters; of parameters at most {MOST_CHARACTERS:,} are read")
    sizes: dict[str | None, int] = {}  # of what has an anchor: the values in it, those of its own aliases too
    opened: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, _Loader):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent | yaml.ScalarEvent | yaml.AliasEvent):
            size = 1
            if isinstance(event, yaml.AliasEvent):
                within_itself = anchor in {around for around, _ in opened}
                size = MOST_VALUES + 1 if within_itself else sizes.get(anchor, 1)
            if isinstance(event, yaml.CollectionEndEvent):
                anchor, size = opened.pop()
            sizes[anchor] = size
            around, before = opened.pop()
            opened.append((around, before + size))
        line = event.start_mark.line + 1 if event.start_mark else 0
        if tag := getattr(event, "tag", None):  # with which PyYAML fails in many ways where the value does not fit it
            shown = shortened(tag.replace("tag:yaml.org,2002:", "!!"), 80)
            raise HeadstartError(f"{path}, line {line}: {shown!r} is a tag; write the value without it")
        if len(opened) > DEEPEST:
            raise HeadstartError(f"{path}, line {line}: nested more than {DEEPEST} deep; parameters are at most 4")
        if opened[-1][1] > MOST_VALUES:
            raise HeadstartError(f"{path}, line {line}: more than {MOST_VALUES:,} values, or an alias that holds itself")


def set_values(path: Path, wanted: Mapping[str, object]) -> list[str]:
    """Write values into the file, whose comments and order stay; "key: value" of those that it did not hold yet.

    Args:
        wanted: by dotted key, such as ``finetune.lr``. A key that the file leaves out is put first into its section.
    """
    from ruamel.yaml import YAML  # a tenth of a second, which those who only read need not wait for
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.util import load_yaml_guess_indent

    text = path.read_text(encoding="utf-8")
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 10_000  # lines that people wrote are not broken
    editor.representer.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null"))
    root, editor.sequence_indent, editor.sequence_dash_offset = load_yaml_guess_indent(text, yaml=editor)
    comments = text.rstrip("\n") + "\n" if root is None and text.strip() else ""
    root = CommentedMap() if root is None else root
    told = []
    for key, value in wanted.items():
        *sections, name = key.split(".")
        node = root
        for section in sections:
            if not isinstance(node.get(section), CommentedMap):
                node.insert(0, section, CommentedMap())
                node[section].fa.set_flow_style()
            node = node[section]
        if name not in node:
            node.insert(0, name, value)
        elif node[name] != value:
            node[name] = value
        else:
            continue
        told.append(f"{key}: {value if isinstance(value, str) else json.dumps(value)}")
    if told:
        stream = io.StringIO()
        editor.dump(root, stream)
        write_text(path, comments + stream.getvalue())
    return told
