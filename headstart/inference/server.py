"""serve: the packaged classifier over HTTP, with a page to try it on.

FastAPI on uvicorn, and a queue that makes batches of what several clients send at the same time. bench/servers.py measures
it beside LitServe and MLflow's own server; docs/serving.md says what came of it and describes requests and answers.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import signal
import socket
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse
from PIL import Image
from starlette.requests import ClientDisconnect

from headstart import __version__
from headstart.base.arrays import Floats
from headstart.base.artifacts import CLASSIFIER, DETAILS
from headstart.base.errors import HeadstartError, nearest
from headstart.base.files import read_json
from headstart.base.threads import cores
from headstart.data.decode import Array, Unusable, quiet
from headstart.evaluation import pages
from headstart.inference.batch import BatchPredictor

MOST_PICTURES, MOST_PARTS = 64, 100  # in one request, and in one form
LONGEST_TYPE = 500  # characters of a content type: Python takes seconds to read a hostile one of 60,000
MOST_HELD = 256 << 20  # bytes of bodies that are read and not decoded yet, and again of pictures that wait for the network
MOST_CONNECTIONS = 512
PATIENCE_S = 60.0  # for a body to arrive
LINGER = 4  # times the limit is still read, and thrown away, before a refusal: many clients listen when they have said all
GRACE_S = 10  # for requests that are under way when the server is told to stop
FULL = 503, "the server has its hands full; try again in a moment", {"Retry-After": "1"}
HEAT = (255, 84, 0)
ALONE = {  # the page loads nothing from elsewhere and runs no script but its own
    "Content-Security-Policy": "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Limits:
    """What is asked of a server, and what of its clients.

    Attributes:
        max_megabytes: of one request's body.
        max_megapixels: of one picture; None: what the model was made with (prepare.max_megapixels).
        batch: how many pictures go through the network at once, at most.
        wait_ms: how long a picture waits for others to come, in milliseconds.
    """

    max_megabytes: float = 10.0
    max_megapixels: float | None = None
    batch: int = 32
    wait_ms: float = 5.0


def serve(folder: Path, host: str, port: int, limits: Limits) -> None:
    """Answer requests until SIGTERM or Ctrl-C; those that are under way then are still answered.

    Args:
        folder: a packaged model, the folder that holds MLmodel.
        port: 0 takes a free one. The address is printed once requests are answered.

    Raises:
        HeadstartError: the folder holds no model, or the address cannot be listened on.
    """
    with _listening(host, port) as listener:
        model = BatchPredictor(folder)
        most = min(limits.max_megapixels or model.max_megapixels, model.max_megapixels)
        model.predictor.max_megapixels = most
        Image.MAX_IMAGE_PIXELS = int(most * 1e6)  # Pillow's own guard too, for pictures that are inside of others (.ico)
        Image.init()
        Image.ID.remove("EPS")  # a program, which Pillow hands to Ghostscript where that is installed
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listener.getsockname()[1]}"
        app = application(model, described(folder, model, limits), limits, f"{folder} is served on {address}")
        # h11 bounds what a request's head may hold, which httptools does not.
        server = uvicorn.Server(
            uvicorn.Config(
                app, http="h11", ws="none", log_level="warning", access_log=False, server_header=False,
                limit_concurrency=MOST_CONNECTIONS, timeout_graceful_shutdown=GRACE_S,
            )
        )  # fmt: skip
        for number in (signal.SIGINT, signal.SIGTERM):
            # uvicorn has handlers of its own while it runs, and raises what it caught again once it has ended.
            signal.signal(number, server.handle_exit)
        with quiet():
            server.run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise HeadstartError(f"{host}:{port} cannot be listened on ({reason}); see --port and --host") from None


def described(folder: Path, model: BatchPredictor, limits: Limits) -> dict[str, Any]:
    """What GET /model says. The test figures are those beside the model, in data/evaluate; None where it was moved."""
    details = read_json(folder / CLASSIFIER / DETAILS)
    figures = None
    with suppress(OSError, ValueError, KeyError):
        measured = read_json(folder.resolve().parent.parent / "evaluate" / "metrics.json")
        if measured["chosen"] == details["chosen"]:
            figures = measured["test"]["chosen"]
    return {
        "classes": list(model.classes),
        "backbone": details["backbone"],
        "chosen": details["chosen"],
        "size": model.view.size,
        "figures": figures,
        "engine": model.engine["engine"],
        "max_megabytes": limits.max_megabytes,
        "max_megapixels": model.max_megapixels,
        "max_pictures": MOST_PICTURES,
    }


def application(model: BatchPredictor, about: dict[str, Any], limits: Limits, ready: str) -> FastAPI:
    """The server's paths: /, /health, /model, /predict and /explain.

    Args:
        about: what GET /model says.
        ready: printed when requests can come.
    """
    batches = Batches(model, limits.batch, limits.wait_ms / 1000)
    bodies = Bodies(int(limits.max_megabytes * 1e6))
    decoders = ThreadPoolExecutor(cores(), "decode")
    page = pages.template("serve.html.j2").render(about=about)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with decoders, ThreadPoolExecutor(1, "network") as network:
            working = asyncio.create_task(batches.work(network))
            print(ready, flush=True)
            yield
            working.cancel()

    app = FastAPI(title="headstart", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)

    async def in_thread(work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(decoders, work, *arguments)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": "the server failed at this request; its log says how"}, 500)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/model")
    async def describe() -> JSONResponse:
        return JSONResponse(about)

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        async with bodies.of(request) as body:
            files, listed = await in_thread(_files, body, request.headers.get("content-type", ""))
            pictures = await asyncio.gather(*(in_thread(_view, model, data) for data in files))
        rows = await asyncio.gather(*(batches.answer(picture) for picture in pictures))
        answers = [_answer(row, model) for row in rows]
        return JSONResponse(answers if listed else answers[0])

    @app.post("/explain")
    async def explain(request: Request, label: str | None = None) -> JSONResponse:
        if label is not None and label not in model.classes:
            hint = nearest(label, model.classes) or "GET /model lists them"
            raise HTTPException(400, f"there is no class {label!r}; {hint}")
        async with bodies.of(request) as body:
            files, listed = await in_thread(_files, body, request.headers.get("content-type", ""))
            if listed:
                raise HTTPException(400, "one picture is explained at a time")
            return JSONResponse(await in_thread(_explained, model, files[0], label))

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=ALONE)

    return app


class Batches:
    """Pictures of all requests, answered so many at a time."""

    def __init__(self, model: BatchPredictor, most: int, wait_s: float) -> None:
        self.model, self.most, self.wait_s = model, most, wait_s
        room = max(MOST_PICTURES, MOST_HELD // (3 * model.view.size**2))
        self._waiting: asyncio.Queue[tuple[Array, asyncio.Future[Floats]]] = asyncio.Queue(room)

    async def answer(self, picture: Array) -> Floats:
        """(size, size, 3) uint8, as the model's view gives it → (classes,).

        Raises:
            HTTPException: 503 too many wait already.
        """
        answer: asyncio.Future[Floats] = asyncio.get_running_loop().create_future()
        try:
            self._waiting.put_nowait((picture, answer))
        except asyncio.QueueFull:
            raise HTTPException(*FULL) from None
        return await answer

    async def work(self, network: Executor) -> None:
        """Answer until cancelled. What comes while the network works makes the next batch."""
        while True:
            batch = [await self._waiting.get()]
            with suppress(TimeoutError):
                async with asyncio.timeout(self.wait_s):
                    while len(batch) < self.most:
                        batch.append(await self._waiting.get())
            pictures = [picture for picture, _ in batch]
            try:
                rows = await asyncio.get_running_loop().run_in_executor(network, self.model.predict_views, pictures)
            except Exception as error:  # is told to those who asked, and logged there
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
            else:
                for (_, answer), row in zip(batch, rows, strict=True):
                    if not answer.done():
                        answer.set_result(row)


class Bodies:
    """The bodies of requests: each is bounded, in bytes and in time, and so is what all of them hold together."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0

    @asynccontextmanager
    async def of(self, request: Request) -> AsyncIterator[bytes]:
        """A request's body, which counts as held inside of the block.

        Raises:
            HTTPException: 413 too large, 408 too slow, 503 too many at once. The connection is closed after each of them.
        """
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self._read(request, body)
            except TimeoutError:
                raise _last(408, f"the body did not arrive within {PATIENCE_S:g} s") from None
            except ClientDisconnect:
                raise _last(400, "the connection ended before the body did") from None
            yield bytes(body)
        finally:
            self.held -= len(body)

    async def _read(self, request: Request, body: bytearray) -> None:
        too_large = _last(413, f"the body is larger than {self.most / 1e6:g} MB")
        told = int(request.headers.get("content-length", 0))
        if told > self.most and ("expect" in request.headers or told > LINGER * self.most):
            raise too_large
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size <= self.most:
                if self.held + len(chunk) > MOST_HELD:
                    raise _last(*FULL)
                body += chunk
                self.held += len(chunk)
            elif size > LINGER * self.most:
                break
        if size > self.most:
            raise too_large


def _last(status: int, sentence: str, headers: dict[str, str] | None = None) -> HTTPException:
    """A refusal of a body that was not read to its end, so that nothing else can follow on the connection."""
    return HTTPException(status, sentence, {"Connection": "close"} | (headers or {}))


def _files(body: bytes, content_type: str) -> tuple[list[bytes], bool]:
    """The picture files in a request's body, and whether they came as a list, which a list answers.

    Raises:
        HTTPException: 400 the body is not what its type says, or that is overlong, 413 it holds too many.
    """
    if len(content_type) > LONGEST_TYPE:
        raise HTTPException(400, f"the content type is longer than {LONGEST_TYPE} characters")
    header = Message()
    header["content-type"] = content_type or "application/octet-stream"
    kind = header.get_content_type()
    if kind == "application/json":
        files, listed = _from_json(body)
    elif kind == "multipart/form-data":
        files = _from_form(body, str(header.get_param("boundary", "")))
        listed = len(files) > 1
    else:
        return [body], False
    if not files:
        raise HTTPException(400, "there is no picture in the request")
    if len(files) > MOST_PICTURES:
        raise HTTPException(413, f"{len(files)} pictures in one request; at most {MOST_PICTURES}")
    return files, listed


def _from_json(body: bytes) -> tuple[list[bytes], bool]:
    try:
        asked = json.loads(body)
        given = asked["image"]
        texts: list[str] = given if isinstance(given, list) else [given]
        plain = [text.partition("base64,")[2] or text for text in texts]  # a data: address is taken too
        files = [base64.b64decode(text, validate=True) for text in plain[: MOST_PICTURES + 1]]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise HTTPException(400, 'JSON has to be {"image": "base64 of a picture file"}, or have a list of them') from None
    return files, isinstance(given, list)


def _from_form(body: bytes, boundary: str) -> list[bytes]:
    """The files in a multipart body (RFC 7578). The standard library's parser goes line by line, which takes it long for a
    body of nothing but line ends."""
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1", "replace"), MOST_PARTS)
    if not boundary or len(parts) < 3:
        raise HTTPException(400, "the form has no parts, or not the boundary that its content type names")
    if len(parts) > MOST_PARTS:
        raise HTTPException(413, f"more than {MOST_PARTS - 2} parts in one form")
    heads = [part.partition(b"\r\n\r\n") for part in parts[1:]]
    return [content for head, _, content in heads if b"filename" in head.lower()]


def _decoded(model: BatchPredictor, data: bytes) -> Array:
    try:
        return model.decode(data)
    except Unusable as reason:
        raise HTTPException(422, str(reason).replace("prepare.max_megapixels", "this server's limit")) from None
    except Image.DecompressionBombError:
        raise HTTPException(422, f"more pixels than this server's limit ({model.max_megapixels:g} million)") from None


def _view(model: BatchPredictor, data: bytes) -> Array:
    """What the network sees of a picture. It is cut out here, in the thread that decodes: large ones never pile up."""
    return model.view(_decoded(model, data))


def _explained(model: BatchPredictor, data: bytes, label: str | None) -> dict[str, Any]:
    """What POST /explain answers: for ``label``, or for the likeliest class."""
    picture = _decoded(model, data)
    row = model.probabilities([picture])[0]
    answer = _answer(row, model)
    label = label or answer["label"]
    return answer | {"explained": label} | _where(model, picture, model.classes.index(label))


def _answer(row: Floats, model: Batched) -> dict[str, Any]:
    """As ``headstart predict --format json`` has it."""
    label, confidence = model.task.answer(row, model.classes)
    probabilities = dict(zip(model.classes, row.tolist(), strict=True))
    return {"label": label, "probability": confidence, "probabilities": probabilities}


def _where(model: BatchPredictor, picture: Array, target: int) -> dict[str, str | None]:
    """What the network saw of a picture, and its Grad-CAM to lay over it, both as addresses of pictures; the second is None
    where the network has no map to look at."""
    from headstart.evaluation.explain import grad_cam

    with model.lock:
        maps = grad_cam(model.predictor.model, [picture], [target])
    heat = None
    if maps is not None:
        layer = np.empty((*maps.shape[1:], 4), np.uint8)
        layer[..., :3], layer[..., 3] = HEAT, np.round(maps[0].clip(0, 1) * 200)
        heat = pages.embedded(_file(Image.fromarray(layer, "RGBA"), "PNG"))
    return {"seen": pages.embedded(_file(Image.fromarray(model.view(picture)), "JPEG"), "jpeg"), "heat": heat}


def _file(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()
