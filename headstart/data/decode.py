"""One file in, one picture out: RGB, upright, 8 bits; or the reason why not."""

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
from PIL import Image

Image.MAX_IMAGE_PIXELS = None  # checked below against the user's own limit, before any pixel is decoded

Array = NDArray[np.uint8]
THUMBNAIL, HASHED, FINGERPRINTED = 16, 32, 96  # pixels
# (8, HASHED): the eight lowest frequencies of the discrete cosine transform (type II).
COSINES = np.cos(np.pi * np.outer(np.arange(8), 2 * np.arange(HASHED) + 1) / (2 * HASHED))
LONGEST = 100  # times its short side: a picture of one row, made 256 pixels high, would fill the memory
SPARED = 1.25  # times the short side: to make a picture smaller by so little takes longer than to decode it, for nothing
# What undoes each value of EXIF's orientation tag. ImageOps.exif_transpose would do it, but also rewrites the whole EXIF
# block, and gives up on a picture when another tag in there is garbled.
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class Unusable(Exception):  # noqa: N818 - a finding about one picture, not an error of the run
    """The picture cannot be used; the message is the reason given in audit.json."""


@dataclass(frozen=True)
class Decoded:
    """A usable picture.

    Attributes:
        image: RGB, the short side at most what was asked for.
        width, height: of the picture as stored by the user, after EXIF rotation, in pixels.
        notes: what had to be converted.
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
    """Without Pillow's warnings about files that it reads all the same. Not inside of threads: filters are the whole
    process's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# Raise it with every change that gives other pixels or another hash: what an earlier decoder has packed is then decoded
# again.
DECODER = 2


def decode(source: bytes | Path, short_side: int | None = None, max_megapixels: float = 100.0) -> Decoded:
    """Decode one picture of any kind Pillow reads.

    Transparency is laid over white, CMYK and grey become RGB, 16 bits are scaled to 8, EXIF rotation is applied, and of
    an animation the first frame is taken. Pictures are made smaller to ``short_side``, unless they are hardly larger.

    Raises:
        Unusable: not a picture, damaged, too large, or with pixels that have no proper 8-bit form.
    """
    data = source if isinstance(source, bytes) else _read(source)
    if not data:
        raise Unusable("empty file (0 bytes)")
    image = _opened(data, max_megapixels)
    width, height = image.size
    notes = []
    try:
        if getattr(image, "is_animated", False) and image.format != "MPO":  # cameras put a preview behind an MPO's picture
            notes.append("animated or many pages: the first is used")
        if short_side and image.format == "JPEG" and image.mode in ("L", "RGB"):
            image.draft(image.mode, (short_side, short_side))  # the decoder itself scales by 1/2, 1/4 or 1/8
        image.load()
        orientation = _orientation(image)
        if orientation in TURNS:
            image = image.transpose(TURNS[orientation])
            notes.append("turned upright by its EXIF tag")
        if orientation in (5, 6, 7, 8):
            width, height = height, width
        image = _rgb(image, notes)
    except Unusable:
        raise
    except Exception as error:  # Pillow's plugins raise many kinds on damaged data, none of them worth a stop
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Unusable(f"truncated or damaged: {reason[:120]}") from None
    if short_side and min(image.size) > SPARED * short_side:
        scale = short_side / min(image.size)
        size = (max(short_side, round(image.width * scale)), max(short_side, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.HAMMING, reducing_gap=3.0)
    return Decoded(image, width, height, tuple(notes))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # the second: a name with a zero byte in it
        raise Unusable(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _opened(data: bytes, max_megapixels: float) -> Image.Image:
    """The picture, of which only the header has been read."""
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:  # the server has set a limit, and says which
        raise
    except Exception:  # of what a plugin may raise, UnidentifiedImageError is only the commonest
        raise Unusable("not a picture that Pillow can read") from None
    width, height = image.size
    if width * height > max_megapixels * 1e6:
        raise Unusable(f"{width}×{height} pixels is above prepare.max_megapixels ({max_megapixels:g}); a bomb or a scan")
    if max(width, height) > LONGEST * min(width, height):
        raise Unusable(f"{width}×{height} pixels: more than {LONGEST} times as long as wide")
    return image


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # a garbled tag says nothing against the pixels
        return 1


def _rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    if image.mode == "F":
        raise Unusable("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise Unusable("32-bit pixels have no known range")
        notes.append("16 bits scaled to 8")
        image = Image.fromarray((wide // 257).astype(np.uint8), "L")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        if np.asarray(rgba)[..., 3].min() < 255:
            notes.append("transparency laid over white")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    if image.mode == "CMYK":
        notes.append("CMYK converted to RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def fingerprint(image: Image.Image) -> tuple[int, bytes]:
    """What near-duplicates are found by: a 64-bit perceptual hash and a 16×16 RGB thumbnail (768 bytes).

    The hash says which of the lowest frequencies are above their median (Krawetz 2011, "Looks like it"; pHash).
    """
    image = image.reduce(max(1, min(image.size) // FINGERPRINTED))  # both are coarse: the full size adds only time
    grey = np.asarray(image.convert("L").resize((HASHED, HASHED), Image.Resampling.LANCZOS))
    # Of a symmetric drawing half of them are nothing but rounding errors, which no two machines share.
    lowest = np.round(COSINES @ grey @ COSINES.T, 6)
    number = int.from_bytes(np.packbits(lowest > np.median(lowest)).tobytes(), "big")
    thumbnail = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return number, thumbnail.tobytes()
