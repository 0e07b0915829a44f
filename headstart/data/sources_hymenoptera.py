"""The ants and bees of PyTorch's transfer-learning tutorial as a source."""

from __future__ import annotations

import hashlib
from pathlib import Path

from headstart.base.errors import HeadstartError
from headstart.base.files import sha256_of
from headstart.base.paths import state_folder
from headstart.base.sections import Data
from headstart.data.archives import unpack
from headstart.data.download import download
from headstart.data.picture import Listing, Source
from headstart.data.sources_folder import files_below, list_folder, unwrapped

ADDRESS = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"

# The publisher gives no digest; this is the content_digest of the archive's pictures.
CONTENT = "15d89271f257b89832a79a665d92fea577411e875ab6be14222a571af4b2b359"  # pragma: allowlist secret


class Hymenoptera(Source):
    """The tutorial's archive, from its publisher or from ``data.mirror``, downloaded once and checked."""

    form = "hymenoptera"
    needs_network = True

    def listing(self, data: Data) -> Listing:
        folder = state_folder("downloads") / "hymenoptera"
        if not folder.exists():
            _download(folder, data.mirror)
        return list_folder(folder)


def _download(folder: Path, mirror: str | None) -> None:
    publisher, name = ADDRESS.rsplit("/", 1)
    address = f"{(mirror or publisher).rstrip('/')}/{name}"
    archive = folder.with_suffix(".zip")
    try:
        download(address, archive)
    except HeadstartError as error:
        raise HeadstartError(
            f"{error}. Ways out: set data.mirror to an address that has {name}, unpack the archive yourself and give its "
            "folder as data.source, or use data.source: emoji, which needs no network"
        ) from None
    unchecked = folder.with_name("hymenoptera.unchecked")
    unpack(archive, unchecked)
    archive.unlink()
    digest = content_digest(unchecked)
    if digest != CONTENT:
        raise HeadstartError(f"{address} holds other pictures than the tutorial's ({digest[:16]}…)")
    unchecked.rename(folder)


def content_digest(root: Path) -> str:
    """SHA-256 over the sorted lines "path sha256" of all files, below the one folder that may be around everything."""
    root = unwrapped(root)
    lines = sorted(f"{file.relative_to(root).as_posix()} {sha256_of(file)}\n" for file in files_below(root))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
