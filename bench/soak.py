"""Half an hour of mixed work on one project, and whether memory, file handles and left-over files stay flat.

    python bench/soak.py                 # thirty minutes
    python bench/soak.py --minutes 5

`headstart serve` and an MLflow server run all the time. Beside them, in random order: clients send honest and broken
pictures; `headstart predict` answers for a folder; `headstart retrain` makes a new result; DVC's queue runs two experiments
at once. After each, what the two servers and all that they have started hold is noted: memory (RSS), open files, threads;
and what is left of the rest: processes, and files in the temporary folder.

Prints a line for each piece of work, and for each figure its highest value in the middle third and in the last third of the
time. The exit status is 1 if memory or what MLflow's server holds grew by more than a tenth, or anything else grew at all.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
from _project import ROOT
from _serving import free_port, jpegs, running

sys.path.insert(0, str(ROOT))
from tests.stages.conftest import SLICE, Clone, new_clone

GATE = {"margin": 1.0, "class_margin": 1.0, "max_ece": 1.0, "max_slowdown": 100.0}  # other programs run beside this
MEMORY = "MB"
PATIENCE_S = 300


def tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def held_by(process: psutil.Process) -> dict[str, float]:
    total = {MEMORY: 0.0, "open files": 0.0, "threads": 0.0}
    for each in tree(process):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total[MEMORY] += each.memory_info().rss / 1e6
            total["open files"] += each.num_fds()
            total["threads"] += each.num_threads()
    return total


class Work:
    """What is done, each piece by a method; ``clone`` is a finished project."""

    def __init__(self, clone: Clone, port: int, variables: dict[str, str], chance: random.Random) -> None:
        self.clone, self.port, self.variables, self.chance = clone, port, variables, chance
        self.pictures, self.round = jpegs(), 0
        folder = clone.folder.parent / "to_predict"
        folder.mkdir()
        for number, data in enumerate(self.pictures):
            (folder / f"{number}.jpg").write_bytes(data if number % 8 else data[: len(data) // 2])

    def requests(self) -> str:
        """Two hundred of them; every fourth is cut short, or no picture at all."""
        statuses = []
        for number in range(200):
            data = self.chance.choice(self.pictures)
            if number % 4 == 0:
                data = self.chance.choice((data[: self.chance.randrange(len(data))], b"no picture", b""))
            request = urllib.request.Request(f"http://127.0.0.1:{self.port}/predict", data, {"Content-Type": "image/jpeg"})
            try:
                with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
                    statuses.append(reply.status)
            except urllib.error.HTTPError as refusal:
                statuses.append(refusal.code)
        assert set(statuses) <= {200, 400, 413, 415, 422}, statuses
        return f"{statuses.count(200)} of {len(statuses)} requests answered"

    def predict(self) -> str:
        self._run(
            "headstart", "predict", str(self.clone.folder.parent / "to_predict"), "--output", "answers.csv", accepted=(0, 1)
        )
        (self.clone.folder / "answers.csv").unlink()
        return "predicted a folder"

    def retrain(self) -> str:
        self.round += 1
        self.clone.set(seed=self.round)
        self.clone.commit("another seed")
        self._run("headstart", "retrain", accepted=(0, 10, 11, 12))
        return "retrained"

    def queue(self) -> str:
        strengths = [f"head.C=[{self.chance.uniform(0.001, 0.1):.5f}]" for _ in range(2)]
        for strength in strengths:
            self._run("dvc", "exp", "run", "--queue", "-S", strength, "-S", "finetune.unfreeze=none")
        # Its output is not captured: the workers keep it open for as long as they live.
        subprocess.run(
            ["dvc", "queue", "start", "-j", "2"], cwd=self.clone.folder, env=self.clone.environment(**self.variables),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        deadline = time.monotonic() + 3 * PATIENCE_S
        while True:
            done = self.clone.run("dvc", "queue", "status", check=False, **self.variables)  # may read half a message
            if done.returncode == 0 and not {"Running", "Queued"} & set(done.stdout.split()):
                break
            assert time.monotonic() < deadline, done.stdout
            time.sleep(2)
        self.clone.run("dvc", "queue", "stop", check=False, **self.variables)
        assert "Failed" not in done.stdout, done.stdout
        self._run("dvc", "queue", "remove", "--all")
        self._run("dvc", "exp", "remove", "-A")
        return "queued two experiments"

    def _run(self, *command: str, accepted: tuple[int, ...] = (0,)) -> None:
        done = self.clone.run(*command, check=False, **self.variables)
        assert done.returncode in accepted, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr


def left_over(folder: Path, servers: list[psutil.Process], temporary: Path) -> dict[str, float]:
    known = {each.pid for server in servers for each in tree(server)} | {os.getpid()}
    left = 0
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            left += process.pid not in known and process.cwd().startswith(str(folder)) and process.status() != "zombie"
    return {"processes left": left, "temporary files left": sum(1 for _ in temporary.rglob("*"))}


def soak(folder: Path, minutes: float, seed: int) -> bool:
    (folder / "project").mkdir()
    temporary = folder / "tmp"
    temporary.mkdir()
    clone = new_clone(folder / "project", **SLICE, gate=GATE)
    port, store = free_port(), free_port()
    variables = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{store}", "TMPDIR": str(temporary)}
    with ExitStack() as stack:
        store_command = (
            "mlflow", "server", "--port", str(store), "--workers", "1", "--uvicorn-opts", "--log-level warning",
            "--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "artifacts"),
        )  # fmt: skip
        started = [stack.enter_context(running(*store_command, port=store, cwd=folder, variables=clone.environment()))]
        clone.run("headstart", "retrain", check=False, **variables)
        serve_command = ("headstart", "serve", "--port", str(port))
        environment = clone.environment(**variables)
        started.append(stack.enter_context(running(*serve_command, port=port, cwd=clone.folder, variables=environment)))
        mlflow, serve = (psutil.Process(server.pid) for server in started)
        work = Work(clone, port, variables, random.Random(seed))
        start, noted = time.monotonic(), list[tuple[float, dict[str, float]]]()
        while (passed := time.monotonic() - start) < 60 * minutes:
            said = work.chance.choice((work.requests, work.requests, work.predict, work.retrain, work.queue))()
            time.sleep(2)  # a connection that was just closed is an open file for a moment
            held = {f"serve: {key}": value for key, value in held_by(serve).items()}
            held |= {f"MLflow: {key}": value for key, value in held_by(mlflow).items()}
            held |= left_over(folder / "project", [serve, mlflow], temporary)
            noted.append((passed / (60 * minutes), held))
            figures = ", ".join(f"{key} {value:.0f}" for key, value in held.items())
            print(f"{passed / 60:5.1f} min  {said}; {figures}", flush=True)
    return flat(noted)


def flat(noted: list[tuple[float, dict[str, float]]]) -> bool:
    """Print the highest figures of the middle and the last third of the time, and say whether none has grown."""
    middle, last = ([held for at, held in noted if low <= at < high] for low, high in ((1 / 3, 2 / 3), (2 / 3, 2)))
    if not middle or not last:
        raise SystemExit("too little was done to compare; give more --minutes")
    grown = []
    for key in noted[0][1]:
        before, after = (max(held[key] for held in part) for part in (middle, last))
        print(f"{key:24} {before:8.0f} {after:8.0f}")
        theirs = key.startswith("MLflow")  # whose pools of threads come and go
        if after > before * (1.1 if theirs or key.endswith(MEMORY) else 1):
            grown.append(key)
    print("flat" if not grown else f"GREW: {', '.join(grown)}")
    return not grown


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(not soak(Path(scratch), asked.minutes, asked.seed))
