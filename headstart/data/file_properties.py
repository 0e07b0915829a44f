"""What a picture's file says of how it came about, whatever it shows. It is read while the picture is decoded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from PIL import Image

MAKE, MODEL, PHOTOGRAPH, TAKEN = 0x010F, 0x0110, 0x8769, 0x9003  # EXIF tags; the last stands in the table of the third
TIME = re.compile(r"[12]\d{3}:[01]\d:[0-3]\d [0-2]\d:[0-5]\d:[0-5]\d")
LONGEST = 60  # characters of a camera's name


@dataclass(frozen=True)
class FileProperties:
    """
    Attributes:
        format, mode: as Pillow names them, such as ``JPEG`` and ``L``.
        exif, profile: whether it has EXIF tags, and a colour profile.
        camera: maker and model, where EXIF tags name them.
        taken: when, by the camera's clock, as EXIF has it: ``2008:05:30 15:56:01``.
        compression: how coarsely a JPEG rounds brightness, on average, from 1 on; 0 for other formats.
    """

    format: str = ""
    mode: str = ""
    exif: bool = False
    profile: bool = False
    camera: str = ""
    taken: str = ""
    compression: float = 0.0


def properties_of(image: Image.Image) -> FileProperties:
    """Those of a picture that is loaded. What is garbled counts as missing."""
    tables = getattr(image, "quantization", None) or {}
    brightness = tables.get(min(tables, default=0), [])
    compression = round(sum(brightness) / len(brightness), 2) if len(brightness) else 0.0
    exif, time = _tags(image), TIME.match(str(_tags(image, PHOTOGRAPH).get(TAKEN, "")))
    camera = " ".join(str(exif[tag]).replace("\0", " ") for tag in (MAKE, MODEL) if tag in exif)
    return FileProperties(
        format=image.format or "",
        mode=image.mode,
        exif=bool(exif),
        profile="icc_profile" in image.info,
        taken=time[0] if time else "",
        camera=" ".join(camera.split())[:LONGEST].encode(errors="replace").decode(),
        compression=compression,
    )


def _tags(image: Image.Image, table: int | None = None) -> dict[int, Any]:
    """The EXIF tags of the file, or those of a table among them."""
    try:
        tags = image.getexif()
        return dict(tags if table is None else tags.get_ifd(table))
    except Exception:  # plugins raise many kinds of errors on damaged tags
        return {}
