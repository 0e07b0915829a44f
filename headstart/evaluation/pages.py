"""Pages that need no network: their text in a template, their pictures inside them.

A page is one of a stage's outputs: the same inputs give the same bytes. What may differ for the same page, when it was made
and of which commit, and what others there are to link to, is in pages.js beside the stages' folders, which the pages load.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import subprocess
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup, escape

from headstart.base.artifacts import DATA, DataFolder
from headstart.base.files import sha256_of, write_text
from headstart.base.paths import checkout
from headstart.base.safe_text import masked

if TYPE_CHECKING:
    from headstart.base.arrays import Floats
    from headstart.data.decode import Array

TEMPLATES = Path(__file__).parent / "templates"
SIDE = 160  # pixels of a thumbnail
HEAT_MAP, HEAT_OPACITY = "viridis", 0.6  # dark, green and yellow: one of them differs from any picture
TITLES = {
    DATA.evaluate.report: "Result",
    DATA.why.page: "Is pre-training worth it?",
    DATA.rank.page: "Which backbone?",
    DATA.labels.page: "Wrong labels",
    DATA.groups.page: "Groups",
    DATA.shortcuts.page: "Shortcuts",
    DATA.tune.page: "Which settings?",
    DATA.drift.page: "Drift",
}
INDEX = "pages.js"
_NUMBER = r"[-+]?\d[\d.]*(?: ?%)?"
_MARKED = re.compile(
    r"`(?P<code>[^`]+)`"
    r"|(?P<path>\bdata/[a-z]+/[\w.-]+\.(?:html|json|csv|png)\b)"
    rf"|(?P<interval>{_NUMBER}(?: points)? \({_NUMBER}(?:–| to ){_NUMBER}\)(?: points)?)"
)


def template(name: str, **filters: Callable[..., str]) -> jinja2.Template:
    """A template: what is filled in is escaped, and what is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, finalize=finalize
    )
    environment.filters.update({"prose": prose, "title_of": title_of} | filters)
    return environment.get_template(name)


def finalize(value: Any) -> Any:
    """What is filled in, without the secrets of addresses; markup and numbers as they are."""
    return masked(value) if type(value) is str else value


def prose(text: str) -> Markup:
    """A sentence of headstart's: `code` as code, files below data/ as links from a page's folder, and figures that no line
    parts from their interval."""

    parts, end = [], 0
    for found in _MARKED.finditer(text := masked(text)):
        parts += [escape(text[end : found.start()]), _marked(found)]
        end = found.end()
    return Markup().join([*parts, escape(text[end:])])


def _marked(found: re.Match[str]) -> Markup:
    if found["code"]:
        return Markup("<code>{}</code>").format(found["code"])
    if found["path"]:
        return Markup('<a href="../{}">{}</a>').format(found["path"].removeprefix("data/"), found["path"])
    return Markup('<span class="whole">{}</span>').format(found["interval"])


def title_of(source: str) -> str:
    """What people call the pictures of ``data.source``: the last part of a path or an address, without its query."""
    parts = [part for part in re.split(r"[/\\\\]", masked(source).partition("?")[0]) if part.strip("~. ")]
    return parts[-1] if parts else masked(source)


def write(path: Path, page: jinja2.Template, **values: Any) -> None:
    """Render ``page`` into ``path`` in a stage's folder, and have the pages beside it know.

    Args:
        values: that are filled in.
    """
    data = DataFolder(path.parent.parent)
    name = next((page.relative_to(DATA).as_posix() for page in TITLES if page.name == path.name), path.name)
    pictures = sha256_of(data.prepare.manifest)[:16] if data.prepare.manifest.exists() else ""
    text = page.render(name=name, pictures_digest=pictures, **values)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    write_text(path, text.replace('data-digest=""', f'data-digest="{digest}"', 1))
    if data / name == path:
        _tell_the_others(data, name, digest)


def _tell_the_others(data: DataFolder, name: str, digest: str) -> None:
    """Write into ``INDEX`` which pages there are, and when this one was made and of which commit."""
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        known = json.loads((data / INDEX).read_text("utf-8").partition("(")[2].rstrip(")\n"))
    made = {"digest": digest, "made": datetime.now().isoformat(" ", "minutes"), "commit": _commit()}
    pages = {path.relative_to(DATA).as_posix(): title for path, title in TITLES.items()}
    found = {page: known.get(page, {}) | {"title": title} for page, title in pages.items() if (data / page).exists()}
    found[name] |= made
    write_text(data / INDEX, f"headstartPages({json.dumps(found, indent=1)})\n")


def _commit() -> str:
    """Of the user's checkout, with -dirty where files differ from it; empty where there is none."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    with suppress(OSError):
        return subprocess.run(command, cwd=checkout(), capture_output=True, text=True, check=False).stdout.strip()
    return ""


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


def heat_layer(heat: Floats) -> Array:
    """A heat map, (height, width) in [0, 1], as the layer to lay over its picture, (height, width, 4) uint8."""
    from matplotlib import colormaps

    layer: Array = colormaps[HEAT_MAP](heat, alpha=HEAT_OPACITY, bytes=True)
    return layer


def with_heat(pixels: Array, heat: Floats) -> Array:
    """A picture, (height, width, 3) uint8, under its heat map."""
    mixed: Array = (HEAT_OPACITY * heat_layer(heat)[..., :3] + (1 - HEAT_OPACITY) * pixels).round().astype("uint8")
    return mixed
