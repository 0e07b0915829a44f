"""Files from elsewhere arrive whole and checked, or not at all, and never outside their folder."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import random
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headstart.base.errors import HeadstartError
from headstart.data.download import download, download_folder, is_archive, unpack

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


def test_a_file_already_there_is_not_fetched_again(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "1.jpg").write_bytes(b"source")
    target.mkdir()
    (target / "1.jpg").write_bytes(b"SOURCE")  # the same size, so its content shows whether it was fetched
    download_folder(source.as_uri(), target)
    assert everything_below(target) == {"1.jpg": b"SOURCE"}


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


# --- archives -----------------------------------------------------------------------------------------------------

FILES = {"set/ants/1.jpg": b"one" * 1000, "set/bees/2.jpg": b"two" * 1000}
TAR_MODES = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}


def packed(suffix: str) -> bytes:
    stream = io.BytesIO()
    if suffix == ".zip":
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, content in FILES.items():
                zipped.writestr(name, content)
    else:
        with tarfile.open(fileobj=stream, mode=TAR_MODES[suffix]) as tar:  # type: ignore[call-overload]
            for name, content in FILES.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def tar_of(folder: Path, *members: tarfile.TarInfo) -> Path:
    path = folder / "archive.tar"
    with tarfile.open(path, "w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return path


@pytest.mark.parametrize("suffix", [".zip", *TAR_MODES])
def test_every_kind_of_archive_is_known_and_unpacked(tmp_path: Path, suffix: str) -> None:
    archive = tmp_path / f"set{suffix}"
    archive.write_bytes(packed(suffix))
    assert is_archive(archive.name)
    assert is_archive(f"https://host/{archive.name.upper()}?token=1")
    unpack(archive, tmp_path / "out")
    assert everything_below(tmp_path / "out") == FILES


def test_unpacking_again_replaces_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(packed(".zip"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_bytes(b"old")
    unpack(tmp_path / "set.zip", tmp_path / "out")
    assert everything_below(tmp_path / "out") == FILES


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/headstart-evil", ".."])
def test_a_zip_member_that_would_land_outside_stops_the_whole_archive(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("fine.jpg", b"fine")
        zipped.writestr(name, b"evil")
    with pytest.raises(HeadstartError, match="would land outside its folder; nothing was unpacked"):
        unpack(archive, tmp_path / "out")
    assert list(everything_below(tmp_path)) == ["set.zip"]


def test_a_tar_member_that_would_land_outside_stops_the_whole_archive(tmp_path: Path) -> None:
    fine, evil = tarfile.TarInfo("fine.jpg"), tarfile.TarInfo("../evil")
    fine.size = evil.size = 4
    archive = tar_of(tmp_path, fine, evil)
    with pytest.raises(HeadstartError, match=r"archive\.tar was not unpacked, a member is unsafe"):
        unpack(archive, tmp_path / "out")
    assert list(everything_below(tmp_path)) == ["archive.tar"]


def test_an_absolute_tar_member_is_unpacked_inside_the_folder(tmp_path: Path) -> None:
    member = tarfile.TarInfo(f"{tmp_path}/evil")
    member.size = 1
    unpack(tar_of(tmp_path, member), tmp_path / "out")
    assert not (tmp_path / "evil").exists()
    assert list(everything_below(tmp_path / "out")) == [f"{tmp_path}/evil".lstrip("/")]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret"])
def test_a_tar_link_to_the_outside_stops_the_whole_archive(tmp_path: Path, kind: bytes, target: str) -> None:
    link = tarfile.TarInfo("link")
    link.type, link.linkname = kind, target
    with pytest.raises(HeadstartError, match=r"could not be unpacked|a member is unsafe"):
        unpack(tar_of(tmp_path, link), tmp_path / "out")
    assert list(everything_below(tmp_path)) == ["archive.tar"]


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_tar_with_devices_is_refused(tmp_path: Path, kind: bytes) -> None:
    device = tarfile.TarInfo("device")
    device.type = kind
    with pytest.raises(HeadstartError, match="a member is unsafe"):
        unpack(tar_of(tmp_path, device), tmp_path / "out")


def test_a_zip_s_symbolic_link_becomes_no_link(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as zipped:
        zipped.writestr(link, "/etc/passwd")
    unpack(tmp_path / "set.zip", tmp_path / "out")
    assert not (tmp_path / "out" / "link").is_symlink()
    assert (tmp_path / "out" / "link").read_text() == "/etc/passwd"


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>sign in first</html>", packed(".zip")[:-30], packed(".tar.gz")[:-30], gzip.compress(b"no tar")],
    ids=["empty", "a web page", "half a zip", "half a tar", "gzip of no tar"],
)
def test_a_file_that_is_no_whole_archive_is_told_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "set.zip").write_bytes(content)
    with pytest.raises(HeadstartError, match=r"^set\.zip could not be unpacked: .*is it a whole zip or tar file\?$"):
        unpack(tmp_path / "set.zip", tmp_path / "out")
    assert list(everything_below(tmp_path)) == ["set.zip"]


def test_a_zip_with_a_password_says_so(tmp_path: Path) -> None:
    content = bytearray(packed(".zip"))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # set the "encrypted" bit of each header
        at = content.find(signature)
        while at >= 0:
            content[at + flags] |= 1
            at = content.find(signature, at + 1)
    (tmp_path / "set.zip").write_bytes(content)
    with pytest.raises(HeadstartError, match="encrypted, password required"):
        unpack(tmp_path / "set.zip", tmp_path / "out")


@given(
    suffix=st.sampled_from([".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz"]),
    damage=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=4),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_archive_never_ends_in_a_traceback_nor_leaves_half_of_itself(
    tmp_path: Path, suffix: str, damage: list[tuple[float, int]]
) -> None:
    content = bytearray(packed(suffix))
    for at, value in damage:
        content[int(at * len(content))] = value
    archive, out = tmp_path / "here" / "archive", tmp_path / "here" / "out"
    archive.parent.mkdir(exist_ok=True)
    archive.write_bytes(content)
    (out / "set").mkdir(parents=True, exist_ok=True)
    (out / "mark").write_bytes(b"before")
    try:
        unpack(archive, out)
    except HeadstartError:
        assert (out / "mark").read_bytes() == b"before"
    assert sorted(p.name for p in archive.parent.iterdir()) == ["archive", "out"]
