"""Where things live on the user's disk: the checkout, the state kept beside the cache, and safe writes.

``dvc exp run --queue`` and ``--temp`` run in ``.dvc/tmp/exps/...`` below the user's checkout. Whatever must outlive such
a folder (downloads, the hash index, a half-finished training, the default MLflow store) lives in the checkout itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headstart.errors import HeadstartError

EXPERIMENT_FOLDER = f"{os.sep}.dvc{os.sep}tmp{os.sep}exps{os.sep}"
# A packaged model's own files, below the folder that holds MLmodel. Named here and not in served, so that a model can be
# packed without torch.
CLASSIFIER = Path("artifacts/classifier")
DETAILS, WEIGHTS, NETWORK = "classifier.json", "classifier.safetensors", "network.py"


def checkout() -> Path:
    """The user's own checkout, also from inside a temporary experiment folder of DVC."""
    here = os.environ.get("DVC_ROOT") or str(Path.cwd())
    return Path(here.split(EXPERIMENT_FOLDER)[0]).resolve()


def users_path(name: str) -> Path:
    """A path as params.yaml gives it: ``~`` is the user's home, and a relative one starts in their own checkout."""
    return checkout() / os.path.expanduser(name)  # noqa: PTH111 - Path's own raises for a user that is not there


def is_own(backbone: str) -> bool:
    """Whether ``backbone`` of params.yaml names the user's own network, as file.py:factory."""
    return ".py:" in backbone


def network_file(backbone: str) -> Path | None:
    """The file of the user's own network that ``backbone`` of params.yaml names; None where it is no file of theirs.

    Raises:
        HeadstartError: it is not there.
    """
    if not is_own(backbone):
        return None
    path = checkout() / backbone.rsplit(":", 1)[0]
    if not path.is_file():
        raise HeadstartError(f"backbone {backbone!r}: {path} is not there; give its path from the project's folder")
    return path


def weights_file(weights: str) -> Path | None:
    """The file that ``weights`` of params.yaml names, if it is one's path.

    Raises:
        HeadstartError: it can only be a path, and nothing is there.
    """
    path = users_path(weights)
    if path.is_file():
        return path
    if "/" in weights or weights.endswith((".pth", ".pt", ".safetensors", ".bin")):
        raise HeadstartError(f"weights {weights!r}: no such file (looked at {path})")
    return None


def state_folder(name: str) -> Path:
    """A folder under ``.headstart/`` in the user's checkout for what is costly to lose and is not an output."""
    folder = checkout() / ".headstart" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes its place in one step, on failure it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    part.touch(exist_ok=False)  # with the rights that the user's umask gives, which tempfile's have not
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def remove_cut_short(folder: Path) -> None:
    """Remove what ``replacing`` was writing into ``folder`` when it was killed. It would become part of a stage's output,
    where DVC does not empty the folder first (``persist: true``)."""
    for part in folder.glob(".?*"):
        if part.is_file():
            part.unlink()


def write_text(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Readable JSON whose bytes depend on nothing but ``value``."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_found(file: Path, command: str) -> dict[str, Any]:
    """What a branch of the pipeline has found.

    Raises:
        HeadstartError: it is not there, and ``command`` makes it.
    """
    try:
        found: dict[str, Any] = read_json(file)
    except (OSError, ValueError):
        raise HeadstartError(f"{file} is not there or not whole; run `{command}` first") from None
    return found


def sha256_of_files(folder: Path, leave_out: tuple[str, ...] = ()) -> str:
    """One digest over the names and contents of all files below ``folder``."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in leave_out):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


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
