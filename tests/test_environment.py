"""The environment that `make setup` makes: what it starts is its own, and one that was moved is made again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.test_house import PROJECT

# Without this environment's programs on the path.
BARE = {key: value for key, value in os.environ.items() if key not in ("PATH", "VIRTUAL_ENV", "PYTHONPATH")}
BARE |= {"PATH": "/usr/local/bin:/usr/bin:/bin", "DVC_NO_ANALYTICS": "true"}


def make(folder: Path, *arguments: str) -> str:
    return subprocess.run(["make", *arguments], cwd=folder, env=BARE, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the Makefile and an environment that is ready, but for its packages."""
    folder = tmp_path / "a place" / "checkout"
    (folder / "ops").mkdir(parents=True)
    for name in ("Makefile", "ops/environment_first.py"):
        shutil.copy(PROJECT / name, folder / name)
    for name in ("requirements.lock", "requirements-dev.lock", "requirements-ray.lock", "pyproject.toml"):
        (folder / name).touch()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=folder, check=True)
    (folder / ".venv/ready").touch()
    return folder


def test_an_environment_that_is_ready_is_left_alone(checkout: Path) -> None:
    assert "Nothing to be done for 'setup'" in make(checkout, "-n", "setup")


def test_an_environment_that_was_moved_with_its_checkout_is_made_again(checkout: Path) -> None:
    moved = checkout.rename(checkout.with_name("moved"))
    assert "-m venv .venv" in make(moved, "-n", "setup")


def test_an_environment_that_was_copied_with_its_checkout_is_made_again(checkout: Path) -> None:
    copied = shutil.copytree(checkout, checkout.with_name("copied"), symlinks=True)
    assert "-m venv .venv" in make(copied, "-n", "setup")
    assert "Nothing to be done for 'setup'" in make(checkout, "-n", "setup")


def test_an_environment_whose_python_is_gone_is_made_again(checkout: Path) -> None:
    for link in (checkout / ".venv/bin").glob("python*"):
        link.unlink()
        link.symlink_to("/nowhere/python")
    assert "-m venv .venv" in make(checkout, "-n", "setup")


def test_dvc_runs_its_stages_with_its_own_python_without_activation(tmp_path: Path) -> None:
    """An environment as `make setup` leaves it, with the packages of this one."""
    venv.create(tmp_path / "venv", symlinks=True)
    (packages,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    shutil.copy(PROJECT / "ops/environment_first.py", packages)
    (packages / "environment_first.pth").write_text("import environment_first\n")
    (packages / "these.pth").write_text("\n".join(entry for entry in sys.path if "site-packages" in entry))
    dvc = tmp_path / "venv/bin/dvc"
    dvc.write_text(f"#!{tmp_path}/venv/bin/python\nimport sys\nfrom dvc.cli import main\nsys.exit(main())\n")
    dvc.chmod(0o755)
    for command in (["git", "init", "-q"], [dvc, "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, env=BARE, check=True)
    asks = "import sys, yaml; print(sys.prefix, file=open('prefix', 'w'))"
    (tmp_path / "dvc.yaml").write_text(f'stages:\n  one:\n    cmd: python -c "{asks}"\n    outs: [prefix]\n')
    done = subprocess.run([dvc, "repro"], cwd=tmp_path, env=BARE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "prefix").read_text().strip() == str(tmp_path / "venv")


def test_a_path_that_has_the_environment_already_stays_as_it_is(tmp_path: Path) -> None:
    """As it does where it is activated, and where a test puts another python before it."""
    path = f"{tmp_path}:{sys.prefix}/bin:/usr/bin"
    code = "import os, runpy; runpy.run_path('ops/environment_first.py'); print(os.environ['PATH'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=BARE | {"PATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == path
