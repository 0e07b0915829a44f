"""Pages that need no network: their text in a template, their pictures inside them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from headstart.base.safe_text import masked

if TYPE_CHECKING:
    from headstart.data.decode import Array

TEMPLATES = Path(__file__).parent / "templates"
SIDE = 160  # pixels of a thumbnail


def template(name: str, **filters: Callable[..., str]) -> jinja2.Template:
    """A template: what is filled in is escaped, and what is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, finalize=finalize
    )
    environment.filters.update(filters)
    return environment.get_template(name)


def finalize(value: Any) -> Any:
    """What is filled in, without the secrets of addresses; markup and numbers as they are."""
    return masked(value) if type(value) is str else value


def embedded(picture: bytes, kind: str = "png") -> str:
    """The address of a picture that is inside the page."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def thumbnail(pixels: Array) -> str:
    """The address, inside the page, of a small copy of a picture, (height, width, 3) uint8."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    return embedded(stream.getvalue(), "jpeg")
