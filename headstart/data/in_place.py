"""Files that are read where they are: in a bucket, on a web server, or here where they hold many pictures each."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote

from headstart.base.errors import HeadstartError
from headstart.base.files import replacing
from headstart.data.download import CONNECTIONS, WEB, is_address, one_sentence, options_for, stamp_of
from headstart.data.picture import InPlace
from headstart.data.sources_folder import HIDDEN, files_below, named_files

BLOCK = 1 << 20  # bytes that are read at once where a shard is looked through


@dataclass(frozen=True, slots=True)
class File:
    """What a listing says of a file.

    Attributes:
        size: in bytes; 0 where that is not known.
        stamp: what tells one version from the next; empty where nothing surely does.
    """

    size: int
    stamp: str


@dataclass(frozen=True, slots=True)
class Remote:
    """A file at an address; as text it is its own address."""

    place: Place
    path: str
    file: File

    def __str__(self) -> str:
        return self.place.address_of(self.path)

    def content(self) -> bytes:
        """
        Raises:
            HeadstartError: it cannot be read.
        """
        return self.place.read(self.path)


@dataclass(frozen=True)
class Place(InPlace):
    """A folder on this machine, a prefix of a bucket, or a page of a web server that lists files.

    Attributes:
        address: a path, or an address that fsspec knows.
    """

    address: str

    def __str__(self) -> str:
        return self.address

    @property
    def is_everywhere(self) -> bool:
        return is_address(self.address)

    def files(self) -> dict[str, File]:
        """Every file below, by its path from here, in order; hidden ones too where it is an address.

        Raises:
            HeadstartError: it does not answer.
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
            return {
                self._path(name[len(root) :].lstrip("/")): File(int(found[name].get("size") or 0), stamp_of(found[name]))
                for name in sorted(found)
                if not name.endswith("/") and found[name].get("type") != "directory"  # as consoles make them in a bucket
            }

    def file(self, path: str) -> File:
        """What there is to say of one file.

        Raises:
            HeadstartError: it is not there, or the place does not answer.
        """
        with one_sentence(self.address_of(path)):
            system, root = _system(self.address)
            system.invalidate_cache()
            entry = system.info(f"{root.rstrip('/')}/{self._name(path)}")
            return File(int(entry.get("size") or 0), stamp_of(entry))

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        with one_sentence(self.address_of(path)):
            system, root = _system(self.address)
            content: bytes = system.cat_file(f"{root.rstrip('/')}/{self._name(path)}", start=start, end=end)
        whole = end is not None and len(content) > end - (start or 0)  # the answer of a server that knows no ranges
        return content[start:end] if whole else content

    def open(self, path: str) -> IO[bytes]:
        """The file, for reading here and there.

        Raises:
            HeadstartError: it cannot be opened.
        """
        with one_sentence(self.address_of(path)):
            system, root = _system(self.address)
            name = f"{root.rstrip('/')}/{self._name(path)}"
            stream: IO[bytes] = system.open(name, "rb", block_size=BLOCK)
        return stream

    def names(self) -> list[str]:
        """The names of the files that are directly here, in order; none where nothing is here yet.

        Raises:
            HeadstartError: the place does not answer, or there is no such bucket.
        """
        if not is_address(self.address):
            folder = Path(self.address)
            return sorted(file.name for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []
        with one_sentence(self.address):
            system, root = _system(self.address)
            system.invalidate_cache()
            try:
                return sorted(name.rpartition("/")[2] for name in system.ls(root, detail=False))
            except FileNotFoundError:
                if not system.exists(root.partition("/")[0]):
                    raise
                return []

    def create(self, name: str, content: bytes) -> bool:
        """Write a file that appears whole, unless there is one of that name already; whether it was written.

        Raises:
            HeadstartError: it cannot be written.
        """
        if not is_address(self.address):
            if (Path(self.address) / name).exists():
                return False
            self.write(name, content)
            return True
        with one_sentence(self.address_of(name), "written"):
            try:
                self._put(name, content, mode="create")
            except FileExistsError:
                return self.read(name) == content  # a first try, of which the answer was lost
        return True

    def write(self, name: str, content: bytes) -> None:
        """Write a file that appears whole, or takes the place of one at once.

        Raises:
            HeadstartError: it cannot be written.
        """
        if is_address(self.address):
            with one_sentence(self.address_of(name), "written"):
                self._put(name, content)
            return
        with replacing(Path(self.address) / name) as part:
            part.write_bytes(content)

    def remove(self, name: str) -> None:
        """
        Raises:
            HeadstartError: it cannot be removed.
        """
        if is_address(self.address):
            with one_sentence(self.address_of(name), "removed"):
                system, root = _system(self.address)
                system.rm_file(f"{root.rstrip('/')}/{self._name(name)}")
        else:
            (Path(self.address) / name).unlink(missing_ok=True)

    def _put(self, name: str, content: bytes, **more: str) -> None:
        system, root = _system(self.address)
        system.pipe_file(f"{root.rstrip('/')}/{self._name(name)}", content, **more)

    def below(self, folder: str) -> Place:
        """A folder in it; itself where ``folder`` is empty."""
        return Place(self.address_of(folder)) if folder else self

    def address_of(self, path: str) -> str:
        return f"{self.address.rstrip('/')}/{self._name(path)}"

    def _path(self, name: str) -> str:
        return unquote(name) if self.address.startswith(WEB) else name

    def _name(self, path: str) -> str:
        return quote(path) if self.address.startswith(WEB) else path


def files_at(address: str) -> list[Remote]:
    """The file at an address, or those below it that are not hidden, in order.

    Raises:
        HeadstartError: it does not answer, or there is nothing.
    """
    with one_sentence(address):
        system, root = _system(address)
        system.invalidate_cache()
        # A web server does not say what is a folder.
        is_file = not address.endswith("/") if address.startswith(WEB) else system.isfile(root)
    if is_file:
        parent, _, name = address.rpartition("/")
        place = Place(parent)
        path = unquote(name) if address.startswith(WEB) else name
        return [Remote(place, path, place.file(path))]
    place = Place(address)
    found = [
        Remote(place, path, file)
        for path, file in place.files().items()
        if not any(part.startswith(HIDDEN) for part in path.split("/"))
    ]
    if not found:
        raise HeadstartError(f"{address} holds no files; is anything else below that address?")
    return found


def named_pictures(given: list[str]) -> list[Path | Remote]:
    """What is given: files, those below folders, those that standard input names ("-"), and those at addresses.

    Raises:
        HeadstartError: one is not there, or there are none.
    """
    found: list[Path | Remote] = []
    for name in given:
        found += files_at(name) if is_address(name) else named_files([Path(name)])
    return found


def _system(address: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and the path of the address in it."""
    import fsspec

    system, root = fsspec.core.url_to_fs(address, **options_for(address))
    return system, root


def stamp_here(file: Path) -> str:
    """The stamp of a file of this machine; empty where it is not there."""
    try:
        return _here(file).stamp
    except OSError:
        return ""


def _here(file: Path) -> File:
    stat = file.stat()
    return File(stat.st_size, f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}")
