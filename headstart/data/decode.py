"""From a file to an upright 8-bit RGB picture, its fingerprint and the bytes stored for it.

All that shapes the stored pixels is in this module, and it imports nothing of headstart: a change here, or another version
of Pillow or NumPy, makes prepare decode every picture again.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageStat

Image.MAX_IMAGE_PIXELS = None  # checked below against the user's own limit, before any pixel is decoded

Array = NDArray[np.uint8]
THUMBNAIL_SIDE, HASH_SIDE, FINGERPRINT_SIDE = 16, 32, 96  # pixels
# (8, HASH_SIDE): the eight lowest frequencies of the discrete cosine transform (type II).
DCT_BASIS = np.cos(np.pi * np.outer(np.arange(8), 2 * np.arange(HASH_SIDE) + 1) / (2 * HASH_SIDE))
MAX_ASPECT_RATIO = 100  # a picture of one row, resized to a height of 256 pixels, would fill the memory
NEARLY_WHITE = 0.06  # of the way from white to black: what is on average no darker is not seen on white
RESIZE_ABOVE = 1.25  # times the short side: a smaller reduction takes longer than decoding and saves little
# The transposition that undoes each value of EXIF's orientation tag. ImageOps.exif_transpose also rewrites the whole EXIF
# block and fails on a picture when another tag in it is garbled.
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class Unusable(Exception):  # noqa: N818 - a finding about one picture, not an error of the run
    """The picture cannot be used; the message is the reason that audit.json gives."""


@dataclass(frozen=True)
class Decoded:
    """A usable picture.

    Attributes:
        image: RGB, resized to the short side asked for unless it is hardly larger.
        width, height: of the original after EXIF rotation, in pixels.
        notes: the conversions that were needed.
    """

    image: Image.Image
    width: int
    height: int
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


def decode(source: bytes | Path, short_side: int | None = None, max_megapixels: float = 100.0) -> Decoded:
    """Decode one picture in any format that Pillow reads.

    Transparency is composited on white (on black if all that is there is nearly white), CMYK and grey become RGB, 16 bits
    are scaled to 8, EXIF rotation is applied, and the first frame of an animation is taken. The picture is resized to
    ``short_side`` pixels, unless it is hardly larger.

    Raises:
        Unusable: it is not a picture, damaged, too large, or its pixels have no known range.
    """
    data = source if isinstance(source, bytes) else _read(source)
    if not data:
        raise Unusable("empty file (0 bytes)")
    image = _opened(data, max_megapixels)
    width, height = image.size
    notes = []
    try:
        if getattr(image, "is_animated", False) and image.format != "MPO":  # the second picture of an MPO is a preview
            notes.append("animated or many pages: the first is used")
        if short_side and image.format == "JPEG" and image.mode in ("L", "RGB"):
            image.draft(image.mode, (short_side, short_side))  # libjpeg scales by 1/2, 1/4 or 1/8 while decoding
        image.load()
        orientation = _orientation(image)
        if orientation in UPRIGHT:
            image = image.transpose(UPRIGHT[orientation])
            notes.append("turned upright by its EXIF tag")
        if orientation in (5, 6, 7, 8):
            width, height = height, width
        image = _rgb(image, notes)
    except Unusable:
        raise
    except Exception as error:  # plugins raise many kinds of errors on damaged data, and one bad file must not end the run
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Unusable(f"truncated or damaged: {reason[:120]}") from None
    if short_side and min(image.size) > RESIZE_ABOVE * short_side:
        scale = short_side / min(image.size)
        size = (max(short_side, round(image.width * scale)), max(short_side, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.HAMMING, reducing_gap=3.0)
    return Decoded(image, width, height, tuple(notes))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte in it
        raise Unusable(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _opened(data: bytes, max_megapixels: float) -> Image.Image:
    """The picture, of which only the header has been read."""
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:  # the server has set a limit and names it
        raise
    except Exception:  # UnidentifiedImageError is only the most common of what a plugin may raise
        raise Unusable("not a picture that Pillow can read") from None
    width, height = image.size
    if width * height > max_megapixels * 1e6:
        raise Unusable(f"{width}×{height} pixels is above prepare.max_megapixels ({max_megapixels:g}); a bomb or a scan")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise Unusable(f"{width}×{height} pixels: more than {MAX_ASPECT_RATIO} times as long as wide")
    return image


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # the pixels may be fine although a tag is garbled
        return 1


def _rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    if image.mode == "F":
        raise Unusable("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise Unusable("32-bit pixels have no known range")
        notes.append("16 bits scaled to 8")
        image = Image.fromarray((values // 257).astype(np.uint8), "L")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = _composited(image.convert("RGBA"), notes)
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
