"""Pictures as nobody should send them: any number, each made from random numbers alone."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from random import Random
from typing import Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from tests.data import hostile
from tests.data.pictures import encoded, photograph

# Formats that Pillow reads and writes, the commonest more often, and how those begin that it only reads.
WRITTEN = [
    *["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"] * 4, *["AVIF", "JPEG2000", "ICO", "MPO"] * 2,
    "BLP", "DDS", "DIB", "ICNS", "IM", "MSP", "PCX", "PPM", "QOI", "SGI", "SPIDER", "TGA", "XBM",
]  # fmt: skip
BEGINNINGS = [
    b"8BPS\0\1\0\0\0\0\0\0\0\3\0\0\0\x20\0\0\0\x20\0\x08\0\3", b"\0\0\2\0\1\0\x20\x20\0\0\1\0\1\0",
    b"\xb1\x68\xde\x3a\1\0\0\0",
    b"SIMPLE  =                    T", b"\0\0\0\0\x11\xaf\1\0\x20\0\x20\0", b"FTC\0\0\0\0\1\0\0\0\x20\0\0\0\x20\0\0\0\1",
    b"\0\0\0\x1c\0\0\0\2\0\0\0\x20\0\0\0\x20\0\0\0\4GIMP", b"\x1c\x03\x14\0\2\0\1", b"\x80\xe8\0\0\0\0\0\x20",
    b"P7 332\n32 32\n",
    b"\0\0\1\xb3\2\0\x20\x14", b"\x59\xa6\x6a\x95\0\0\0\x20\0\0\0\x20\0\0\0\x08\0\0\4\0\0\0\0\1", b"/* XPM */\n",
    b"%!PS-Adobe",
    b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", b"\0\0\0\x18ftypavif", b"\0\0\0\x0cJXL \r\n\x87\n",
    b"<svg xmlns='http://www.w3.org/2000/svg'>",
    b"BUFR", b"GRIB\0\0\0\1", b"\x89HDF\r\n\x1a\n", b"\xd7\xcd\xc6\x9a\0\0", b"%PDF-1.7", b"PK\3\4", b"\x80\4\x95",
    b"<html>", b"P6\n",
    b"P4\n", b"Pf\n32 32\n-1.0\n", b"Py\n", b"\1\xda\1\1\0\3", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0",
    b"BLP2\1\0\0\0",
    b"DDS \x7c\0\0\0", b"icns\0\0\1\0", b"qoif\0\0\0\x20\0\0\0\x20\3\0", b"\0\0\2\0", b"\0\0\3\0", b"\0\0\x0a\0\0\0",
]  # fmt: skip
SUFFIXES = ("jpg", "JPEG", "png", "webp", "gif", "bmp", "tif", "avif", "heic", "ico", "eps", "svg", "txt", "exe", "")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F")
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
# Where the parts of a file begin: segments, chunks, boxes, blocks.
PARTS = re.compile(
    rb"\xff[\xc0-\xfe]|IHDR|PLTE|tRNS|[ait]?IDAT|fcTL|fdAT|IEND|[tizT]{2}Xt|eXIf|iCCP|RIFF|WEBP|VP8[ LX]|ALPH|ANIM|ANMF|"
    rb"EXIF|ftyp|meta|mdat|iloc|iprp|ispe|av1C|ihdr|jp2c|colr|Exif|\x21[\xf9\xfe\xff]|\x2c\0\0|II\*\0|MM\0\*|acsp"
)  # fmt: skip


def picture(rng: Random) -> tuple[str, bytes]:
    """A name and what is in the file: nearly all formats, mostly with something wrong in it."""
    kind = rng.random()
    data = bomb(rng) if kind < 0.12 else begun(rng) if kind < 0.2 else drawn(rng)
    for _ in range(rng.choice((0, 0, 1, 1, 1, 2))):
        data = rng.choice(DAMAGES)(rng, data)
    if data.startswith(b"\x89PNG") and rng.random() < 0.7:
        data = with_right_sums(data)  # or Pillow sees nothing but a wrong sum
    return f"picture.{rng.choice(SUFFIXES)}", data


def drawn(rng: Random) -> bytes:
    """A picture of some format and mode, with all that may come with it; without what that format cannot hold."""
    kind, image = rng.choice(WRITTEN), _image(rng)
    options: dict[str, Any] = {}
    for key, values in {
        "exif": exif, "icc_profile": _profile, "quality": lambda rng: rng.randrange(101), "progressive": lambda _: True,
        "optimize": lambda _: True, "lossless": lambda _: True, "comment": lambda rng: rng.randbytes(rng.choice((9,
        60_000))),
        "dpi": lambda rng: (rng.choice((0, 1, 72, 65_535)),) * 2, "pnginfo": _text,
        "transparency": lambda rng: rng.randrange(256),
        "compression": lambda rng: rng.choice(("tiff_lzw", "tiff_deflate", "packbits", "group4", "jpeg", "zstd",
        "tga_rle")),
        "big_tiff": lambda _: True, "xmp": lambda rng: rng.randbytes(99), "bits": lambda _: 4,
    }.items():  # fmt: skip
        if rng.random() < 0.15:
            options[key] = values(rng)
    if rng.random() < 0.12:
        options |= {"save_all": True, "append_images": [_image(rng) for _ in range(rng.choice((1, 2, 30)))], "loop": 0}
    for mode in (image.mode, "RGB", "L", "1"):
        for chosen in (options, {}):
            with suppress(Exception):  # what a format cannot hold
                return encoded(image if mode == image.mode else image.convert(mode), kind, **chosen)
    return encoded(photograph(3))


def _image(rng: Random) -> Image.Image:
    size = rng.choice((*((32, 24), (96, 72), (255, 257), (16, 16)) * 3, (24, 32), (1, 1), (1, 64), (99, 1), (300, 2)))
    image, mode = photograph(rng.randrange(40), size), rng.choice(MODES)
    if mode in ("I", "I;16", "F"):
        values = np.asarray(image.convert("L")).astype(np.float64) * rng.choice((1, 16, 257, 1e6, -1, float("nan")))
        with np.errstate(invalid="ignore"):
            return Image.fromarray(values.astype({"I": np.int32, "I;16": np.uint16, "F": np.float32}[mode]))
    if mode == "LAB":
        return ImageCms.profileToProfile(image, _srgb(), ImageCms.createProfile("LAB"), outputMode="LAB")  # type: ignore[return-value]
    image = image.convert("LA").convert("PA") if mode == "PA" else image.convert(mode)
    if mode in ("LA", "RGBA") and rng.random() < 0.7:
        image.putalpha(rng.choice((0, 1, 128, 254)))
    return image


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _profile(rng: Random) -> bytes:
    right = _srgb().tobytes()
    return rng.choice((right, right[: rng.randrange(len(right))], flipped(rng, right), b"", rng.randbytes(200_000)))


def exif(rng: Random) -> bytes:
    """EXIF with an orientation that may not exist, numbers without sense, or that ends too early."""
    block = Image.Exif()
    block[0x0112] = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 255, 65_535))
    block[rng.choice((0x010E, 0x9286, 0x8769, 0x8825, 0x927C))] = rng.choice(("\0", "x" * 50_000, "e\u0301\n\x1b[31m", ""))
    with suppress(Exception):  # a folder of tags that is text
        data = block.tobytes()
        return rng.choice((data, data, data[: rng.randrange(len(data))], flipped(rng, data)))
    return b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\xff\xff\xff\xff\0\6\0\0"


def _text(rng: Random) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for _ in range(rng.choice((1, 1, 40))):
        info.add_text(rng.choice(("a", "XML:com.adobe.xmp", "k" * 79)), "t" * rng.choice((0, 10, 2_000_000)), zip=True)
    return info


def begun(rng: Random) -> bytes:
    """The beginning of a format, and then something else."""
    return rng.choice(BEGINNINGS) + rng.choice(
        (b"", b"\0" * 600, b" " * 90, b"\xff" * 300, rng.randbytes(rng.randrange(900)))
    )


def bomb(rng: Random) -> bytes:
    """Few bytes that stand for many pixels, many scans, many frames or much text."""
    side = rng.choice((1000, 1900, 2100, 20_000, 60_000))
    small = min(side, 2100)
    makers: list[Callable[[], bytes]] = [
        lambda: hostile.png(side, side),
        lambda: hostile.png(rng.choice(EXTREMES), rng.choice(EXTREMES), depth=rng.choice((0, 1, 3, 8, 16)),
        kind=rng.randrange(8)),
        lambda: hostile.flat_png(small, small),
        lambda: hostile.flat_webp(min(side, 16_000), min(side, 16_000)),
        lambda: hostile.icon_with(hostile.png(side, side), rng.choice((0, 16, 255))),
        lambda: hostile.icon_with(rng.choice((b"", b"BM", hostile.flat_png(300, 300), hostile.eps("{} loop")))),
        lambda: hostile.apple_icon_with(hostile.png(side, side)),
        lambda: hostile.jpeg_of_scans(small, small, rng.choice((2, 20, 99, 101, 4000))),
        lambda: hostile.flat_qoi(rng.choice((100, 700)), 300),
        lambda: hostile.gif_of_comments(rng.choice((10, 20_000))),
        lambda: hostile.tiff(side, side, rng.choice((1, 8, side)), rng.choice((1, 9, 5000)), rng.choice((1, 5, 7, 8)),
        rng.choice((1, 8, 16, 32))),
        lambda: hostile.animation(rng.choice(("GIF", "WEBP", "PNG", "TIFF")), rng.choice((2, 60)), 16),
        lambda: hostile.fits(rng.choice((1 << 20, 40 << 20))),
        lambda: hostile.eps(rng.choice(("{} loop", "(%pipe%id) (r) file"))),
        lambda: hostile.news_photo_with(rng.choice((hostile.eps("{} loop"), encoded(photograph(1)), b""))),
        lambda: hostile.with_chunks(encoded(photograph(1)), (b"zTXt", b"a\0\0" + hostile.deflated(1 << 22)),
        last=rng.random() < 0.5),
        lambda: hostile.with_chunks(encoded(photograph(1)), (b"iCCP", b"a\0\0" + hostile.deflated(1 << 22))),
        lambda: encoded(Image.new("1", rng.choice(((9000, 1), (1, 9000), (4000, 30), (101, 1), (100, 1))))),
        lambda: b"P5 %d %d 255\n" % (side, side),
    ]  # fmt: skip
    return rng.choice(makers)()


# --- what happens to files ----------------------------------------------------------------------------------------


def cut(rng: Random, data: bytes) -> bytes:
    """Its beginning, up to somewhere near the beginning of a part or anywhere."""
    at = [part.start() for part in PARTS.finditer(data[:200_000])] or [0]
    near = rng.choice((*at, len(data))) + rng.choice((-1, 0, 1, 2, 4, 8, 9))
    return data[: max(0, rng.choice((near, near, rng.randrange(len(data) + 1), rng.randrange(40))))]


def flipped(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 30))):
        if changed:
            near = rng.choice((len(changed), min(len(changed), 64)))
            changed[rng.randrange(near)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def renumbered(rng: Random, data: bytes) -> bytes:
    """A number in its head or behind the beginning of a part is one that programs forget."""
    form = rng.choice(("<H", ">H", "<I", ">I"))
    number = struct.pack(form, rng.choice(EXTREMES) & (0xFFFF if form[1] == "H" else 0xFFFFFFFF))
    starts = [part.end() for part in PARTS.finditer(data[:100_000])]
    at = rng.choice((rng.randrange(64), rng.choice(starts or [0]) + rng.choice((0, 0, 1, 2, 4, 8))))
    return data[:at] + number + data[at + len(number) :]


def shuffled(rng: Random, data: bytes) -> bytes:
    """A part is missing, there twice, or overwritten."""
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice((1, 8, 100, 5000)))
    part = rng.choice((b"", data[start:end] * 2, bytes(end - start), b"\xff" * (end - start), rng.randbytes(end - start)))
    return data[:start] + part + data[end:]


def joined(rng: Random, data: bytes) -> bytes:
    """Something stands before or behind it."""
    more = rng.choice((b"\0" * 4096, b"\n", rng.randbytes(99), encoded(photograph(2)), hostile.eps("{} loop"), b"\xff\xd9"))
    return rng.choice((data + more, data + more, more + data))


def with_right_sums(png: bytes) -> bytes:
    """A PNG with the check sums that its chunks should have."""
    stream, fixed = io.BytesIO(png[8:]), bytearray(png[:8])
    while len(head := stream.read(8)) == 8:
        length = int.from_bytes(head[:4])
        body = stream.read(min(length, len(png)))
        stream.read(4)
        fixed += head + body + struct.pack(">I", zlib.crc32(head[4:] + body))
    return bytes(fixed)


DAMAGES: list[Callable[[Random, bytes], bytes]] = [cut, flipped, renumbered, renumbered, shuffled, joined]
