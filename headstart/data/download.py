"""Downloads through fsspec, checked by digest, and what there is to say of addresses."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from headstart.base.errors import HeadstartError
from headstart.base.files import replacing
from headstart.base.progress import progress
from headstart.base.safe_text import shortened
from headstart.data.archives import SHARE_OF_DISK

CHUNK = 1 << 20
WEB, HERE = ("http://", "https://"), ("file://", "local://")
CONNECTIONS = 32  # to one server at once
# By what the file systems of fsspec tell one version of a file from the next, without case and hyphens.
VALIDATORS = {"etag", "lastmodified", "contentmd5", "digest", "md5hash", "generation", "updated", "mtime", "created", "ino"}
# A file may change twice in the second that Last-Modified names, which is believed once it is older than this (RFC 9110).
RECENT = timedelta(minutes=1)


def is_address(source: str) -> bool:
    return "://" in source


def download(address: str, target: Path, sha256_prefix: str | None = None) -> str:
    """Download one file to ``target`` and return its SHA-256.

    The file appears under its name only when it is complete. A host that does not answer within 20 s is an error.

    Args:
        address: anything that fsspec opens: http(s)://, s3://, gs://, file://.
        sha256_prefix: the hexadecimal digits that the digest must start with.

    Raises:
        HeadstartError: the address does not answer, the digest differs, or the disk has too little room.
    """
    import fsspec

    digest = hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    room = SHARE_OF_DISK * shutil.disk_usage(target.parent).free
    with one_sentence(address), fsspec.open(address, "rb", **options_for(address)) as stream, replacing(target) as part:
        total = getattr(stream, "size", None) or 0
        with part.open("wb") as out, progress(f"download {target.name}", total >> 20, "MB") as advance:
            while chunk := stream.read(CHUNK):
                room -= len(chunk)
                if room < 0:
                    raise HeadstartError(f"{address} is larger than {SHARE_OF_DISK:.0%} of what the disk had left")
                out.write(chunk)
                digest.update(chunk)
                advance()
        sha256 = digest.hexdigest()
        if sha256_prefix and not sha256.startswith(sha256_prefix):
            raise HeadstartError(
                f"{address} has SHA-256 {sha256[:16]}…, expected {sha256_prefix[:16]}…; the file was altered or cut"
            )
    return sha256


def stamp(address: str) -> str:
    """What tells one version of the file at ``address`` from the next, without fetching it: ETag, Last-Modified and the
    like, and its size. Empty where nothing surely does.

    Raises:
        HeadstartError: the address does not answer.
    """
    import fsspec

    with one_sentence(address):
        system, path = fsspec.core.url_to_fs(address, **options_for(address))
        system.invalidate_cache()
        return stamp_of(system.info(path))


def stamp_of(entry: dict[str, Any]) -> str:
    """The same from what a file system says of a file."""
    found = {key: str(entry[key]) for key in entry if key.lower().replace("-", "") in VALIDATORS and entry[key]}
    if not found or (set(found) == {"Last-Modified"} and _is_recent(found["Last-Modified"])):
        return ""
    # A file that is stored again as it was keeps its ETag, and only that.
    found = {key: found[key] for key in found if key.lower() == "etag"} or found
    return json.dumps(found | {"size": str(entry.get("size"))}, sort_keys=True)


def _is_recent(http_date: str) -> bool:
    try:
        return datetime.now(UTC) - parsedate_to_datetime(http_date) < RECENT
    except (TypeError, ValueError):  # no date, or one without a time zone
        return True


@contextmanager
def one_sentence(address: str, done: str = "fetched") -> Iterator[None]:
    """Whatever goes wrong inside becomes a HeadstartError: every file system has its own errors."""
    try:
        yield
    except HeadstartError:
        raise
    except Exception as error:
        raise HeadstartError(f"{address} could not be {done}: {_reason(error)}") from None


def options_for(address: str) -> dict[str, object]:
    """What fsspec is told for an address of this kind."""
    if address.startswith(WEB):
        import aiohttp

        # block_size 0 reads from start to end. fsspec's default asks for ranges, which not every server supports.
        return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(sock_connect=20, sock_read=60)}, "block_size": 0}
    if address.startswith("s3://"):  # one request for a file, not one for its size before
        patience = {"connect_timeout": 20, "read_timeout": 60, "max_pool_connections": CONNECTIONS}
        return {"max_concurrency": 1, "config_kwargs": patience}
    return {}


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception) and is_address(str(error)):
        error = error.__cause__  # fsspec hides "connection refused" and "404" behind an error with the address only
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, FileNotFoundError) and error.errno is None:  # fsspec's own, of which the text is a path
        text += " is not there"
    return f"{text}, with pip" if isinstance(error, ImportError) else shortened(text, 300)
