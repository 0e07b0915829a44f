"""The wheel: it has the repository's own pipeline in it, and several projects run on one that is installed."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.operations.project_files import names_in
from tests.once import made_once
from tests.test_environment import BARE
from tests.test_house import PROJECT, tracked

OF_A_PROJECT = ("stages", "studies", "data", ".dvc")  # folders of which all that is in git goes along
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory, shared_folder: Path) -> Path:
    """Built once for all of xdist's workers, from a copy of what is in git."""

    def build(folder: Path) -> None:
        copy = tmp_path_factory.mktemp("copy")
        for file in tracked():
            name = file.relative_to(PROJECT)
            if name.parts[0] not in ("tests", "bench", "notebooks"):
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                (copy / name).write_bytes(file.read_bytes())
        command = [sys.executable, "-c", BUILD, str(folder)]
        subprocess.run(command, cwd=copy, check=True, capture_output=True)

    (built,) = made_once(shared_folder / "wheel", build).glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_what_is_in_git_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {f"headstart_project/{name}": PROJECT / name for name in names_in(PROJECT)}
    wanted |= {
        name.as_posix(): PROJECT / name
        for name in (file.relative_to(PROJECT) for file in tracked())
        if name.parts[0] == "headstart"
    }
    wanted |= {"headstart_project/setup.py": PROJECT / "setup.py"}  # setuptools' own doing
    assert set(held) == set(wanted)
    assert [name for name, file in wanted.items() if file.read_bytes() != held[name]] == []
    ours = {name.as_posix() for name in (file.relative_to(PROJECT) for file in tracked()) if name.parts[0] in OF_A_PROJECT}
    assert ours <= set(names_in(PROJECT))


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, and this one's other packages."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "these.pth").write_text("\n".join(entry for entry in sys.path if "site-packages" in entry))
    uv = Path(sys.executable).parent / "uv"
    subprocess.run(
        [uv, "pip", "install", "-q", "--offline", "--no-deps", "--python", folder / "bin/python", wheel],
        env=BARE,
        check=True,
    )
    dvc = folder / "bin/dvc"
    dvc.write_text(f"#!{folder}/bin/python\nimport sys\nfrom dvc.cli import main\nsys.exit(main())\n")
    dvc.chmod(0o755)
    return folder / "bin"


def put_noise(folder: Path, *classes: str) -> None:
    noise = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for n in range(6):
            Image.fromarray(noise.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / name / f"{n}.png")


@pytest.mark.slow
def test_two_projects_run_at_once_on_one_wheel_far_from_a_checkout(programs: Path, tmp_path: Path) -> None:
    environment = BARE | {"PATH": f"{programs}:{BARE['PATH']}", "HOME": str(tmp_path)}

    def run(*command: str, cwd: Path = tmp_path, **variables: str) -> str:
        done = subprocess.run(command, cwd=cwd, env=environment | variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    put_noise(tmp_path / "pictures/birds", "robin", "wren")
    put_noise(tmp_path / "pictures/trees", "oak", "ash", "elm")
    assert "Next:\n  cd birds && dvc repro" in run("headstart", "init", "birds", "pictures/birds")
    run("headstart", "init", "trees", "pictures/trees")
    folders = [tmp_path / "birds", tmp_path / "trees"]
    running = [subprocess.Popen(["dvc", "repro", "-q", "prepare"], cwd=folder, env=environment) for folder in folders]
    assert [process.wait() for process in running] == [0, 0]
    for folder, classes in zip(folders, ({"robin", "wren"}, {"oak", "ash", "elm"}), strict=True):
        rows = (folder / "data/fetch/manifest.csv").read_text().splitlines()[1:]
        assert {row.split("/")[0] for row in rows} == classes
        assert (folder / "data/prepare/manifest.parquet").exists()
    code = {file.name: file.read_text() for file in (tmp_path / "birds/data/fetch/code").iterdir()}
    assert str(programs.parent) not in "".join(code.values())
    # A project's stages are those of the repository: where that's code is found first, none would run again.
    run("python", "stages/fetch.py", cwd=tmp_path / "birds", PYTHONPATH=str(PROJECT))
    assert {file.name: file.read_text() for file in (tmp_path / "birds/data/fetch/code").iterdir()} == code
    assert "this project's files are those of headstart" in run("headstart", "upgrade", cwd=tmp_path / "trees")
