"""A model to serve, pictures to send it and clients that send them: what the two scripts on servers share."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from _project import ROOT

NETWORK, FEATURES, CLASSES = "tf_efficientnet_lite0", 1280, 10
WIDTH, HEIGHT, PICTURES = 400, 300, 64
BATCH, CLIENTS = 32, 64  # two batches: one comes in while the other is answered
WAIT_S = 0.005
WARM_UP = 4 * CLIENTS  # requests that are not counted
BARE = 10  # batches
PATIENCE_S = 180


def fill(folder: Path) -> None:
    """A packaged model with random weights below ``folder``, much as the package stage makes it."""
    import mlflow
    import torch
    from safetensors.torch import save_file

    from headstart.base.artifacts import ClassifierFolder
    from headstart.base.artifacts.classifier import ClassifierDetails
    from headstart.models.backbones import architecture
    from headstart.models.classifier import Classifier, FittedHead
    from headstart.models.heads import LinearHead

    torch.manual_seed(0)
    trunk, names = architecture(NETWORK).trunk(), tuple(f"class {number}" for number in range(CLASSES))
    model = Classifier(
        trunk, FittedHead(LinearHead.of(torch.randn(CLASSES, FEATURES) / 30, torch.zeros(CLASSES)), 1.0, names)
    )
    parts = ClassifierFolder(folder, "classifier")
    parts.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, parts.weights)
    parts.network.touch()
    ClassifierDetails(
        backbone=NETWORK, weights="none", preprocessing=trunk.view.stored(), classes=list(names), temperature=1.0,
        chosen="head", max_megapixels=100.0,
    ).write(parts.details)  # fmt: skip
    mlflow.pyfunc.save_model(
        folder / "model", python_model=str(ROOT / "headstart/inference/mlflow_model.py"),
        artifacts={"classifier": str(parts)},
        pip_requirements=["mlflow"],
    )  # fmt: skip


def jpegs() -> list[bytes]:
    """PICTURES files of WIDTH×HEIGHT pixels: coloured clouds with some grain, of some 35 KB each."""
    import numpy as np
    from PIL import Image

    random, files = np.random.default_rng(0), []
    for _ in range(PICTURES):
        clouds = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8)).resize((WIDTH, HEIGHT))
        grain = random.integers(-12, 13, (HEIGHT, WIDTH, 1), np.int16)
        stream = io.BytesIO()
        Image.fromarray((np.asarray(clouds) + grain).clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    return files


def bare_rate(model: Path) -> float:
    """Pictures per second of the engine alone: full batches of pictures that are decoded and cut to size already."""
    from headstart.inference.batch import BatchPredictor

    batched = BatchPredictor(model)
    seen = [batched.view(batched.decode(file)) for file in jpegs()][:BATCH]
    batched.predict_views(seen)
    start = time.perf_counter()
    for _ in range(BARE):
        batched.predict_views(seen)
    return BARE * BATCH / (time.perf_counter() - start)


@contextmanager
def running(
    *command: str, port: int, cwd: Path | None = None, variables: Mapping[str, str] = os.environ
) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers on ``port``, told to end when the block does."""
    environment = {"PYTHONPATH": str(ROOT)} | {**variables} | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10)
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None and time.monotonic() < deadline, f"{command[0]} does not answer"
                time.sleep(0.2)
        yield server
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(PATIENCE_S)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def headstart(model: Path, port: int) -> list[str]:
    """The command that serves."""
    program = "from headstart.cli import main; main()"
    return [sys.executable, "-c", program, "serve", "--model", str(model), "--port", str(port), "--batch", str(BATCH)]


def as_json(key: str | None = "image") -> list[bytes]:
    """Bodies that hold a picture as base64; for MLflow's server without ``key``."""
    texts = [base64.b64encode(file).decode() for file in jpegs()]
    bodies: list[Any] = [
        {key: text} if key else {"dataframe_split": {"columns": ["image"], "data": [[text]]}} for text in texts
    ]
    return [json.dumps(body).encode() for body in bodies]


def load(port: int, path: str, kind: str, bodies: list[bytes], requests: int, clients: int = CLIENTS) -> list[float]:
    """Seconds that each of ``requests`` took. The ``clients`` send at the same time, each when its last one is answered."""
    wire = [
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
        for body in bodies
    ]
    waiting, seconds = islice(cycle(wire), requests), list[float]()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for request in waiting:
            start = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
            answer = await reader.readexactly(int(length[1])) if length else b""
            assert head.startswith(b"HTTP/1.1 200"), head + answer
            seconds.append(time.perf_counter() - start)
        writer.close()

    async def all_of_them() -> None:
        await asyncio.gather(*(client() for _ in range(clients)))

    asyncio.run(all_of_them())
    return seconds


def percentile(seconds: list[float], share: float) -> float:
    return sorted(seconds)[min(int(share * len(seconds)), len(seconds) - 1)]
