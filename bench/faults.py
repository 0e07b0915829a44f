"""Break a running project as machines break one, and see that nothing is lost and nothing comes out different.

    python bench/faults.py                                  # 300 faults: some hours on two cores
    python bench/faults.py --count 20 --kinds kill,flip     # fewer, and of some kinds only
    python bench/faults.py --only 17                        # the 17th alone, as --seed has it

Each fault happens to a copy of a small project: kill -9 of `dvc repro`, of a study or of `headstart retrain`; a full
disk; rights taken away; an MLflow server that drops connections, answers 500 or is gone; a `dvc push` cut short; a byte
changed in DVC's cache, in data/ or in .headstart; a clock that jumps; two pipelines in one checkout. Then the cause is
taken away and the same command is run again. It must succeed, or say in a sentence with a command in it what to do, which
is then done. No run may print a traceback, what comes out must be what an undisturbed run gives, byte by byte, and MLflow
must have each result once.

Prints a line for each fault, and what was counted. The exit status is 1 if one did harm; its folder is kept and named.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import random
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml
from _project import ROOT

sys.path.insert(0, str(ROOT))
from tests.stages import warm
from tests.stages.conftest import SLICE, Clone, kill_group, new_clone
from tests.stages.test_rank import RANK, with_mirror
from tests.stages.test_tune import TUNE
from tests.stages.test_why import WHY

STUDIES = ("rank", "why", "labels", "tune")
# The gate judges speed and few pictures here, and other programs run beside this.
GATE = {"margin": 0.2, "class_margin": 1.0, "max_ece": 1.0, "max_slowdown": 100.0}
STAGES = ("fetch", "prepare", "backbone", "features", "head", "finetune", "evaluate", "package", "track")
TIMES = {"seconds", "minutes", "images_per_s", "finetune_minutes", "worth_minutes"}
SAID = {"sentences", "sentence", "reason", "note"}  # which have times in them
HANG = 600  # seconds


class HarmError(Exception):
    """What must not have happened."""


class Task(NamedTuple):
    """A change of params.yaml, and a command that has work to do after it."""

    command: tuple[str, ...]
    change: dict[str, Any]


REPRO = ("dvc", "repro")
TASKS = {
    "repro all": Task(REPRO, {"seed": 1}),
    "repro prepare": Task(REPRO, {"prepare": {"short_side": 300}}),
    "repro head": Task(REPRO, {"head": {"C": [0.01, 0.1]}}),
    "repro finetune": Task(REPRO, {"finetune": {"lr": 0.002}}),
    **{name: Task((*REPRO, f"studies/dvc.yaml:{name}"), {}) for name in STUDIES},
    "retrain": Task(("headstart", "retrain"), {"finetune": {"lr": 0.002}}),
}


@dataclass
class Bench:
    """Where the copies of ``base``, a finished project, are made."""

    folder: Path
    base: Path
    undisturbed: dict[str, tuple[float, dict[str, Any]]] = field(default_factory=dict)

    def make(self) -> None:
        """The project whose copies are broken: finished, with a champion."""
        variables = Clone(self.folder).environment()
        del variables["PYTHONPATH"]
        Clone.warm = warm.environment(self.folder / "warm", variables) if warm.SUPPORTED else None
        if self.base.exists():
            return
        self.base.mkdir()
        clone = with_mirror(new_clone(self.base, **SLICE, rank=RANK, why=WHY, tune=TUNE, gate=GATE))
        clone.commit("a mirror")
        clone.run("headstart", "retrain")
        if clone.run("git", "status", "--porcelain").stdout:
            clone.commit("a result")

    def copy(self, name: str) -> Clone:
        subprocess.run(["cp", "-a", "--reflink=auto", self.base, self.folder / name], check=True)
        return Clone(self.folder / name)

    def expected(self, task: str) -> tuple[float, dict[str, Any]]:
        """The seconds that a task takes undisturbed, and what comes out."""
        if task not in self.undisturbed:
            clone = ready(self.copy("undisturbed"), task)
            start = time.monotonic()
            done = clone.run(*TASKS[task].command, check=False)
            if done.returncode not in accepted(TASKS[task].command):
                raise HarmError(f"undisturbed, {task} failed: {done.stdout}{done.stderr}")
            self.undisturbed[task] = time.monotonic() - start, outputs(clone)
            shutil.rmtree(clone.folder)
        return self.undisturbed[task]


def ready(clone: Clone, task: str) -> Clone:
    if change := TASKS[task].change:
        clone.set(**change)
        clone.commit()
    return clone


def accepted(command: tuple[str, ...]) -> tuple[int, ...]:
    return (0, 10, 11, 12) if "retrain" in command else (0,)


def outputs(clone: Clone) -> dict[str, Any]:
    """All that must be as in an undisturbed run: the bytes of data/, dvc.lock, and what studies found, without times."""
    data = clone.folder / "data"
    found: dict[str, Any] = {
        str(file.relative_to(data)): hashlib.sha256(file.read_bytes()).hexdigest()
        for name in (*STAGES, "labels")
        for file in sorted((data / name).rglob("*"))
        if file.is_file()
    }
    for study in ("rank", "why", "tune"):
        if (file := data / study / f"{study}.json").exists():
            found[study] = timeless(json.loads(file.read_text()))
    for name, stage in yaml.safe_load(clone.read("dvc.lock"))["stages"].items():
        found[f"dvc.lock: {name}"] = stage.get("outs")
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMES | SAID}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def without_traceback(said: str) -> str:
    if "Traceback (most recent call last)" in said:
        raise HarmError(f"a traceback: {said}")
    return said


def words(said: str) -> str:
    """The line that a user looks at."""
    lines = said.splitlines()
    told = [line for line in lines if line.startswith(("headstart: ", "ERROR: ")) or "going on" in line]
    return told[0][:160] if told else f"{sum(line.startswith('Running stage') for line in lines)} stages ran"


class Started:
    """A command in a clone that may be killed or waited for."""

    def __init__(self, clone: Clone, *command: str, **variables: str) -> None:
        self.clone, self.output = clone, tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            command, cwd=clone.folder, env=clone.environment(**variables), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=self.output, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def ends_within(self, seconds: float) -> bool:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.returncode is not None

    def kill(self) -> None:
        if not self.ends_within(0):
            kill_group(self.process)
        until = time.monotonic() + 60
        while left := [p for p in psutil.process_iter(["cwd"]) if (p.info["cwd"] or "").startswith(str(self.clone.folder))]:
            if time.monotonic() > until:
                raise HarmError(f"still running after its starter was killed: {left}")
            time.sleep(0.05)

    def said(self) -> str:
        """What it printed, when it has ended."""
        if not self.ends_within(HANG):
            self.kill()
            raise HarmError(f"no end within {HANG} s: {self.printed()}")
        return without_traceback(self.printed())

    def printed(self) -> str:
        self.output.seek(0)
        return self.output.read()


def again(clone: Clone, command: tuple[str, ...], **variables: str) -> str:
    """Run it until it succeeds, doing what it says; what it said first."""
    first = ""
    for _ in range(3):
        run = Started(clone, *command, **variables)
        said = run.said()
        first = first or words(said)
        if run.process.returncode in accepted(command):
            return first
        told = next((line for line in said.splitlines() if line.startswith("headstart: ")), "")
        advice = [told for told in re.findall(r"`([^`]+)`", told) if told.startswith(("dvc ", "headstart "))]
        if not advice:
            raise HarmError(f"it failed and names no command that mends it: {said}")
        for line in advice:
            without_traceback(Started(clone, *shlex.split(line), **variables).said())
    raise HarmError(f"what it says does not mend it: {first}")


# --- the faults: each breaks a copy once, mends the cause and returns when it was and what the next run said ------------

Fault = Callable[[Bench, Clone, random.Random], tuple[str, str]]


def some_task(chance: random.Random, *among: str) -> str:
    return chance.choice(among or [name for name in TASKS if name.startswith("repro")])


def checked(bench: Bench, clone: Clone, task: str, **variables: str) -> str:
    """The next run, and that its end is that of an undisturbed one."""
    said = again(clone, TASKS[task].command, **variables)
    assert_same(outputs(clone), bench.expected(task)[1])
    return said


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    if different := [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]:
        raise HarmError(f"other outputs than undisturbed: {', '.join(different[:8])}")


def assert_logged_once(clone: Clone, store: str = "") -> None:
    import mlflow

    client = mlflow.MlflowClient(store or f"sqlite:///{clone.folder / 'mlflow.db'}")
    tags = [run.data.tags for e in client.search_experiments() for run in client.search_runs([e.experiment_id])]
    results = [(t.get("headstart.result"), t.get("headstart.complete")) for t in tags if "headstart.result" in t]
    if len(results) != len({result for result, _ in results}) or any(complete != "true" for _, complete in results):
        raise HarmError(f"runs in MLflow: {results}")


def killing(*tasks: str) -> Fault:
    def kill(bench: Bench, clone: Clone, chance: random.Random) -> tuple[str, str]:
        task = some_task(chance, *tasks)
        seconds, _ = bench.expected(task)
        ready(clone, task)
        moment = chance.uniform(0.2, 0.8 * seconds)
        run = Started(clone, *TASKS[task].command)
        run.ends_within(moment)
        run.kill()
        without_traceback(run.printed())
        said = checked(bench, clone, task)
        assert_logged_once(clone)
        return f"{task}, {moment:.2f} of {seconds:.1f} s", said

    return kill


def full_disk(bench: Bench, clone: Clone, chance: random.Random) -> tuple[str, str]:
    task = some_task(chance)
    bench.expected(task)
    if os.geteuid() == 0:  # a small disk
        used = int(subprocess.check_output(["du", "-sm", clone.folder]).split()[0])
        left, small = chance.randint(1, 40), clone.folder.with_name("small disk")
        small.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={used + left + 4}m", "none", small], check=True)
        try:
            subprocess.run(["cp", "-a", clone.folder, small / "project"], check=True)
            on_it = ready(Clone(small / "project"), task)
            broken = words(Started(on_it, *TASKS[task].command).said())
            subprocess.run(["mount", "-o", "remount,size=4g", small], check=True)
            return f"{task}, {left} MB left: {broken}", checked(bench, on_it, task)
        finally:
            subprocess.run(["umount", "-l", small], check=True)
    ready(clone, task)
    limit = int(10 ** chance.uniform(3, 7.5))
    command = ("prlimit", f"--fsize={limit}", *TASKS[task].command)  # which a process started elsewhere has not
    broken = words(Started(clone.cold, *command).said())
    return f"{task}, files of {limit} bytes: {broken}", checked(bench, clone, task)


def no_rights(bench: Bench, clone: Clone, chance: random.Random) -> tuple[str, str]:
    task = some_task(chance)
    bench.expected(task)
    ready(clone, task)
    places = [*clone.folder.glob("data/*"), *clone.folder.glob(".headstart/*"), *clone.folder.glob(".dvc/*"), clone.folder]
    places += [clone.folder / name for name in ("mlflow.db", "dvc.lock", "params.yaml", "dvc.yaml", ".dvc/cache/files")]
    places += [file for name in ("data", ".dvc/cache", ".headstart") for file in everything(clone.folder / name)]
    place = chance.choice([place for place in places if place.exists()])
    rights = place.stat().st_mode & 0o7777
    place.chmod(chance.choice([0, 0o444, 0o555]))
    # root may do anything unless it gives that up
    less = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
    broken = words(Started(clone.cold, *less, *TASKS[task].command).said())
    if place.exists():  # a stage may have made it anew
        place.chmod(rights)
    return f"{task}, {place.relative_to(clone.folder)}: {broken}", checked(bench, clone, task)


def everything(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def flipped(bench: Bench, clone: Clone, chance: random.Random) -> tuple[str, str]:
    task = some_task(chance)
    bench.expected(task)
    ready(clone, task)
    where = chance.choice(["data", ".dvc/cache/files", ".headstart"])
    folder = chance.choice(sorted(place for place in (clone.folder / where).iterdir() if everything(place)))
    file = chance.choice([file for file in everything(folder) if file.parent.name != "code"])
    content, position = bytearray(file.read_bytes()), chance.randrange(file.stat().st_size)
    content[position] ^= 1 << chance.randrange(8)
    status = file.stat()
    file.chmod(0o644)
    file.write_bytes(content)  # not a new file: others may be links to it
    file.chmod(status.st_mode & 0o7777)
    if where == ".headstart" or file.name == "pixels.bin":  # which have digests of their own
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # a disk that forgets changes no time
    elif where == ".dvc/cache/files":  # DVC looks there for what is not in data/
        shutil.rmtree(clone.folder / "data" / chance.choice(STAGES), ignore_errors=True)
    return f"{task}, {file.relative_to(clone.folder)} at {position}", checked(bench, clone, task)


CLOCK = """
import os, time
real, moment, jump = time.time, float(os.environ["CLOCK_MOMENT"]), float(os.environ["CLOCK_JUMP"])
time.time = lambda: real() + (jump if real() > moment else 0)
time.time_ns = lambda: int(time.time() * 1e9)
"""


def clock_jumps(bench: Bench, clone: Clone, chance: random.Random) -> tuple[str, str]:
    task = some_task(chance)
    seconds, _ = bench.expected(task)
    ready(clone, task)
    folder = clone.folder.with_name("clock")
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(CLOCK)
    moment, jump = chance.uniform(0, 2 * seconds), chance.choice([-1, 1]) * 10 ** chance.uniform(1, 7.5)
    path = f"{clone.folder}{os.pathsep}{folder}"
    variables = {"PYTHONPATH": path, "CLOCK_MOMENT": str(time.time() + moment), "CLOCK_JUMP": str(jump)}
    run = Started(clone.cold, *TASKS[task].command, **variables)
    said = run.said()
    if run.process.returncode:
        raise HarmError(f"a clock made it fail: {said}")
    assert_same(outputs(clone), bench.expected(task)[1])
    return f"{task}, by {jump:.0f} s after {moment:.1f} s", checked(bench, clone, task)


def two_at_once(bench: Bench, clone: Clone, chance: random.Random) -> tuple[str, str]:
    task = some_task(chance, "repro all", "repro head", "repro finetune", "retrain")
    seconds, _ = bench.expected(task)
    ready(clone, task)
    delay = chance.uniform(0, 0.7 * seconds)
    first = Started(clone, *TASKS[task].command)
    first.ends_within(delay)
    second = Started(clone, *TASKS[task].command)
    broken = [words(run.said()) for run in (first, second)]
    said = checked(bench, clone, task)
    assert_logged_once(clone)
    return f"{task}, {delay:.1f} s apart: {broken[1]}", said


def push_breaks(bench: Bench, clone: Clone, chance: random.Random) -> tuple[str, str]:
    how, remote = chance.choice(["killed", "full", "gone"]), clone.folder.with_name("remote")
    shutil.rmtree(remote, ignore_errors=True)
    clone.run("dvc", "remote", "add", "-d", "far", str(remote))
    clone.commit("a remote")
    push, limit, moment = ("dvc", "push", "dvc.yaml"), int(10 ** chance.uniform(2, 7)), chance.uniform(0.5, 5)
    if how == "full":
        broken = words(Started(clone.cold, "prlimit", f"--fsize={limit}", *push).said())
    elif how == "gone":
        remote.write_text("not a folder\n")
        broken = words(Started(clone, *push).said())
        remote.unlink()
    else:
        run = Started(clone, *push)
        run.ends_within(moment)
        run.kill()
        broken = words(without_traceback(run.printed()))
    said = again(clone, push)
    fresh = Clone(clone.folder.with_name("fresh"))
    shutil.rmtree(fresh.folder, ignore_errors=True)
    clone.run("git", "clone", "-q", str(clone.folder), str(fresh.folder))
    without_traceback(Started(fresh, "dvc", "pull", "dvc.yaml").said())
    assert_same(outputs(fresh), outputs(Clone(bench.base)))
    return f"push, {how} ({moment:.1f} s, {limit} bytes): {broken}", said


class Proxy(BaseHTTPRequestHandler):
    """Before an MLflow server, and broken after so many requests."""

    server_port, fault, good = 0, "", 0

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        Proxy.good -= 1
        if Proxy.fault and Proxy.good < 0:
            if Proxy.fault == "500":
                self.send_error(500)
            self.close_connection = True
            return
        server = http.client.HTTPConnection("127.0.0.1", Proxy.server_port, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection", "transfer-encoding")}
        server.request(self.command, self.path, body, headers)
        answer = server.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """The address of a proxy before a real server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        Proxy.server_port = free.getsockname()[1]
    server = subprocess.Popen(
        [Path(sys.executable).parent / "mlflow", "server", "--host", "127.0.0.1", "--port", str(Proxy.server_port),
         "--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'server.db'}",
         "--artifacts-destination", folder / "artifacts"],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    try:
        until = time.monotonic() + 120
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", Proxy.server_port), 1):
                break
            if time.monotonic() > until:
                raise HarmError("mlflow server does not start")
            time.sleep(0.2)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_port}"
    finally:
        proxy.shutdown()
        kill_group(server)


def mlflow_breaks(bench: Bench, clone: Clone, chance: random.Random) -> tuple[str, str]:
    """Only track has work to do, in a store that is not known yet."""
    how, good = chance.choice(["drop", "500", "gone"]), chance.randint(0, 60)
    clone.set(tracking={"experiment": clone.folder.name}, registry={"model": clone.folder.name})
    with mlflow_server(clone.folder) as address:
        Proxy.fault, Proxy.good = how, good
        wrong = "http://127.0.0.1:9" if how == "gone" else address
        broken = words(Started(clone, *REPRO, MLFLOW_TRACKING_URI=wrong).said())
        Proxy.fault = ""
        said = again(clone, REPRO, MLFLOW_TRACKING_URI=address)
        assert_logged_once(clone, address)
    known = {name: value for name, value in outputs(Clone(bench.base)).items() if "track" not in name}
    assert_same({name: value for name, value in outputs(clone).items() if "track" not in name}, known)
    return f"{how} after {good} requests: {broken}", said


KINDS: dict[str, Fault] = {
    "kill": killing(),
    "flip": flipped,
    "full": full_disk,
    "two": two_at_once,
    "mlflow": mlflow_breaks,
    "push": push_breaks,
    "rights": no_rights,
    "clock": clock_jumps,
    "retrain": killing("retrain"),
    **{name: killing(name) for name in STUDIES},
}


def inject(bench: Bench, kind: str, number: int, seed: int) -> str:
    """One fault, and a line about it.

    Raises:
        HarmError: it did harm. The copy of the project is left as it is.
    """
    start, chance = time.monotonic(), random.Random(f"{seed} {number} {kind}")
    clone = bench.copy(f"fault-{number}")
    moment, said = KINDS[kind](bench, clone, chance)
    shutil.rmtree(clone.folder)
    return f"{number:4} {kind:8} {moment}; then: {said} ({time.monotonic() - start:.0f} s)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="of " + ", ".join(KINDS))
    parser.add_argument("--only", type=int, help="the number of one fault")
    parser.add_argument("--folder", help="of an earlier call that kept it, whose project is not made again")
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    if unknown := set(kinds) - KINDS.keys():
        parser.error(f"--kinds: {', '.join(sorted(unknown))}")
    folder = Path(options.folder or tempfile.mkdtemp(prefix="faults-"))
    bench = Bench(folder, folder / "base")
    bench.make()
    held, harmed = Counter[str](), Counter[str]()
    for number in range(options.count) if options.only is None else [options.only]:
        kind = kinds[number % len(kinds)]
        try:
            print(inject(bench, kind, number, options.seed), flush=True)
            held[kind] += 1
        except HarmError as harm:
            harmed[kind] += 1
            print(f"{number:4} {kind:8} HARM in {bench.folder}/fault-{number}: {harm}", flush=True)
    for kind in kinds:
        print(f"{kind:8} {held[kind]} held, {harmed[kind]} did not")
    if not harmed:
        shutil.rmtree(bench.folder)
    return int(bool(harmed))


if __name__ == "__main__":
    sys.exit(main())
