"""Downloads through fsspec, checked by digest, and archives unpacked without leaving their folder."""

from __future__ import annotations

import hashlib
import lzma
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from headstart.base.errors import HeadstartError
from headstart.base.files import replacing
from headstart.base.progress import progress
from headstart.base.safe_text import shortened

CHUNK = 1 << 20
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


def is_address(source: str) -> bool:
    return "://" in source


def is_archive(name: str) -> bool:
    return name.split("?")[0].lower().endswith(ARCHIVES)


def download(address: str, target: Path, sha256_prefix: str | None = None) -> str:
    """Download one file to ``target`` and return its SHA-256.

    The file appears under its name only when it is complete. A host that does not answer within 20 s is an error.

    Args:
        address: anything that fsspec opens: http(s)://, s3://, gs://, file://.
        sha256_prefix: the hexadecimal digits that the digest must start with.

    Raises:
        HeadstartError: the address does not answer, or the digest differs.
    """
    import fsspec

    digest = hashlib.sha256()
    try:
        with fsspec.open(address, "rb", **_options(address)) as stream, replacing(target) as part:
            total = getattr(stream, "size", None) or 0
            with part.open("wb") as out, progress(f"download {target.name}", total >> 20, "MB") as advance:
                while chunk := stream.read(CHUNK):
                    out.write(chunk)
                    digest.update(chunk)
                    advance()
            sha256 = digest.hexdigest()
            if sha256_prefix and not sha256.startswith(sha256_prefix):
                raise HeadstartError(
                    f"{address} has SHA-256 {sha256[:16]}…, expected {sha256_prefix[:16]}…; the file was altered or cut"
                )
    except HeadstartError:
        raise
    except Exception as error:  # every file system has its own errors
        raise HeadstartError(f"{address} could not be fetched: {_reason(error)}") from None
    return sha256


def download_folder(address: str, target: Path) -> None:
    """Mirror every file below ``address`` into ``target``.

    Files that are there with the same size are not downloaded again; files that are no longer at the address are removed.

    Raises:
        HeadstartError: the address cannot be listed, or a file cannot be downloaded.
    """
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(address, **_options(address))
        listing = system.find(root, detail=True)
        listing.pop(root, None)  # a page without links is listed as a file
        wanted = set()
        # An HTTP server may leave out the size; such a file is downloaded once.
        for name, entry in listing.items():
            relative = name[len(root) :].lstrip("/")
            local = target / _checked(PurePosixPath(unquote(relative) if address.startswith("http") else relative))
            wanted.add(local)
            size = entry.get("size")
            if local.exists() and (size is None or local.stat().st_size == size):
                continue
            with replacing(local) as part:
                system.get_file(name, str(part))
    except HeadstartError:
        raise
    except Exception as error:
        raise HeadstartError(f"{address} could not be fetched: {_reason(error)}") from None
    if not listing:
        raise HeadstartError(f"{address} holds no files; give the address of an archive or of a folder of classes")
    for stale in {path for path in target.rglob("*") if path.is_file()} - wanted:
        stale.unlink()


def unpack(archive: Path, target: Path) -> None:
    """Unpack a zip or tar archive. ``target`` appears only when it is complete.

    Raises:
        HeadstartError: it is not an archive or damaged, or a member would be written outside ``target``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                for member in zipped.infolist():
                    _checked(PurePosixPath(member.filename))
                zipped.extractall(part)
        elif not tarfile.is_tarfile(archive):
            raise HeadstartError(f"{archive.name} could not be unpacked: is it a whole zip or tar file?")
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(part, filter="data")
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    except tarfile.FilterError as error:
        raise HeadstartError(f"{archive.name} was not unpacked, a member is unsafe: {_reason(error)}") from None
    except RuntimeError as error:  # zipfile: a password is needed, or the compression is unknown
        raise HeadstartError(f"{archive.name} could not be unpacked: {_reason(error)}") from None
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError) as error:
        raise HeadstartError(
            f"{archive.name} could not be unpacked: {_reason(error)}; is it a whole zip or tar file?"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _checked(name: PurePosixPath) -> PurePosixPath:
    """The name of an archive's member.

    Raises:
        HeadstartError: it would be written outside the target folder.
    """
    if name.is_absolute() or ".." in name.parts:
        raise HeadstartError(f"the entry {str(name)!r} would land outside its folder; nothing was unpacked")
    return name


def _options(address: str) -> dict[str, object]:
    if address.startswith(("http://", "https://")):
        import aiohttp

        # block_size 0 reads from start to end. fsspec's default asks for ranges, which not every server supports.
        return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(sock_connect=20, sock_read=60)}, "block_size": 0}
    return {}


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception) and is_address(str(error)):
        error = error.__cause__  # fsspec hides "connection refused" and "404" behind an error with the address only
    text = shortened(str(error), 300) or type(error).__name__
    return f"{text}, with pip" if isinstance(error, ImportError) else text
