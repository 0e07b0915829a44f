"""What shapes a stage's output."""

from __future__ import annotations

import hashlib
from pathlib import Path

from headstart.base.errors import HeadstartError
from headstart.base.files import sha256_of_files


def inputs_of(stage: str, folders: bool = True, pipeline: Path = Path("dvc.yaml")) -> list[str]:
    """A digest of each file, code or data, that a stage depends on, and of each folder unless without ``folders``.

    Raises:
        HeadstartError: one is not there.
    """
    import yaml

    paths = map(Path, yaml.safe_load(pipeline.read_text(encoding="utf-8"))["stages"][stage]["deps"])
    try:
        return [
            sha256_of_files(path) if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
            for path in paths
            if folders or not path.is_dir()
        ]
    except FileNotFoundError as error:
        raise HeadstartError(f"{error.filename} is not there; `dvc repro {stage}` makes what {stage} needs") from None
