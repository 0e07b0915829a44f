"""What headstart is built on is known, and nothing secret is in it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops import sbom

PROJECT = Path(__file__).parents[1]
NAMES = sorted({pin.name for pin in sbom.locked()})


def test_every_dependency_has_a_licence_that_is_allowed_or_excepted_with_a_reason() -> None:
    assert [told for name in NAMES if (told := sbom.complaint(name, sbom.licence(name)))] == []


def test_a_licence_that_is_not_allowed_is_refused_and_named() -> None:
    for said in ("AGPL-3.0-only", "MIT AND GPL-3.0-only", "Apache-2.0 OR (MIT AND SSPL-1.0)", ""):
        told = sbom.complaint("new", said)
        assert told is not None
        assert told.startswith(f"new: {said or 'no licence is known'}; ")
    assert sbom.complaint("new", "MPL-2.0 AND (Apache-2.0 WITH LLVM-exception OR MIT)") is None
    assert sbom.complaint("pygit2", "GPL-3.0-only") is not None  # an exception is for the licence it was made for


def test_no_exception_outlives_its_dependency() -> None:
    assert {*sbom.EXCEPTIONS, *sbom.STATED} <= set(NAMES)


def test_the_bill_of_materials_lists_every_locked_version_and_what_needs_what(tmp_path: Path) -> None:
    for name in ("one", "two"):
        subprocess.run([sys.executable, PROJECT / "ops/sbom.py", tmp_path / name], check=True, capture_output=True)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    bill = json.loads((tmp_path / "one").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    listed = {f"{part['name']}=={part['version']}" for part in bill["components"]}
    pinned = [line for lock in sbom.LOCKS for line in lock.read_text().splitlines()]
    assert listed == {line.split(" ")[0] for line in pinned if "==" in line and not line.startswith(" ")}
    assert all(part["licenses"] for part in bill["components"])
    needs = {entry["ref"]: entry["dependsOn"] for entry in bill["dependencies"]}
    refs = {part["bom-ref"] for part in bill["components"]}
    assert needs.keys() == refs | {"pkg:pypi/headstart@0.1.0"}
    assert {ref for wanted in needs.values() for ref in wanted} <= refs
    (torchvision,) = (ref for ref in refs if ref.startswith("pkg:pypi/torchvision@"))
    assert any(ref.startswith("pkg:pypi/torch@") for ref in needs[torchvision])


def settings() -> dict[str, Any]:
    hooks = yaml.safe_load((PROJECT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    (found,) = (hook for hook in hooks if hook["id"] == "detect-secrets")
    return found


def hook(*files: Path) -> subprocess.CompletedProcess[str]:
    """The pre-commit hook, in the environment that these tests run in."""
    options = shlex.split(settings()["entry"])[1:]
    command = [sys.executable, "-m", "detect_secrets.pre_commit_hook", *options, *map(str, files)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)


SECRETS = {
    "a key of AWS": "key = 'AKIA" + "IOSFODNN7QXZMPLE'",
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "an address": "MLFLOW_TRACKING_URI=https://me:" + "correct-horse@mlflow.internal",
    "a token of GitHub": "token: ghp_" + "abcdefghij0123456789ABCDEFGHIJ012345",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_stopped_before_it_is_committed(kind: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(f"nothing here\n{SECRETS[kind]}\n")
    done = hook(tmp_path / "notes.txt")
    assert done.returncode == 1, done.stderr
    assert "notes.txt:2" in done.stdout


def test_no_secret_is_in_the_project() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    files = [PROJECT / name for name in tracked if not re.match(settings()["exclude"], name)]
    done = hook(*(file for file in files if file.is_file()))
    assert done.returncode == 0, done.stdout
