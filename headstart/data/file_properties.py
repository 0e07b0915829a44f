"""What a picture's file says of how it came about, whatever it shows. It is read while the picture is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

MAKE, MODEL = 0x010F, 0x0110  # EXIF tags
LONGEST = 60  # characters of a camera's name


@dataclass(frozen=True)
class FileProperties:
    """
    Attributes:
        format, mode: as Pillow names them, such as ``JPEG`` and ``L``.
        exif, profile: whether it has EXIF tags, and a colour profile.
        camera: maker and model, where EXIF tags name them.
        compression: how coarsely a JPEG rounds brightness, on average, from 1 on; 0 for other formats.
    """

    format: str = ""
    mode: str = ""
    exif: bool = False
    profile: bool = False
    camera: str = ""
    compression: float = 0.0


def properties_of(image: Image.Image) -> FileProperties:
    """Those of a picture that is loaded. What is garbled counts as missing."""
    tables = getattr(image, "quantization", None) or {}
    brightness = tables.get(min(tables, default=0), [])
    compression = round(sum(brightness) / len(brightness), 2) if len(brightness) else 0.0
    exif = _exif(image)
    camera = " ".join(str(exif[tag]).replace("\0", " ") for tag in (MAKE, MODEL) if tag in exif)
    return FileProperties(
        format=image.format or "",
        mode=image.mode,
        exif=bool(exif),
        profile="icc_profile" in image.info,
        camera=" ".join(camera.split())[:LONGEST].encode(errors="replace").decode(),
        compression=compression,
    )


def _exif(image: Image.Image) -> dict[int, Any]:
    try:
        return dict(image.getexif())
    except Exception:  # plugins raise many kinds of errors on damaged tags
        return {}
