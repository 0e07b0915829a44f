"""Small files that cost much to decode, made here. Each is valid as far as its decoder looks before it begins."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from tests.data.pictures import encoded


def png(width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 8, kind: int = 0) -> bytes:
    """A grey PNG whose pixels are missing."""
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    body = (head, *chunks, (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in body
    )


def with_chunks(picture: bytes, *chunks: tuple[bytes, bytes], last: bool = False) -> bytes:
    """A PNG with more chunks behind its header, or before its end."""
    at = len(picture) - 12 if last else 33
    more = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return picture[:at] + more + picture[at:]


def flat_png(width: int, height: int) -> bytes:
    """One bit per pixel, all of them there: a thousandth of a byte each."""
    row = bytes(1 + (width + 7) // 8)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return with_chunks(png(width, height, depth=1), (b"IDAT", data))


def icon_with(inside: bytes, side: int = 16) -> bytes:
    """An .ico whose head says ``side``×``side`` and whose picture is ``inside``."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, side, side, 0, 0, 1, 32, len(inside), 22) + inside


def apple_icon_with(inside: bytes) -> bytes:
    """An .icns whose head says 512×512."""
    return b"icns" + struct.pack(">I4sI", len(inside) + 16, b"ic09", len(inside) + 8) + inside


def flat_webp(width: int, height: int) -> bytes:
    """A lossless WebP of one colour."""
    template = bytearray(encoded(Image.new("RGB", (16, 16), (200, 30, 30)), "WEBP", lossless=True))
    template[21:25] = ((width - 1) | (height - 1) << 14).to_bytes(4, "little")
    return bytes(template)


def jpeg_of_scans(width: int, height: int, scans: int) -> bytes:
    """A grey progressive JPEG that goes over all its blocks again and again, each time to change nothing."""
    plain = encoded(Image.new("L", (8, 8), 90), "JPEG")
    tables = b"".join(segment for marker, segment in _segments(plain) if marker in (0xDB, 0xC4))
    frame = b"\xff\xc2" + struct.pack(">HBHHBBBB", 11, 8, height, width, 1, 1, 0x11, 0)
    dc = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 0, 0) + b"\0" * 16
    ac = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 63, 0) + b"\0" * 4
    return b"\xff\xd8" + tables + frame + dc + ac * (scans - 1) + b"\xff\xd9"


def _segments(jpeg: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 2
    while jpeg[at + 1] != 0xDA:
        length = int.from_bytes(jpeg[at + 2 : at + 4])
        found.append((jpeg[at + 1], jpeg[at : at + 2 + length]))
        at += 2 + length
    return found


def flat_qoi(width: int, height: int) -> bytes:
    """Runs of 62 equal pixels, which Pillow decodes in Python."""
    runs = -(-width * height // 62)
    return b"qoif" + struct.pack(">IIBB", width, height, 3, 0) + b"\xfd" * runs + b"\0" * 7 + b"\1"


def eps(command: str) -> bytes:
    return f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{command}\nshowpage\n".encode()


def news_photo_with(inside: bytes) -> bytes:
    """An IPTC file, whose picture Pillow opens as any format."""

    def entry(record: int, number: int, data: bytes) -> bytes:
        return struct.pack(">BBBH", 0x1C, record, number, len(data)) + data

    return (
        entry(3, 20, struct.pack(">H", 9)) + entry(3, 30, struct.pack(">H", 9)) + entry(3, 60, b"\1\0")
        + entry(3, 120, b"\5") + entry(8, 10, inside)
    )  # fmt: skip


def gif_of_comments(count: int) -> bytes:
    """Each comment is appended to the text of those before it."""
    picture = encoded(Image.new("L", (16, 16)), "GIF")
    at = 13 + 3 * 2 ** ((picture[10] & 7) + 1)
    return picture[:at] + b"\x21\xfe\x01x\0" * count + picture[at:]


def tiff(width: int, height: int, rows_per_strip: int, strips: int, compression: int = 1, bits: int = 8) -> bytes:
    """A grey TIFF whose strips all lie on the same few bytes."""
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, compression), (262, 3, 1, 1),
        (273, 4, strips, 300), (277, 3, 1, 1), (278, 4, 1, rows_per_strip), (279, 4, strips, 300 + 4 * strips),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    return head.ljust(300, b"\0") + struct.pack("<I", 300) * strips + struct.pack("<I", 100) * strips + bytes(200)


def sixteen_bits(brightest: int, kind: str = "PNG") -> bytes:
    ramp = np.linspace(0, brightest, 96 * 72).reshape(72, 96).astype(np.uint16)
    return encoded(Image.fromarray(ramp), kind)


def animation(kind: str, frames: int, side: int = 64) -> bytes:
    pictures = [Image.new("RGB", (side, side), (n % 256, 0, 0)) for n in range(frames)]
    stream = io.BytesIO()
    pictures[0].save(stream, kind, save_all=True, append_images=pictures[1:])
    return stream.getvalue()


def fits(count: int) -> bytes:
    """A FITS of 64×64 pixels whose packed table holds ``count`` zeros."""

    def header(*cards: str) -> bytes:
        return b"".join(card.ljust(80).encode() for card in (*cards, "END")).ljust(2880)

    packer = zlib.compressobj(9, wbits=31)
    table = b"".join(packer.compress(bytes(1 << 20)) for _ in range(count >> 20)) + packer.flush()
    return (
        header("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 0")
        + header(
            "XTENSION= 'BINTABLE'", "ZBITPIX = 8", "ZNAXIS  = 2", "ZNAXIS1 = 64", "ZNAXIS2 = 64", "ZCMPTYPE= 'GZIP_1  '",
            "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 0", "NAXIS2  = 0",
        )
        + table
    )  # fmt: skip


def deflated(count: int) -> bytes:
    """So many zeros, packed."""
    return zlib.compress(bytes(count), 9)


def noise(kind: str, width: int, height: int) -> bytes:
    grain = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return encoded(Image.fromarray(grain).resize((width, height)), kind)
