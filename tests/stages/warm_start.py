"""What the tests' own `python` does first, from a .pth file: have a warm process start what is to be started.

warm.py copies this file into that environment, and writes beside it what the warm processes tell of themselves. Built-in
modules only: it must take no time.
"""

# pathlib takes longer to import than all the rest:
# ruff: noqa: PTH109, PTH118, PTH119, PTH120, PTH123, PTH208

from __future__ import annotations

import _signal
import _socket
import marshal
import os
import site
import sys

# What libraries read, if at all, when they are used and not when they are imported. CELERY_ and _MP_FORK_ are of the
# workers of DVC's queue.
READ_LATE = {
    "PATH", "PYTHONPATH", "PYTHONUNBUFFERED", "PWD", "OLDPWD", "SHLVL", "_", "MLFLOW_TRACKING_URI", "TORCH_HOME",
    "http_proxy", "https_proxy",
    # what headstart itself sets (tracking/store.py), and what a command of it starts inherits
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR",
    "PGCONNECT_TIMEOUT",
}  # fmt: skip
READ_LATE_PREFIXES = (
    "_MLFLOW_TELEMETRY_", "DVC_", "GIT_", "HEADSTART_", "AWS_", "PYTEST_", "COVERAGE_", "CELERY_", "_MP_FORK_",
)  # fmt: skip
PASSED_ON = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM)
OWN_PROCESS = ["retrain"]  # tells others the number of its process


def begin() -> None:
    given, programs = sys.orig_argv[1:], os.path.dirname(sys.executable)
    if given[:2] == ["-m", "dvc"]:
        given[:2] = [os.path.join(programs, "dvc")]
    script = given[0] if given else ""
    command = os.path.basename(script) if os.path.dirname(script) == programs else ""
    kind = "dvc" if command == "dvc" else "stages"
    with open(os.path.join(os.path.dirname(__file__), f"warm_{kind}.marshal"), "rb") as file:
        warm = marshal.load(file)
    if command == "headstart" and given[1:2] == OWN_PROCESS:
        for folder in warm["packages"]:
            site.addsitedir(folder)
        return
    if command or (script.startswith("stages/") and script.endswith(".py")):
        client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        reason = why_cold(warm, [] if command else [os.path.dirname(script)])
        if not reason:
            try:
                client.connect(warm["address"])
            except ConnectionError:
                reason = "cold, as nobody answers"
        with open(warm["starts"], "a") as file:
            file.write(f"{os.getcwd()}\t{' '.join(given)}: {reason or 'warm'}\n")
        if not reason:
            ended(client, asked(client, given))
        if command:
            given[0] = os.path.join(os.path.dirname(warm["python"]), command)
    os.execv(warm["python"], [warm["python"], *given])


def why_cold(warm: dict, folders: list[str]) -> str:
    """Why a fresh process could be another than a child of the warm one; empty where it could not."""
    ours, theirs, later = os.environ, warm["environment"], warm["environment now"]  # libraries set variables themselves
    if different := [
        k for k in {*ours, *theirs}
        if ours.get(k) not in (theirs.get(k), later.get(k)) and not read_late(k) and not k.startswith(warm["unread"])
    ]:  # fmt: skip
        return f"cold, as its environment has another {', '.join(different)}"
    if os.sched_getaffinity(0) != warm["affinity"]:
        return "cold, as it has other cores"
    for folder in (*folders, *os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        if shadowed := warm["imported"] & {name.removesuffix(".py") for name in os.listdir(folder or ".")}:
            return f"cold, as {folder} has another {', '.join(sorted(shadowed))}"
    return ""


def read_late(variable: str) -> bool:
    return variable in READ_LATE or variable.startswith(READ_LATE_PREFIXES)


def asked(client: _socket.socket, given: list[str]) -> int:
    """Have the warm process start it; the child's number."""
    os.umask(umask := os.umask(0o077))
    ignored = [number for number in PASSED_ON if _signal.getsignal(number) == _signal.SIG_IGN]
    message = marshal.dumps((given, os.getcwd(), dict(os.environ), umask, ignored))
    # Nobody writes to this pipe, and nobody else has its end for writing: the child is killed when that is closed.
    ours, _ = os.pipe()
    descriptors = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2, ours))
    client.sendmsg([len(message).to_bytes(4, "little")], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptors)])
    client.sendall(message)
    os.close(ours)
    child = int.from_bytes(client.recv(4), "little")
    for number in PASSED_ON:
        if number not in ignored:
            _signal.signal(number, lambda number, _: os.killpg(child, number))
    return child


def ended(client: _socket.socket, child: int) -> None:
    """End as the child does."""
    told = client.recv(4)
    status = int.from_bytes(told, "little") if told else 1 << 8
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != _signal.SIGKILL:
            _signal.signal(number, _signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))


begin()
