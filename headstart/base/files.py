"""Safe writes and digests: every file is written beside its place, brought to the disk and renamed."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from headstart.base.errors import FULL, HeadstartError, system_error


@contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes its place in one step, on failure it is removed.

    After a power failure ``path`` is the old file or the whole new one: content and name are on the disk before this ends.

    Args:
        sync: False for one of very many files, after which the caller calls ``os.sync``: it takes milliseconds for each.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    part.touch(exist_ok=False)  # with the rights that the user's umask gives, which tempfile's have not
    try:
        yield part
        if sync:
            _to_disk(part)
        part.replace(path)
        with suppress(OSError):  # some network file systems cannot do this for a folder
            if sync:
                _to_disk(path.parent)
    except Exception as error:
        if refused := _refused(error, part, path):
            raise refused from error
        raise
    finally:
        part.unlink(missing_ok=True)


def _refused(error: Exception, part: Path, path: Path) -> OSError | None:
    """That ``error`` is for want of room, as an error of the system's that names ``path``; None where it is not.

    Libraries in C++ say only that they could not write, so the disk is asked for one more megabyte.
    """
    refused = system_error(error)
    if refused is None and not isinstance(error, HeadstartError):
        try:
            with part.open("ab") as stream:
                stream.write(bytes(1 << 20))
        except OSError as answer:
            refused = answer
    if refused is None or refused.errno not in FULL:
        return None
    return OSError(refused.errno, refused.strerror, str(path))


def reserve(path: Path, size: int) -> None:
    """Make a file of ``size`` bytes that the disk has room for: writing into a mapped one without ends the process.

    Raises:
        OSError: there is no room.
    """
    with path.open("wb") as stream:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, size)
            else:  # on macOS and Windows, where others may take the room meanwhile
                if shutil.disk_usage(path.parent).free < size:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                stream.truncate(size)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None


def _to_disk(path: Path) -> None:
    opened = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows flushes what may be written
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


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


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_files(folder: Path, leave_out: tuple[str, ...] = ()) -> str:
    """One digest over the names and contents of all files below ``folder``."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in leave_out):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """Rows with the same keys, as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
