"""The bodies of requests: read within limits, and the picture files in them."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import Message

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

from headstart.inference.lanes import OVERLOADED

MAX_PICTURES, MAX_PARTS = 64, 100  # per request, and per form
MAX_PENDING_BYTES = 256 << 20  # of bodies that are read and not done with
BODY_TIMEOUT_S = 60.0  # for a body to arrive completely
# Times the limit is read and discarded before a refusal: many clients read only after they have sent everything.
DRAIN_FACTOR = 4
MAX_CONTENT_TYPE = 500  # characters: Python takes seconds to parse a hostile content type of 60,000


def picture_files(body: bytes, content_type: str) -> tuple[list[bytes], bool]:
    """The picture files in a request's body, and whether they came as a list, which gets a list as its response.

    Raises:
        HTTPException: 400 the body does not match its content type, or that is too long; 413 it holds too many pictures.
    """
    if len(content_type) > MAX_CONTENT_TYPE:
        raise HTTPException(400, f"the content type is longer than {MAX_CONTENT_TYPE} characters")
    header = Message()
    header["content-type"] = content_type or "application/octet-stream"
    kind = header.get_content_type()
    if kind == "application/json":
        files, is_list = _from_json(body)
    elif kind == "multipart/form-data":
        files = _from_form(body, str(header.get_param("boundary", "")))
        is_list = len(files) > 1
    else:
        return [body], False
    if not files:
        raise HTTPException(400, "there is no picture in the request")
    if len(files) > MAX_PICTURES:
        raise HTTPException(413, f"{len(files)} pictures in one request; at most {MAX_PICTURES}")
    return files, is_list


def _from_json(body: bytes) -> tuple[list[bytes], bool]:
    try:
        image = json.loads(body)["image"]
        texts: list[str] = image if isinstance(image, list) else [image]
        plain = [text.partition("base64,")[2] or text for text in texts]  # a data: URL is accepted too
        files = [base64.b64decode(text, validate=True) for text in plain[: MAX_PICTURES + 1]]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise HTTPException(400, 'JSON has to be {"image": "base64 of a picture file"}, or hold a list of them') from None
    return files, isinstance(image, list)


def _from_form(body: bytes, boundary: str) -> list[bytes]:
    """The files in a multipart body (RFC 7578). The standard library's parser reads line by line, which is slow for a body
    of nothing but line ends."""
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1", "replace"), MAX_PARTS)
    if not boundary or len(parts) < 3:
        raise HTTPException(400, "the form has no parts, or its boundary is not the one in its content type")
    if len(parts) > MAX_PARTS:
        raise HTTPException(413, f"more than {MAX_PARTS - 2} parts in one form")
    split = [part.partition(b"\r\n\r\n") for part in parts[1:]]
    return [content for headers, _, content in split if b"filename" in headers.lower()]


class Bodies:
    """Reads the bodies of requests, with limits on the size and time of each and on the memory of all."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.pending = max_bytes, 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """A request's body, which counts as pending inside the block.

        Raises:
            HTTPException: 413 too large, 408 too slow, 503 too many at once. The connection is closed after each of them.
        """
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(BODY_TIMEOUT_S):
                    await self._read(request, body)
            except TimeoutError:
                raise _closing(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
            except ClientDisconnect:
                raise _closing(400, "the connection ended before the body did") from None
            yield bytes(body)
        finally:
            self.pending -= len(body)

    async def _read(self, request: Request, body: bytearray) -> None:
        too_large = _closing(413, f"the body is larger than {self.max_bytes / 1e6:g} MB")
        announced = int(request.headers.get("content-length", 0))
        if announced > self.max_bytes and ("expect" in request.headers or announced > DRAIN_FACTOR * self.max_bytes):
            raise too_large
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size <= self.max_bytes:
                if self.pending + len(chunk) > MAX_PENDING_BYTES:
                    raise _closing(*OVERLOADED)
                body += chunk
                self.pending += len(chunk)
            elif size > DRAIN_FACTOR * self.max_bytes:
                break
        if size > self.max_bytes:
            raise too_large


def _closing(status: int, sentence: str, headers: dict[str, str] | None = None) -> HTTPException:
    """A refusal that closes the connection, because the body was not read to its end."""
    return HTTPException(status, sentence, {"Connection": "close"} | (headers or {}))
