"""retrain: one unattended round, from ``dvc pull`` to a decision about the champion and a commit of dvc.lock.

A round that is killed is carried on by the next: DVC keeps finished stages, a training its finished epochs, the registry a
decision that was taken, and ``.headstart/retrain/open.json`` says which result was about to be decided.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import psutil

from headstart.base.errors import HeadstartError
from headstart.base.files import read_json, write_json
from headstart.base.params import Params
from headstart.base.paths import checkout, state_folder
from headstart.operations.git_branch import Branch

if TYPE_CHECKING:
    from headstart.tracking.gate import Decision
    from headstart.tracking.registry import Registry, Version

# What the command exits with. 75 is EX_TEMPFAIL of sysexits.h; Ctrl-C and SIGTERM give 130.
EXIT = {"promoted": 0, "failed": 1, "skipped": 10, "kept": 11, "refused": 12, "busy": 75}
WEBHOOK = "HEADSTART_WEBHOOK"
PATIENCE = 10  # seconds that the webhook has, and that DVC has to end after Ctrl-C before it is told again


class BusyError(HeadstartError):
    """Another round is at work."""


def retrain(load: Callable[[], Params]) -> dict[str, Any]:
    """One round, if no other is at work; its summary is also in .headstart/retrain/last.json and sent to the webhook.

    Args:
        load: gives the parameters; that they are wrong is told like everything that fails.

    Returns:
        ``outcome`` (a key of EXIT), ``sentence``, and as far as the round came: ``result``, ``version``, ``run``, ``gate``
        (the decision's numbers), ``drift``, ``branch``, ``commit``, ``started``, ``seconds``.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started, begun, webhook = datetime.now(UTC), time.monotonic(), None
    try:
        with _alone(started) as lock:
            try:
                params = load()
                webhook = params.retrain.webhook
                summary = _Round(params, lock).run()
            except HeadstartError as error:
                summary = {"outcome": "failed", "sentence": str(error)}
            except Exception as error:  # a defect: whoever waits for the webhook is to know all the same
                traceback.print_exc()
                summary = {"outcome": "failed", "sentence": f"{type(error).__name__}: {error}"}
            summary |= {"started": started.isoformat(timespec="seconds"), "seconds": round(time.monotonic() - begun, 1)}
            write_json(state_folder("retrain") / "last.json", summary)
            _post(os.environ.get(WEBHOOK) or webhook, summary)
    except BusyError as other:
        return {"outcome": "busy", "sentence": str(other)}
    return summary


def told(summary: dict[str, Any]) -> str:
    """The summary as a person reads it."""
    lines = [f"{summary['outcome']}: {summary['sentence']}"]
    if summary.get("drift"):
        lines.append(f"drift: {summary['drift']['sentence']}")
    if summary.get("commit"):
        lines.append(f"dvc.lock is committed on {summary['branch']} as {summary['commit'][:10]}")
    return "\n".join(lines)


class _Round:
    def __init__(self, params: Params, lock: int) -> None:
        self.params, self.lock, self.data = params, lock, Path("data")
        self.open = state_folder("retrain") / "open.json"

    def run(self) -> dict[str, Any]:
        from headstart.tracking import gate
        from headstart.tracking.registry import Registry

        registry = Registry(self.params)
        branch, remote = Branch(self.params.retrain.branch), self.params.retrain.remote
        if self.params.retrain.push:
            branch.fetch()
        branch.take_up()
        _remove_what_a_killed_dvc_left(checkout() / ".dvc" / "tmp" / "rwlock")
        if remote and Path("dvc.lock").exists():
            # Forced: what is in data/ are outputs, and a killed stage leaves them half written.
            self._dvc("pull", "--remote", remote, "--allow-missing", "--force", "dvc.yaml")
        self._dvc("repro")
        version = self._version(registry)
        decision, found = None, None
        opened = self._opened(version)
        if opened is not None:
            found = opened["drift"]  # the champion may be another by now
        elif version.outcome is None or self.params.drift.incoming is not None:
            found = self._drift(registry)
        if opened is not None or version.outcome is None:
            write_json(self.open, {"result": version.result, "drift": found})
            decision = gate.run(self.data, self.params)
        summary = self._summary(version, decision) | {"drift": found, "branch": branch.name}
        if remote and not branch.is_current():
            self._dvc("push", "--remote", remote, "dvc.yaml")  # before the commit that names it
        summary["commit"] = branch.commit(_message(summary))
        if self.params.retrain.push:
            branch.push()
        self.open.unlink(missing_ok=True)
        return summary

    def _version(self, registry: Registry) -> Version:
        """The version of this result, which is logged first where it was pulled and this store does not know it."""
        from headstart.tracking.track import track

        result = read_json(self.data / "track" / "track.json")["result"]
        if (version := registry.by_result(result)) is None:
            track(self.data, self.params, self.data / "track")
            version = registry.by_result(result)
        if version is None:
            raise HeadstartError(f"result {result[:7]} has no version in the registry; set tracking.model to true")
        return version

    def _opened(self, version: Version) -> dict[str, Any] | None:
        """What an earlier round had found out about this result when it was cut short before it could commit it."""
        try:
            found: dict[str, Any] = read_json(self.open)
        except (OSError, ValueError):
            return None
        return found if found["result"] == version.result else None

    def _drift(self, registry: Registry) -> dict[str, Any] | None:
        """How new pictures, and those that come in without labels, differ from those that the champion was made from."""
        from headstart.monitoring import drift

        champion = registry.champion()
        known = registry.pictures(champion) if champion else set()
        found = drift.detect_drift(self.data, self.params, known, registry.download(champion) if champion else None)
        return {"real": found.real, "sentence": found.sentence, "numbers": found.numbers} if found else None

    def _summary(self, version: Version, decision: Decision | None) -> dict[str, Any]:
        known = {"result": version.result, "version": version.number, "run": version.run_id}
        if decision is None:
            sentence = (
                f"nothing to decide: version {version.number} was made from the same and is known as {version.outcome}"
            )
            return {"outcome": "skipped", "sentence": sentence, **known}
        return {"outcome": decision.outcome, "sentence": decision.sentence, **known, "gate": decision.numbers}

    def _dvc(self, *arguments: str) -> None:
        """Run DVC, with its lines on the error stream.

        Raises:
            HeadstartError: it failed; with what it said.
        """
        here = str(Path(sys.executable).parent)  # cron knows nothing of the environment that this runs in
        ours = {"PATH": f"{here}{os.pathsep}{os.environ.get('PATH', os.defpath)}", "DVC_NO_ANALYTICS": "true"}
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", *arguments], cwd=checkout(), env=os.environ | ours | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            pass_fds=[self.lock],
        )  # fmt: skip
        reason = ""
        try:
            for line in process.stdout or ():
                sys.stderr.write(line)
                if line.startswith("Running stage "):
                    reason = ""  # what an earlier one had to say was no error
                if line.startswith("headstart: ") or (line.startswith("ERROR: ") and not reason.startswith("headstart: ")):
                    reason = line
            code = process.wait()
        except KeyboardInterrupt:
            _stop(process)
            raise
        if code:
            why = reason.removeprefix("headstart: ").removeprefix("ERROR: ").strip() or _status(code)
            raise HeadstartError(
                f"`dvc {arguments[0]}` failed: {why.rstrip('.')}. Finished stages are kept; mend it and retrain again"
            )


@contextmanager
def _alone(started: datetime) -> Iterator[int]:
    """Hold the lock, and yield its descriptor for DVC to inherit: flock(2) keeps the lock until the last that has it ends,
    so that no second round begins while the DVC of a killed one is still at work. The filelock package cannot do that. DVC
    does not hand it on to the stages, so those are looked for.

    Raises:
        BusyError: another holds it.
    """
    with (state_folder("locks") / "retrain.lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(_holder(file)) from None
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": started.isoformat(timespec="seconds")}, file)
        file.flush()
        if stage := _stage_at_work():
            raise BusyError(f"a stage is at work here though no retrain is: {stage}; it ends by itself")
        yield file.fileno()


def _holder(file: TextIO) -> str:
    for _ in range(10):
        file.seek(0)
        with suppress(ValueError):
            by = json.load(file)
            break
        time.sleep(0.1)  # it has only just begun
    else:
        return "another retrain is at work here"
    who = f"process {by['pid']} on {by['host']}, since {by['since']}"
    if by["host"] == socket.gethostname() and not psutil.pid_exists(by["pid"]):
        return f"what a retrain had started is still at work here, although that was killed ({who}); it ends by itself"
    return f"another retrain is at work here: {who}"


def _stage_at_work() -> str | None:
    """One that runs in this checkout, of a DVC that was killed or that somebody has started by hand."""
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command: list[str] = process.info["cmdline"] or []
        program, script, *_ = [*command, "", ""]
        if "python" in Path(program).name and script.startswith("stages/") and process.info["cwd"] == str(checkout()):
            return f"{script}, process {process.pid}"
    return None


def _remove_what_a_killed_dvc_left(rwlock: Path) -> None:
    """Remove DVC's list of who reads and writes what, unless a DVC that is alive is in it. DVC itself drops a process that
    was killed only until its number is given to another."""
    try:
        held = json.loads(rwlock.read_text(encoding="utf-8"))
        entries = [
            e for mode in held.values() for found in mode.values() for e in (found if isinstance(found, list) else [found])
        ]
        pids = {int(entry["pid"]) for entry in entries}
    except FileNotFoundError:
        return
    except (ValueError, AttributeError, KeyError, TypeError):  # killed while it wrote
        pids = set()
    if not any(_is_dvc(pid) for pid in pids):
        rwlock.unlink(missing_ok=True)


def _is_dvc(pid: int) -> bool:
    try:
        return any(Path(part).name == "dvc" for part in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _stop(process: subprocess.Popen[str]) -> None:
    """Wait until DVC has ended. Ctrl-C has reached what it runs too, in a terminal; that of `kill` and systemd has not, and
    what a shell has started in the background may not hear it at all."""
    known: set[psutil.Process] = set()  # also those whose parent has ended since
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=PATIENCE)
            break
        known |= set(psutil.Process().children(recursive=True))
        for child in known:
            with suppress(psutil.NoSuchProcess):
                child.send_signal(number)
    for child in psutil.wait_procs(known, timeout=PATIENCE)[1]:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()


def _status(code: int) -> str:
    return f"it was killed by signal {-code}, as happens when memory runs out" if code < 0 else f"exit status {code}"


def _message(summary: dict[str, Any]) -> str:
    """Of the commit: what was decided about which result, and why."""
    title = f"Retrained: version {summary['version']} {summary['outcome']}"
    if summary["outcome"] == "skipped":
        title = f"Retrained: as version {summary['version']}"
    parts = [title, summary["sentence"]]
    if summary.get("drift"):
        parts.append(f"Drift: {summary['drift']['sentence']}")
    return "\n\n".join([*parts, f"Result {summary['result'][:12]}, MLflow run {summary['run']}"]) + "\n"


def _post(address: str | None, summary: dict[str, Any]) -> None:
    """Send the summary; ``text`` is what chat programs show. A webhook that does not answer fails no round."""
    if not address:
        return
    body = json.dumps(summary | {"text": told(summary)}, ensure_ascii=False).encode()
    try:
        request = urllib.request.Request(address, body, {"Content-Type": "application/json", "User-Agent": "headstart"})
        urllib.request.urlopen(request, timeout=PATIENCE).close()
    except (OSError, ValueError, HTTPException) as error:
        why = error if isinstance(error, OSError) else "its address is none"  # which may be a secret, and the error has it
        print(f"headstart: the webhook did not take the summary: {why}", file=sys.stderr)
