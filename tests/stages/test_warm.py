"""A stage, or DVC, that is started warm is, for all that it and others can see, a fresh process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.stages import warm
from tests.stages.conftest import Clone, kill_group

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not warm.SUPPORTED, reason="every start is cold here")]

PROBE = """
import json, os, random, signal, subprocess, sys
from pathlib import Path
import numpy, torch
print(json.dumps({
    "name": __name__, "file": __file__, "module": sys.modules["__main__"].__file__, "argv": sys.argv,
    "path": [entry for entry in sys.path if "warm" not in entry], "folder": os.getcwd(), "umask": os.umask(0o22),
    "variables": {k: v for k, v in os.environ.items() if k not in ("PATH", "_")}, "standard input": sys.stdin.read(),
    "tty": sys.stdout.isatty(), "seekable": [stream.seekable() for stream in (sys.stdin, sys.stdout, sys.stderr)],
    "open": sorted(n for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}"))[:3],
    "signals": [str(signal.getsignal(n)) for n in (1, 2, 3, 13, 15, 17)], "leads its group": os.getpgid(0) != os.getppid(),
    "threads": torch.get_num_threads(), "default": str(torch.get_default_dtype()),
}), flush=True)
print(random.random(), numpy.random.rand(), torch.rand(1).item(), Path(sys.executable).name, file=sys.stderr)
subprocess.run([sys.executable, "-c", "import sys, yaml; print(sys.argv)", "a child"], check=True)
sys.exit(3)
"""
# What it is killed in: it, and one that it has started, say now and then that they live.
BEATING = """
import subprocess, sys, time
from pathlib import Path
if sys.argv[1] == "1":
    subprocess.Popen([sys.executable, "stages/beating.py", "2"])
try:
    while True:
        Path("beat" + sys.argv[1]).write_text(str(time.monotonic()))
        time.sleep(0.01)
except KeyboardInterrupt:
    Path("interrupted" + sys.argv[1]).touch()
    sys.exit(130)
"""


@pytest.fixture
def checkout(tmp_path: Path, warm_starts: None) -> Clone:
    """A folder with stages that are none of the pipeline's."""
    (tmp_path / "stages").mkdir()
    for name, program in {"probe": PROBE, "beating": BEATING, "nothing": ""}.items():
        (tmp_path / f"stages/{name}.py").write_text(program)
    return Clone(tmp_path)


def starts(clone: Clone) -> list[str]:
    """How its stages were started; those of other tests, which run meanwhile, are noted in the same file."""
    assert clone.warm
    noted = (line.partition("\t") for line in (clone.warm.parents[1] / "starts").read_text().splitlines())
    return [start for folder, _, start in noted if folder == str(clone.folder.resolve())]


def probed(clone: Clone, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["python", "stages/probe.py", "one argument", "two"]
    return subprocess.run(
        command, cwd=clone.folder, env=clone.environment(**variables), input="asked", capture_output=True, text=True
    )


def test_it_has_what_a_fresh_process_has(checkout: Clone) -> None:
    warmly, cold = probed(checkout, DVC_STAGE="probe"), probed(checkout.cold, DVC_STAGE="probe")
    assert warmly.returncode == cold.returncode == 3, warmly.stderr + cold.stderr
    assert "stages/probe.py one argument two: warm" in starts(checkout)
    ours, theirs = (json.loads(done.stdout.splitlines()[0]) for done in (warmly, cold))
    added = {k: v for k, v in ours["variables"].items() if k not in theirs["variables"]}
    assert not [name for name in added if not name.startswith(("KMP_", "TORCHINDUCTOR_", "_MLFLOW_"))]
    ours["variables"] = {k: v for k, v in ours["variables"].items() if k not in added}
    assert ours == theirs
    assert warmly.stdout.splitlines()[1] == cold.stdout.splitlines()[1] == "['-c', 'a child']"
    again = probed(checkout)
    assert warmly.stderr.split()[3] == cold.stderr.split()[3] == "python"
    assert not set(warmly.stderr.split()[:3]) & set(again.stderr.split()[:3])  # none has another's random numbers


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "MLFLOW_TRACKING_TOKEN", "HF_HOME", "PYTHONHASHSEED", "CUDA_PATH"])
def test_where_a_library_may_have_read_another_environment_the_start_is_cold(variable: str, checkout: Clone) -> None:
    checkout.run("python", "stages/nothing.py", **{variable: "7"})
    assert starts(checkout)[-1] == f"stages/nothing.py: cold, as its environment has another {variable}"


@pytest.mark.parametrize("name", ["timm", "numpy.py", "sitecustomize.py"])
def test_where_the_checkout_has_a_library_of_its_own_the_start_is_cold(name: str, checkout: Clone) -> None:
    place = checkout.folder / "stages" / name
    place.write_text("") if place.suffix else place.mkdir()
    checkout.run("python", "stages/nothing.py")
    assert starts(checkout)[-1].endswith(f"cold, as stages has another {place.stem}")


@pytest.mark.parametrize(
    ("program", "status", "said"),
    [
        ("import sys; sys.exit('why')", 1, "why\n"),
        ("0 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("raise KeyboardInterrupt", -2, "KeyboardInterrupt\n"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import os; os.abort()", -6, ""),
        ("import atexit, os; atexit.register(print, 'handled', file=__import__('sys').stderr)", 0, "handled\n"),
    ],
)
def test_it_ends_as_a_fresh_process_ends(program: str, status: int, said: str, checkout: Clone) -> None:
    (checkout.folder / "stages/ends.py").write_text(program)
    done = checkout.run("python", "stages/ends.py", check=False)
    assert starts(checkout)[-1] == "stages/ends.py: warm"
    assert done.returncode == status
    assert done.stderr.endswith(said)


PIPELINE = """
stages:
  beating:
    cmd: python stages/beating.py 1
  probe:
    cmd: python stages/nothing.py && echo $DVC_STAGE && echo > made && exit $GIT_STATUS
    outs: [made]
"""


@pytest.fixture
def pipeline(checkout: Clone) -> Clone:
    checkout.run("git", "init", "-q")
    checkout.run("dvc", "init", "-q")
    (checkout.folder / "dvc.yaml").write_text(PIPELINE)
    return checkout


@pytest.mark.parametrize("status", [0, 3])
def test_dvc_says_and_does_what_a_fresh_one_does(pipeline: Clone, status: int) -> None:
    ends = []
    for clone, command in ((pipeline, ["dvc"]), (pipeline, ["python", "-m", "dvc"]), (pipeline.cold, ["dvc"])):
        for made in ("made", "dvc.lock", ".gitignore"):
            (clone.folder / made).unlink(missing_ok=True)
        done = clone.run(*command, "repro", "probe", check=False, GIT_STATUS=str(status))
        ends.append(
            (
                done.returncode,
                sorted(done.stdout.split()),
                done.stderr,
                sorted(path.name for path in clone.folder.iterdir()),
            )
        )
    assert ends[0] == ends[1] == ends[2]
    assert ends[0][0] == (255 if status else 0)
    assert starts(pipeline)[1:] == 2 * [f"{pipeline.warm}/dvc repro probe: warm", "stages/nothing.py: warm"]


BY_SHELL, BY_DVC = ["sh", "-c", "python stages/beating.py 1; exit $?"], ["dvc", "repro", "beating"]


@contextmanager
def beating(clone: Clone, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A shell or DVC that runs the stage that beats, in a group of their own, once it beats."""
    shell = subprocess.Popen(command, cwd=clone.folder, env=clone.environment(), start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not (clone.folder / "beat2").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield shell
    finally:
        if shell.poll() is None:
            kill_group(shell)


def assert_still(clone: Clone) -> None:
    """Nothing beats any more, or soon: on a busy machine a signal takes its time."""
    deadline = time.monotonic() + 30
    before, now = [], [(clone.folder / name).read_text() for name in ("beat1", "beat2")]
    while now != before:
        assert time.monotonic() < deadline
        time.sleep(0.5)
        before, now = now, [(clone.folder / name).read_text() for name in ("beat1", "beat2")]


@pytest.mark.parametrize("command", [BY_SHELL, BY_DVC], ids=["shell", "DVC"])
def test_it_is_killed_with_the_group_of_the_one_that_started_it(pipeline: Clone, command: list[str]) -> None:
    with beating(pipeline, command) as shell:
        kill_group(shell)
        assert_still(pipeline)
    assert not (pipeline.folder / "interrupted1").exists()


@pytest.mark.parametrize("command", [BY_SHELL, BY_DVC], ids=["shell", "DVC"])
def test_ctrl_c_reaches_it_and_what_it_has_started(pipeline: Clone, command: list[str]) -> None:
    with beating(pipeline, command) as shell:
        os.killpg(shell.pid, signal.SIGINT)
        shell.wait(timeout=60)
        assert_still(pipeline)
    for number in (1, 2):
        assert (pipeline.folder / f"interrupted{number}").exists()


def test_the_commands_own_process_is_the_retrains_and_its_stages_are_warm(checkout: Clone) -> None:
    done = checkout.run("headstart", "retrain", check=False)
    assert done.returncode == 1
    assert "headstart: " in done.stderr
    done = checkout.run("headstart", "gate", check=False)
    assert starts(checkout)[-1] == f"{checkout.warm}/headstart gate: warm"
