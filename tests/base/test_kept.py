"""What is kept from run to run is used again only where it is what was kept, and a write survives the power cord."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.base.files import replacing, write_text
from headstart.base.kept import is_whole, read_kept, seal, write_kept


def test_what_was_kept_is_read_as_it_was_and_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = {"a": [1, 2.5, None], "ü": "é\u2028"}
    write_kept(tmp_path / "value.json", value)
    assert read_kept(tmp_path / "value.json") == value
    assert read_kept(tmp_path / "other.json") is None
    assert capsys.readouterr() == ("", "")


@given(damage=st.one_of(st.binary(max_size=40), st.integers(0, 10_000)), bit=st.integers(0, 7), cut=st.booleans())
def test_whatever_happens_to_a_file_it_is_not_used_and_that_is_one_line(
    tmp_path_factory: pytest.TempPathFactory, damage: bytes | int, bit: int, cut: bool
) -> None:
    file = tmp_path_factory.mktemp("kept") / "value.json"
    write_kept(file, {"epochs": 12, "losses": [0.25] * 20})
    whole = file.read_bytes()
    if isinstance(damage, int):
        at = damage % len(whole)
        damage = whole[:at] if cut else whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
    file.write_bytes(damage)
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("sys.stderr", type("Stream", (), {"write": lambda self, text: said.append(text)})())
        assert read_kept(file) is None
    assert "".join(said) == f"headstart: {file} is damaged or of an older version; it is made again\n"
    assert not file.exists()


def test_a_digest_that_was_computed_on_the_way_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 10**6)
    seal(tmp_path / "a")
    digest = (tmp_path / "a").read_bytes()[-65:-1].decode()
    (tmp_path / "b").write_bytes(b"abc" * 10**6)
    seal(tmp_path / "b", digest)
    assert is_whole(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_content_is_on_the_disk_before_the_name_and_the_name_before_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[bytes, bytes | None]] = []
    target, fsync = tmp_path / "file", os.fsync

    def watched(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((b"folder" if path.is_dir() else path.read_bytes(), target.read_bytes() if target.exists() else None))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write_text(target, "new")
    assert synced == [(b"new", None), (b"folder", b"new")]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    with pytest.raises(FileExistsError), replacing(tmp_path / "file") as part:
        part.mkdir()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
