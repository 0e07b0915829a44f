"""What DVC writes about outputs, read without DVC: digests, dvc.lock and the cache."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Output:
    """An output of a stage as dvc.lock has it.

    Attributes:
        path: from the project's folder.
        md5: of a file; of a folder as ``md5_of_listing`` has it.
    """

    stage: str
    path: str
    md5: str


def locked_outputs(lock: str) -> list[Output]:
    """The outputs in the text of a dvc.lock, in its order; none where it is no such text."""
    import yaml

    try:
        stages: dict[str, Any] = yaml.safe_load(lock)["stages"]
        outs = [(name, out) for name, stage in stages.items() for out in stage.get("outs", [])]
        return [Output(name.split("@")[0], out["path"], out["md5"]) for name, out in outs if "md5" in out]
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return []


def md5_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def listing_of(folder: Path) -> dict[str, str]:
    """MD5 of all files below ``folder`` by their path from there."""
    return {path.relative_to(folder).as_posix(): md5_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def md5_of_listing(listing: dict[str, str]) -> str:
    rows = [{"md5": md5, "relpath": path} for path, md5 in sorted(listing.items())]
    return f"{hashlib.md5(json.dumps(rows).encode(), usedforsecurity=False).hexdigest()}.dir"


def listing_in(text: bytes) -> dict[str, str]:
    """The listing that an object of a folder in the cache holds."""
    return {row["relpath"]: row["md5"] for row in json.loads(text)}


def in_cache(cache: Path, md5: str) -> Path:
    """Where the object is in DVC's cache, or would be."""
    return cache / "files" / "md5" / md5[:2] / md5[2:]
