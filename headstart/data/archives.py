"""Archives: every entry is looked at before anything is written, and only plain files and folders are ever written.

Python's own filters are not relied on: before 3.11.13 a tar of nested links leaves its folder in spite of them
(CVE-2025-4517).
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from headstart.base.errors import HeadstartError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
# Pictures are compressed already: an archive of them is hardly smaller than they are, one of blank bitmaps perhaps a
# hundredth, a bomb a thousandth and less. What a bomb of fewer bytes unpacks to harms nobody.
MAX_RATIO, RATIO_COUNTS_FROM = 100, 100e6  # bytes
MAX_BYTES, MAX_ENTRIES = 2e12, 5_000_000
SHARE_OF_DISK = 0.9  # of what is free
LONGEST_READ = 1 << 24  # bytes; tarfile reads the long names in a header at once, however long it says that they are
DECOMPRESSORS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


@dataclass(frozen=True)
class Entry:
    """One entry of an archive.

    Attributes:
        content: opens the content of a file; None for a folder and where there is a ``twin``.
        twin: the earlier entry that this is a second name of.
        odd: what speaks against it, if it is neither a file nor a folder.
        offset: where in a plain tar the content of a file begins; -1 where it is not in one piece.
    """

    path: PurePosixPath
    size: int = 0
    content: Callable[[], IO[bytes]] | None = None
    twin: PurePosixPath | None = None
    odd: str = ""
    offset: int = 0


def is_archive(name: str) -> bool:
    return name.split("?")[0].lower().endswith(SUFFIXES)


def lands_outside(path: PurePosixPath) -> bool:
    """Whether a file with this name would be written outside of the folder that it is meant for."""
    return path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:(/|$)", str(path)) is not None


def unpack(archive: Path, target: Path) -> None:
    """Unpack a zip or tar archive. ``target`` appears, or is replaced, only when all of it is unpacked.

    Raises:
        HeadstartError: it is no archive or damaged; an entry is a link or a device or would land outside of ``target``; or
            it unpacks to far more than its own size or than the disk has left. Then nothing is unpacked.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        for _ in _checked(archive, part):
            pass  # all of it before the first is written
        for entry in _checked(archive, part):
            _write(entry, part)
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    except HeadstartError:
        raise
    except Exception as error:  # zipfile and tarfile raise many kinds of errors on damaged archives
        if isinstance(error, OSError) and error.strerror:  # not the archive's fault, or that of a name in it
            reason = f"{error.strerror} ({Path(error.filename or archive).name})"
        else:
            reason = f"{' '.join(str(error).split())[:300] or type(error).__name__}; is it a whole zip or tar file?"
        raise HeadstartError(f"{archive.name} could not be unpacked: {reason}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _checked(archive: Path, folder: Path) -> Iterator[Entry]:
    """The entries of an archive that is to be unpacked in ``folder``, each after it was found harmless.

    Raises:
        HeadstartError: one is not.
    """
    packed, free = archive.stat().st_size, shutil.disk_usage(folder).free
    total = count = 0
    for entry in _zip_entries(archive) if zipfile.is_zipfile(archive) else _tar_entries(archive):
        odd = "would land outside its folder" if lands_outside(entry.path) else entry.odd
        if odd:
            raise HeadstartError(f"{archive.name}: the entry {str(entry.path)[:80]!r} {odd}; nothing was unpacked")
        total, count = total + entry.size, count + 1
        for too_much, than in (
            (total > max(MAX_RATIO * packed, RATIO_COUNTS_FROM), f"{MAX_RATIO} times its own size, as only a bomb does"),
            (total > SHARE_OF_DISK * free, f"{SHARE_OF_DISK:.0%} of the {free / 1e9:.3g} GB that the disk has left"),
            (total > MAX_BYTES, f"{MAX_BYTES / 1e12:g} TB"),
            (count > MAX_ENTRIES, f"{MAX_ENTRIES:,} files"),
        ):
            if too_much:
                raise HeadstartError(
                    f"{archive.name} unpacks to more than {than}; nothing was unpacked. If you trust it, unpack it "
                    "yourself and give the folder as data.source"
                )
        yield entry


def _write(entry: Entry, folder: Path) -> None:
    path = folder / entry.path
    if entry.content is None and entry.twin is None:
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if entry.twin is not None:
        shutil.copyfile(folder / entry.twin, path)
    elif entry.content is not None:
        with entry.content() as source, path.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)


def _zip_entries(archive: Path) -> Iterator[Entry]:
    try:
        zipped = zipfile.ZipFile(archive, metadata_encoding="utf-8")  # as macOS writes it, without saying so
    except UnicodeDecodeError:
        zipped = zipfile.ZipFile(archive)
    with zipped:
        for info in zipped.infolist():
            name = info.filename.replace("\\", "/")  # some tools on Windows write them, although the format forbids it
            path, kind = PurePosixPath(name), stat.S_IFMT(info.external_attr >> 16)  # 0 where it was not made on Unix
            if kind == stat.S_IFLNK:
                yield Entry(path, odd="is a link (zip without -y packs what it leads to)")
            elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                yield Entry(path, odd="is neither a file nor a folder")
            elif name.endswith("/"):
                yield Entry(path)
            else:
                yield Entry(path, info.file_size, partial(zipped.open, info))


def _tar_entries(archive: Path) -> Iterator[Entry]:
    with archive.open("rb") as stream:
        start = stream.read(6)
    decompressed = next((f for magic, f in DECOMPRESSORS.items() if start.startswith(magic)), open)(archive, "rb")
    with closing(decompressed):
        try:
            yield from tar_entries(decompressed)
        except NoTar:  # the first header
            raise HeadstartError(f"{archive.name} could not be unpacked: is it a whole zip or tar file?") from None


class NoTar(tarfile.ReadError):
    """It does not begin as a tar does."""


def tar_entries(file: Any) -> Iterator[Entry]:
    """The entries of a tar, in order. Nothing of them is believed: whoever uses them looks at ``odd`` and at the paths.

    Args:
        file: it can be read here and there.

    Raises:
        tarfile.TarError, OSError, ValueError, EOFError: it is damaged.
    """
    plain, sizes = _ShortReads(file), dict[str, int]()
    try:
        tar = tarfile.TarFile(fileobj=plain)  # type: ignore[arg-type]
    except tarfile.TarError:
        raise NoTar("no tar") from None
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # the list would fill the memory
        path = PurePosixPath(member.name)
        if member.size < 0:
            raise tarfile.ReadError("a negative size")  # of which older versions find no end (CVE-2025-8194)
        if member.isdir():
            yield Entry(path)
        elif member.isreg():
            sizes[member.name] = member.size
            offset = -1 if member.issparse() else member.offset_data  # what a sparse one holds is not in one piece
            yield Entry(path, member.size, partial(_content, tar, member), offset=offset)
        elif member.islnk() and member.linkname in sizes:  # how tar packs a file that has two names
            sizes[member.name] = sizes[member.linkname]
            yield Entry(path, sizes[member.name], twin=PurePosixPath(member.linkname))
        elif member.islnk() or member.issym():
            yield Entry(path, odd=f"is a link to {member.linkname[:80]!r} (tar --dereference packs what it leads to)")
        else:
            yield Entry(path, odd="is neither a file nor a folder")
    if plain.last.strip(b"\0"):  # a damaged header, at which tarfile stops as if it were the end
        raise tarfile.ReadError(f"damaged at byte {tar.offset}")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    assert file is not None  # as for every regular file
    return file


class _ShortReads:
    """A binary file of which nobody reads very much at once.

    Attributes:
        last: what was read last.
    """

    def __init__(self, file: Any) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file
        self.last = b""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= LONGEST_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self.last = self._file.read(size)
        return self.last
