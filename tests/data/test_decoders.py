"""A hostile picture is a picture that cannot be used: it ends no run, and takes neither the memory nor minutes."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.data import decoders as module
from headstart.data.decode import Unusable, decode, encode, fingerprint, quiet
from headstart.data.decoders import Allowance, Decoders, Rules, rereadable
from tests.data import hostile
from tests.data.pictures import encoded, photograph

RULES = Rules(short_side=64, max_megapixels=30)
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    running = Decoders(1, RULES)
    yield running
    running.close()


def ask(decoders: Decoders, source: bytes | Path, seconds: float = 20.0) -> tuple[int, ...] | str:
    """The shape of the pixels, or why there are none."""
    try:
        return decoders.decode(source, decoders.size(source), Allowance(seconds)).shape
    except Unusable as reason:
        return str(reason)


def is_well(decoders: Decoders) -> bool:
    return ask(decoders, encoded(photograph(1))) == (72, 96, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "ICO", "QOI"])
def test_a_process_answers_as_decoding_here_does(kind: str, decoders: Decoders, tmp_path: Path) -> None:
    data = encoded(photograph(3, (250, 180)), kind)
    (tmp_path / "a picture").write_bytes(data)
    with quiet():
        expected = decode(data, RULES.short_side, RULES.max_megapixels)
    for source in (data, tmp_path / "a picture"):
        size = decoders.size(source)
        assert (decoders.decode(source, size) == expected.pixels).all()
    assert size == (expected.width, expected.height)
    for quality in (None, 90):
        stored, data = decoders.pack(tmp_path / "a picture", size, quality)
        assert data == encode(expected.image, quality)
        assert (stored.phash, stored.thumbnail) == fingerprint(expected.image)
        assert (stored.original_width, stored.original_height) == size


def test_names_that_are_no_text_are_read(decoders: Decoders, tmp_path: Path) -> None:
    for name in (b"caf\xe9.png", b"two\nlines.png", b"-rf.png"):
        path = tmp_path / os.fsdecode(name)
        path.write_bytes(encoded(photograph(1)))
        assert ask(decoders, path) == (72, 96, 3)
    assert ask(decoders, tmp_path / "gone.png") == "cannot be read: No such file or directory"
    assert ask(decoders, tmp_path) == "cannot be read: Is a directory"


def test_what_comes_through_a_pipe_is_a_picture(decoders: Decoders, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(encoded(photograph(1)),))
    writer.start()
    assert ask(decoders, rereadable(tmp_path / "pipe")) == (72, 96, 3)
    writer.join()


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_picture_that_takes_too_long_is_stopped_and_the_next_is_decoded(decoders: Decoders) -> None:
    # Comments of a GIF are joined one by one: this would take hours.
    assert "takes more than 0.3 s of processor time" in str(ask_size(decoders, hostile.gif_of_comments(3_000_000), 0.3))
    assert is_well(decoders)


def ask_size(decoders: Decoders, source: bytes | Path, seconds: float) -> tuple[int, int] | str:
    try:
        return decoders.size(source, Allowance(seconds))
    except Unusable as reason:
        return str(reason)


def test_the_time_of_several_pictures_is_counted_together(decoders: Decoders) -> None:
    allowance, data = Allowance(0.5), encoded(photograph(1, (2000, 1500)), "PNG")
    decoders.decode(data, (2000, 1500), allowance)
    assert 0 < allowance.seconds < 0.5
    allowance.seconds = 0.01
    for _ in range(2):
        with pytest.raises(Unusable, match="of processor time"):
            decoders.decode(data, (2000, 1500), allowance)
    assert is_well(decoders)


def test_a_picture_that_takes_too_much_memory_is_refused_and_the_next_is_decoded() -> None:
    narrow = Decoders(1, Rules(max_megapixels=100), largest=1)
    data = hostile.flat_png(9000, 9000)  # which a lying directory would let through
    assert "more memory than a picture of its size may" in str(ask(narrow, data))
    assert is_well(narrow)
    narrow.close()


def test_a_decoder_that_crashes_costs_one_picture(decoders: Decoders) -> None:
    for number, reason in ((signal.SIGSEGV, "its decoder crashed (SIGSEGV)"), (signal.SIGKILL, "out of memory")):
        assert is_well(decoders)
        (process,) = decoders._processes
        assert process._running is not None
        os.kill(process._running.pid, number)
        time.sleep(0.1)
        assert reason in str(ask(decoders, encoded(photograph(1))))
        assert is_well(decoders)


def test_pictures_in_work_hold_a_bounded_number_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEGAPIXELS_PER_PROCESS", 1)
    several = Decoders(3, Rules(max_megapixels=4))
    in_work: list[float] = []
    most = [0.0]

    def ask_instead(*_: object) -> tuple[dict[str, int], bytes]:
        in_work.append(3)
        most[0] = max(most[0], sum(in_work))
        time.sleep(0.05)
        in_work.pop()
        return {"height": 1, "width": 1}, bytes(3)

    monkeypatch.setattr(module._Process, "ask", ask_instead)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: several.decode(b"", (2000, 1500)), range(6)))
    assert most[0] == 3  # of 3 megapixels each, one at a time fits into 4


def test_processes_end_with_who_started_them() -> None:
    program = (
        "import os, signal; from headstart.data.decoders import *\n"
        "d = Decoders(1, Rules()); d.start_one(); print(d._processes[0]._running.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    pid = int(done.stdout)
    for _ in range(200):
        status = Path(f"/proc/{pid}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        time.sleep(0.1)
    pytest.fail("it still runs")


# --- hostile files ----------------------------------------------------------------------------------------------------

TEXT = b"a\0\0" + hostile.deflated(2 * MEGABYTE)
SMALL = hostile.flat_png(64, 64)
SEEN = (64, 64, 3)
HOSTILE: dict[str, tuple[bytes, tuple[int, ...] | str]] = {
    "a flat WebP": (hostile.flat_webp(16_000, 16_000), "16000×16000 pixels is above"),
    "a flat WebP below the limit": (hostile.flat_webp(5000, 5000), SEEN),
    "a flat PNG": (hostile.flat_png(9000, 9000), "81 megapixels is above"),
    "an icon with a large PNG": (hostile.icon_with(hostile.png(60_000, 60_000)), "60000×60000 pixels is above"),
    "an icon with a PNG hardly too large": (hostile.icon_with(hostile.png(6000, 6000)), "6000×6000 pixels is above"),
    "an icon with a small PNG": (hostile.icon_with(encoded(photograph(1))), (72, 96, 3)),
    "an icon in an icon": (hostile.icon_with(hostile.icon_with(SMALL)), "pixels is above"),
    "an icon of nothing": (b"\0\0\1\0\xff\xff", ""),
    "an Apple icon with a large PNG": (
        hostile.apple_icon_with(hostile.png(60_000, 60_000)),
        "3600 megapixels is above prepare.max_megapixels (30)",
    ),
    "an Apple icon with a large JPEG 2000": (
        hostile.apple_icon_with(encoded(Image.new("RGBA", (8200, 8200)), "JPEG2000", no_jp2=True)),
        "67.24 megapixels is above",
    ),
    "a JPEG of many scans": (hostile.jpeg_of_scans(6500, 1500, 5000), "a JPEG of more than 100 scans"),
    "a JPEG of 100 scans": (hostile.jpeg_of_scans(650, 650, 100), SEEN),
    "a program": (hostile.eps("{} loop"), "not a picture: EPS is a program"),
    "a program with a preview": (b"\xc5\xd0\xd3\xc6" + bytes(28) + hostile.eps("{} loop"), "not a picture: EPS"),
    "a program in a news photo": (hostile.news_photo_with(hostile.eps("{} loop")), "not a picture"),
    "packed text": (hostile.with_chunks(SMALL, (b"zTXt", TEXT)), SEEN),
    "packed text at the end": (hostile.with_chunks(SMALL, (b"zTXt", TEXT), last=True), SEEN),
    "plain text": (hostile.with_chunks(SMALL, (b"tEXt", b"a\0" + bytes(6 * MEGABYTE))), SEEN),
    "many texts": (hostile.with_chunks(SMALL, *[(b"zTXt", b"a\0\0" + hostile.deflated(900_000))] * 20), SEEN),
    "international text": (
        hostile.with_chunks(SMALL, (b"iTXt", b"a\0\1\0\0\0" + hostile.deflated(2 * MEGABYTE))),
        SEEN,
    ),
    "a colour profile": (hostile.with_chunks(SMALL, (b"iCCP", TEXT)), SEEN),
    "comments of a GIF": (hostile.gif_of_comments(20_000), (16, 16, 3)),
    "strips that lie on each other": (hostile.tiff(5000, 5000, 1, 5000), SEEN),
    "a strip that is not there": (hostile.tiff(5000, 5000, 5000, 1), "truncated or damaged"),
    "a strip that is no LZW": (hostile.tiff(5000, 5000, 5000, 1, compression=5), "truncated or damaged"),
    "an animated PNG": (hostile.animation("PNG", 300), SEEN),
    "an animated GIF": (hostile.animation("GIF", 300), SEEN),
    "an animated WebP": (hostile.animation("WEBP", 300), SEEN),
    "16 bits": (hostile.sixteen_bits(65535), (72, 96, 3)),
    "a packed FITS": (hostile.fits(2000 * MEGABYTE), ""),
    "a QOI": (hostile.flat_qoi(1000, 1000), SEEN),
    "a film": (b"\0\0\0\x18ftypmp42" + bytes(100), "not a picture that Pillow can read"),
    "a matroska film": (b"\x1aE\xdf\xa3" + bytes(1000), "not a picture that Pillow can read"),
    "a BMP of no height": (encoded(photograph(1), "BMP")[:22] + struct.pack("<i", 0) + bytes(100), ""),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_a_picture_or_has_a_reason(case: str, decoders: Decoders, tmp_path: Path) -> None:
    data, expected = HOSTILE[case]
    assert len(data) < 7 * MEGABYTE
    (tmp_path / "named.jpg").write_bytes(data)
    for source in (data, tmp_path / "named.jpg"):
        found = ask(decoders, source)
        if isinstance(expected, str):
            assert isinstance(found, str), found
            assert expected in found
            assert "\n" not in found
        else:
            assert found == expected
    assert is_well(decoders)


@pytest.mark.parametrize("begin", [b"", b"\xff\xd8\xff\xe0", encoded(photograph(1), "PNG")[:60], b"\0\0\0\x18ftypmp42"])
def test_a_film_of_twelve_gigabytes_is_looked_at_and_not_read(begin: bytes, decoders: Decoders, tmp_path: Path) -> None:
    with (tmp_path / "film.png").open("wb") as stream:
        stream.write(begin)
        stream.truncate(12_000_000_000)  # a file with a hole, which takes no space on the disk
    size = ask_size(decoders, tmp_path / "film.png", 1.0)
    assert isinstance(size, str) or isinstance(ask(decoders, tmp_path / "film.png"), str)
    assert is_well(decoders)


def test_a_photograph_with_a_film_behind_it_is_not_taken_for_one_of_many_scans(decoders: Decoders) -> None:
    film = np.random.default_rng(0).bytes(20 * MEGABYTE)
    assert film.count(b"\xff\xda") > 200
    assert ask(decoders, encoded(photograph(1), "JPEG", progressive=True) + film) == (72, 96, 3)


def test_common_formats_only_where_that_is_asked_for() -> None:
    common = Decoders(1, Rules(formats="common"))
    assert is_well(common)
    assert str(ask(common, hostile.flat_qoi(10, 10))).startswith("QOI is not one of the formats that are read here (JPEG,")
    assert str(ask(common, b"x")) == "not a picture that Pillow can read"
    assert ask(common, encoded(photograph(1), "MPO", save_all=True, append_images=[photograph(2)])) == (72, 96, 3)
    common.close()
