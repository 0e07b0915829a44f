"""`headstart ui`: MLflow's page, opened at the table that compares the results."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser
from pathlib import Path

from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.base.paths import state_folder
from headstart.base.terminal import say
from headstart.tracking import saved_view, store

HOST = "127.0.0.1"
PATIENCE_S = 120.0  # for a server to start on a machine that does something else


def ui(params: Params, port: int, show: bool) -> None:
    """Serve MLflow's page of the checkout's store until Ctrl-C; of a store on a server, only say where it is.

    Args:
        show: open it in a browser.

    Raises:
        HeadstartError: the store or the page does not answer, or the port is taken.
    """
    with store.opened() as client:
        experiment = store.experiment_id(client, params.experiment)
    address = store.uri()
    table = f"#/experiments/{experiment}/runs?viewStateShareKey={saved_view.VIEW}"
    if address.startswith("http"):
        _say_where(f"{address.rstrip('/')}/{table}", show)
        return
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise HeadstartError(f"port {port} is in use; name another, as in `headstart ui --port {port + 1}`")
    log = state_folder("ui") / "server.log"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        address,
        "--host",
        HOST,
        "--port",
        str(port),
        "--workers",
        "1",  # of the default's four each takes seconds to start, and one person looks at the page
    ]
    if root := store.artifacts():
        command += ["--default-artifact-root", root]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment) as server:
        try:
            _wait_for(server, f"http://{HOST}:{port}/health", log)
            _say_where(f"http://{HOST}:{port}/{table}", show)
            say("Ctrl-C ends it.")
            server.wait()
        except KeyboardInterrupt:
            say("")
        finally:
            server.terminate()
    if server.returncode > 0:
        raise HeadstartError(f"MLflow's page has ended by itself; {log} says why")


def _wait_for(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise HeadstartError(f"MLflow's page did not start; {log} says why")


def _say_where(address: str, show: bool) -> None:
    say(f"{saved_view.NAME}: {address}")
    if show:
        webbrowser.open(address)
