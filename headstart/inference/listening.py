"""Listening for requests on an address, until the process is told to stop."""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence
from ipaddress import ip_address

import uvicorn
from fastapi import FastAPI

from headstart.base.errors import HeadstartError
from headstart.inference.own_pages import OwnPagesOnly

MAX_CONNECTIONS = 512
SHUTDOWN_TIMEOUT_S = 10  # for requests that are running when the server is stopped
PAGE_HEADERS = {  # the page loads nothing from elsewhere and runs only its own script
    "Content-Security-Policy": "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


def listen(host: str, port: int) -> socket.socket:
    """
    Args:
        port: 0 picks a free one.

    Raises:
        HeadstartError: the address is taken, or none of this machine's.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise HeadstartError(f"cannot listen on {host}:{port} ({reason}); see --port and --host") from None


def address_of(host: str, listener: socket.socket) -> str:
    """The address that a browser is given."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


def answer(app: FastAPI, listener: socket.socket, host: str, names: Sequence[str]) -> None:
    """Answer requests until SIGTERM or Ctrl-C; requests that are running then are still answered.

    On a loopback address, and wherever there are ``names``, pages of other sites are refused.

    Args:
        host: as it was given to ``listen``.
        names: of the hosts that the server is also reached by, for instance of a proxy on this machine.
    """
    if names or ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback:
        app.add_middleware(OwnPagesOnly, names=(*names, host))
    # h11 limits the size of a request's headers, which httptools does not.
    server = uvicorn.Server(
        uvicorn.Config(
            app, http="h11", ws="none", log_level="warning", access_log=False, server_header=False,
            limit_concurrency=MAX_CONNECTIONS, timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
        )
    )  # fmt: skip
    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn has handlers of its own while it runs, and re-raises a caught signal at the end.
        signal.signal(number, server.handle_exit)
    server.run(sockets=[listener])
