"""Files from elsewhere arrive whole and checked, or not at all, and never outside their folder."""

from __future__ import annotations

import hashlib
import importlib.util
import random
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from headstart.base.errors import HeadstartError
from headstart.data import download as download_module
from headstart.data.download import download

CONTENT = random.Random(0).randbytes(6_000_000)  # more than the block that fsspec asks for at once


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/cut":  # promises more than it sends, as a broken connection does
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 100)
            self.close_connection = True
        else:
            super().do_GET()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder and the address of a real server that gives it out."""
    folder = tmp_path_factory.mktemp("site")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def everything_below(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- one file -----------------------------------------------------------------------------------------------------


def test_a_file_arrives_whole_with_its_digest(site: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = site
    (folder / "file.bin").write_bytes(CONTENT)
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert download(f"{address}/file.bin", tmp_path / "a" / "got.bin", sha256_prefix=digest[:8]) == digest
    assert everything_below(tmp_path) == {"a/got.bin": CONTENT}


def test_a_file_url_works_too(tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(b"abc")
    assert download((tmp_path / "here").as_uri(), tmp_path / "there") == hashlib.sha256(b"abc").hexdigest()


def test_a_file_without_end_leaves_room_on_the_disk(
    site: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = site
    (folder / "file.bin").write_bytes(CONTENT)
    monkeypatch.setattr(download_module, "SHARE_OF_DISK", 1e-12)
    with pytest.raises(HeadstartError, match=r"file\.bin is larger than .* of what the disk had left"):
        download(f"{address}/file.bin", tmp_path / "got.bin")
    assert everything_below(tmp_path) == {}


def test_a_file_with_another_digest_is_refused_and_leaves_nothing(site: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = site
    (folder / "altered.bin").write_bytes(b"altered")
    with pytest.raises(HeadstartError, match=r"altered\.bin has SHA-256 .*expected 0123abcd…; the file was altered or cut"):
        download(f"{address}/altered.bin", tmp_path / "got.bin", sha256_prefix="0123abcd")
    assert everything_below(tmp_path) == {}


def test_a_connection_that_breaks_leaves_what_was_there_before(site: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "got.bin").write_bytes(b"before")
    with pytest.raises(HeadstartError, match="/cut could not be fetched: "):
        download(f"{site[1]}/cut", tmp_path / "got.bin")
    assert everything_below(tmp_path) == {"got.bin": b"before"}


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("{site}/absent.zip", "404"),
        ("http://127.0.0.1:1/closed", "Cannot connect to host 127.0.0.1:1"),
        ("file:///no/such/file", "No such file"),
        ("nosuch://bucket/key", "Protocol not known: nosuch"),
        ("gs://bucket/key", "install gcsfs to access Google Storage, with pip"),
    ],
)
def test_an_address_that_gives_nothing_is_one_sentence_with_the_reason(
    site: tuple[Path, str], tmp_path: Path, address: str, reason: str
) -> None:
    if address.startswith("gs://") and importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is installed here, so gs:// addresses work")
    address = address.format(site=site[1])
    with pytest.raises(HeadstartError) as caught:
        download(address, tmp_path / "got")
    message = str(caught.value)
    assert message.startswith(f"{address} could not be fetched: ")
    assert reason in message
    assert "\n" not in message
    assert everything_below(tmp_path) == {}
