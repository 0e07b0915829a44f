"""Files from elsewhere arrive whole and checked, or not at all, and never outside their folder."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from headstart.base.errors import HeadstartError
from headstart.data import download as download_module
from headstart.data.download import download, download_folder

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


# --- a folder -----------------------------------------------------------------------------------------------------


def test_a_listed_folder_is_mirrored_with_the_names_people_gave(site: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = site
    wanted = {"ants/1.jpg": b"1", "red ants/a b.jpg": b"2", "füchse/ü%20.jpg": b"3"}
    for name, content in wanted.items():
        (folder / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "set" / name).write_bytes(content)
    download_folder(f"{address}/set/", tmp_path / "set")
    assert everything_below(tmp_path / "set") == wanted


def test_a_mirrored_folder_loses_what_its_source_lost_and_gains_what_it_gained(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "a").mkdir(parents=True)
    (source / "a" / "wrong.jpg").write_bytes(b"wrong")
    (source / "a" / "right.jpg").write_bytes(b"right")
    download_folder(source.as_uri(), target)
    (source / "a" / "wrong.jpg").unlink()
    (source / "a" / "new.jpg").write_bytes(b"new")
    download_folder(source.as_uri(), target)
    assert everything_below(target) == {"a/right.jpg": b"right", "a/new.jpg": b"new"}


def test_a_file_that_has_not_changed_is_not_fetched_again(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "1.jpg").write_bytes(b"source")
    download_folder(source.as_uri(), target)
    (target / "1.jpg").write_bytes(b"SOURCE")  # its content shows whether it was fetched again
    download_folder(source.as_uri(), target)
    assert everything_below(target) == {"1.jpg": b"SOURCE"}


@pytest.mark.parametrize("through_link", [False, True])
def test_a_file_corrected_under_its_old_size_and_time_is_fetched_again(tmp_path: Path, through_link: bool) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    file = tmp_path / "1.jpg" if through_link else source / "1.jpg"
    file.write_bytes(b"wrong")
    if through_link:
        (source / "1.jpg").symlink_to(file)
    download_folder(source.as_uri(), target)
    before = file.stat()
    file.write_bytes(b"right")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    download_folder(source.as_uri(), target)
    assert everything_below(target) == {"1.jpg": b"right"}


def test_a_folder_here_is_mirrored_through_its_links(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "ants").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.jpg").write_bytes(b"1")
    (source / "bees").symlink_to(tmp_path / "elsewhere")
    (source / "ants" / "all").symlink_to(source)  # a circle
    (source / "ants" / "2.jpg").symlink_to(tmp_path / "elsewhere" / "1.jpg")
    download_folder(source.as_uri(), target)
    assert everything_below(target) == {"bees/1.jpg": b"1", "ants/2.jpg": b"1"}
    (tmp_path / "elsewhere" / "1.jpg").unlink()
    with pytest.raises(HeadstartError, match=r"ants/2\.jpg is a link that leads nowhere; mend or remove it"):
        download_folder(source.as_uri(), target)


class Sorted(Handler):
    """Lists a folder as Apache does, with links that sort the list."""

    def do_GET(self) -> None:
        if self.path.partition("?")[0].endswith("/"):
            names = sorted(p.name + "/" * p.is_dir() for p in Path(self.translate_path(self.path)).iterdir())
            links = "".join(f'<a href="{name}">{name}</a>' for name in ("?C=N;O=D", "?C=M;O=A", *names))
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(f'<a href="../">up</a>{links}'.encode())
        else:
            super().do_GET()


def test_a_server_s_links_that_sort_its_list_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "set" / "ants").mkdir(parents=True)
    (tmp_path / "set" / "ants" / "1.jpg").write_bytes(b"1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Sorted, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        download_folder(f"http://127.0.0.1:{server.server_port}/set/", tmp_path / "target")
        server.shutdown()
    assert everything_below(tmp_path / "target") == {"ants/1.jpg": b"1"}


class Versioned(Handler):
    """Says of each file what ``says`` makes of it, and counts what is fetched."""

    says: ClassVar[Callable[[Path], dict[str, str]]]
    fetched: ClassVar[list[str]]
    down: ClassVar[str] = ""

    def do_GET(self) -> None:
        if self.down and self.path.endswith(self.down):
            self.send_error(503)
        else:
            super().do_GET()

    def send_header(self, keyword: str, value: str) -> None:
        if keyword != "Last-Modified":
            super().send_header(keyword, value)

    def end_headers(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_file():
            for keyword, value in type(self).says(path).items():
                super().send_header(keyword, value)
            if self.command == "GET" and path.name != self.down:
                self.fetched.append(path.name)
        super().end_headers()


@pytest.mark.parametrize(
    ("says", "sees_unchanged"),
    [
        (lambda path: {"ETag": f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"'}, True),
        (lambda path: {"Last-Modified": formatdate(path.stat().st_mtime, usegmt=True)}, True),
        (lambda path: {"Last-Modified": formatdate(time.time(), usegmt=True)}, False),  # it may change again this second
        (lambda path: {"Last-Modified": "yesterday"}, False),
        (lambda path: {}, False),
    ],
    ids=["ETag", "Last-Modified", "modified just now", "no date", "nothing"],
)
def test_a_server_s_word_on_a_file_is_believed_if_it_can_be(
    tmp_path: Path, says: Callable[[Path], dict[str, str]], sees_unchanged: bool
) -> None:
    folder, target = tmp_path / "set", tmp_path / "target"
    folder.mkdir()

    def write(name: str, content: bytes, mtime: int) -> None:
        (folder / name).write_bytes(content)
        os.utime(folder / name, (mtime, mtime))

    kind = type("Kind", (Versioned,), {"says": staticmethod(says), "fetched": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(kind, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/set/"
        write("1.jpg", b"wrong", 1_000_000_000)
        write("2.jpg", b"other", 1_000_000_000)
        download_folder(address, target)
        kind.fetched.clear()
        download_folder(address, target)
        assert kind.fetched == ([] if sees_unchanged else ["1.jpg", "2.jpg"])
        kind.fetched.clear()
        write("1.jpg", b"right", 1_000_000_001)
        download_folder(address, target)
        assert kind.fetched == (["1.jpg"] if sees_unchanged else ["1.jpg", "2.jpg"])
        server.shutdown()
    assert everything_below(target) == {"1.jpg": b"right", "2.jpg": b"other"}


def test_what_arrived_before_a_break_is_not_fetched_again(tmp_path: Path) -> None:
    folder, target = tmp_path / "set", tmp_path / "target"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(b"source")
    kind = type("Kind", (Versioned,), {"says": staticmethod(lambda _: {"ETag": '"1"'}), "fetched": [], "down": "2.jpg"})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(kind, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/set/"
        with pytest.raises(HeadstartError, match="could not be fetched: 503"):
            download_folder(address, target)
        stamps = target.with_name("target.stamps")
        stamps.write_text(stamps.read_text() + '["cut sho')
        kind.down = ""
        download_folder(address, target)
        server.shutdown()
    assert kind.fetched == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert everything_below(target) == {f"{number}.jpg": b"source" for number in range(4)}


def test_an_address_without_files_asks_for_an_archive_or_a_folder(site: tuple[Path, str], tmp_path: Path) -> None:
    (site[0] / "empty").mkdir()
    with pytest.raises(HeadstartError, match="holds no files; give the address of an archive or of a folder of classes"):
        download_folder(f"{site[1]}/empty/", tmp_path / "target")


def test_a_folder_that_cannot_be_reached_keeps_what_was_fetched_before(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "1.jpg").write_bytes(b"1")
    with pytest.raises(HeadstartError):
        download_folder("http://127.0.0.1:1/set/", tmp_path / "target")
    assert everything_below(tmp_path / "target") == {"1.jpg": b"1"}
