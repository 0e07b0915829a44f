"""The documentation: what it says of params.yaml is whole, and its site leads nowhere else than it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from pydantic import BaseModel

from headstart.base.params import Params

PROJECT = Path(__file__).parents[1]
ROW = re.compile(r"^\| `([A-Za-z_.0-9]+)` \| `([^`]*)` \| (\S.*) \|$", re.MULTILINE)


# --- every key of params.yaml -----------------------------------------------------------------------------------------


def defaults(model: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Every dotted key with its default."""
    found: dict[str, Any] = {}
    for name in type(model).model_fields:
        value = getattr(model, name)
        found |= defaults(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {f"{prefix}{name}": value}
    return found


def test_every_key_of_params_is_in_the_documentation_with_its_default() -> None:
    page = (PROJECT / "docs" / "params.md").read_text(encoding="utf-8")
    told = {key: yaml.safe_load(value) for key, value, _ in ROW.findall(page)}
    assert told == defaults(Params())


def test_params_yaml_holds_the_defaults() -> None:
    assert defaults(Params.load(PROJECT / "params.yaml")) == defaults(Params())


# --- the site ---------------------------------------------------------------------------------------------------------


@dataclass
class Page:
    """What a page of the site points to, and what it loads."""

    links: set[str] = field(default_factory=set)
    loaded: set[str] = field(default_factory=set)
    anchors: set[str] = field(default_factory=set)


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attributes if value is not None}
        self.page.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.page.links.add(found["href"])
        if "src" in found:
            self.page.loaded.add(found["src"])
        if tag == "link" and found.get("rel") not in ("canonical", "prev", "next", "alternate") and "href" in found:
            self.page.loaded.add(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=PROJECT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    read = {}
    for path in site.rglob("*.html"):
        reader = Reader()
        reader.feed(path.read_text(encoding="utf-8"))
        read[path] = reader.page
    assert len(read) > 15
    return read


def is_elsewhere(address: str) -> bool:
    return bool(re.match(r"([a-z+]+:|//)", address)) and not address.startswith("data:")


def test_no_link_of_the_site_is_dead(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for link in page.links | page.loaded:
            if is_elsewhere(link) or link.startswith("data:") or path.name == "404.html":
                continue
            name, _, anchor = unquote(link).partition("#")
            target = (path.parent / name.partition("?")[0]).resolve() if name else path
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{path.name}: {link}"
            if anchor and target in pages:
                assert anchor in pages[target].anchors, f"{path.name}: {link}"


def test_the_site_loads_nothing_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert not [address for address in page.loaded if is_elsewhere(address)], path.name
    for path in site.rglob("*.css"):
        assert not re.search(r"@import|url\(['\"]?(https?:)?//", path.read_text(encoding="utf-8")), path.name


def test_markdown_came_out_as_what_it_was_meant_to_be(site: Path) -> None:
    """Python-Markdown wants an empty line before a list or a table, GitHub does not."""
    for path in site.rglob("*.html"):
        text = re.sub(r"<(pre|script)\b.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for paragraph in re.findall(r"<p>(.*?)</p>", text, re.DOTALL):
            assert not re.search(r"^\s*([-*|]|\d+\.) |```", paragraph, re.MULTILINE), f"{path.name}: {paragraph[:80]}"


@pytest.mark.browser
def test_a_page_of_the_site_asks_nobody_else_in_the_browser_and_is_searched_from_disk_too(
    site: Path, tmp_path: Path
) -> None:
    from tests.stages.test_ui import browser_page

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        with browser_page(tmp_path / "profile") as page:
            foreign: list[str] = []
            page.on("request", lambda request: foreign.append(request.url))
            page.set_default_timeout(60_000)
            page.goto(f"{address}/index.html")
            page.get_by_role("textbox", name="Search").press_sequentially("temperature")  # which loads the index
            page.wait_for_load_state("networkidle")
            assert not [url for url in foreign if not url.startswith((address, "data:", "blob:"))]
            page.goto((site / "index.html").as_uri())  # opened from disk
            page.get_by_role("textbox", name="Search").press_sequentially("temperature")
            page.locator(".md-search-result__item").first.wait_for()
    finally:
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass
