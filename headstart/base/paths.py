"""Where things live on the user's disk: the checkout, the state kept beside the cache, and safe writes.

``dvc exp run --queue`` and ``--temp`` run in ``.dvc/tmp/exps/...`` below the user's checkout. Whatever must outlive such
a folder (downloads, the hash index, a half-finished training, the default MLflow store) lives in the checkout itself.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from headstart.base.errors import HeadstartError

SIDE_BY_SIDE = "+"  # between the names of networks whose features stand beside each other
STATE = ".headstart"
OWN_MODULE = "headstart_own_network"  # what the user's own network is called among the modules
ENDINGS = re.compile(r"(\.(csv|json|parquet|tar|tgz|tbz2|txz|zip|gz|bz2|xz|zst))+$", re.IGNORECASE)
EXPERIMENT_FOLDER = f"{os.sep}.dvc{os.sep}tmp{os.sep}exps{os.sep}"


def checkout() -> Path:
    """The user's own checkout, also from inside a temporary experiment folder of DVC."""
    here = os.environ.get("DVC_ROOT") or str(Path.cwd())
    return Path(here.split(EXPERIMENT_FOLDER)[0]).resolve()


def users_path(name: str) -> Path:
    """A path as params.yaml gives it: ``~`` is the user's home, and a relative one starts in their own checkout."""
    return checkout() / os.path.expanduser(name)  # noqa: PTH111 - Path's own raises for a user that is not there


def name_of_source(source: str) -> str:
    """What a data source is called, of letters, digits, ``_``, ``.`` and ``-``: birds of ~/pictures/birds, birds.tar.gz,
    s3://bucket/birds/ and https://host/birds.zip?token=...; CIFAR10 of torchvision:CIFAR10."""
    path = source.partition("?")[0] if "://" in source else source
    parts = [ENDINGS.sub("", re.sub(r"[^\w.]+", "-", part)).strip("-.") for part in re.split(r"[/\\:]", path)]
    return next((part for part in reversed(parts) if part), "pictures")[:100]


def is_own(backbone: str) -> bool:
    """Whether ``backbone`` of params.yaml names the user's own network, as file.py:factory."""
    return ".py:" in backbone


def members_of(backbone: str) -> list[str]:
    """The names of the networks that ``backbone`` of params.yaml puts side by side; mostly one."""
    return [backbone] if is_own(backbone) else backbone.split(SIDE_BY_SIDE)


def network_of(member: str) -> str:
    """The name of the network alone, without the size and frame of its view: NAME of NAME@SIZE/FRAME."""
    return member if is_own(member) else member.partition("@")[0].partition("/")[0]


def file_name_of(member: str) -> str:
    """What a file or folder for NAME@SIZE/FRAME is called: a + for the slash, which is in no network's name."""
    return member.replace("/", SIDE_BY_SIDE)


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
    folder = checkout() / STATE / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
