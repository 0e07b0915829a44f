"""What is at an address as a source: an archive, which is unpacked, or files that are read where they are."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from headstart.base.errors import HeadstartError
from headstart.base.kept import read_kept, write_kept
from headstart.base.paths import state_folder
from headstart.base.sections import Data
from headstart.base.terminal import say
from headstart.data.archives import is_archive
from headstart.data.download import HERE, is_address
from headstart.data.in_place import File, Place
from headstart.data.picture import InPlace, Listing, Source
from headstart.data.shards import last_look, shards_among
from headstart.data.sources_archive import fetch_archive, fetched_archive
from headstart.data.sources_folder import Folder, list_folder, list_names
from headstart.data.sources_parquet import ParquetPictures, ParquetRows, list_parquet
from headstart.data.sources_webdataset import TarMembers, WebDataset, is_webdataset, list_tars

Files = dict[str, File]


class Address(Source):
    """An archive, or a folder of classes or of shards: in a bucket, on a web server, or here.

    If the address does not answer, what was fetched or listed before is used.
    """

    form = "an address with ://"
    needs_network = True

    def takes(self, source: str) -> bool:
        return is_address(source)

    def listing(self, data: Data) -> Listing:
        if data.source.startswith(HERE) and not is_archive(data.source):
            source, here = _here(data)
            return source.listing(here)
        if _is_unpacked(data.source):
            return list_folder(fetch_archive(data))
        place = _place(data.source)
        files = _listed(data.source, place)
        if tars := shards_among(files, ".tar"):
            return list_tars(place, {name: files[name] for name in tars})
        if parquets := shards_among(files, ".parquet"):
            return list_parquet(place, {name: files[name] for name in parquets})
        root, pictures = list_names(files, data.source)
        listed = {p.path: files[f"{root}/{p.path}" if root else p.path] for p in pictures}
        return Listing(
            place.below(root),
            [replace(picture, size=listed[picture.path].size) for picture in pictures],
            {path: file.stamp for path, file in listed.items()},
        )

    def root(self, data: Data) -> Path | InPlace:
        if data.source.startswith(HERE) and not is_archive(data.source):
            source, here = _here(data)
            return source.root(here)
        known = read_kept(_kept(data.source))
        if known is None:
            return fetched_archive(data) if is_archive(data.source) else self.listing(data).root
        place = _place(data.source)
        if shards_among(known, ".tar"):
            shards = last_look(place)
            return self.listing(data).root if shards is None else TarMembers.of(shards)
        if shards_among(known, ".parquet"):
            return ParquetRows(place)
        return place.below(list_names(known, data.source)[0])


def _here(data: Data) -> tuple[Source, Data]:
    """The source that a folder of this machine is, and the data that names it without file://."""
    here = data.model_copy(update={"source": data.source.partition("://")[2]})
    for source in (WebDataset(), ParquetPictures(), Folder()):
        if source.takes(here.source):
            return source, here
    raise HeadstartError(f"data.source {data.source!r} is not there; give a folder or an archive")


def _is_unpacked(address: str) -> bool:
    """Whether it is an archive of a folder of classes; a .tar may be a shard of samples."""
    return is_archive(address) and not (
        address.lower().endswith(".tar") and is_webdataset(_place(address), address.rpartition("/")[2])
    )


def _place(address: str) -> Place:
    """The folder that is listed; of one shard the one that it is in."""
    return Place(address.rpartition("/")[0] if is_archive(address) else address)


def _listed(address: str, place: Place) -> Files:
    """The files at an address, which are kept; those of the last time where it does not answer.

    Raises:
        HeadstartError: it does not, and there was no last time.
    """
    kept = _kept(address)
    try:
        if is_archive(address):
            shard = address.rpartition("/")[2]
            files = {shard: place.file(shard)}
        else:
            files = place.files()
            if not files:
                raise HeadstartError(f"{address} holds no files; give the address of an archive or of a folder of classes")
    except HeadstartError as error:
        known = read_kept(kept)
        if known is None:
            raise
        say(f"headstart: {error}; going on with what was listed before")
        return {path: File(size, stamp) for path, (size, stamp) in known.items()}
    write_kept(kept, {path: [file.size, file.stamp] for path, file in files.items()})
    return files


def _kept(address: str) -> Path:
    return state_folder("listings") / f"{hashlib.sha256(address.encode()).hexdigest()[:16]}.json"
