"""How long an honest client of `headstart serve` waits while hostile ones are served, and how much memory that takes.

    python bench/hostile_requests.py     # about three minutes on two cores

The honest client sends JPEGs of 400×300 pixels, one after the other; six hostile ones send one kind of expensive request
all the time. Prints for each kind its size, the median and the 90th percentile of the honest client's wait, as multiples of
the median without hostile clients, and the most memory (RSS) that the server and its decoders had together.
"""

from __future__ import annotations

import argparse
import base64
import json
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from statistics import median

from _project import ROOT
from _serving import fill, free_port, headstart, jpegs, percentile, running

HONEST, HOSTILE_CLIENTS = 30, 6


def attacks() -> dict[str, tuple[str, bytes]]:
    import sys

    sys.path.insert(0, str(ROOT))
    from tests.data import hostile

    def as_json(*files: bytes) -> tuple[str, bytes]:
        texts = [base64.b64encode(file).decode() for file in files]
        return "application/json", json.dumps({"image": texts}).encode()

    return {
        "32 WebP of 100 megapixels": as_json(*[hostile.flat_webp(10_000, 10_000)] * 32),
        "a WebP of 100 megapixels": as_json(hostile.flat_webp(10_000, 10_000)),
        "64 WebP of 1 megapixel": as_json(*[hostile.flat_webp(1000, 1000)] * 64),
        "a JPEG of 100 scans": as_json(hostile.jpeg_of_scans(12_000, 2000, 100)),
        "a JPEG of 5,000 scans": as_json(hostile.jpeg_of_scans(65_000, 1500, 5000)),
        "64 PNG full of text": as_json(
            *[hostile.with_chunks(hostile.flat_png(64, 64), (b"zTXt", b"a\0\0" + hostile.deflated(1 << 20)))] * 64
        ),
        "a GIF of 100,000 comments": as_json(hostile.gif_of_comments(100_000)),
        "an AVIF of 24 megapixels": ("image/avif", hostile.noise("AVIF", 6000, 4000)),
        "a PNG of 24 megapixels": ("image/png", hostile.noise("PNG", 6000, 4000)),
    }


def post(port: int, kind: str, body: bytes) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=300) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as refusal:
        return refusal.code


def waits(port: int) -> list[float]:
    seconds = []
    for file in jpegs()[:HONEST]:
        start = time.perf_counter()
        assert post(port, "image/jpeg", file) == 200
        seconds.append(time.perf_counter() - start)
    return seconds


def megabytes(pid: int) -> float:
    """RSS of a process and of those that it started."""
    total = 0.0
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError, KeyError):
            found = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            if pid in (int(found["Pid"]), int(found["PPid"])):
                total += int(found["VmRSS"].split()[0]) / 1e3
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for a packaged model with random weights")
    folder: Path = parser.parse_args().folder
    if not (folder / "model").exists():
        fill(folder)
    port = free_port()
    with running(*headstart(folder / "model", port), port=port) as server:
        waits(port)
        alone = median(waits(port))
        print(f"alone: {1000 * alone:.0f} ms, {megabytes(server.pid):.0f} MB")
        for name, (kind, body) in attacks().items():
            over, statuses, most = threading.Event(), set[int](), [0.0]

            def attack(kind: str = kind, body: bytes = body, statuses: set[int] = statuses) -> None:
                while not over.is_set():  # noqa: B023
                    statuses.add(post(port, kind, body))

            def watch(most: list[float] = most) -> None:
                while not over.is_set():  # noqa: B023
                    most[0] = max(most[0], megabytes(server.pid))
                    time.sleep(0.1)

            threads = [threading.Thread(target=work) for work in [attack] * HOSTILE_CLIENTS + [watch]]
            for thread in threads:
                thread.start()
            time.sleep(1)
            seconds = waits(port)
            over.set()
            for thread in threads:
                thread.join()
            print(
                f"{name} ({len(body):,} bytes; answered {sorted(statuses)}): median {median(seconds) / alone:.1f}×, "
                f"p90 {percentile(seconds, 0.9) / alone:.1f}×, {most[0]:.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
