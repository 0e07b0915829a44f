"""ops/: what starts a retraining every month, each as far as it can be tried here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

OPS = Path(__file__).parents[1] / "ops"
AIRFLOW = "3.3.2"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a checkout in it, whose `headstart retrain` ends as its file `code` says."""
    program = tmp_path / "headstart/.venv/bin/headstart"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "{\\"asked\\": \\"$*\\"}"\nexit $(cat code)\n')
    program.chmod(0o755)
    return tmp_path


def ends_with(home: Path, code: int, command: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    (home / "headstart/code").write_text(str(code))
    kept = {"HOME": str(home), "PATH": os.environ["PATH"]}
    return subprocess.run(["bash", "-e", "-c", command], cwd=cwd, env=kept | variables, capture_output=True, text=True)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_with_its_units(home: Path) -> None:
    for unit in OPS.glob("headstart-retrain.*"):
        (home / unit.name).write_text(unit.read_text().replace("%h", str(home)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, home.glob("headstart-retrain.*"))],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, [line for line in done.stderr.splitlines() if "headstart" in line]) == (0, [])


def crontab_line() -> str:
    (line,) = [line for line in (OPS / "crontab").read_text().splitlines() if line and not line.startswith("#")]
    return line


def test_the_crontab_line_has_five_fields_and_no_percent_sign() -> None:
    assert re.match(r"([\d*/,-]+ ){5}cd ", crontab_line())
    assert "%" not in crontab_line()  # a line break to cron


@pytest.mark.usefixtures("tmp_path")
@pytest.mark.skipif(not shutil.which("crontab"), reason="cron is not installed")
def test_cron_takes_the_crontab() -> None:
    assert subprocess.run(["crontab", "-n", OPS / "crontab"], capture_output=True).returncode == 0


@pytest.mark.parametrize("code", [0, 1, 10, 11, 12, 75])
def test_cron_is_given_something_to_mail_unless_promoted_or_nothing_new(home: Path, code: int) -> None:
    done = ends_with(home, code, crontab_line().split(" ", 5)[5], home)
    assert ('"asked": "retrain"' in done.stdout) == (code not in (0, 10))
    assert '"asked": "retrain"' in (home / "headstart-retrain.log").read_text()


@pytest.mark.parametrize("workflow", sorted(OPS.glob("github-*.yml")), ids=lambda path: path.name)
def test_github_finds_nothing_wrong_with_its_workflows(workflow: Path) -> None:
    check = [str(Path(sys.executable).parent / "check-jsonschema"), "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run([*check, workflow], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_platforms_workflow_runs_tests_that_exist() -> None:
    steps = yaml.safe_load((OPS / "github-platforms.yml").read_text())["jobs"]["wheel"]["steps"]
    (script,) = [step["run"] for step in steps if step.get("name") == "tests of the parts"]
    named = [word for word in script.split() if word.startswith("tests/")]
    assert named
    assert all((OPS.parent / name).is_file() for name in named)


@pytest.mark.parametrize(("code", "ends"), [(0, 0), (10, 0), (11, 0), (12, 12), (75, 75), (1, 1)])
def test_the_workflow_fails_where_somebody_has_to_look(home: Path, code: int, ends: int) -> None:
    steps = yaml.safe_load((OPS / "github-actions.yml").read_text())["jobs"]["retrain"]["steps"]
    (script,) = [step["run"] for step in steps if step.get("name") == "headstart retrain"]
    done = ends_with(home, code, script, home / "headstart", GITHUB_STEP_SUMMARY=str(home / "summary.md"))
    assert done.returncode == ends
    assert '"asked": "retrain --json"' in (home / "summary.md").read_text()


@pytest.fixture(scope="session")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the real Airflow, in an environment of its own."""
    uv = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
    folder = tmp_path_factory.mktemp("airflow")
    python = folder / "venv/bin/python"
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    try:
        for command in (
            ["venv", "-q", "--python", sys.executable, str(folder / "venv")],
            ["pip", "install", "-q", "--python", str(python), f"apache-airflow=={AIRFLOW}"],
        ):
            subprocess.run([uv, *command], env=kept, check=True, capture_output=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"Airflow cannot be installed here: {str(getattr(error, 'stderr', error))[-200:]}")
    return python


AIRFLOW_PROGRAM = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import AirflowException, AirflowSkipException
bag = DagBag(dag_folder=sys.argv[1])
assert not bag.import_errors, bag.import_errors
(dag,) = bag.dags.values()
(task,) = dag.tasks
ended = {}
for code in (0, 10, 11, 75, 12, 1):
    open(task.cwd + "/code", "w").write(str(code))
    try:
        task.execute({})
        ended[code] = "success"
    except AirflowSkipException:
        ended[code] = "skipped"
    except AirflowException:
        ended[code] = "failed"
print(json.dumps([dag.dag_id, dag.schedule, ended]))
"""


@pytest.mark.slow
def test_airflow_imports_the_dag_and_tells_the_exit_codes_apart(home: Path, airflow: Path) -> None:
    kept = {"HOME": str(home), "PATH": os.environ["PATH"], "AIRFLOW_HOME": str(home / "airflow")}
    command = [airflow, "-c", AIRFLOW_PROGRAM, OPS / "airflow_dag.py"]
    done = subprocess.run(command, env=kept, capture_output=True, text=True, cwd=home)
    assert done.returncode == 0, done.stdout + done.stderr
    name, schedule, ended = json.loads(done.stdout.splitlines()[-1])
    assert (name, schedule) == ("headstart_retrain", "0 3 1 * *")
    assert ended == {"0": "success", "10": "skipped", "11": "skipped", "75": "skipped", "12": "failed", "1": "failed"}
