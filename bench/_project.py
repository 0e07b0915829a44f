"""A fresh clone of the last commit to run stages in: what the scripts here that need a pipeline share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def clone(folder: Path, **sections: object) -> None:
    """``sections`` are put into its params.yaml; nested ones are merged."""
    if not folder.exists() or not any(folder.iterdir()):
        subprocess.run(["git", "clone", "--quiet", "--local", ROOT, folder], check=True)
        subprocess.run(
            [sys.executable, "-m", "compileall", "-q", "headstart"], cwd=folder, check=True
        )  # as in a used checkout
    file = folder / "params.yaml"
    params = yaml.safe_load(file.read_text(encoding="utf-8"))
    for name, value in sections.items():
        params[name] = params[name] | value if isinstance(value, dict) else value
    file.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def stages(folder: Path, *scripts: str, shown: bool = False) -> None:
    """Run a clone's stages, with its own MLflow store. A script's name may be followed by its arguments."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))}
    for script in scripts:
        name, *arguments = script.split()
        command = [sys.executable, f"stages/{name}.py", *arguments]
        output = None if shown else subprocess.DEVNULL
        subprocess.run(command, cwd=folder, env=kept | {"PYTHONPATH": str(folder)}, stdout=output, check=True)


def with_features(folder: Path, source: str, shown: bool = False, **sections: object) -> None:
    """A clone whose pictures, those of ``source``, have gone through the stages up to features."""
    clone(folder, data={"source": source}, **sections)
    stages(folder, "fetch", "prepare", "backbone", "features", shown=shown)
