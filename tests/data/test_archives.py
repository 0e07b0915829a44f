"""Archives are unpacked whole or not at all, and whatever is in them, nothing is written outside their folder."""

from __future__ import annotations

import copy
import gzip
import io
import stat
import tarfile
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headstart.base.errors import HeadstartError
from headstart.data import archives
from headstart.data.archives import is_archive, unpack


def everything_below(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


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


def refused(archive: Path, reason: str) -> None:
    """Nothing of it is unpacked, what was there stays, and the sentence names the archive."""
    folder = archive.parent
    (folder / "out").mkdir(exist_ok=True)
    (folder / "out" / "before").write_bytes(b"before")
    before = everything_below(folder)
    with pytest.raises(HeadstartError, match=reason) as caught:
        unpack(archive, folder / "out")
    assert str(caught.value).startswith(archive.name)
    assert "\n" not in str(caught.value)
    assert everything_below(folder) == before


def linked(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def plain(name: str, size: int = 4) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    return member


OUTSIDE = "would land outside its folder; nothing was unpacked"
NAMES_OUTSIDE = ["../evil", "a/../../evil", "/tmp/headstart-evil", "..", "..\\evil", "C:\\evil", "c:/evil"]


@pytest.mark.parametrize("name", NAMES_OUTSIDE)
def test_a_zip_member_that_would_land_outside_stops_the_whole_archive(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("fine.jpg", b"fine")
        zipped.writestr(name, b"evil")
    refused(archive, OUTSIDE)


@pytest.mark.parametrize("name", [name for name in NAMES_OUTSIDE if "\\" not in name])
def test_a_tar_member_that_would_land_outside_stops_the_whole_archive(tmp_path: Path, name: str) -> None:
    refused(tar_of(tmp_path, plain("fine.jpg"), plain(name)), OUTSIDE)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret", "absent.jpg", "later.jpg", ""])
def test_a_link_in_a_tar_stops_the_whole_archive(tmp_path: Path, kind: bytes, target: str) -> None:
    archive = tar_of(tmp_path, plain("fine.jpg"), linked("link", target, kind), plain("later.jpg"))
    refused(archive, "the entry 'link' is a link to .* packs what it leads to")


def test_links_within_links_lead_nowhere(tmp_path: Path) -> None:
    """CVE-2025-4517: a path that grows too long for realpath, so that tarfile's filter loses sight of where it leads."""
    (tmp_path / "secret").write_bytes(b"before")
    long, path, members = "d" * 247, "", []
    for step in "abcdefghijklmnop":
        folder = tarfile.TarInfo(f"{path}{long}")
        folder.type = tarfile.DIRTYPE
        members += [folder, linked(f"{path}{step}", long)]
        path += f"{long}/"
    out = "/".join("abcdefghijklmnop") + "/" + "l" * 254
    members += [linked(out, "../" * 16), linked("escape", f"{out}/../.."), linked("name", "escape/secret", tarfile.LNKTYPE)]
    refused(tar_of(tmp_path, *members, plain("name")), "is a link to ")
    assert (tmp_path / "secret").read_bytes() == b"before"


def test_a_file_with_two_names_in_a_tar_is_unpacked_as_two_files(tmp_path: Path) -> None:
    (tmp_path / "set" / "ants").mkdir(parents=True)
    (tmp_path / "set" / "ants" / "1.jpg").write_bytes(b"ant")
    for name in ("2.jpg", "3.jpg"):
        (tmp_path / "set" / "ants" / name).hardlink_to(tmp_path / "set" / "ants" / "1.jpg")
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "set", "set")
        assert Counter(member.islnk() for member in tar.getmembers() if not member.isdir()) == {True: 2, False: 1}
    unpack(tmp_path / "set.tar.gz", tmp_path / "out")
    assert everything_below(tmp_path / "out") == {f"set/ants/{i}.jpg": b"ant" for i in (1, 2, 3)}
    assert {path.stat().st_nlink for path in (tmp_path / "out").rglob("*.jpg")} == {1}


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"])
def test_a_tar_with_devices_and_the_like_is_refused(tmp_path: Path, kind: bytes) -> None:
    device = tarfile.TarInfo("device")
    device.type = kind
    refused(tar_of(tmp_path, device), "the entry 'device' is neither a file nor a folder; nothing was unpacked")


@pytest.mark.parametrize(
    ("kind", "reason"), [(stat.S_IFLNK, "is a link"), (stat.S_IFIFO, "neither"), (stat.S_IFCHR, "neither")]
)
def test_a_zip_with_links_and_the_like_is_refused(tmp_path: Path, kind: int, reason: str) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as zipped:
        zipped.writestr(link, "/etc/passwd")
    refused(tmp_path / "set.zip", f"the entry 'link' (is )?.*{reason}")


def test_a_zip_with_backslashes_has_folders(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as zipped:
        zipped.writestr("set\\empty\\", b"")
        for name, content in FILES.items():
            zipped.writestr(name.replace("/", "\\"), content)
    unpack(tmp_path / "set.zip", tmp_path / "out")
    assert everything_below(tmp_path / "out") == FILES
    assert (tmp_path / "out" / "set" / "empty").is_dir()


@pytest.mark.parametrize("encoding", ["utf-8", "cp437"])
def test_a_zip_that_does_not_say_how_its_names_are_written_is_read_as_utf_8_if_it_can_be(
    tmp_path: Path, encoding: str
) -> None:
    name = "café/1.jpg".encode(encoding)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as zipped:
        zipped.writestr("x" * len(name), b"1")
    (tmp_path / "set.zip").write_bytes((tmp_path / "set.zip").read_bytes().replace(b"x" * len(name), name))
    unpack(tmp_path / "set.zip", tmp_path / "out")
    assert everything_below(tmp_path / "out") == {"café/1.jpg": b"1"}


def test_a_name_that_is_a_file_and_a_folder_is_one_sentence(tmp_path: Path) -> None:
    refused(tar_of(tmp_path, plain("a"), plain("a/b")), r"could not be unpacked: .*\(a\)$")


# --- bombs ----------------------------------------------------------------------------------------------------------


def bomb(folder: Path, suffix: str, size: int) -> Path:
    """An archive of a few thousand bytes that holds ``size`` bytes of nothing."""
    archive = folder / f"bomb{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr("ants/1.jpg", bytes(size))
    else:
        with tarfile.open(archive, TAR_MODES[suffix]) as tar:  # type: ignore[call-overload]
            tar.addfile(plain("ants/1.jpg", size), io.BytesIO(bytes(size)))
    return archive


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_what_unpacks_to_a_hundred_times_its_size_is_a_bomb(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = bomb(tmp_path, suffix, 1_000_000)
    unpack(archive, tmp_path / "small")  # of such a size it is no danger
    assert (tmp_path / "small" / "ants" / "1.jpg").stat().st_size == 1_000_000
    monkeypatch.setattr(archives, "RATIO_COUNTS_FROM", 999_999)
    refused(archive, "unpacks to more than 100 times its own size, .* unpack it yourself and give the folder")


def test_overlapping_files_of_a_zip_all_count(tmp_path: Path) -> None:
    """A zip whose directory names the same bytes again and again (Fifield 2019, "A better zip bomb")."""
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("0.jpg", bytes(1_000_000))
        for number in range(1, 200):
            again = copy.copy(zipped.infolist()[0])
            again.filename = f"{number}.jpg"
            zipped.filelist.append(again)
    assert (tmp_path / "bomb.zip").stat().st_size < 20_000
    refused(tmp_path / "bomb.zip", "unpacks to more than 100 times its own size")


def test_a_size_that_no_disk_has_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_RATIO", 1e12)
    header = plain("ants/1.jpg", 10**14).tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "set.tar").write_bytes(header + bytes(10_240))
    refused(tmp_path / "set.tar", "unpacks to more than 90% of the [0-9.e+]+ GB that the disk has left")


def test_second_names_count_as_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "RATIO_COUNTS_FROM", 0)
    links = [linked(f"{i}.jpg", "0.jpg", tarfile.LNKTYPE) for i in range(1, 400)]
    refused(tar_of(tmp_path, plain("0.jpg", 100_000), *links), "more than 100 times its own size")


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_ENTRIES", 2)
    refused(tar_of(tmp_path, plain("1"), plain("2"), plain("3")), "unpacks to more than 2 files")


def test_a_tar_that_runs_in_circles_ends(tmp_path: Path) -> None:
    """CVE-2025-8194: with a negative size the next header is the one before."""
    circle = plain("1.jpg", -512).tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "set.tar").write_bytes(plain("0.jpg", 0).tobuf() + circle + bytes(10_240))
    refused(tmp_path / "set.tar", r"could not be unpacked: .*is it a whole zip or tar file\?$")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
@pytest.mark.parametrize("size", [10**11, -512])
def test_a_header_of_a_hundred_gigabytes_is_not_read(tmp_path: Path, kind: bytes, size: int) -> None:
    header = plain("name", size)
    header.type = kind
    (tmp_path / "set.tar.gz").write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(10_240)))
    refused(tmp_path / "set.tar.gz", "could not be unpacked: ")


def test_a_tar_that_is_damaged_in_the_middle_is_not_cut_short_silently(tmp_path: Path) -> None:
    archive = tar_of(tmp_path, plain("1.jpg"), plain("2.jpg"), plain("3.jpg"))
    content = bytearray(archive.read_bytes())
    content[1024 + 148] ^= 1  # a digit of the second header's checksum, where tarfile stops as if it were the end
    archive.write_bytes(content)
    refused(archive, "could not be unpacked: damaged at byte 1024; is it a whole zip or tar file")


# --- damage ---------------------------------------------------------------------------------------------------------


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
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


names = st.sampled_from(["a", "b", "a/b", "a/b/c", "../x", "/x", "a/../../x", "b/../x", "./a", ".", "", "a//b", "x" * 300])
kinds = st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])


@given(st.lists(st.tuples(names, kinds, names), max_size=6))
@settings(max_examples=150)
def test_whatever_is_in_a_tar_only_plain_files_appear_and_only_inside(members: list[tuple[str, bytes, str]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        here = Path(name) / "deep" / "deeper"
        here.mkdir(parents=True)
        infos = [linked(path, target, kind) for path, kind, target in members]
        for info in infos:
            info.size = 4 if info.isreg() else 0
        archive = tar_of(here, *infos)
        try:
            unpack(archive, here / "out")
        except HeadstartError as error:
            assert "\n" not in str(error)
            assert not (here / "out").exists()
        assert {p.relative_to(here).parts[0] for p in Path(name).rglob("*") if p not in (here, here.parent)} <= {
            "archive.tar", "out",
        }  # fmt: skip
        assert all(stat.S_IFMT(p.lstat().st_mode) in (stat.S_IFREG, stat.S_IFDIR) for p in Path(name).rglob("*"))
        assert all(p.lstat().st_nlink == 1 for p in Path(name).rglob("*") if p.is_file())
