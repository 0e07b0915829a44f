"""serve: the packaged classifier over HTTP, with a page to try it on.

FastAPI on uvicorn, and a queue that batches the pictures of several clients. bench/servers.py compares it with LitServe and
MLflow's own server; docs/serving.md has the results and describes requests and responses.
"""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse
from PIL import Image

from headstart import __version__
from headstart.base.artifacts import DataFolder, ModelFolder
from headstart.base.artifacts.classifier import ClassifierDetails
from headstart.base.artifacts.metrics import Metrics
from headstart.base.errors import HeadstartError, nearest
from headstart.base.terminal import say
from headstart.base.threads import cores
from headstart.data.decode import Array
from headstart.evaluation import pages
from headstart.inference.batch import BatchPredictor, Selection
from headstart.inference.lanes import OVERLOADED, Lanes
from headstart.inference.listening import PAGE_HEADERS, address_of, answer, listen
from headstart.inference.prediction_files import answer_as_json
from headstart.inference.predictor import Output
from headstart.inference.request_body import MAX_PICTURES, Bodies, picture_files

MAX_PENDING_BYTES = 256 << 20  # of pictures that wait for the network
TURN = 8  # pictures


@dataclass(frozen=True)
class Limits:
    """Limits on requests and batches.

    Attributes:
        max_megabytes: of one request's body.
        max_megapixels: of one picture, and of all pictures in one request; None for the limit that the model was made with
            (prepare.max_megapixels).
        batch: the most pictures to pass through the network at once.
        wait_ms: how long a picture waits for others to form a batch, in milliseconds.
    """

    max_megabytes: float = 10.0
    max_megapixels: float | None = None
    batch: int = 32
    wait_ms: float = 5.0

    def megapixels(self, model: BatchPredictor) -> float:
        """The limit on one picture's size; never more than the model was made with."""
        return min(self.max_megapixels or model.rules.max_megapixels, model.rules.max_megapixels)


def serve(folder: Path, host: str, port: int, limits: Limits, names: Sequence[str] = (), trust: bool = False) -> None:
    """Answer requests until SIGTERM or Ctrl-C; requests that are running then are still answered.

    Args:
        folder: a packaged model, the folder that holds MLmodel.
        port: 0 picks a free one. The address is printed when the server is ready.
        names: of the hosts that the server is also reached by, for instance of a proxy on this machine.
        trust: as for ``load_predictor``.

    Raises:
        HeadstartError: the folder holds no model, or the server cannot listen on the address.
    """
    with listen(host, port) as listener:
        model = BatchPredictor(folder, trust=trust)
        ready = f"{folder} is served on {address_of(host, listener)}"
        app = application(model, model_info(folder, model, limits), limits, ready)
        answer(app, listener, host, names)


def model_info(folder: Path, model: BatchPredictor, limits: Limits) -> dict[str, Any]:
    """The response of GET /model. The test figures are read from data/evaluate beside the model; None if it was moved."""
    details = ClassifierDetails.read(ModelFolder(folder).classifier.details)
    figures = None
    with suppress(HeadstartError, KeyError):
        measured = Metrics.read(DataFolder(folder.resolve().parent.parent).evaluate.metrics)
        if measured.chosen == details.chosen:
            figures = measured.test["chosen"]
    return {
        "task": model.task.kind,
        "classes": list(model.classes),
        "backbone": details.backbone,
        "chosen": details.chosen,
        "size": model.view.size,
        "frame": model.view.frame,
        "figures": figures,
        "engine": model.engine.engine,
        "max_megabytes": limits.max_megabytes,
        "max_megapixels": limits.megapixels(model),
        "max_pictures": MAX_PICTURES,
    }


def application(model: BatchPredictor, info: dict[str, Any], limits: Limits, ready: str) -> FastAPI:
    """The server's paths: /, /health, /model, /predict and /explain.

    Args:
        info: the response of GET /model.
        ready: printed when the server is ready.
    """
    batches = Batches(model, limits.batch, limits.wait_ms / 1000)
    bodies = Bodies(int(limits.max_megabytes * 1e6))
    lanes = Lanes(replace(model.rules, max_megapixels=limits.megapixels(model), formats="common"), cores())
    page = pages.template("serve.html.j2").render(about=info)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with closing(lanes), ThreadPoolExecutor(1, "network") as network:
            lanes.start()
            working = asyncio.create_task(batches.run(network))
            say(ready, flush=True)
            yield
            working.cancel()

    app = FastAPI(title="headstart", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)

    async def files_in(body: bytes, request: Request) -> tuple[list[bytes], bool]:
        return await asyncio.to_thread(picture_files, body, request.headers.get("content-type", ""))

    @app.exception_handler(Exception)
    async def failed(_request: Request, _error: Exception) -> JSONResponse:
        return JSONResponse({"detail": "the server failed on this request; its log has the reason"}, 500)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/model")
    async def describe() -> JSONResponse:
        return JSONResponse(info)

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        async with bodies.read(request) as body:
            files, is_list = await files_in(body, request)
            pictures = await lanes.decode(files, model.view)
        outputs = await asyncio.gather(*(batches.predict(picture, place) for place, picture in enumerate(pictures)))
        predictions = [_prediction(output, model) for output in outputs]
        return JSONResponse(predictions if is_list else predictions[0])

    @app.post("/explain")
    async def explain(request: Request, label: str | None = None) -> JSONResponse:
        if label is not None and label not in model.classes:
            hint = nearest(label, model.classes) or "GET /model lists them"
            raise HTTPException(400, f"there is no class {label!r}; {hint}")
        async with bodies.read(request) as body:
            files, is_list = await files_in(body, request)
            if is_list:
                raise HTTPException(400, "one picture is explained at a time")
            (picture,) = await lanes.decode(files, lambda picture: picture)
        return JSONResponse(await asyncio.to_thread(_explain, model, picture, label))

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=PAGE_HEADERS)

    return app


class Batches:
    """Predicts the pictures of all requests in batches.

    Each further picture of a request lets ``TURN`` others go first, so that a request for many pictures does not keep those
    that come later waiting for all of them.
    """

    def __init__(self, model: BatchPredictor, max_batch: int, wait_s: float) -> None:
        self.model, self.max_batch, self.wait_s = model, max_batch, wait_s
        capacity = max(MAX_PICTURES, MAX_PENDING_BYTES // (3 * math.prod(model.view.shape)))
        # The number to be served after, the number in order of arrival, the picture, its answer.
        self._waiting: asyncio.PriorityQueue[tuple[int, int, Array, asyncio.Future[Output]]] = asyncio.PriorityQueue(
            capacity
        )
        self._arrived = self._served = 0

    async def predict(self, picture: Array, place: int = 0) -> Output:
        """(size, size, 3) uint8, as the model's view returns it → what the model makes of it.

        Args:
            place: of the picture in its request.

        Raises:
            HTTPException: 503 too many are waiting already.
        """
        output: asyncio.Future[Output] = asyncio.get_running_loop().create_future()
        try:
            self._arrived += 1
            self._waiting.put_nowait((self._served + TURN * place, self._arrived, picture, output))
        except asyncio.QueueFull:
            raise HTTPException(*OVERLOADED) from None
        return await output

    async def run(self, network: Executor) -> None:
        """Predict until cancelled. Pictures that arrive while the network runs make the next batch."""
        while True:
            batch = [await self._waiting.get()]
            with suppress(TimeoutError):
                async with asyncio.timeout(self.wait_s):
                    while len(batch) < self.max_batch:
                        batch.append(await self._waiting.get())
            self._served += len(batch)
            pictures = [picture for _, _, picture, _ in batch]
            try:
                outputs = await asyncio.get_running_loop().run_in_executor(network, self.model.predict_views, pictures)
            except Exception as error:  # raised in the requests, which log it
                for *_, output in batch:
                    if not output.done():
                        output.set_exception(error)
            else:
                for (*_, output), found in zip(batch, outputs, strict=True):
                    if not output.done():
                        output.set_result(found)


def _explain(model: BatchPredictor, picture: Array, label: str | None) -> dict[str, Any]:
    """The response of POST /explain, for ``label`` or for the most probable class."""
    (output,) = model.outputs([picture])
    prediction = _prediction(output, model)
    label = label or model.classes[int(np.argmax(output.probabilities))]
    return prediction | {"explained": label} | _explanation_images(model, picture, model.classes.index(label))


def _prediction(output: Output, model: BatchPredictor) -> dict[str, Any]:
    """The same as ``headstart predict --format json`` prints."""
    return answer_as_json(Selection(model.task, model.classes).answer(output), model.classes)


def _explanation_images(model: BatchPredictor, picture: Array, target: int) -> dict[str, str | None]:
    """The part of a picture that the network saw, and its heat map to lay over it, both as data URLs. The second is None if
    the network has none."""
    from headstart.evaluation.explain import heat_maps

    with model.lock:
        maps = heat_maps(model.predictor.model, [picture], [target])
    heat = None
    if maps is not None:
        heat = pages.embedded(_encoded(Image.fromarray(pages.heat_layer(maps[0]), "RGBA"), "PNG"))
    return {"seen": pages.embedded(_encoded(Image.fromarray(model.view.first(picture)), "JPEG"), "jpeg"), "heat": heat}


def _encoded(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()
