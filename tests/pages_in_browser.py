"""What holds for every page: it can be read on a phone and on a desk, in light and in dark, and by a screen reader."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from axe_playwright_python.sync_playwright import Axe

if TYPE_CHECKING:
    from playwright.sync_api import Page

SCREENSHOTS = Path(__file__).parents[1] / "docs" / "screenshots"
WIDTHS = {1280: 800, 390: 844}
SMALLEST_PX = 11
SEEN = """smallest => {
    const small = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
    for (let node; (node = walker.nextNode()); ) {
        const element = node.parentElement, box = element.getBoundingClientRect()
        const size = parseFloat(getComputedStyle(element).fontSize)
        if (node.data.trim() && box.width && box.height && size < smallest) small.push(node.data.trim())
    }
    // Letters of figures are shapes: those of 9 points are large enough unless the figure is shrunk.
    const shrunk = [...document.querySelectorAll("svg")].filter(
        svg => svg.getBoundingClientRect().width < svg.width.baseVal.value - 1)
    const parted = [...document.querySelectorAll(".whole")].filter(part => part.getClientRects().length > 1)
    return {beside: document.documentElement.scrollWidth - innerWidth, small, shrunk: shrunk.length,
        parted: parted.map(part => part.textContent), ground: getComputedStyle(document.body).backgroundColor}
}"""


def look_through(page: Page, name: str, folder: Path, shown: tuple[str, ...] = ()) -> None:
    """Look at the page that is open at every width and in every colour.

    Args:
        folder: for screenshots, for whoever looks into a failure.
        shown: the widths and colours whose screenshot is in the documentation: ``1280-light``.
    """
    grounds = set()
    for width, height in WIDTHS.items():
        page.set_viewport_size({"width": width, "height": height})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme="light" if scheme == "light" else "dark")
            state = f"{name} at {width} px, {scheme}"
            page.screenshot(path=folder / f"{name}-{width}-{scheme}.png", full_page=True)
            if os.environ.get("HEADSTART_SCREENSHOTS") == "1" and f"{width}-{scheme}" in shown:
                page.screenshot(path=SCREENSHOTS / f"{name}{'' if scheme == 'light' else '-dark'}.png")
            seen = page.evaluate(SEEN, SMALLEST_PX)
            assert seen["beside"] <= 0, f"{state}: scrolls sideways by {seen['beside']} px"
            assert not seen["small"], f"{state}: smaller than {SMALLEST_PX} px: {seen['small'][:5]}"
            assert not seen["shrunk"], f"{state}: {seen['shrunk']} figures are shrunk"
            assert not seen["parted"], f"{state}: broken over two lines: {seen['parted'][:5]}"
            grounds.add(seen["ground"])
            found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
            serious = [
                f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]}"
                for one in found
                if one["impact"] in ("serious", "critical")
            ]
            assert not serious, f"{state}: {serious}"
    assert len(grounds) == 2, f"{name} looks the same in light and dark"
