"""Whatever lies in a folder becomes an upright 8-bit RGB picture, or is left out with a reason."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, TiffImagePlugin
from scipy.fft import dctn

from headstart.data.decode import Unusable, decode, fingerprint
from tests.data import hostile
from tests.data.pictures import encoded, photograph

PHOTO = photograph(0)
KINDS = {kind: encoded(PHOTO, kind) for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM")}


def first_pixel(image: Image.Image, kind: str, **options: object) -> tuple[list[int], tuple[str, ...]]:
    decoded = decode(encoded(image, kind, **options))
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.shape == (image.height, image.width, 3)
    return decoded.pixels[0, 0].tolist(), decoded.notes


# --- proper pictures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_common_kind_is_read_at_its_own_size(kind: str) -> None:
    decoded = decode(KINDS[kind])
    assert (decoded.pixels.shape, decoded.width, decoded.height, decoded.notes) == ((72, 96, 3), 96, 72, ())
    difference = np.abs(decoded.pixels.astype(int) - np.asarray(PHOTO)).mean()
    assert difference < (0.5 if kind in ("PNG", "TIFF", "BMP", "PPM") else 12)


def test_a_path_and_its_bytes_are_the_same_picture(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(KINDS["JPEG"])
    assert (decode(tmp_path / "a.jpg").pixels == decode(KINDS["JPEG"]).pixels).all()


@pytest.mark.parametrize(
    ("image", "kind", "options", "pixel", "note"),
    [
        (Image.new("L", (4, 3), 200), "PNG", {}, [200] * 3, None),
        (Image.new("1", (4, 3), 1), "PNG", {}, [255] * 3, None),
        (Image.new("CMYK", (4, 3), (0, 255, 255, 0)), "TIFF", {}, [255, 0, 0], "CMYK converted to RGB"),
        (Image.new("RGBA", (4, 3), (0, 0, 0, 128)), "PNG", {}, [127] * 3, "transparency laid over white"),
        (Image.new("RGBA", (4, 3), (9, 8, 7, 255)), "PNG", {}, [9, 8, 7], None),
        (Image.new("LA", (4, 3), (10, 0)), "PNG", {}, [255] * 3, "transparency laid over white"),
        (Image.new("LA", (4, 3), (10, 255)), "PNG", {}, [10] * 3, None),
        (
            Image.new("RGB", (4, 3), (1, 2, 3)),
            "PNG",
            {"transparency": (1, 2, 3)},
            [255] * 3,
            "transparency laid over white",
        ),
        (Image.new("L", (4, 3), 7), "PNG", {"transparency": 7}, [255] * 3, "transparency laid over white"),
        (Image.fromarray(np.full((3, 4), 65535, np.uint16)), "PNG", {}, [255] * 3, "16 bits scaled to 8"),
        (Image.fromarray(np.full((3, 4), 32896, np.uint16)), "PNG", {}, [128] * 3, "16 bits scaled to 8"),
        (Image.fromarray(np.full((3, 4), 257, np.uint16)), "TIFF", {}, [1] * 3, "16 bits scaled to 8"),
    ],
    ids=[
        "grey",
        "1 bit",
        "CMYK",
        "RGBA",
        "opaque RGBA",
        "LA",
        "opaque LA",
        "RGB key",
        "grey key",
        "16",
        "16 mid",
        "16 low",
    ],
)
def test_every_pixel_format_is_converted_and_the_conversion_noted(
    image: Image.Image, kind: str, options: dict[str, object], pixel: list[int], note: str | None
) -> None:
    assert first_pixel(image, kind, **options) == (pixel, (note,) if note else ())


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L key", "RGB key"])
@pytest.mark.parametrize(("ink", "ground"), [(255, 0), (250, 0), (230, 255), (0, 255)])
def test_an_icon_lies_on_what_it_is_seen_on(mode: str, ink: int, ground: int) -> None:
    """White, but black for what is nearly white, in every way to write transparency."""
    mask = Image.new("L", (16, 16), 0)
    ImageDraw.Draw(mask).rectangle((4, 4, 11, 11), fill=255)
    image = Image.merge("LA", (Image.new("L", mask.size, ink), mask))
    options: dict[str, object] = {}
    if mode in ("L key", "RGB key"):
        flat = Image.composite(Image.new("L", mask.size, ink), Image.new("L", mask.size, 7), mask)
        image = flat.convert(mode.split()[0])
        options["transparency"] = 7 if mode == "L key" else (7, 7, 7)
    if mode == "P":
        image = Image.new("P", mask.size, 0)
        image.putpalette([7, 7, 7, ink, ink, ink])
        image.paste(1, mask=mask)
        options["transparency"] = 0
    decoded = decode(encoded(image.convert("RGBA") if mode == "RGBA" else image, "PNG", **options))
    assert decoded.pixels[0, 0].tolist() == [ground] * 3
    assert decoded.pixels[8, 8].tolist() == [ink] * 3
    assert decoded.notes[0].startswith(f"transparency laid over {'white' if ground else 'black'}")


def test_what_is_transparent_altogether_or_not_at_all_lies_on_white() -> None:
    assert decode(encoded(Image.new("RGBA", (4, 4), (255, 255, 255, 0)))).pixels.min() == 255
    opaque = decode(encoded(Image.new("RGBA", (4, 4), (255, 255, 255, 255))))
    assert (opaque.pixels.min(), opaque.notes) == (255, ())


def test_a_white_page_with_text_and_round_corners_stays_on_white() -> None:
    page = Image.new("RGBA", (100, 140), "white")
    for line in range(20, 120, 10):
        ImageDraw.Draw(page).line((15, line, 85, line), fill="black", width=2)
    page.putpixel((0, 0), (0, 0, 0, 0))
    assert decode(encoded(page)).pixels[0, 0].tolist() == [255] * 3


def test_a_cmyk_jpeg_is_not_inverted() -> None:
    red, notes = first_pixel(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert red[0] > 240
    assert max(red[1:]) < 20
    assert notes == ("CMYK converted to RGB",)


@pytest.mark.parametrize(("options", "pixel"), [({}, [255, 0, 0]), ({"transparency": 0}, [255, 255, 255])])
def test_a_palette_is_looked_up_and_its_transparent_entry_is_white(options: dict[str, object], pixel: list[int]) -> None:
    image = Image.new("P", (4, 3), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    assert first_pixel(image, "PNG", **options)[0] == pixel


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_an_animation_the_first_frame_is_taken_and_said(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    pixel, notes = first_pixel(frames[0], kind, save_all=True, append_images=frames[1:])
    assert pixel[0] > 240
    assert pixel[2] < 20
    assert notes == ("animated or many pages: the first is used",)


def test_the_pages_of_a_picture_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow takes seconds for ten thousand pages of a TIFF of one megabyte: a server would be stopped by a few of them."""
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "n_frames", property(lambda image: pytest.fail("counted")))
    pages = [Image.new("L", (8, 8), n) for n in range(3)]
    assert "many pages" in decode(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])).notes[0]


def test_a_camera_s_preview_behind_the_picture_is_no_animation() -> None:
    assert decode(encoded(PHOTO, "MPO", save_all=True, append_images=[PHOTO])).notes == ()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_rotation_is_undone(orientation: int, kind: str) -> None:
    upright = Image.new("RGB", (64, 32), "black")
    ImageDraw.Draw(upright).rectangle((0, 0, 15, 7), fill="white")  # white in the top left corner only
    turned = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encoded(upright.transpose(turned) if turned is not None else upright, kind, exif=exif))
    assert (decoded.width, decoded.height) == (64, 32)
    assert np.abs(decoded.pixels.astype(int) - np.asarray(upright)).mean() < 3
    if kind != "TIFF":  # Pillow itself turns those
        assert decoded.notes == (("turned upright by its EXIF tag",) if orientation > 1 else ())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("garbage", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\0\0"])
def test_a_garbled_exif_block_costs_no_picture(kind: str, garbage: bytes) -> None:
    assert decode(encoded(PHOTO, kind, exif=garbage)).pixels.shape == (72, 96, 3)


def test_an_orientation_that_does_not_exist_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 99
    assert decode(encoded(PHOTO, "JPEG", exif=exif)).notes == ()


# --- size ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "stored"), [((640, 480), (85, 64)), ((480, 640), (64, 85)), ((40, 30), (40, 30)), ((100, 80), (100, 80))]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_pictures_are_made_smaller_to_the_short_side_but_for_those_that_are_hardly_larger(
    size: tuple[int, int], stored: tuple[int, int], kind: str
) -> None:
    image = photograph(1, size)
    decoded = decode(encoded(image, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {})), short_side=64)
    assert decoded.pixels.shape == (stored[1], stored[0], 3)
    assert (decoded.width, decoded.height) == size
    ideal = np.asarray(image.resize(stored, Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(decoded.pixels - ideal).mean() < 3


def test_a_rotated_photograph_reports_its_upright_size_although_it_is_decoded_small() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode(encoded(photograph(1, (640, 480)), "JPEG", exif=exif), short_side=64)
    assert (decoded.pixels.shape, decoded.width, decoded.height) == ((85, 64, 3), 480, 640)


# --- more than 8 bits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("brightest", [255, 1023, 4095, 16383])
def test_what_is_white_in_16_bits_can_be_said(brightest: int) -> None:
    data = hostile.sixteen_bits(brightest)
    dark = decode(data)
    assert dark.notes == ("16 bits scaled to 8", f"16 bits, but no value above {brightest}")
    assert dark.pixels.max() == brightest // 257
    right = decode(data, white_level=brightest)
    assert right.notes == ("16 bits scaled to 8",)
    assert (right.pixels.min(), right.pixels.max()) == (0, 255)
    assert decode(hostile.sixteen_bits(65535), white_level=brightest).pixels.max() == 255  # more than white is white


def test_a_tiff_of_12_bits_says_itself_what_is_white() -> None:
    packed = hostile.tiff(8, 8, 8, 1, bits=12)
    data = packed[:300] + bytes([0xFF] * 96)  # two values in three bytes, all of them white
    decoded = decode(data)
    assert decoded.pixels.min() == 255
    assert decoded.notes == ("16 bits scaled to 8",)


# --- what is left out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file (0 bytes)"),
        (b"these are my notes, not a picture", "not a picture that Pillow can read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture that Pillow can read"),
        (KINDS["JPEG"][:20], "not a picture that Pillow can read"),
        (KINDS["JPEG"][:-400], "truncated or damaged: image file is truncated"),
        (KINDS["PNG"][:-400], "truncated or damaged: "),
        (KINDS["WEBP"][:-200], ""),
        (b"DDS " + (124).to_bytes(4, "little") + bytes(120), "not a picture that Pillow can read"),
        (encoded(Image.new("F", (4, 4), 0.5), "TIFF"), "floating-point pixels have no known range"),
        (encoded(Image.new("I", (4, 4), 70_000), "TIFF"), "32-bit pixels have no known range"),
    ],
    ids=["empty", "text", "svg", "header cut", "JPEG cut", "PNG cut", "WEBP cut", "odd DDS", "float", "32 bits"],
)
def test_what_cannot_be_used_is_refused_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "named.jpg").write_bytes(content)
    with pytest.raises(Unusable) as caught:
        decode(tmp_path / "named.jpg")
    assert str(caught.value).startswith(reason)
    assert "\n" not in str(caught.value)


def test_a_decompression_bomb_is_refused_by_its_header_alone() -> None:
    bomb = encoded(Image.new("L", (20_000, 10_000)), "PNG")
    assert len(bomb) < 300_000
    with pytest.raises(Unusable, match=r"20000×10000 pixels is above prepare\.max_megapixels \(100\)"):
        decode(bomb)
    with pytest.raises(Unusable, match=r"96×72 pixels is above prepare\.max_megapixels \(0\.006\)"):
        decode(KINDS["PNG"], max_megapixels=0.006)


def test_a_line_is_no_picture() -> None:
    """A network that is shown 256 pixels of its short side would be shown 25 million of its long one."""
    with pytest.raises(Unusable, match="100000×1 pixels: more than 100 times as long as wide"):
        decode(encoded(Image.new("L", (100_000, 1)), "PNG"))
    assert decode(encoded(Image.new("L", (3, 300)), "PNG")).height == 300


def test_a_file_that_is_not_there_is_a_reason_too(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="cannot be read: No such file or directory"):
        decode(tmp_path / "gone.jpg")


@given(
    kind=st.sampled_from(sorted(KINDS)),
    damage=st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.integers(0, 255)), min_size=1, max_size=4),
)
@settings(max_examples=200)
def test_a_damaged_file_is_a_picture_or_has_a_reason_and_nothing_else(
    kind: str, damage: list[tuple[float, bool, int]]
) -> None:
    content = bytearray(KINDS[kind])
    for at, in_header, value in damage:
        content[int(at * ((64 if in_header else len(content)) - 1))] = value
    try:
        decoded = decode(bytes(content), short_side=64)
    except Unusable as reason:
        assert str(reason)
    else:
        assert decoded.pixels.dtype == np.uint8
        assert decoded.pixels.ndim == 3
        assert decoded.pixels.shape[2] == 3


# --- fingerprints -------------------------------------------------------------------------------------------------


def test_a_recompressed_and_resized_copy_has_a_near_fingerprint_and_another_picture_has_not() -> None:
    image = photograph(2, (640, 480))
    copy = Image.open(io.BytesIO(encoded(image.resize((320, 240)), "JPEG", quality=70)))
    (a, a_thumb), (b, b_thumb), (c, _) = (fingerprint(i.convert("RGB")) for i in (image, copy, photograph(3, (640, 480))))
    assert (a ^ b).bit_count() <= 4
    assert (a ^ c).bit_count() > 12
    assert len(a_thumb) == 768
    thumbnails = (np.frombuffer(thumb, np.uint8).astype(int) for thumb in (a_thumb, b_thumb))
    assert np.abs(next(thumbnails) - next(thumbnails)).mean() < 3


@given(st.integers(0, 10_000))
def test_the_hash_is_the_sign_of_the_lowest_frequencies_against_their_median(seed: int) -> None:
    grey = photograph(seed, (32, 32)).convert("L")
    lowest = dctn(np.asarray(grey, np.float64), type=2)[:8, :8]
    bits = np.packbits(lowest > np.median(lowest)).tobytes()
    assert fingerprint(grey.convert("RGB"))[0] == int.from_bytes(bits, "big")


def test_rounding_errors_are_no_part_of_the_hash_of_a_symmetric_drawing() -> None:
    drawing = Image.new("RGB", (72, 72), "white")
    ImageDraw.Draw(drawing).ellipse((10, 20, 61, 51), fill="orange")  # mirrored it is the same
    number, _ = fingerprint(drawing)
    odd = [row * 8 + column for row in range(8) for column in range(8) if row % 2 or column % 2]
    assert not any(number >> (63 - bit) & 1 for bit in odd)  # all of them are nought, and so is their median
