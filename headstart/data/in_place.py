"""Files that are read where they are: in a bucket, on a web server, or here where they hold many pictures each."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote

from headstart.base.errors import HeadstartError
from headstart.data.download import CONNECTIONS, WEB, is_address, one_sentence, options_for, stamp_of
from headstart.data.picture import InPlace
from headstart.data.sources_folder import files_below

BLOCK = 1 << 20  # bytes that are read at once where a shard is looked through


@dataclass(frozen=True)
class File:
    """What a listing says of a file.

    Attributes:
        size: in bytes; 0 where that is not known.
        stamp: what tells one version from the next; empty where nothing surely does.
    """

    size: int
    stamp: str


@dataclass(frozen=True)
class Place(InPlace):
    """A folder on this machine, a prefix of a bucket, or a page of a web server that lists files.

    Attributes:
        address: a path, or an address that fsspec knows.
    """

    address: str

    def __str__(self) -> str:
        return self.address

    def files(self) -> dict[str, File]:
        """Every file below, by its path from here, in order; hidden ones too where it is an address.

        Raises:
            HeadstartError: it does not answer, or there is nothing.
        """
        if not is_address(self.address):
            return {file.relative_to(self.address).as_posix(): _here(file) for file in files_below(Path(self.address))}
        with one_sentence(self.address):
            system, root = _system(self.address)
            system.invalidate_cache()
            # By default a page that does not answer would be one without links.
            strictly = {"on_error": "raise"} if self.address.startswith(WEB) else {}
            found: dict[str, dict[str, Any]] = system.find(root, detail=True, **strictly)
            found.pop(root, None)  # a page without links is listed as a file
            if self.address.startswith(WEB):
                # Without a server's own links, such as ?C=M;O=A to sort its list; nothing but the names is listed.
                names = [name for name in found if "?" not in name[len(root) :]]
                with ThreadPoolExecutor(CONNECTIONS) as pool:
                    found = dict(zip(names, pool.map(system.info, names), strict=True))
            files = {
                self._path(name[len(root) :].lstrip("/")): File(int(found[name].get("size") or 0), stamp_of(found[name]))
                for name in sorted(found)
            }
        if not files:
            raise HeadstartError(f"{self.address} holds no files; give the address of an archive or of a folder of classes")
        return files

    def file(self, path: str) -> File:
        """What there is to say of one file.

        Raises:
            HeadstartError: it is not there, or the place does not answer.
        """
        with one_sentence(f"{self.address.rstrip('/')}/{path}"):
            system, root = _system(self.address)
            system.invalidate_cache()
            entry = system.info(f"{root.rstrip('/')}/{self._name(path)}")
            return File(int(entry.get("size") or 0), stamp_of(entry))

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        with one_sentence(f"{self.address.rstrip('/')}/{path}"):
            system, root = _system(self.address)
            content: bytes = system.cat_file(f"{root.rstrip('/')}/{self._name(path)}", start=start, end=end)
        whole = end is not None and len(content) > end - (start or 0)  # the answer of a server that knows no ranges
        return content[start:end] if whole else content

    def open(self, path: str) -> IO[bytes]:
        """The file, for reading here and there.

        Raises:
            HeadstartError: it cannot be opened.
        """
        with one_sentence(f"{self.address.rstrip('/')}/{path}"):
            system, root = _system(self.address)
            name = f"{root.rstrip('/')}/{self._name(path)}"
            stream: IO[bytes] = system.open(name, "rb", block_size=BLOCK)
        return stream

    def below(self, folder: str) -> Place:
        """A folder in it; itself where ``folder`` is empty."""
        return Place(f"{self.address.rstrip('/')}/{self._name(folder)}") if folder else self

    def _path(self, name: str) -> str:
        return unquote(name) if self.address.startswith(WEB) else name

    def _name(self, path: str) -> str:
        return quote(path) if self.address.startswith(WEB) else path


def _system(address: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and the path of the address in it."""
    import fsspec

    system, root = fsspec.core.url_to_fs(address, **options_for(address))
    return system, root


def _here(file: Path) -> File:
    stat = file.stat()
    return File(stat.st_size, f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}")
