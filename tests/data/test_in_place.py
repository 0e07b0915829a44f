"""Pictures in a bucket or on a web server are read where they are, and only those that are new or have changed."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from email.utils import formatdate
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import boto3
import pyarrow.parquet as pq
import pytest
from moto.core import set_initial_no_auth_action_count

from headstart.base.artifacts import PrepareFolder
from headstart.base.errors import HeadstartError
from headstart.base.files import read_json
from headstart.base.sections import Data, Prepare, Split
from headstart.data import fetch as fetch_module
from headstart.data import pack as pack_module
from headstart.data import sources
from headstart.data.fetch import fetch
from headstart.data.in_place import Place
from headstart.data.packed import Pixels
from headstart.data.picture import Picture
from headstart.data.prepare import prepare
from tests.data.pictures import encoded, everything_below, photograph, write_pictures
from tests.data.test_sources import ANTS_AND_BEES, MANIFEST, complaint, listed, zipped

HALVES = Split(val=0.25, test=0.25, near_duplicate_bits=None)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was read."""
    counts: Counter[str] = Counter()
    real = Place.read

    def counted(self: Place, path: str, start: int | None = None, end: int | None = None) -> bytes:
        counts[path] += 1
        return real(self, path, start, end)

    monkeypatch.setattr(Place, "read", counted)
    return counts


def uploaded(folder: Path, bucket: str, prefix: str) -> str:
    client = boto3.client("s3")
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            client.upload_file(str(file), bucket, f"{prefix}/{file.relative_to(folder).as_posix()}")
    return f"s3://{bucket}/{prefix}"


def prepared(data: Data, folder: Path, settings: Prepare | None = None) -> list[str]:
    """The paths of the manifest that fetch and prepare make."""
    pictures = fetch(data, MANIFEST)
    root = sources.source_of(data).root(data)
    manifest = prepare(pictures, root, settings or Prepare(), HALVES, 0, 2, folder)
    return sorted(manifest["path"])


# --- a bucket ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("around", ["", "all of them/"])
def test_a_folder_or_an_archive_in_s3_is_a_source(tmp_path: Path, bucket: str, around: str) -> None:
    folder = write_pictures(tmp_path / "set", {f"{around}{name}": seed for name, seed in ANTS_AND_BEES.items()})
    client = boto3.client("s3")
    where = uploaded(folder, bucket, "some/where")
    client.put_object(Bucket=bucket, Key="some/where/.hidden/ants/1.png", Body=b"1")
    client.put_object(Bucket=bucket, Key=f"some/where/{around}ants/", Body=b"")  # what consoles make for a folder
    client.upload_file(str(zipped(folder, tmp_path / "set.zip")), bucket, "set.zip")
    assert listed(where) == listed(f"{where}/") == listed(folder) == listed(f"s3://{bucket}/set.zip")
    corrected = encoded(photograph(5)).ljust(len((folder / f"{around}ants/1.png").read_bytes()), b"\0")
    (folder / f"{around}ants/1.png").write_bytes(corrected[: len((folder / f"{around}ants/1.png").read_bytes())])
    assert uploaded(folder, bucket, "some/where") == where  # of the old size
    client.upload_file(str(zipped(folder, tmp_path / "set.zip")), bucket, "set.zip")
    assert listed(where) == listed(folder) == listed(f"s3://{bucket}/set.zip")


@pytest.mark.parametrize(
    "names",
    [
        {"train/ants/1.png": 1, "train/bees/2.png": 2, "val/ants/3.png": 3, "val/bees/4.png": 4},
        {"Training/ants/1.png": 1, "Training/bees/2.png": 2, "valid/ants/3.png": 3, "testing/bees/4.png": 4},
        {"train/ants/1.png": 1, "train/ants/deep/2.png": 2, "train/bees/3.png": 3, "train/README": 4},
        {"test/1.png": 1, "val/2.png": 2},
        {"outer/inner/ants/1.png": 1, "outer/inner/bees/2.png": 2, "README": 3},
        {"ants/1.png": 1, "ants/2.png": 2, "bees/3.png": 3},
    ],
)
def test_keys_are_arranged_as_a_folder_s_files_are(tmp_path: Path, bucket: str, names: dict[str, int]) -> None:
    folder = write_pictures(tmp_path / "set", names)
    assert listed(uploaded(folder, bucket, "set")) == listed(folder)


@pytest.mark.parametrize(
    "names",
    [{"1.png": 1, "2.png": 2}, {"train/ants/1.png": 1, "more/ants/1.png": 2}, {"val/ants/1.png": 1, "bees/2.png": 2}],
)
def test_keys_that_are_not_arranged_are_said_as_of_a_folder(tmp_path: Path, bucket: str, names: dict[str, int]) -> None:
    folder = write_pictures(tmp_path / "set", names)
    where = uploaded(folder, bucket, "set")
    assert complaint(where).replace(where, "") == complaint(folder).replace(str(folder), "")


def test_a_bucket_goes_through_prepare_like_a_folder_and_nothing_is_copied(
    tmp_path: Path, bucket: str, reads: Counter[str], project: Path
) -> None:
    names = {f"{label}/{n:02}.jpg": 100 * k + n for k, label in enumerate(("ants", "bees")) for n in range(12)}
    folder = write_pictures(tmp_path / "set", names, "JPEG")
    (folder / "ants/broken.jpg").write_bytes(b"no picture")
    (folder / "bees/empty.jpg").write_bytes(b"")
    where = Data(source=uploaded(folder, bucket, "set"))
    here = prepared(Data(source=str(folder)), tmp_path / "of folder")
    there = prepared(where, tmp_path / "of bucket")
    assert here == there == sorted(names)
    ours, theirs = (PrepareFolder(tmp_path / name) for name in ("of folder", "of bucket"))
    for name in ("pixels", "pixels_index", "audit", "manifest"):
        assert getattr(ours, name).read_bytes() == getattr(theirs, name).read_bytes()
    content = (folder / "ants/00.jpg").read_bytes()
    assert not [name for name, (kept, _) in everything_below(project).items() if content in kept]
    reads.clear()
    (folder / "ants/new.jpg").write_bytes(encoded(photograph(999), "JPEG"))
    uploaded(folder / "ants", bucket, "set/ants")  # the old ones again, as they were
    assert prepared(where, tmp_path / "of bucket") == sorted([*names, "ants/new.jpg"])
    refused = {"ants/broken.jpg", "bees/empty.jpg"}  # of which nothing was packed
    assert set(reads) - refused == {"ants/new.jpg"}
    assert reads["ants/new.jpg"] == 3  # for its digest, its size and its pixels


def test_what_was_read_before_an_error_is_not_read_again(
    tmp_path: Path, bucket: str, reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_pictures(tmp_path / "set", {f"{label}/{n}.png": n for n in range(8) for label in "ab"})
    where = uploaded(folder, bucket, "set")
    monkeypatch.setattr(fetch_module, "READS_AT_ONCE", 1)
    real = Place.read

    def fails(self: Place, path: str, start: int | None = None, end: int | None = None) -> bytes:
        if path == "b/3.png":
            raise HeadstartError("the line is cut")
        return real(self, path, start, end)

    with monkeypatch.context() as broken:
        broken.setattr(Place, "read", fails)
        assert complaint(where) == "the line is cut"
    reads.clear()
    assert len(listed(where)) == 16
    assert sorted(reads) == [f"b/{n}.png" for n in range(3, 8)]


def test_a_picture_that_changes_after_it_was_listed_is_said(tmp_path: Path, bucket: str) -> None:
    folder = write_pictures(tmp_path / "set", {f"{label}/{n}.png": n for n, label in enumerate("ababab")})
    data = Data(source=uploaded(folder, bucket, "set"))
    pictures = fetch(data, MANIFEST)
    boto3.client("s3").put_object(Bucket=bucket, Key="set/a/0.png", Body=encoded(photograph(99)))
    root = sources.source_of(data).root(data)
    with pytest.raises(HeadstartError, match=r"a/0\.png has changed since it was listed; run `dvc repro` again"):
        prepare(pictures, root, Prepare(), HALVES, 0, 1, tmp_path / "out")
    boto3.client("s3").delete_object(Bucket=bucket, Key="set/a/0.png")
    with pytest.raises(HeadstartError, match=r"a/0\.png could not be fetched: .* is not there"):
        prepare(pictures, root, Prepare(), HALVES, 0, 1, tmp_path / "out")


def test_a_film_among_the_pictures_is_never_read_whole(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_pictures(tmp_path / "set", {f"{label}/{n}.png": n for n, label in enumerate("abababababab")})
    film = bytes(range(256)) * 1000
    (folder / "a/film.mp4").write_bytes(film)
    for module in (fetch_module, pack_module):
        monkeypatch.setattr(module, "LARGEST", 100_000)
    data = Data(source=uploaded(folder, bucket, "set"))
    assert {p.sha256 for p in listed(data.source)} >= {hashlib.sha256(film).hexdigest()}
    prepared(data, tmp_path / "out")
    dropped = {one["path"]: one["reason"] for one in read_json(PrepareFolder(tmp_path / "out").audit)["dropped"]}
    assert dropped == {"a/film.mp4": "0 MB, and at most 0 are read of a picture elsewhere"}


def test_a_picture_whose_header_is_long_has_its_size_all_the_same(tmp_path: Path, bucket: str) -> None:
    """Of a picture elsewhere only the beginning is read for its size, and here that does not hold it."""
    comment = {"comment": b"x" * 60_000}
    folder = tmp_path / "set"
    for n, label in enumerate("abababab"):
        (folder / label).mkdir(parents=True, exist_ok=True)
        plain = encoded(photograph(n), "JPEG", **comment)
        segments = plain[2 : 2 + plain[2:].index(b"\xff\xdb")]
        (folder / label / f"{n}.jpg").write_bytes(plain[:2] + segments * 3 + plain[2 + len(segments) :])
    settings = Prepare(raw_gb=8 * 96 * 72 * 3 / 1e9)  # just enough for all of them
    prepared(Data(source=uploaded(folder, bucket, "set")), tmp_path / "out", settings)
    assert b'"jpeg_quality": null' in Pixels(tmp_path / "out").settings[b"headstart"]
    less = settings.model_copy(update={"raw_gb": settings.raw_gb * 0.99})
    prepared(Data(source=f"s3://{bucket}/set"), tmp_path / "out", less)
    assert b'"jpeg_quality": 95' in Pixels(tmp_path / "out").settings[b"headstart"]
    assert len(pq.read_table(PrepareFolder(tmp_path / "out").pixels_index)) == 8


def test_a_bucket_that_gives_nothing_is_one_sentence(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "s3://pictures/nothing holds no files" in complaint(f"s3://{bucket}/nothing")
    assert "s3://absent/set could not be fetched: " in complaint("s3://absent/set")
    assert "s3://absent/set.zip could not be fetched: " in complaint("s3://absent/set.zip")
    write_pictures(tmp_path / "set", ANTS_AND_BEES)
    where = uploaded(tmp_path / "set", bucket, "set")
    with_wrong_keys = set_initial_no_auth_action_count(0)(complaint)
    assert "could not be fetched: The AWS Access Key Id you provided does not exist in our records" in with_wrong_keys(
        where
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    assert f"{where} could not be fetched: Could not connect to the endpoint URL" in complaint(where)


def test_without_the_package_for_a_bucket_a_sentence_names_it() -> None:
    for scheme, package in (("gs", "gcsfs"), ("az", "adlfs"), ("abfs", "adlfs")):
        try:
            __import__(package)
        except ImportError:
            assert f"nstall {package} to access" in complaint(f"{scheme}://bucket/set")


def test_a_place_goes_to_other_processes() -> None:
    assert pickle.loads(pickle.dumps(Place("s3://bucket/set"))) == Place("s3://bucket/set")


# --- this machine, by an address ----------------------------------------------------------------------------------------


def test_a_folder_here_is_read_where_it_is_and_through_its_links(tmp_path: Path, project: Path) -> None:
    folder = write_pictures(tmp_path / "set", ANTS_AND_BEES)
    (folder / "wasps").symlink_to(write_pictures(tmp_path / "elsewhere", {"5.png": 5}))
    assert listed(folder.as_uri()) == listed(folder)
    assert [p.label for p in listed(folder.as_uri())] == ["ants", "ants", "bees", "bees", "wasps"]
    assert not (project / ".headstart/downloads").exists()
    assert "is not there; give a folder or an archive" in complaint((tmp_path / "absent").as_uri())


# --- a web server -------------------------------------------------------------------------------------------------------


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def serving() -> Iterator[Callable[..., str]]:
    """Give a folder out by a handler of one's own; its address."""
    servers = []

    def start(folder: Path, handler: type[SimpleHTTPRequestHandler]) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_folder_that_a_server_lists_is_read_and_what_is_known_of_it_kept(
    tmp_path: Path, serve: Callable[[Path], str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pictures(tmp_path / "set", ANTS_AND_BEES)
    long_ago = 1_000_000_000
    for file in folder.rglob("*.png"):
        os.utime(file, (long_ago, long_ago))
    address = f"{serve(tmp_path)}/set/"
    first = listed(address)
    assert first == listed(folder)
    (folder / "ants" / "1.png").unlink()
    assert [p.path for p in listed(address)] == ["ants/2.png", "bees/3.png", "bees/deep/4.png"]
    shutil.rmtree(folder)
    assert len(listed(address)) == 3
    assert "going on with what was listed before" in capsys.readouterr().out


def test_names_are_those_that_people_gave(tmp_path: Path, serve: Callable[[Path], str]) -> None:
    wanted = {"ants/1.jpg": b"1", "red ants/a b.jpg": b"2", "füchse/ü%20.jpg": b"3"}
    for name, content in wanted.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(content)
    place = Place(f"{serve(tmp_path)}/set/")
    files = place.files()
    assert {path: place.read(path) for path in files} == wanted
    assert {path: file.size for path, file in files.items()} == dict.fromkeys(wanted, 1)
    assert place.below("red ants").read("a b.jpg", 0, 5) == b"2"


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


def test_a_server_s_links_that_sort_its_list_are_no_files(tmp_path: Path, serving: Callable[..., str]) -> None:
    write_pictures(tmp_path / "set", ANTS_AND_BEES)
    assert [*Place(f"{serving(tmp_path, Sorted)}/set/").files()] == [*ANTS_AND_BEES]


class Versioned(Handler):
    """Says of each file what ``says`` makes of it, and counts what is read."""

    says: ClassVar[Callable[[Path], dict[str, str]]]
    fetched: ClassVar[list[str]]

    def send_header(self, keyword: str, value: str) -> None:
        if keyword != "Last-Modified":
            super().send_header(keyword, value)

    def end_headers(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_file():
            for keyword, value in type(self).says(path).items():
                super().send_header(keyword, value)
            if self.command == "GET":
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
    tmp_path: Path, serving: Callable[..., str], says: Callable[[Path], dict[str, str]], sees_unchanged: bool
) -> None:
    folder = tmp_path / "set"

    def write(name: str, content: bytes, mtime: int) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        os.utime(folder / name, (mtime, mtime))

    def digests(pictures: list[Picture]) -> list[str]:
        return [p.sha256 for p in pictures]

    kind = type("Kind", (Versioned,), {"says": staticmethod(says), "fetched": []})
    address = f"{serving(tmp_path, kind)}/set/"
    write("a/1.jpg", b"wrong", 1_000_000_000)
    write("b/2.jpg", b"other", 1_000_000_000)
    listed(address)
    kind.fetched.clear()
    listed(address)
    assert sorted(kind.fetched) == ([] if sees_unchanged else ["1.jpg", "2.jpg"])
    kind.fetched.clear()
    write("a/1.jpg", b"right", 1_000_000_001)
    assert digests(listed(address)) == [hashlib.sha256(content).hexdigest() for content in (b"right", b"other")]
    assert sorted(kind.fetched) == (["1.jpg"] if sees_unchanged else ["1.jpg", "2.jpg"])


def test_an_address_without_files_asks_for_an_archive_or_a_folder(tmp_path: Path, serve: Callable[[Path], str]) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no files; give the address of an archive or of a folder of classes" in complaint(
        f"{serve(tmp_path)}/empty/"
    )
    assert "could not be fetched: Cannot connect" in complaint("http://127.0.0.1:1/set/")
