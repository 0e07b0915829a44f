"""From a file to an upright 8-bit RGB picture, its fingerprint and the bytes stored for it.

All that shapes what is stored of a picture is in this module and in ``file_properties``, the only one of headstart that it
imports: a change there, or another version of Pillow or NumPy, makes prepare decode every picture again. What comes from
strangers is decoded by ``headstart.data.decoders``, in processes that can be stopped.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageStat, PngImagePlugin

from headstart.data.file_properties import FileProperties, properties_of

Array = NDArray[np.uint8]
Formats = Literal["all", "common"]
THUMBNAIL_SIDE, HASH_SIDE, FINGERPRINT_SIDE = 16, 32, 96  # pixels
# (8, HASH_SIDE): the eight lowest frequencies of the discrete cosine transform (type II).
DCT_BASIS = np.cos(np.pi * np.outer(np.arange(8), 2 * np.arange(HASH_SIDE) + 1) / (2 * HASH_SIDE))
MAX_ASPECT_RATIO = 100  # a picture of one row, resized to a height of 256 pixels, would fill the memory
NEARLY_WHITE = 0.06  # of the way from white to black: what is on average no darker is not seen on white
MAX_PIPED = 100 << 20  # bytes that are read from what is not a file
MAX_SCANNED = 256 << 20  # bytes of a JPEG in which its scans are counted
MAX_SCANS = 100  # of a JPEG; progressive ones have about ten, and each passes over the whole picture
RESIZE_ABOVE = 1.25  # times the short side: a smaller reduction takes longer than decoding and saves little
SIXTEEN_BITS = 65535
TIFF_BITS_PER_SAMPLE = 258
SCALED, DARK = "16 bits scaled to 8", "16 bits, but no value above {}"  # notes
COMMON = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "ICO")  # what people send, all decoded in C
# An EPS file is a program, which Pillow runs in Ghostscript; what an IPTC file holds is opened as any format, EPS too.
NEVER = {"EPS", "IPTC"}
EPS_BEGINS = (b"%!PS", b"\xc5\xd0\xd3\xc6")
# The transposition that undoes each value of EXIF's orientation tag. ImageOps.exif_transpose also rewrites the whole EXIF
# block and fails on a picture when another tag in it is garbled.
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
# A marker of a JPEG that begins a segment: neither an escaped FF in the data of a scan nor a restart in it.
SEGMENT = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
START_OF_SCAN, END_OF_IMAGE = b"\xda", b"\xd9"
PNG_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
PngImagePlugin.MAX_TEXT_MEMORY = 4 << 20  # bytes; a PNG with more is read without its text


class Unusable(Exception):  # noqa: N818 - a finding about one picture, not an error of the run
    """The picture cannot be used; the message is the reason that audit.json gives."""


@dataclass(frozen=True)
class Decoded:
    """A usable picture.

    Attributes:
        image: RGB, resized to the short side asked for unless it is hardly larger.
        width, height: of the original after EXIF rotation, in pixels.
        file: what its file says of itself.
        notes: the conversions that were needed.
    """

    image: Image.Image
    width: int
    height: int
    file: FileProperties
    notes: tuple[str, ...] = field(default=())

    @property
    def pixels(self) -> Array:
        """A copy, (height, width, 3) uint8."""
        return np.array(self.image)


@contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warnings about files that it can read anyway. Call it outside of threads: warning filters belong to
    the whole process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decode(
    source: bytes | Path,
    short_side: int | None = None,
    max_megapixels: float = 100.0,
    formats: Formats = "all",
    white_level: int = SIXTEEN_BITS,
) -> Decoded:
    """Decode one picture.

    Transparency is composited on white (on black if all that is there is nearly white), CMYK and grey become RGB, 16 bits
    are scaled to 8, EXIF rotation is applied, and the first frame of an animation is taken. The picture is resized to
    ``short_side`` pixels, unless it is hardly larger.

    Args:
        max_megapixels: larger pictures are refused before any pixel is decoded.
        formats: ``all`` that Pillow reads except EPS, or those in ``COMMON``.
        white_level: the value in a picture of 16 bits that becomes white.

    Raises:
        Unusable: it is not a picture, damaged, too large, or its pixels have no known range.
    """
    with _stream(source) as stream, within_memory():
        try:
            return _decoded(stream, short_side, max_megapixels, formats, white_level)
        except _MetadataTooLarge:
            return _decoded(_without_metadata(stream), short_side, max_megapixels, formats, white_level)


def stored_size(source: bytes | Path, max_megapixels: float = 100.0, formats: Formats = "all") -> tuple[int, int]:
    """Width and height of a picture as stored, from its header alone.

    Raises:
        Unusable: the header already says that ``decode`` will refuse it.
    """
    with _stream(source) as stream, within_memory():
        size = _webp_size(stream) or _icon_size(stream)  # Pillow makes their pixels when it opens them
        if size:
            _check_size(*size, max_megapixels)
            return size
        try:
            return _opened(stream, max_megapixels, formats).size
        except _MetadataTooLarge:
            return _opened(_without_metadata(stream), max_megapixels, formats).size


class _MetadataTooLarge(Unusable):
    """Pillow refuses a PNG because of the text in it, which nobody asked for; without it there is a second try."""


@contextmanager
def _stream(source: bytes | Path) -> Iterator[BinaryIO]:
    """The file, which is never read whole: a film among the pictures may be larger than the memory."""
    try:
        stream = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte in it
        raise Unusable(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    with stream:
        yield stream if stream.seekable() else io.BytesIO(stream.read(MAX_PIPED))


@contextmanager
def within_memory() -> Iterator[None]:
    """A picture for which the memory does not suffice is unusable."""
    try:
        yield
    except MemoryError:
        raise Unusable("decoding it takes more memory than a picture of its size may; save it in another format") from None


def _decoded(
    stream: BinaryIO, short_side: int | None, max_megapixels: float, formats: Formats, white_level: int
) -> Decoded:
    image = _opened(stream, max_megapixels, formats)
    width, height = image.size
    notes = []
    try:
        if getattr(image, "is_animated", False) and image.format != "MPO":  # the second picture of an MPO is a preview
            notes.append("animated or many pages: the first is used")
        if short_side and image.format == "JPEG" and image.mode in ("L", "RGB"):
            image.draft(image.mode, (short_side, short_side))  # libjpeg scales by 1/2, 1/4 or 1/8 while decoding
        image.load()
        file = properties_of(
            image
        )  # not before: Pillow reads a PNG for its EXIF tags, and then takes half of one for whole
        orientation = _orientation(image)
        if orientation in UPRIGHT:
            image = image.transpose(UPRIGHT[orientation])
            notes.append("turned upright by its EXIF tag")
        if orientation in (5, 6, 7, 8):
            width, height = height, width
        image = _rgb(image, notes, white_level)
    except (Unusable, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(error, max_megapixels) from None
    except Exception as error:  # plugins raise many kinds of errors on damaged data, and one bad file must not end the run
        if _is_about_metadata(error):
            raise _MetadataTooLarge(str(error)) from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Unusable(f"truncated or damaged: {reason[:120]}") from None
    if short_side and min(image.size) > RESIZE_ABOVE * short_side:
        scale = short_side / min(image.size)
        smaller = (max(short_side, round(image.width * scale)), max(short_side, round(image.height * scale)))
        image = image.resize(smaller, Image.Resampling.HAMMING, reducing_gap=3.0)
    return Decoded(image, width, height, file, tuple(notes))


def _opened(stream: BinaryIO, max_megapixels: float, formats: Formats) -> Image.Image:
    """The picture, of which only the header has been read."""
    # Pillow's own guard raises an error from twice as many pixels on. It also sees the pictures inside others (.ico).
    Image.MAX_IMAGE_PIXELS = max(1, int(max_megapixels * 1e6))
    stream.seek(0)
    begin = stream.read(16)
    if not begin:
        raise Unusable("empty file (0 bytes)")
    if begin.startswith(EPS_BEGINS):
        raise Unusable("not a picture: EPS is a program that draws one, and is never run")
    try:
        image = Image.open(stream, formats=COMMON if formats == "common" else _all_formats())
    except Image.DecompressionBombError as error:
        raise _too_large(error, max_megapixels) from None
    except MemoryError:
        raise
    except Exception as error:  # UnidentifiedImageError is only the most common of what a plugin may raise
        if _is_about_metadata(error):
            raise _MetadataTooLarge("not a picture that Pillow can read") from None
        other = formats == "common" and _format_by(begin.ljust(16, b"\0"))
        raise Unusable(
            f"{other} is not one of the formats that are read here ({', '.join(COMMON)})"
            if other
            else "not a picture that Pillow can read"
        ) from None
    _check_size(*image.size, max_megapixels)
    if image.mode == "F":
        raise Unusable("floating-point pixels have no known range")
    if image.format in ("JPEG", "MPO") and _has_more_scans_than(MAX_SCANS, stream):
        raise Unusable(f"a JPEG of more than {MAX_SCANS} scans, which takes minutes to decode; save it again")
    return image


def _check_size(width: int, height: int, max_megapixels: float) -> None:
    if width * height > max_megapixels * 1e6:
        raise Unusable(f"{width}×{height} pixels is above prepare.max_megapixels ({max_megapixels:g}); a bomb or a scan")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise Unusable(f"{width}×{height} pixels: more than {MAX_ASPECT_RATIO} times as long as wide")


def _webp_size(stream: BinaryIO) -> tuple[int, int] | None:
    """Width and height of a WebP; None if it is something else."""
    stream.seek(0)
    begin = stream.read(30)
    if begin[:4] != b"RIFF" or begin[8:12] != b"WEBP" or len(begin) < 30:
        return None
    if begin[12:16] == b"VP8X":
        return int.from_bytes(begin[24:27], "little") + 1, int.from_bytes(begin[27:30], "little") + 1
    if begin[12:16] == b"VP8L":
        bits = int.from_bytes(begin[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", begin[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _icon_size(stream: BinaryIO) -> tuple[int, int] | None:
    """Width and height of the largest picture in an .ico, whatever its directory says; None if it is something else."""
    stream.seek(0)
    begin, count = stream.read(4), int.from_bytes(stream.read(2), "little")
    if begin != b"\0\0\1\0":
        return None
    largest = (0, 0)
    for entry in [stream.read(16) for _ in range(count)]:
        stream.seek(int.from_bytes(entry[12:16], "little"))
        head = stream.read(24).ljust(24, b"\0")
        if head.startswith(b"\x89PNG"):
            size = struct.unpack(">II", head[16:24])
        else:  # a bitmap of twice the height, for the picture and its mask
            width, height = struct.unpack("<ii", head[4:12])
            size = (abs(width), abs(height) // 2)
        largest = max(largest, size, key=lambda size: size[0] * size[1])
    return largest


@cache
def _all_formats() -> tuple[str, ...]:
    """Those that Pillow reads, in the order in which it tries them."""
    Image.preinit()
    Image.init()
    return tuple(name for name in Image.ID if name not in NEVER)


def _format_by(begin: bytes) -> str | None:
    """The format that a file is of by its first bytes."""
    for name in _all_formats():
        accept = Image.OPEN[name][1]
        if accept is not None and accept(begin) is True:
            return name
    return None


def _too_large(error: Exception, max_megapixels: float) -> Unusable:
    found = re.search(r"\d+(?= pixels)", str(error))
    megapixels = f"{int(found[0]) / 1e6:g}" if found else "too many"
    return Unusable(f"{megapixels} megapixels is above prepare.max_megapixels ({max_megapixels:g}); a bomb or a scan")


def _is_about_metadata(error: Exception) -> bool:
    return isinstance(error, ValueError) and "MAX_TEXT" in str(error)


def _without_metadata(stream: BinaryIO) -> BinaryIO:
    """A PNG without text and colour profile."""
    stream.seek(0)
    kept = io.BytesIO(stream.read(8))
    kept.seek(8)
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in PNG_METADATA:
            stream.seek(length + 4, io.SEEK_CUR)
        else:
            kept.write(head + stream.read(length + 4))
    return kept


def _has_more_scans_than(most: int, stream: BinaryIO) -> bool:
    position = stream.tell()
    length = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    data = stream.read(min(length, MAX_SCANNED))  # a file takes memory for as many bytes as it is asked for
    stream.seek(position)
    scans, at = 0, 2
    while scans <= most and (found := SEGMENT.search(data, at)) and found[1] != END_OF_IMAGE:
        scans += found[1] == START_OF_SCAN
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    return scans > most


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # the pixels may be fine although a tag is garbled
        return 1


def _rgb(image: Image.Image, notes: list[str], white_level: int) -> Image.Image:
    if image.mode.startswith("I"):
        image = _eight_bits(image, notes, white_level)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = _composited(image if image.mode == "RGBA" else image.convert("RGBA"), notes)
    if image.mode == "CMYK":
        notes.append("CMYK converted to RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _composited(image: Image.Image, notes: list[str]) -> Image.Image:
    """An RGBA picture on a background on which something is seen: white, but black for white icons."""
    alpha, background = image.getchannel("A"), "white"
    if alpha.getextrema() != (255, 255):
        darkness = ImageChops.multiply(alpha, ImageChops.invert(image.convert("L")))  # what it takes away from white
        if ImageStat.Stat(darkness).sum[0] < NEARLY_WHITE * ImageStat.Stat(alpha).sum[0]:
            background = "black"
        notes.append(f"transparency laid over {background}")
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image)


def _eight_bits(image: Image.Image, notes: list[str], white_level: int) -> Image.Image:
    values = np.asarray(image)
    darkest, brightest = int(values.min()), int(values.max())
    if darkest < 0 or brightest > SIXTEEN_BITS:
        raise Unusable("32-bit pixels have no known range")
    bits = getattr(image, "tag_v2", {}).get(TIFF_BITS_PER_SAMPLE)
    bits = bits[0] if isinstance(bits, tuple) else 16
    if 8 < bits < 16:  # the file says it itself
        white_level = 2**bits - 1
    notes.append(SCALED)
    if darkest < brightest and 4 * brightest < white_level:
        notes.append(DARK.format(next(2**bits - 1 for bits in (8, 10, 12, 14) if brightest < 2**bits)))
    scaled = np.minimum(values.astype(np.uint32) * 255 // white_level, 255)
    return Image.fromarray(scaled.astype(np.uint8))


def fingerprint(image: Image.Image) -> tuple[int, bytes]:
    """A 64-bit perceptual hash and a 16×16 RGB thumbnail (768 bytes), by which near-duplicates are found.

    Each bit of the hash is whether one of the 64 lowest frequencies is above their median (Krawetz 2011, "Looks like it";
    pHash).
    """
    image = image.reduce(max(1, min(image.size) // FINGERPRINT_SIDE))  # both are coarse: the full size only takes longer
    grey = np.asarray(image.convert("L").resize((HASH_SIDE, HASH_SIDE), Image.Resampling.LANCZOS))
    # Half the frequencies of a symmetric drawing are rounding errors, which differ from machine to machine.
    frequencies = np.round(DCT_BASIS @ grey @ DCT_BASIS.T, 6)
    phash = int.from_bytes(np.packbits(frequencies > np.median(frequencies)).tobytes(), "big")
    thumbnail = image.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    return phash, thumbnail.tobytes()


def encode(image: Image.Image, jpeg_quality: int | None) -> bytes:
    """The bytes stored for one picture: raw RGB, or JPEG without chroma subsampling where a quality is given."""
    if jpeg_quality is None:
        return image.tobytes()
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=jpeg_quality, subsampling=0)
    return stream.getvalue()
