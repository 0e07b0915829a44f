"""The digest by which a result is known."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from headstart.base import identity
from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.card import Card
from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.base.paths import SIDE_BY_SIDE
from headstart.base.yaml_file import read_yaml, value_of


def stages_of_the_result() -> list[str]:
    """The pipeline's stages that make the result, in their order: all but the one that logs it."""
    return [stage for stage in identity.main_stages() if stage != "track"]


def result_digest(data: DataFolder, params: Path = Path("params.yaml")) -> str:
    """SHA-256 over what the result is made from: code and libraries of every stage, the parameters that they read, the
    manifest of pictures, the user's network, and the backbone's weights.

    Raises:
        HeadstartError: one of these is not there.
    """
    stages = stages_of_the_result()
    values = read_yaml(params)
    if isinstance(values.get("backbone"), list):  # which means the same as one string
        values["backbone"] = SIDE_BY_SIDE.join(map(str, values["backbone"]))
    digest = hashlib.sha256()
    code = [data.fetch.code.of(stage) for stage in stages]
    try:
        for path in [*code, data.fetch.manifest, data.fetch.network]:
            digest.update(f"{path.name}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        read = {key: value_of(values, key) for key in identity.params_of(*stages)}
        digest.update(json.dumps(read, sort_keys=True).encode())
        digest.update(Card.read(data.backbone.card).sha256.encode())
    except FileNotFoundError as error:
        raise HeadstartError(f"{error.filename} is not there; `dvc pull` or `dvc repro` brings it") from None
    return digest.hexdigest()


def params_of_the_result(params: Params) -> dict[str, Any]:
    """The parameters that make a result, by their dotted keys: {"finetune.lr": 0.001}."""
    values = params.model_dump()
    read = {key: value_of(values, key) for key in identity.params_of(*stages_of_the_result())}
    return flattened(read)


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones: {"a": {"b": 1}} → {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
