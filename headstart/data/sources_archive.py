"""An archive on this machine, and an archive or folder at an address, as sources."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath

from headstart.base.errors import HeadstartError
from headstart.base.params import Data
from headstart.base.paths import state_folder, users_path
from headstart.base.terminal import say
from headstart.data.download import download, download_folder, is_address, is_archive, unpack
from headstart.data.picture import Listing, Source
from headstart.data.sources_folder import files_below, list_folder


class Archive(Source):
    """A folder of classes in a .zip or .tar; unpacked again only when the file has changed."""

    form = "an existing .zip or .tar archive"
    needs_unpacking = True

    def takes(self, source: str) -> bool:
        path = users_path(source)
        return is_archive(path.name) and path.is_file()

    def listing(self, data: Data) -> Listing:
        archive = users_path(data.source)
        stat = archive.stat()
        folder = state_folder("downloads") / _key(f"{archive} {stat.st_size} {stat.st_mtime_ns}")
        if not folder.exists():
            unpack(archive, folder)
        return list_folder(folder)


class Address(Source):
    """An archive, which is downloaded once, or a folder of classes, which is mirrored in every run."""

    form = "an address with ://"
    needs_network = True

    def takes(self, source: str) -> bool:
        return is_address(source)

    def listing(self, data: Data) -> Listing:
        address, key = data.source, _key(data.source)
        folder = state_folder("downloads") / key
        if is_archive(address):
            if not folder.exists():
                archive = folder.with_name(f"{key}-{PurePosixPath(address.split('?')[0]).name}")
                download(address, archive)
                unpack(archive, folder)
                archive.unlink()
        else:
            try:
                download_folder(address, folder)
            except HeadstartError as error:
                if not folder.exists() or not any(files_below(folder)):
                    raise
                say(f"headstart: {error}; going on with what was fetched before")
        return list_folder(folder)


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
