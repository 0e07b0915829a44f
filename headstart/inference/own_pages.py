"""Which pages in a browser may use the server."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class OwnPagesOnly:
    """ASGI middleware that answers requests which name this machine or one of ``names`` as their host, and not those that a
    browser sends for the page of another site.

    A page on the internet can send requests to the loopback address of whoever looks at it, and read the answers if its own
    name leads there (DNS rebinding). Browsers then say so, in Origin or in Host.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        self.app = app
        self.names = {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(Headers(scope=scope)) if scope["type"] == "http" else None
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            await JSONResponse({"detail": refusal}, 403, {"Connection": "close"})(scope, receive, send)

    def _refusal(self, headers: Headers) -> str | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if host and _name(f"//{host}") not in {*LOOPBACK, *self.names}:
            return f"this server is not {host[:60]!r}; if it is reached by that name, start it with --name"
        if origin is not None and origin.lower().partition("://")[2] != host.lower() and _name(origin) not in self.names:
            return "pages of other sites may not use this server"
        return None


def _name(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").rstrip(".")
    except ValueError:  # such as brackets that are not closed
        return ""
