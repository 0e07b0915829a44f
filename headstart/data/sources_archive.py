"""An archive on this machine or at an address as a source."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

from headstart.base.errors import HeadstartError
from headstart.base.kept import read_kept, write_kept
from headstart.base.paths import state_folder, users_path
from headstart.base.sections import Data
from headstart.base.terminal import say
from headstart.data.archives import is_archive, unpack
from headstart.data.download import download, is_address, stamp
from headstart.data.picture import InPlace, Listing, Source
from headstart.data.sources_folder import files_below, list_folder, unwrapped


class Archive(Source):
    """A folder of classes in a .zip or .tar; unpacked again when the file has changed."""

    form = "an existing .zip or .tar archive"
    needs_unpacking = True

    def takes(self, source: str) -> bool:
        path = users_path(source)
        return is_archive(path.name) and path.is_file()

    def listing(self, data: Data) -> Listing:
        archive, folder = users_path(data.source), _unpacked(data)
        stat = archive.stat()
        now = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
        if _known(folder).get("stamp") != now:
            unpack(archive, folder)
            write_kept(_stamps(folder), {"stamp": now})
        return list_folder(folder)

    def root(self, data: Data) -> Path | InPlace:
        return unwrapped(_unpacked(data))


def fetch_archive(data: Data) -> Path:
    """The folder of what the archive at the address ``data.source`` holds, fetched and unpacked if it is another than the
    last time. If the address does not answer, it is what was unpacked before.

    Raises:
        HeadstartError: it does not answer, and nothing was.
    """
    folder = _unpacked(data)
    try:
        _fetch(data.source, folder)
    except HeadstartError as error:
        if not folder.exists() or not any(files_below(folder)):
            raise
        say(f"headstart: {error}; going on with what was fetched before")
    return folder


def fetched_archive(data: Data) -> Path:
    """The same folder, without asking the address."""
    return unwrapped(_unpacked(data))


def _unpacked(data: Data) -> Path:
    """The folder for what is unpacked or mirrored."""
    name = data.source if is_address(data.source) else str(users_path(data.source))
    return state_folder("downloads") / hashlib.sha256(name.encode()).hexdigest()[:16]


def _fetch(address: str, folder: Path) -> None:
    """Download and unpack the archive at ``address``, if it is another than the one that was unpacked last."""
    known, now = _known(folder), stamp(address)
    if now and known.get("stamp") == now:
        return
    archive = folder.with_name(f"{folder.name}-{PurePosixPath(address.split('?')[0]).name}")
    try:
        sha256 = download(address, archive)
        if known.get("sha256") != sha256:
            unpack(archive, folder)
    finally:
        archive.unlink(missing_ok=True)
    write_kept(_stamps(folder), {"stamp": now, "sha256": sha256})


def _stamps(folder: Path) -> Path:
    """The file that says which archive was unpacked into ``folder``."""
    return folder.with_name(f"{folder.name}.stamps")


def _known(folder: Path) -> dict[str, str]:
    """What that file says; nothing where ``folder`` is gone."""
    return (read_kept(_stamps(folder)) if folder.exists() else None) or {}
