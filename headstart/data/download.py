"""Downloads through fsspec: one file, checked by digest, or a folder, of which only what has changed is fetched again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from headstart.base.errors import HeadstartError
from headstart.base.files import replacing, write_text
from headstart.base.progress import progress
from headstart.base.safe_text import shortened
from headstart.data.archives import SHARE_OF_DISK, lands_outside
from headstart.data.sources_folder import files_below

CHUNK = 1 << 20
WEB, HERE = ("http://", "https://"), ("file://", "local://")
REQUESTS_AT_ONCE = 16  # for the stamps of files
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
    with _one_sentence(address), fsspec.open(address, "rb", **_options(address)) as stream, replacing(target) as part:
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

    with _one_sentence(address):
        system, path = fsspec.core.url_to_fs(address, **_options(address))
        system.invalidate_cache()
        return _stamp(system.info(path))


def download_folder(address: str, target: Path) -> None:
    """Mirror every file below ``address`` into ``target``.

    Files whose stamp is that of the last time are not fetched again; files that are no longer at the address are removed.
    The stamps are kept beside ``target``.

    Raises:
        HeadstartError: the address cannot be listed, or a file cannot be downloaded.
    """
    import fsspec

    with _one_sentence(address):
        system, root = fsspec.core.url_to_fs(address, **_options(address))
        system.invalidate_cache()
        listing = _listed(system, root, address)
        if not listing:
            raise HeadstartError(f"{address} holds no files; give the address of an archive or of a folder of classes")
        wanted = {_relative(name[len(root) :].lstrip("/"), address): name for name in listing}
        if address.startswith((*WEB, *HERE)):  # of which nothing but the names is listed
            with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
                listing = dict(zip(listing, pool.map(system.info, listing), strict=True))
        for stale in [path for path in target.rglob("*") if path.is_file()]:
            if stale.relative_to(target).as_posix() not in wanted:
                stale.unlink()
        file = target.with_name(f"{target.name}.stamps")
        known, current = _read_stamps(file), {}
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8", buffering=1) as done:  # line by line: what was fetched before a kill counts
            for path in sorted(wanted):
                name = wanted[path]
                current[path] = _stamp(listing[name])
                if not (current[path] and known.get(path) == current[path] and (target / path).is_file()):
                    with replacing(target / path) as part:
                        system.get_file(name, str(part))
                    done.write(f"{json.dumps([path, current[path]])}\n")
        write_text(file, "".join(f"{json.dumps([path, current[path]])}\n" for path in current))


def _listed(system: Any, root: str, address: str) -> dict[str, dict[str, Any]]:
    """The files below a folder, with what the listing says of each."""
    if address.startswith(HERE):  # fsspec does not follow links to folders
        files = list(files_below(Path(root)))
        for file in files:
            if not file.exists():
                raise HeadstartError(f"{file} is a link that leads nowhere; mend or remove it")
        return {str(file): {} for file in files}
    listing: dict[str, dict[str, Any]] = system.find(root, detail=True)
    listing.pop(root, None)  # a page without links is listed as a file
    if address.startswith(WEB):  # a server's own links, such as ?C=M;O=A to sort its list
        return {name: entry for name, entry in listing.items() if "?" not in name[len(root) :]}
    return listing


def _relative(name: str, address: str) -> str:
    """The path below the folder of a file that is listed at an address.

    Raises:
        HeadstartError: it would be written outside of the folder.
    """
    path = PurePosixPath(unquote(name) if address.startswith(WEB) else name)
    if lands_outside(path):
        raise HeadstartError(f"{address} lists {str(path)!r}, which would land outside its folder; nothing was fetched")
    return path.as_posix()


def _read_stamps(file: Path) -> dict[str, str]:
    """The stamp of each file when it was fetched."""
    stamps = {}
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    for line in lines:
        try:
            path, seen = json.loads(line)
            stamps[path] = seen
        except (ValueError, TypeError):  # cut short by a kill
            continue
    return stamps


def _stamp(entry: dict[str, Any]) -> str:
    found = {key: str(entry[key]) for key in entry if key.lower().replace("-", "") in VALIDATORS and entry[key]}
    if not found or (set(found) == {"Last-Modified"} and _is_recent(found["Last-Modified"])):
        return ""
    return json.dumps(found | {"size": str(entry.get("size"))}, sort_keys=True)


def _is_recent(http_date: str) -> bool:
    try:
        return datetime.now(UTC) - parsedate_to_datetime(http_date) < RECENT
    except (TypeError, ValueError):  # no date, or one without a time zone
        return True


@contextmanager
def _one_sentence(address: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes a HeadstartError: every file system has its own errors."""
    try:
        yield
    except HeadstartError:
        raise
    except Exception as error:
        raise HeadstartError(f"{address} could not be fetched: {_reason(error)}") from None


def _options(address: str) -> dict[str, object]:
    if address.startswith(WEB):
        import aiohttp

        # block_size 0 reads from start to end. fsspec's default asks for ranges, which not every server supports.
        return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(sock_connect=20, sock_read=60)}, "block_size": 0}
    return {}


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception) and is_address(str(error)):
        error = error.__cause__  # fsspec hides "connection refused" and "404" behind an error with the address only
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, FileNotFoundError) and error.errno is None:  # fsspec's own, of which the text is a path
        text += " is not there"
    return f"{text}, with pip" if isinstance(error, ImportError) else shortened(text, 300)
