"""retrain: one unattended round, from ``dvc pull`` to a decision about the champion and a commit of dvc.lock.

If a round is killed, the next one continues it: DVC keeps finished stages, a training keeps finished epochs, the registry
keeps decisions, and ``.headstart/retrain/open.json`` says which result was about to be decided on.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Required, TextIO, TypedDict, cast
from urllib.error import HTTPError

import psutil

from headstart.base.artifacts import DATA
from headstart.base.artifacts.track import TrackedResult
from headstart.base.errors import HeadstartError
from headstart.base.files import write_json
from headstart.base.kept import read_kept, write_kept
from headstart.base.params import Params
from headstart.base.paths import checkout, state_folder
from headstart.base.safe_text import masked, masked_values, sentence, shortened
from headstart.base.terminal import say
from headstart.operations.dvc_command import dvc
from headstart.operations.git_branch import Branch

if TYPE_CHECKING:
    from headstart.tracking.judge import Decision
    from headstart.tracking.registry import Registry, Version

# Exit statuses of the command. 75 is EX_TEMPFAIL of sysexits.h; Ctrl-C and SIGTERM give 130.
EXIT = {"promoted": 0, "failed": 1, "skipped": 10, "kept": 11, "refused": 12, "busy": 75}
WEBHOOK, REDIRECTS = "HEADSTART_WEBHOOK", (301, 302, 303, 307, 308)
PATIENCE = 10  # seconds to wait for the webhook


class DriftSummary(TypedDict):
    """Drift as the summary has it; ``numbers`` are those of drift.json."""

    real: bool
    sentence: str
    numbers: dict[str, object]


class Undecided(TypedDict):
    """A result that is about to be decided on."""

    result: str
    drift: DriftSummary | None


class Summary(TypedDict, total=False):
    """A round: what stands in last.json, is printed by --json and sent to the webhook, as far as the round got.

    Attributes:
        outcome: a key of EXIT.
        gate: the decision's numbers.
    """

    outcome: Required[str]
    sentence: Required[str]
    result: str
    version: int
    run: str
    gate: dict[str, object]
    drift: DriftSummary | None
    branch: str
    commit: str | None
    started: str
    seconds: float


class BusyError(HeadstartError):
    """Another round is running."""


def retrain(load: Callable[[], Params]) -> Summary:
    """Run one round, unless another is running. Its summary is also written to .headstart/retrain/last.json and sent to the
    webhook.

    Args:
        load: returns the parameters. If they are wrong, that is reported like any other failure.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started, start, webhook = datetime.now(UTC), time.monotonic(), None
    try:
        with _exclusive(started) as lock:
            try:
                params = load()
                webhook = params.retrain.webhook
                summary = _Round(params, lock).run()
            except HeadstartError as error:
                summary = {"outcome": "failed", "sentence": str(error)}
            except Exception as error:  # a defect; the webhook reports it all the same
                sys.stderr.write(masked(traceback.format_exc()))
                summary = {"outcome": "failed", "sentence": sentence(f"{type(error).__name__}: {error}")}
            summary |= {"started": started.isoformat(timespec="seconds"), "seconds": round(time.monotonic() - start, 1)}
            summary = cast(Summary, masked_values(summary))
            write_json(state_folder("retrain") / "last.json", summary)
            _post(os.environ.get(WEBHOOK) or webhook, summary)
    except BusyError as other:
        return {"outcome": "busy", "sentence": str(other)}
    return summary


def summary_lines(summary: Summary) -> list[str]:
    """The summary in a few lines for people."""
    lines = [f"{summary['outcome']}: {summary['sentence']}"]
    if drift := summary.get("drift"):
        lines.append(f"drift: {drift['sentence']}")
    if commit := summary.get("commit"):
        lines.append(f"dvc.lock is committed on {summary['branch']} as {commit[:10]}")
    return [sentence(line) for line in lines]


class _Round:
    def __init__(self, params: Params, lock: int) -> None:
        self.params, self.lock, self.data = params, lock, DATA
        self.undecided = state_folder("retrain") / "open.json"

    def run(self) -> Summary:
        from headstart.tracking import gate
        from headstart.tracking.registry import Registry

        registry = Registry(self.params)
        branch, remote = Branch(self.params.retrain.branch), self.params.retrain.remote
        if self.params.retrain.push:
            branch.fetch()
        branch.restore_result()
        _remove_stale_rwlock(checkout() / ".dvc" / "tmp" / "rwlock")
        if remote and Path("dvc.lock").exists():
            # Forced, because data/ holds outputs only, and a killed stage leaves them half written.
            self._dvc("pull", "--remote", remote, "--allow-missing", "--force", "dvc.yaml")
        self._dvc("repro")
        version = self._version(registry)
        decision, drift = None, None
        undecided = self._undecided(version)
        if undecided is not None:
            drift = undecided["drift"]  # not computed again: the champion may have changed since
        elif version.outcome is None or self.params.drift.incoming is not None:
            drift = self._drift(registry)
        if undecided is not None or version.outcome is None:
            write_kept(self.undecided, Undecided(result=version.result, drift=drift))
            decision = gate.run(self.data, self.params)
        summary = self._summary(version, decision)
        summary |= {"drift": drift, "branch": branch.name}
        if remote and not branch.is_current():
            self._dvc("push", "--remote", remote, "dvc.yaml")  # before the commit that refers to it
        summary["commit"] = branch.commit(_message(summary))
        if self.params.retrain.push:
            branch.push()
        self.undecided.unlink(missing_ok=True)
        return summary

    def _version(self, registry: Registry) -> Version:
        """The registry's version of this result. One that was pulled and is not in this store, or no longer, is logged."""
        from headstart.tracking.track import track

        result = TrackedResult.read(self.data.track.details).result
        version = registry.by_result(result)
        if version is None or registry.is_lost(version):
            track(self.data, self.params)
            version = registry.by_result(result)
        if version is None:
            raise HeadstartError(f"result {result[:7]} has no version in the registry; set tracking.model to true")
        return version

    def _undecided(self, version: Version) -> Undecided | None:
        """The record of an earlier round that was killed between its decision on this result and the commit."""
        record: Undecided | None = read_kept(self.undecided)
        return record if record is not None and record["result"] == version.result else None

    def _drift(self, registry: Registry) -> DriftSummary | None:
        """How new and incoming pictures differ from those that the champion was made from."""
        from headstart.monitoring.drift import detect_drift

        champion = registry.champion()
        known = registry.pictures(champion) if champion else set()
        drift = detect_drift(self.data, self.params, known, registry.download(champion) if champion else None)
        return {"real": drift.real, "sentence": drift.sentence, "numbers": drift.model_dump()} if drift else None

    def _summary(self, version: Version, decision: Decision | None) -> Summary:
        summary: Summary = {"outcome": "skipped", "sentence": ""}
        summary |= {"result": version.result, "version": version.number, "run": version.run_id}
        if decision is None:
            sentence = f"version {version.number} was made from the same inputs and is already {version.outcome}"
            return summary | {"sentence": f"nothing to decide: {sentence}"}
        return summary | {"outcome": decision.outcome, "sentence": decision.sentence, "gate": decision.numbers}

    def _dvc(self, *arguments: str) -> None:
        """Run DVC, with its output on the error stream."""
        dvc(*arguments, project=checkout(), file=sys.stderr, keep_open=[self.lock])


@contextmanager
def _exclusive(started: datetime) -> Iterator[int]:
    """Hold the lock, and yield its descriptor for DVC to inherit.

    flock(2) keeps the lock until every process that inherited it has ended, so that no second round starts while the DVC of
    a killed one is still running. The filelock package cannot do that. DVC does not pass the descriptor on to the stages,
    so running stages are searched for.

    Raises:
        BusyError: another round or a stage is running.
    """
    with (state_folder("locks") / "retrain.lock").open("a+", encoding="utf-8") as file:
        if not _locked(file):
            raise BusyError(_holder(file))
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": started.isoformat(timespec="seconds")}, file)
        file.flush()
        if stage := _running_stage():
            raise BusyError(f"a stage is running here, although no retrain is: {stage}; it ends by itself")
        yield file.fileno()


def _locked(file: TextIO) -> bool:
    """Whether the lock is this process's now."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(1 << 20)  # nobody may read what is locked, and the holder's name stands at the start
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(file: TextIO) -> str:
    for _ in range(10):
        file.seek(0)
        with suppress(ValueError):
            by = json.load(file)
            break
        time.sleep(0.1)  # the holder has only just started and not written it yet
    else:
        return "another retrain is running here"
    who = f"process {by['pid']} on {by['host']}, since {by['since']}"
    if by["host"] == socket.gethostname() and not psutil.pid_exists(by["pid"]):
        return f"a process that a killed retrain started is still running here ({who}); it ends by itself"
    return f"another retrain is running here: {who}"


def _running_stage() -> str | None:
    """A stage that runs in this checkout, started by hand or by a DVC that was killed."""
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command: list[str] = process.info["cmdline"] or []
        program, script, *_ = [*command, "", ""]
        if "python" in Path(program).name and script.startswith("stages/") and process.info["cwd"] == str(checkout()):
            return f"{script}, process {process.pid}"
    return None


def _remove_stale_rwlock(rwlock: Path) -> None:
    """Remove DVC's list of which process reads and writes what, unless a running DVC is in it. DVC itself ignores the entry
    of a killed process only until its pid is used again."""
    try:
        modes = json.loads(rwlock.read_text(encoding="utf-8"))
        holders = [holder for mode in modes.values() for holder in mode.values()]  # one writer, or a list of readers
        entries = [entry for holder in holders for entry in (holder if isinstance(holder, list) else [holder])]
        pids = {int(entry["pid"]) for entry in entries}
    except FileNotFoundError:
        return
    except (ValueError, AttributeError, KeyError, TypeError):  # killed while writing it
        pids = set()
    if not any(_is_dvc(pid) for pid in pids):
        rwlock.unlink(missing_ok=True)


def _is_dvc(pid: int) -> bool:
    try:
        return any(Path(part).name == "dvc" for part in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _message(summary: Summary) -> str:
    """The commit message: what was decided on which result, and why."""
    title = f"Retrained: version {summary['version']} {summary['outcome']}"
    if summary["outcome"] == "skipped":
        title = f"Retrained: as version {summary['version']}"
    parts = [title, sentence(summary["sentence"])]
    if drift := summary.get("drift"):
        parts.append(sentence(f"Drift: {drift['sentence']}"))
    return "\n\n".join([*parts, f"Result {summary['result'][:12]}, MLflow run {summary['run']}"]) + "\n"


def _post(address: str | None, summary: Summary) -> None:
    """Send the summary, with ``text`` for chat programs. A webhook that does not accept it in time does not fail the round,
    and neither is the round kept waiting by one that answers byte by byte."""
    if not address:
        return
    body = json.dumps(summary | {"text": "\n".join(summary_lines(summary))}, ensure_ascii=False).encode()
    problems: list[str] = []
    sending = threading.Thread(target=lambda: problems.extend(_sent(address, body)), daemon=True)
    sending.start()
    sending.join(PATIENCE)
    if sending.is_alive():
        problems = [f"no answer within {PATIENCE} seconds"]
    for problem in problems:
        say(f"headstart: the webhook did not accept the summary: {problem}", file=sys.stderr)


def _sent(address: str, body: bytes) -> list[str]:
    """Post ``body``; what went wrong, in words that do not quote the address, which may be a secret."""
    if not address.startswith(("http://", "https://")):
        return ["its address must begin with http:// or https://"]
    try:
        request = urllib.request.Request(address, body, {"Content-Type": "application/json", "User-Agent": "headstart"})
        urllib.request.build_opener(_NoRedirect).open(request, timeout=PATIENCE).close()
    except HTTPError as error:
        if error.code in REDIRECTS:
            return [f"it has moved (status {error.code}); give the address that it has moved to"]
        return [f"status {error.code}, {error.reason}"]
    except OSError as error:
        return [shortened(str(error).replace(address, "its address"), 200)]
    except (ValueError, HTTPException):  # which quote the address
        return ["its address is not valid"]
    return []


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Lets a redirect be an error. urllib would go on with GET, without the summary."""

    def redirect_request(self, *_: object) -> None:
        return None
