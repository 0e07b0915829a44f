"""MLflow's page as a person sees it: two results of different backbones compared, in a real browser on a real server."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from headstart.tracking.saved_view import FIGURES
from tests.once import made_once
from tests.stages.conftest import Clone

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = [pytest.mark.slow, pytest.mark.browser]

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE_S = 300  # the page loads a hundred scripts, and other tests share the machine
SCREENSHOTS = Path(__file__).parents[2] / "docs" / "screenshots"
SHOWN = ("view", "charts", "compare", "run")


@contextmanager
def mlflow_ui(clone: Clone) -> Iterator[str]:
    """`make ui` on the clone's store and a free port: the address of the results' table that it prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = clone.folder / "ui.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [str(Path(sys.executable).with_name("headstart")), "ui", "--no-open", "--port", str(port)],
            cwd=clone.folder, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True, env=clone.environment(),
        )  # fmt: skip
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not (printed := re.search(r"Results compared: (\S+)\n", log.read_text())):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield printed[1]
        os.killpg(server.pid, signal.SIGINT)  # Ctrl-C
        assert server.wait(PATIENCE_S) == 0, log.read_text()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)


@contextmanager
def browser_page(profile: Path) -> Iterator[Page]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser on PATH (looked for {', '.join(BROWSERS)})")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(profile), executable_path=found, args=FLAGS, viewport={"width": 1400, "height": 800}
        )
        try:
            page = context.pages[0]
            page.set_default_timeout(PATIENCE_S * 1000)
            yield page
        finally:
            context.close()


def shot(page: Page, name: str, folder: Path) -> None:
    """A screenshot for whoever looks into a failure; with HEADSTART_SCREENSHOTS=1 those of the documentation too."""
    page.screenshot(path=folder / f"{name}.png")
    if os.environ.get("HEADSTART_SCREENSHOTS") == "1" and name in SHOWN:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{name}.png")


def seen(what: Locator) -> None:
    """Wait until one of those that match is in sight: tooltips repeat a text that they hide."""
    what.filter(visible=True).first.wait_for()


def close_assistant(page: Page) -> None:
    """A panel for a language model that MLflow opens on the first visit; it takes a quarter of the page."""
    if page.get_by_text("MLflow Assistant").count():
        page.get_by_role("button", name="Close").first.click()


def parameter(page: Page, name: str) -> list[str]:
    """Both runs' values in the comparison's row called ``name``."""
    row = page.locator("tr").filter(has=page.get_by_text(name, exact=True)).first
    row.wait_for()
    return [cell.strip() for cell in row.inner_text().split("\t")][1:]


def metric(page: Page, name: str) -> list[float]:
    """Both runs' values of a metric: a grid that draws only the rows in sight, so scroll until it is there."""
    label = page.get_by_role("link", name=name, exact=True)
    grid = page.locator(".ReactVirtualized__Grid").last
    grid.wait_for()
    grid.scroll_into_view_if_needed()
    grid.hover()
    deadline = time.monotonic() + PATIENCE_S
    while not label.count():
        assert time.monotonic() < deadline, f"no {name} in the comparison"
        page.mouse.wheel(0, 150)
        page.wait_for_timeout(100)
    return [
        float(text)
        for text in label.first.evaluate(
            """link => {
                const cell = link.closest('.ReactVirtualized__Grid__innerScrollContainer > *')
                const cells = document.querySelectorAll('.ReactVirtualized__Grid__innerScrollContainer > *')
                return [...cells].filter(c => c !== cell && c.style.top === cell.style.top).map(c => c.innerText)
            }"""
        )
    ]


def width_of(png: Path) -> int:
    width: int = struct.unpack(">I", png.read_bytes()[16:20])[0]
    return width


@pytest.fixture(scope="session")
def compared(finished: Clone) -> Clone:
    """The slice, and beside it a result of another backbone whose head alone was trained, made once for all workers."""
    if not any(map(shutil.which, BROWSERS)):
        pytest.skip(f"no browser on PATH (looked for {', '.join(BROWSERS)})")

    def make(folder: Path) -> None:
        shutil.copytree(finished.folder, folder, symlinks=True, dirs_exist_ok=True)
        Clone(folder).set(backbone="tf_efficientnet_lite1", finetune={"unfreeze": "none"})
        Clone(folder).repro()

    return Clone(made_once(finished.folder.with_name("compared"), make))


def results(clone: Clone) -> tuple[str, dict[str, Any]]:
    """The experiment's id, and the runs by what was to be fine-tuned."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{clone.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("headstart-emoji").experiment_id
    runs = {run.data.params["finetune.unfreeze"]: run for run in client.search_runs([experiment], "tags.chosen LIKE '%'")}
    assert set(runs) == {"last", "none"}
    return experiment, runs


@contextmanager
def nothing_foreign(page: Page, address: str) -> Iterator[None]:
    """No error on the page, and nothing asked of anybody but the server."""
    foreign: list[str] = []
    page.on("request", lambda request: foreign.append(request.url) if request.url.startswith("http") else None)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield
    assert not errors
    assert not [url for url in foreign if not url.startswith(address.partition("/#")[0])]


def rows(page: Page, names: list[str]) -> list[str]:
    """The runs in the table, from the top: the grid moves rows without moving them in the document."""
    links = page.get_by_role("link").filter(has_text=re.compile("|".join(map(re.escape, names)))).all()
    places = [(box["y"], link.inner_text().strip()) for link in links if (box := link.bounding_box()) is not None]
    return [name for _, name in sorted(places)]


def test_backbones_are_compared_in_a_view_that_is_there_already_and_two_results_in_the_browser(
    compared: Clone, tmp_path: Path
) -> None:
    """Both in a browser that has never been there, on one server, which takes as long to start as either."""
    with mlflow_ui(compared) as table:
        for look in (look_at_the_view, compare_two):
            with browser_page(tmp_path / look.__name__) as page, nothing_foreign(page, table):
                look(compared, table, page, tmp_path)


def look_at_the_view(compared: Clone, table: str, page: Page, tmp_path: Path) -> None:
    experiment, runs = results(compared)
    best_first = sorted(runs.values(), key=lambda run: float(run.data.metrics["val/chosen/log_loss"]))
    names = [run.info.run_name for run in best_first]

    # The first that a fresh browser shows. Its columns say what was compared, the best on validation is on top.
    page.goto(table)
    seen(page.get_by_role("link", name=names[0]))
    close_assistant(page)
    address = table.partition("/#")[0]
    assert table == f"{address}/#/experiments/{experiment}/runs?viewStateShareKey=headstart"
    for heading in ("backbone", "trained", "val/chosen/log_loss", "val/chosen/accuracy"):
        seen(page.get_by_role("columnheader").get_by_text(heading, exact=True))
    seen(page.get_by_text("tf_efficientnet_lite1", exact=True))
    for _ in range(50):  # the rows are there before they are in order
        if rows(page, names) == names:
            break
        page.wait_for_timeout(200)
    assert rows(page, names) == names
    page.wait_for_timeout(1000)
    shot(page, "view", tmp_path)

    # As charts: accuracy over cost, parallel coordinates, the figures of both side by side.
    page.set_viewport_size({"width": 1400, "height": 1400})
    page.goto(f"{address}/#/experiments/{experiment}/runs?viewStateShareKey=headstart&compareRunsMode=CHART")
    cards = page.get_by_test_id("experiment-view-compare-runs-card")
    page.get_by_test_id("experiment-view-compare-runs-section-header").filter(has_text="Compared").wait_for()
    for number in range(3):
        cards.nth(number).wait_for()
    page.locator("canvas").first.wait_for(state="attached")  # of the parallel coordinates; the others are drawn as SVG
    thumbnails = "[...document.images].filter(i => i.src.includes('figures') && i.complete && i.naturalWidth > 0).length"
    page.wait_for_function(f"{thumbnails} >= {2 * len(FIGURES)}")
    shot(page, "charts", tmp_path)
    page.set_viewport_size({"width": 1400, "height": 800})

    # Tags find runs.
    page.goto("about:blank")  # or the page keeps what the view has set
    page.goto(f"{address}/#/experiments/{experiment}/runs")
    search = page.get_by_placeholder("metrics.rmse < 1")
    search.fill("tags.backbone = 'tf_efficientnet_lite1' and tags.trained = 'head'")
    search.press("Enter")
    page.get_by_role("link", name=runs["last"].info.run_name).filter(visible=True).first.wait_for(state="hidden")
    assert rows(page, names) == [runs["none"].info.run_name]


def compare_two(compared: Clone, table: str, page: Page, tmp_path: Path) -> None:
    experiment, runs = results(compared)
    names = [run.info.run_name for run in runs.values()]
    shown = json.loads(compared.read("data/evaluate/metrics.json"))["test"]["chosen"]["accuracy"]

    address = table.partition("/#")[0]
    # The table of runs has both. Tick them and press Compare.
    page.goto(f"{address}/#/experiments/{experiment}/runs")
    boxes = page.get_by_role("checkbox", name="Press Space to toggle row selection")
    boxes.nth(1).wait_for()
    close_assistant(page)
    for name in names:
        seen(page.get_by_role("link", name=name))
    shot(page, "runs", tmp_path)
    for number in (0, 1):
        boxes.nth(number).check()
    page.get_by_role("button", name="Compare", exact=True).or_(page.get_by_role("link", name="Compare", exact=True)).click()

    # Side by side: names, parameters, metrics.
    page.get_by_text("Comparing 2 Runs").wait_for()
    for name in names:
        seen(page.get_by_text(name, exact=True))
    assert sorted(parameter(page, "finetune.unfreeze")) == ["last", "none"]
    assert sorted(metric(page, "test/chosen/accuracy")) == pytest.approx(
        sorted(run.data.metrics["test/chosen/accuracy"] for run in runs.values()), abs=1e-3
    )
    # Rows are drawn up to ten below those in sight. The column of names is one scroll event behind the values (MLflow
    # 3.17), which small steps at the end make invisible.
    for step in (450, 1, 1):
        page.mouse.wheel(0, step)
        page.wait_for_timeout(500)
    shot(page, "compare", tmp_path)

    # The pictures too, through the report: the comparison offers files at the top of a run, not those in folders.
    page.get_by_text("report.html", exact=True).first.dispatch_event("click")
    deadline = time.monotonic() + PATIENCE_S
    while sum(frame.locator("img").count() > 0 for frame in page.frames[1:]) < 2:
        assert time.monotonic() < deadline
        page.wait_for_timeout(500)
    for frame in page.frames[1:]:
        frame.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    page.locator("iframe").first.evaluate("frame => frame.scrollIntoView({block: 'start'})")
    page.wait_for_timeout(1000)
    shot(page, "reports", tmp_path)

    # The page of one run has its parameters and metrics.
    run = runs["none"].info.run_id
    page.goto(f"{address}/#/experiments/{experiment}/runs/{run}")
    for text in (runs["none"].info.run_name, "finetune.unfreeze", "test/chosen/accuracy"):
        seen(page.get_by_text(text, exact=True))
    row = page.get_by_role("row").filter(has=page.get_by_text("test/chosen/accuracy", exact=True)).first.inner_text()
    assert pytest.approx(shown, abs=1e-3) in [float(word) for word in row.split() if word.replace(".", "", 1).isdigit()]
    shot(page, "run", tmp_path)

    # Its figures are pictures that render.
    width = width_of(compared.folder / "data/evaluate/figures/confusion.png")
    page.goto(f"{address}/#/experiments/{experiment}/runs/{run}/artifacts/figures/confusion.png")
    page.wait_for_function("width => [...document.images].some(i => i.complete && i.naturalWidth === width)", arg=width)
    shot(page, "artifacts", tmp_path)
