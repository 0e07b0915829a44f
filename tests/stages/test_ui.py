"""MLflow's page as a person sees it: two results side by side, in a real browser on a real server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.stages.conftest import Clone

pytestmark = [pytest.mark.slow, pytest.mark.browser]

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE_S = 300  # the page loads a hundred scripts, and other tests share the machine
SCREENSHOTS = Path(__file__).parents[2] / "docs" / "screenshots"


@contextmanager
def mlflow_ui(clone: Clone) -> Iterator[str]:
    """`make ui` on the clone's store and a free port: its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    store = ["--backend-store-uri", f"sqlite:///{clone.folder / 'mlflow.db'}"]
    log = clone.folder / "ui.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "ui", *store, "--host", "127.0.0.1", "--port", address.rsplit(":", 1)[1]],
            cwd=clone.folder, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
            env=clone.environment(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
        )  # fmt: skip
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=10)
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


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
    """A screenshot for whoever looks into a failure; with HEADSTART_SCREENSHOTS=1 those of the README too."""
    page.screenshot(path=folder / f"{name}.png")
    if os.environ.get("HEADSTART_SCREENSHOTS") == "1" and name in ("runs", "compare"):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{name}.png")


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


def test_two_results_are_found_and_compared_in_the_browser(copy_of: Clone, tmp_path: Path) -> None:
    import mlflow

    if not any(map(shutil.which, BROWSERS)):
        pytest.skip(f"no browser on PATH (looked for {', '.join(BROWSERS)})")
    copy_of.set(finetune={"unfreeze": "none"})
    copy_of.repro()
    client = mlflow.MlflowClient(f"sqlite:///{copy_of.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("headstart").experiment_id
    runs: dict[str, Any] = {
        run.data.params["finetune.unfreeze"]: run for run in client.search_runs([experiment]) if run.data.tags.get("chosen")
    }
    assert set(runs) == {"last", "none"}
    names = [run.info.run_name for run in runs.values()]
    shown = json.loads(copy_of.read("data/evaluate/metrics.json"))["test"]["chosen"]["accuracy"]

    with mlflow_ui(copy_of) as address, browser_page(tmp_path / "profile") as page:
        foreign: list[str] = []
        page.on("request", lambda request: foreign.append(request.url) if request.url.startswith("http") else None)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))

        # The table of runs has both. Tick them and press Compare.
        page.goto(f"{address}/#/experiments/{experiment}/runs")
        boxes = page.get_by_role("checkbox", name="Press Space to toggle row selection")
        boxes.nth(1).wait_for()
        close_assistant(page)
        for name in names:
            page.get_by_role("link", name=name).first.wait_for()
        shot(page, "runs", tmp_path)
        for number in (0, 1):
            boxes.nth(number).check()
        page.get_by_role("button", name="Compare", exact=True).or_(
            page.get_by_role("link", name="Compare", exact=True)
        ).click()

        # Side by side: names, parameters, metrics.
        page.get_by_text("Comparing 2 Runs").wait_for()
        for name in names:
            page.get_by_text(name, exact=True).first.wait_for()
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
            page.get_by_text(text, exact=True).first.wait_for()
        row = page.get_by_role("row").filter(has=page.get_by_text("test/chosen/accuracy", exact=True)).first.inner_text()
        assert pytest.approx(shown, abs=1e-3) in [float(word) for word in row.split() if word.replace(".", "", 1).isdigit()]
        shot(page, "run", tmp_path)

        # Its figures are pictures that render.
        width = width_of(copy_of.folder / "data/evaluate/figures/confusion.png")
        page.goto(f"{address}/#/experiments/{experiment}/runs/{run}/artifacts/figures/confusion.png")
        page.wait_for_function("width => [...document.images].some(i => i.complete && i.naturalWidth === width)", arg=width)
        shot(page, "artifacts", tmp_path)

        assert not errors
        assert not [url for url in foreign if not url.startswith(address)]
