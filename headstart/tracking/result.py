"""The digest by which a result is known."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from headstart.base.errors import HeadstartError
from headstart.base.files import read_json

if TYPE_CHECKING:
    pass


def result_digest(data: Path, params: Path = Path("params.yaml"), pipeline: Path = Path("dvc.yaml")) -> str:
    """SHA-256 over what the result is made from: the code and parameters that dvc.yaml names for every stage but track,
    the manifest of pictures, the user's network, and the backbone's weights.

    Raises:
        HeadstartError: one of these is not there.
    """
    stages = {
        name: s for name, s in yaml.safe_load(pipeline.read_text(encoding="utf-8"))["stages"].items() if name != "track"
    }
    values = yaml.safe_load(params.read_text(encoding="utf-8"))
    code = sorted({dep for s in stages.values() for dep in s.get("deps", []) if not dep.startswith("data/")})
    keys = sorted({key for s in stages.values() for key in s.get("params", []) if isinstance(key, str)})
    digest = hashlib.sha256()
    try:
        for path in [*code, data / "fetch" / "manifest.csv", data / "fetch" / "network.py"]:
            digest.update(f"{Path(path).name}\n".encode())
            digest.update(hashlib.sha256((pipeline.parent / path).read_bytes()).digest())
        digest.update(json.dumps({key: _value(values, key) for key in keys}, sort_keys=True).encode())
        digest.update(read_json(data / "backbone" / "card.json")["sha256"].encode())
    except FileNotFoundError as error:
        raise HeadstartError(f"{error.filename} is not there; `dvc pull` or `dvc repro` brings it") from None
    return digest.hexdigest()


def _value(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values
