"""What surrounds a round: one at a time, locks that killed ones leave, the summary and where it goes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from headstart.base.params import Params
from headstart.base.sections import Retrain as Settings
from headstart.operations import dvc_command, retrain

HERE = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SUMMARY: dict[str, Any] = {
    "outcome": "promoted", "sentence": "version 2 is as good", "drift": {"real": True, "sentence": "other light"},
    "result": "e7cfb75" * 9, "version": 2, "run": "a0b2", "branch": "main", "commit": "1234567890abcdef",
}  # fmt: skip


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", retrain.WEBHOOK):
        monkeypatch.delenv(name, raising=False)
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, before)


def sleeper(seconds: int = 60, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"], **options)


def has_ended(pid: int) -> bool:
    """Also one of which nobody has taken notice yet, as happens where process 1 is slow to."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


# --- one at a time ----------------------------------------------------------------------------------------------------


def test_a_second_round_ends_at_once_and_names_the_first(checkout: Path) -> None:
    with retrain._exclusive(NOW):
        summary = retrain.retrain(Params)
    assert summary["outcome"] == "busy"
    assert f"process {os.getpid()} on " in summary["sentence"]
    assert summary["sentence"].endswith("since 2026-01-01T00:00:00+00:00")
    assert not (checkout / ".headstart/retrain/last.json").exists()


def test_a_stage_that_is_at_work_without_a_round_is_waited_for(checkout: Path) -> None:
    (checkout / "stages").mkdir()
    (checkout / "stages/finetune.py").write_text("import time; time.sleep(60)")
    with subprocess.Popen([sys.executable, "stages/finetune.py"]) as stage:
        summary = retrain.retrain(Params)
        assert summary["outcome"] == "busy"
        assert f"stages/finetune.py, process {stage.pid}; it ends by itself" in summary["sentence"]
        stage.kill()
    with subprocess.Popen(["tail", "-f", "stages/finetune.py"], stdout=subprocess.DEVNULL) as reader:
        assert retrain.retrain(Params)["outcome"] == "failed"  # of a folder that is no git checkout
        reader.kill()


@pytest.mark.usefixtures("checkout")
def test_the_lock_stays_with_what_a_killed_round_had_started() -> None:
    program = (
        "import subprocess, sys, time, datetime\n"
        "from headstart.operations import retrain\n"
        "with retrain._exclusive(datetime.datetime.now()) as lock:\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], pass_fds=[lock])\n"
        "    print(child.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    here = {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=os.environ | here, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        child = psutil.Process(int(first.stdout.readline()))
        first.kill()
    with (
        pytest.raises(retrain.BusyError, match="that a killed retrain started is still running here"),
        retrain._exclusive(NOW),
    ):
        pass
    child.kill()
    psutil.wait_procs([child], timeout=10)
    with retrain._exclusive(NOW):
        pass


# --- what a killed DVC leaves -----------------------------------------------------------------------------------------


def rwlock(folder: Path, *pids: int) -> Path:
    entries = [{"pid": pid, "cmd": "dvc repro"} for pid in pids]
    file = folder / "rwlock"
    file.write_text(json.dumps({"write": {"data/head": entries[0]}, "read": {"data/features": entries}}))
    return file


def test_entries_of_the_dead_and_of_numbers_given_again_are_removed(checkout: Path) -> None:
    with sleeper(0) as dead:
        pass
    file = rwlock(checkout, dead.pid, os.getpid())  # this process has the number now, and is no DVC
    retrain._remove_stale_rwlock(file)
    assert not file.exists()


def test_entries_of_a_dvc_at_work_stay(checkout: Path) -> None:
    (checkout / "dvc").write_text("import time; time.sleep(60)")
    with subprocess.Popen([sys.executable, str(checkout / "dvc")]) as alive:
        while not psutil.Process(alive.pid).cmdline():  # for a moment a process that begins has none
            time.sleep(0.01)
        file = rwlock(checkout, alive.pid)
        before = file.read_text()
        retrain._remove_stale_rwlock(file)
        assert file.read_text() == before
        alive.kill()


@pytest.mark.parametrize("text", ["", '{"write": {"data', "[]", '{"write": {"data": 3}}'])
def test_a_list_that_was_cut_short_is_removed(checkout: Path, text: str) -> None:
    (checkout / "rwlock").write_text(text)
    retrain._remove_stale_rwlock(checkout / "rwlock")
    assert not (checkout / "rwlock").exists()


# --- the summary ------------------------------------------------------------------------------------------------------


class Received(BaseHTTPRequestHandler):
    bodies: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.path.startswith("/moved/"):
            self.send_response(int(self.path.rpartition("/")[2]))
            self.send_header("Location", "/hook")
        else:
            self.send_response(200 if self.path == "/hook" else 404)
        self.end_headers()

    def do_GET(self) -> None:  # what urllib makes of a redirected POST
        self.bodies.append({})
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Received)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Received.bodies.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_webhook_gets_the_summary_and_a_text_for_chats(hook: str) -> None:
    retrain._post(f"{hook}/hook", SUMMARY)
    (body,) = Received.bodies
    assert body["version"] == 2
    assert body["text"].splitlines() == [
        "promoted: version 2 is as good", "drift: other light", "dvc.lock is committed on main as 1234567890",
    ]  # fmt: skip


def test_a_webhook_that_does_not_take_it_is_a_word_without_its_address(
    hook: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for address in (f"{hook}/secret", "http://127.0.0.1:9/secret"):
        retrain._post(address, SUMMARY)
        said = capsys.readouterr().err
        assert said.startswith("headstart: the webhook did not accept the summary: ")
        assert "secret" not in said


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_webhook_that_has_moved_is_a_word_and_nobody_gets_half_a_summary(
    status: int, hook: str, capsys: pytest.CaptureFixture[str]
) -> None:
    retrain._post(f"{hook}/moved/{status}", SUMMARY)
    assert capsys.readouterr().err == (
        f"headstart: the webhook did not accept the summary: it has moved (status {status}); give the address that it has "
        "moved to\n"
    )
    assert len(Received.bodies) == 1


@pytest.mark.parametrize("part", ["status", "headers"])
def test_a_webhook_that_answers_byte_by_byte_is_not_waited_for(
    part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(retrain, "PATIENCE", 1)
    over = threading.Event()

    def drip(server: socket.socket) -> None:
        with server.accept()[0] as connection, suppress(OSError):
            connection.sendall(b"HTTP/1.0 200 OK\r\n" if part == "headers" else b"H")
            while not over.wait(0.2):
                connection.sendall(b"X")

    with socket.create_server(("127.0.0.1", 0)) as server:
        dripping = threading.Thread(target=drip, args=[server])
        dripping.start()
        begun = time.monotonic()
        retrain._post(f"http://127.0.0.1:{server.getsockname()[1]}/hook", SUMMARY)
        assert time.monotonic() - begun < 20
        over.set()
        dripping.join()
    assert "no answer within 1 seconds" in capsys.readouterr().err


@pytest.mark.parametrize(
    "address", ["file:///etc/passwd", "data:,secret", "ftp://u:secret@h/", "/secret", "HTTP", "http://["]
)
def test_only_web_addresses_are_posted_to(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    retrain._post(address, SUMMARY)
    said = capsys.readouterr().err
    assert "the webhook did not accept the summary: its address " in said
    assert "secret" not in said


def test_names_in_a_summary_forge_no_line_of_it() -> None:
    forged = retrain.Summary(outcome="kept", sentence="does not know cat\npromoted: version 9\x1b[2K")
    (line,) = retrain.summary_lines(forged)
    assert line == r"kept: does not know cat\npromoted: version 9\u001b[2K"


def test_a_round_tells_no_secret(
    checkout: Path, hook: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the error stream, in last.json, in what is posted and in what is returned."""

    def load() -> Params:
        raise RuntimeError("mlflow at http://anna:Geheim7@h and https://h/a.zip?token=Geheim8")

    monkeypatch.setenv(retrain.WEBHOOK, f"{hook}/hook")
    summary = retrain.retrain(load)
    last = (checkout / ".headstart/retrain/last.json").read_text()
    told = [str(summary), last, json.dumps(Received.bodies), *capsys.readouterr()]
    assert "http://***@h and https://h/a.zip?token=***" in last
    assert not [one for one in told if "Geheim" in one]


def test_a_webhook_has_to_be_an_address(checkout: Path) -> None:
    (checkout / "params.yaml").write_text("retrain: {webhook: slack}\n")
    with pytest.raises(retrain.HeadstartError, match=r"retrain.webhook must begin with http:// or https://, found 'slack'"):
        Params.load()


def test_a_failed_round_is_summed_up_too(checkout: Path, hook: str) -> None:
    params = Params(retrain=Settings(webhook=f"{hook}/hook"))
    summary = retrain.retrain(lambda: params)  # of a folder that is no git checkout
    assert summary["outcome"] == "failed"
    assert "has no git commit" in summary["sentence"]
    assert json.loads((checkout / ".headstart/retrain/last.json").read_text()) == summary
    assert Received.bodies[0]["text"].startswith("failed: ")


def test_parameters_that_are_wrong_are_a_failed_round_of_which_the_webhook_hears(
    checkout: Path, hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(retrain.WEBHOOK, f"{hook}/hook")
    (checkout / "params.yaml").write_text("sed: 0\n")
    summary = retrain.retrain(Params.load)
    assert summary["outcome"] == "failed"
    assert "did you mean 'seed'" in summary["sentence"]
    assert Received.bodies[0]["outcome"] == "failed"


def test_the_commit_says_what_was_decided() -> None:
    assert retrain._message(SUMMARY).split("\n\n") == [
        "Retrained: version 2 promoted", "version 2 is as good", "Drift: other light",
        "Result e7cfb75e7cfb, MLflow run a0b2\n",
    ]  # fmt: skip


# --- DVC --------------------------------------------------------------------------------------------------------------


def test_what_dvc_or_a_stage_said_is_the_reason(checkout: Path) -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], check=True, env=os.environ | {"DVC_NO_ANALYTICS": "true"})
    stage = "python -c 'import sys; print(\"headstart: no pictures\", file=sys.stderr); sys.exit(1)'"
    (checkout / "dvc.yaml").write_text(json.dumps({"stages": {"fetch": {"cmd": stage}}}))
    with retrain._exclusive(NOW) as lock:
        one = retrain._Round(Params(), lock)
        with pytest.raises(retrain.HeadstartError, match=r"^`dvc repro` failed: no pictures. Finished stages are kept"):
            one._dvc("repro")
        stages = {"a": {"cmd": "echo 'headstart: a note'; touch a", "outs": ["a"]}, "b": {"cmd": "false", "deps": ["a"]}}
        (checkout / "dvc.yaml").write_text(json.dumps({"stages": stages}))
        with pytest.raises(retrain.HeadstartError, match=r"^`dvc repro` failed: (?!a note)"):
            one._dvc("repro")
        with pytest.raises(retrain.HeadstartError, match=r"^`dvc remote` failed: .*remote 'nowhere' doesn't exist"):
            one._dvc("remote", "remove", "nowhere")


def test_sigterm_ends_what_dvc_runs_before_the_round_ends(checkout: Path) -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], check=True, env=os.environ | {"DVC_NO_ANALYTICS": "true"})
    stage = 'python -c \'import os, time; open("pid", "w").write(str(os.getpid())); time.sleep(60)\''
    (checkout / "dvc.yaml").write_text(json.dumps({"stages": {"fetch": {"cmd": stage}}}))
    program = (
        "import signal, datetime\n"
        "from headstart.operations import dvc_command, retrain\n"
        "from headstart.base.params import Params\n"
        "dvc_command.PATIENCE = 0.5\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "try:\n"
        "    with retrain._exclusive(datetime.datetime.now()) as lock: retrain._Round(Params(), lock)._dvc('repro')\n"
        "except KeyboardInterrupt: raise SystemExit(130)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], env=HERE, stderr=subprocess.DEVNULL) as one:
        deadline = time.monotonic() + 120
        while not (pid := (checkout / "pid").read_text() if (checkout / "pid").exists() else ""):
            assert one.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        one.send_signal(signal.SIGTERM)
        assert one.wait(60) == 130
    assert has_ended(int(pid))


def test_what_has_lost_its_parent_and_does_not_hear_ctrl_c_is_ended_too(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dvc_command, "PATIENCE", 0.5)
    shell = "sh -c 'trap \"\" INT; echo $$ > pid; exec sleep 60' & wait"
    process = subprocess.Popen(["sh", "-c", shell], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not ((checkout / "pid").exists() and (checkout / "pid").read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    begun = time.monotonic()
    dvc_command._stop(process)
    assert time.monotonic() - begun < 20
    assert has_ended(int((checkout / "pid").read_text()))
