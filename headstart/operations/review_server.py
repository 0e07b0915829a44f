"""``headstart review``: a page on which pictures are judged by keyboard. A judgement is on the disk before it is answered.

What is worth a look is in ``headstart.operations.review``, where judgements are kept in ``headstart.data.judgements``.
"""

from __future__ import annotations

import asyncio
import io
import shutil
import webbrowser
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from headstart import __version__
from headstart.base.artifacts import DataFolder
from headstart.base.errors import HeadstartError
from headstart.base.files import replacing
from headstart.base.params import Params
from headstart.base.paths import checkout
from headstart.base.terminal import say
from headstart.data.decode import Array, Unusable
from headstart.data.decoders import Decoders, Rules
from headstart.data.judgements import JudgedSince, Judgement, Judgements, Step, Tables
from headstart.data.packed import Pixels
from headstart.data.picture import LARGEST, SEPARATOR, InPlace, names_in
from headstart.data.sources import source_of
from headstart.evaluation import pages
from headstart.inference.listening import PAGE_HEADERS, address_of, answer, listen
from headstart.inference.request_body import Bodies
from headstart.operations import review
from headstart.operations.review import QUEUES, UNLABELLED, Item, Review, Shown

T = TypeVar("T")

MAX_BYTES = 1_000_000  # of a request
CHANGED = "the lists have changed since this page was opened; reload it"
SINCE = "somebody else has judged this picture since; nothing was undone"
HEADERS = PAGE_HEADERS | {
    "Content-Security-Policy": PAGE_HEADERS["Content-Security-Policy"].replace("img-src", "img-src 'self'"),
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Verdict:
    """The body of POST /judge.

    Attributes:
        digest: of the lists, as GET /queue gave it.
        item: its place in them.
        picture: which of the item's pictures; ``keep`` is about all of them.
        labels: the right ones, where that is the verdict.
    """

    digest: str
    item: int
    verdict: Literal["keep", "leave out", "label"]
    picture: int = 0
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Undo:
    """The body of POST /undo: what POST /judge has answered."""

    digest: str
    steps: tuple[Step, ...]


def serve(data: DataFolder, host: str, port: int, names: Sequence[str] = (), show: bool = False) -> None:
    """Answer the page's requests until SIGTERM or Ctrl-C.

    Args:
        names: of the hosts that the server is also reached by.
        show: whether to open the page in a browser.

    Raises:
        HeadstartError: there is nothing to review, or the server cannot listen on the address.
    """
    with listen(host, port) as listener:
        desk = Desk(data)
        address = address_of(host, listener)
        app = application(desk, address, show)
        answer(app, listener, host, names)


class Lists:
    """What is worth a look, as it was when somebody last asked."""

    def __init__(self, data: DataFolder) -> None:
        self.data = Params.load().data
        self.review: Review = review.read(data)
        self.digest, self.pixels = self.review.digest, Pixels(data.prepare)
        self.judgements = Judgements(self.review.several)
        self.pictures = [*dict.fromkeys(shown for item in self.review.items for shown in item.pictures)]

    def item(self, digest: str, place: int) -> Item:
        """
        Raises:
            HTTPException: 409 the lists are others by now; 400 there is no such item.
        """
        if digest != self.digest:
            raise HTTPException(409, CHANGED)
        if not 0 <= place < len(self.review.items):
            raise HTTPException(400, "there is no such item")
        return self.review.items[place]

    @cached_property
    def _root(self) -> Path | InPlace:
        return source_of(self.data).root(self.data)

    def content_of(self, shown: Shown) -> Path | bytes:
        """The file of a picture of the source, or its bytes where it is no file of this machine.

        Raises:
            HTTPException: 422 it is too large.
        """
        if isinstance(self._root, Path):
            return self._root / shown.path
        if shown.size > LARGEST:
            raise HTTPException(422, f"{shown.path} has more than {LARGEST >> 20} MB")
        return self._root.read(shown.path)

    def page(self) -> dict[str, Any]:
        """The response of GET /queue."""
        number = {shown: place for place, shown in enumerate(self.pictures)}
        return {
            "digest": self.digest,
            "classes": self.review.classes,
            "several": self.review.several,
            "notes": self.review.notes,
            "queues": [
                {"key": key, "title": title} for key, title in QUEUES.items() if key in {i.queue for i in self.review.items}
            ],
            "items": [self._item(item, number) for item in self.review.items],
            "open": self.open(self.judgements.tables()),
        }

    def _item(self, item: Item, number: dict[Shown, int]) -> dict[str, Any]:
        return {
            "queue": item.queue,
            "why": item.why,
            "suggested": None if item.suggested is None else self._names(item.suggested),
            "model": [{"label": label or "(none)", "probability": p} for label, p in item.model],
            "pictures": [
                {
                    "address": f"picture/{number[shown]}/{shown.sha256[:16]}",
                    "path": shown.original or shown.path,
                    "labels": self._names(shown.label) if shown.label else [],
                    "split": shown.split,
                }
                for shown in item.pictures
            ],
        }

    def _names(self, label: str) -> list[str]:
        return names_in(label) if self.review.several else [label]

    def open(self, tables: Tables) -> list[int]:
        """The places of the items that nobody has judged yet."""
        return [place for place, item in enumerate(self.review.items) if item.is_open(tables)]

    def judgements_of(self, verdict: Verdict) -> list[Judgement]:
        """
        Raises:
            HTTPException: 409 the lists are others by now; 400 there is no such item, picture or class.
        """
        item = self.item(verdict.digest, verdict.item)
        if not 0 <= verdict.picture < len(item.pictures):
            raise HTTPException(400, "the item has no such picture")
        picture = item.pictures[verdict.picture]
        if verdict.verdict == "keep" and item.queue == UNLABELLED:
            raise HTTPException(400, "it has no label to keep")
        if verdict.verdict == "keep":
            return item.kept(self.judgements.tables())
        if verdict.verdict == "leave out":
            return [Judgement(picture.path, None, picture.label, is_new=picture.is_new)]
        unknown = set(verdict.labels) - set(self.review.classes)
        if unknown:
            raise HTTPException(400, f"there is no class {min(unknown)!r}")
        if not self.review.several and len(verdict.labels) != 1:
            raise HTTPException(400, "each picture has one label")
        label = SEPARATOR.join(sorted(set(verdict.labels)))
        return [Judgement(picture.path, label, picture.label, is_new=picture.is_new)]

    def labels_now(self, item: Item, tables: Tables) -> list[list[str]]:
        """The labels of the item's pictures, as they have been judged."""
        labels = [(picture.label, tables.of(picture.path, is_new=picture.is_new).label) for picture in item.pictures]
        now = [given if judged is None else judged for given, judged in labels]
        return [self._names(label) if label else [] for label in now]


class Desk:
    """The lists, and the judgements of what is in them.

    Attributes:
        judged: how many judgements were made here.
    """

    def __init__(self, data: DataFolder) -> None:
        self.data, self.judged = data, 0
        self.lists = Lists(data)
        rules = Params.load().prepare
        # They start when a picture is asked for that is not packed.
        self.decoders = Decoders(1, Rules(rules.short_side, rules.max_megapixels, rules.formats, rules.white_level))

    def queue(self) -> dict[str, Any]:
        """The response of GET /queue; the lists are read again, since stages may have made others."""
        self.lists = lists = Lists(self.data)
        return lists.page()

    def judge(self, verdict: Verdict) -> dict[str, Any]:
        """The response of POST /judge.

        Raises:
            HTTPException: as ``Lists.judgements_of``.
            HeadstartError: it cannot be written.
        """
        lists = self.lists
        item, judgements = lists.item(verdict.digest, verdict.item), lists.judgements_of(verdict)
        for shown in item.pictures:
            if shown.file and verdict.verdict == "label":
                with replacing(checkout() / shown.path) as part:
                    shutil.copyfile(shown.file, part)
        steps, told, tables = lists.judgements.judge(judgements)
        _remove_unlabelled(item.pictures, tables)
        self.judged += 1
        for one in told:
            say(f"params.yaml: {one}", flush=True)
        now = lists.labels_now(item, tables)
        return {"undo": [asdict(step) for step in steps], "told": told, "open": lists.open(tables), "labels": now}

    def undo(self, wanted: Undo) -> dict[str, Any]:
        """The response of POST /undo.

        Raises:
            HTTPException: 409 the lists have changed, or somebody else has judged the picture since.
        """
        lists = self.lists
        known = {shown.path: shown for shown in lists.pictures}
        if wanted.digest != lists.digest or not all(step.path in known for step in wanted.steps):
            raise HTTPException(409, CHANGED)
        try:
            tables = lists.judgements.undo(wanted.steps)
        except JudgedSince:
            raise HTTPException(409, SINCE) from None
        _remove_unlabelled([known[step.path] for step in wanted.steps], tables)
        self.judged -= 1
        return {"open": lists.open(tables)}

    def picture(self, number: int, digest: str) -> bytes:
        """A picture as PNG: as it is packed, or read from the source.

        Raises:
            HTTPException: 404 there is no such picture, 422 it cannot be used.
        """
        lists = self.lists
        if not 0 <= number < len(lists.pictures) or lists.pictures[number].sha256[:16] != digest:
            raise HTTPException(404, CHANGED)
        shown, stream = lists.pictures[number], io.BytesIO()
        pixels = self._decoded(shown, lists) if shown.row is None else lists.pixels[shown.row]
        Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
        return stream.getvalue()

    def _decoded(self, shown: Shown, lists: Lists) -> Array:
        """One that is not packed."""
        content = shown.file or lists.content_of(shown)
        try:
            return self.decoders.decode(content, self.decoders.size(content))
        except (Unusable, OSError) as reason:
            raise HTTPException(422, f"{shown.path}: {getattr(reason, 'strerror', None) or reason}") from None


def _remove_unlabelled(pictures: Iterable[Shown], tables: Tables) -> None:
    """Remove the copies of those from outside of the source that have no label (any more)."""
    for shown in pictures:
        if shown.is_new and tables.of(shown.path, is_new=True).label is None:
            (checkout() / shown.path).unlink(missing_ok=True)


def application(desk: Desk, address: str, show: bool) -> FastAPI:
    """The server's paths: / (the page), /queue, /picture/NUMBER/DIGEST, /judge and /undo."""
    bodies, page = Bodies(MAX_BYTES), pages.template("review.html.j2").render()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        say(f"Review: {address}", "Ctrl-C ends it; every judgement is kept as soon as it is made.", flush=True)
        if show:
            await asyncio.to_thread(webbrowser.open, address)
        yield
        desk.decoders.close()
        if desk.judged:
            say(f"{desk.judged} judged here; `dvc repro` takes them into account")

    app = FastAPI(
        title="headstart review", version=__version__, docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )

    @app.exception_handler(HeadstartError)
    async def refused(_request: Request, error: HeadstartError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 409)

    @app.get("/")
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=HEADERS)

    @app.get("/queue")
    def queue() -> JSONResponse:
        return JSONResponse(desk.queue(), headers={"Cache-Control": "no-store"})

    @app.get("/picture/{number}/{digest}")
    def picture(number: int, digest: str) -> Response:
        kept = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}
        return Response(desk.picture(number, digest), media_type="image/png", headers=kept)

    @app.post("/judge")
    async def judge(request: Request) -> JSONResponse:
        verdict = await _body(request, bodies, Verdict)
        return JSONResponse(await asyncio.to_thread(desk.judge, verdict))

    @app.post("/undo")
    async def undo(request: Request) -> JSONResponse:
        wanted = await _body(request, bodies, Undo)
        return JSONResponse(await asyncio.to_thread(desk.undo, wanted))

    return app


async def _body(request: Request, bodies: Bodies, kind: type[T]) -> T:
    """
    Raises:
        HTTPException: it is no JSON of that kind, or the limits of ``Bodies`` are passed.
    """
    if request.headers.get("content-type") != "application/json":
        raise HTTPException(415, "the body has to be JSON")
    async with bodies.read(request) as body:
        try:
            return TypeAdapter(kind).validate_json(body)
        except ValidationError as error:
            raise HTTPException(400, f"the request is not understood: {error.errors()[0]['msg']}") from None
