"""What is kept from run to run beside DVC's cache. Each file ends with its own digest, which is checked before the file is
used again: what a crash has cut short or a disk has changed is made again, and that is said."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from headstart.base.files import replacing
from headstart.base.terminal import say

MARK = b"\nsha256 "
SEAL = len(MARK) + 65  # bytes at the end of a file: the mark, 64 hexadecimal digits and a line feed
CHUNK = 1 << 20


def seal(file: Path, sha256: str | None = None) -> None:
    """Append the digest of what is in ``file``.

    Args:
        sha256: the digest, where it was computed while the file was written.
    """
    sha256 = sha256 or digest_of_start(file, file.stat().st_size).hexdigest()
    with file.open("ab") as stream:
        stream.write(MARK + sha256.encode() + b"\n")


def is_whole(file: Path) -> bool:
    """Whether ``file`` is there and is what was sealed. One that is something else is removed, and that is said."""
    try:
        size = file.stat().st_size - SEAL
    except OSError:
        return False
    if size >= 0:
        with file.open("rb") as stream:
            stream.seek(size)
            if stream.read() == MARK + digest_of_start(file, size).hexdigest().encode() + b"\n":
                return True
    file.unlink(missing_ok=True)
    say_damaged(file)
    return False


def say_damaged(what: object) -> None:
    say(f"headstart: {what} is damaged or of an older version; it is made again", file=sys.stderr)


def write_kept(file: Path, value: Any) -> None:
    """``value`` as JSON, sealed."""
    with replacing(file) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
        seal(part)


def read_kept(file: Path) -> Any:
    """What ``write_kept`` wrote; None where it is not there or no longer the same."""
    return json.loads(file.read_bytes()[:-SEAL]) if is_whole(file) else None


def digest_of_start(file: Path, size: int) -> Any:
    """SHA-256 of the first ``size`` bytes, which can go on: an object of hashlib."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while size > 0 and (chunk := stream.read(min(CHUNK, size))):
            digest.update(chunk)
            size -= len(chunk)
    return digest
