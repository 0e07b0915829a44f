"""What is wrong with a value of params.yaml, in a sentence."""

from __future__ import annotations

import re
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from headstart.base.errors import nearest
from headstart.base.safe_text import quoted, shortened


def _section(root: type[BaseModel], location: tuple[Any, ...]) -> type[BaseModel]:
    """The model that holds the last key of ``location``."""
    model = root
    for key in location[:-1]:
        field = model.model_fields.get(str(key))
        if field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
    return model


def explained(problem: Any, root: type[BaseModel], prefix: str = "") -> str:
    """A problem that pydantic found in ``root``: a sentence with the key's path, what was found and what is allowed.

    Args:
        prefix: of the key's path, where ``root`` is a section.
    """
    location = tuple(problem["loc"])
    key = shortened(prefix + ".".join(str(part) for part in location), 120)
    if problem["type"] == "value_error":  # ours: it names its keys itself
        return str(problem["ctx"]["error"])
    if problem["type"] in ("extra_forbidden", "invalid_key"):
        allowed = list(_section(root, location).model_fields)
        hint = nearest(str(location[-1]), allowed) or f"allowed here: {', '.join(allowed)}"
        return f"unknown key {key!r}; {hint}"
    found = quoted(problem["input"])
    if problem["type"] == "model_type":
        inside = ", ".join(_section(root, (*location, "")).model_fields)
        return f"{key} must hold keys and values ({inside}), found {found}"
    message = re.sub(r"^(Input|List|String|Dictionary) should", "must", problem["msg"])
    message = re.sub(r" after validation, not \d+$", "", message)
    field = _section(root, location).model_fields.get(str(location[-1]))
    if field is not None and type(None) in get_args(field.annotation):
        message += " or null"
    hint = nearest(str(problem["input"]), _literals(field)) if problem["type"] == "literal_error" else ""
    return f"{key} {message}, found {found}" + (f"; {hint}" if hint else "")


def _literals(field: FieldInfo | None) -> list[str]:
    pending: list[Any] = [field.annotation if field else None]
    values: list[str] = []
    while pending:
        for argument in get_args(pending.pop()):
            (values if isinstance(argument, str) else pending).append(argument)
    return values
