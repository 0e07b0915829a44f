"""A year of `headstart retrain` on ants and bees, with what a year brings: new pictures, mistakes, a new kind, kill -9.

    python bench/year.py --source FOLDER                  # of ants/ and bees/, or of train/ and val/ with those in them
    python bench/year.py --source FOLDER --signs FOLDER   # of pictures of another kind (default: signs beside its parent)
    python bench/year.py --unfreeze half --epochs 4       # fine-tuning as shipped; the head alone is the default

The pictures are cut in time, by a seed: a sixth is there in January, the rest arrives in eight months. June brings a third
of all, and everything is put into one class by mistake; July puts it right and brings nothing else. In April nothing comes,
and in September pictures of hands come as a third class. Three of the months that have work to do are killed (SIGKILL to
the round and all that it started) at a moment that the seed picks, and started again, as cron would.

Prints for each month what came, what was decided and why. At the end it holds, or the script fails: January was promoted
and April skipped; June was not promoted; the new kind was, and was seen to be one; every kill was carried on; there is one
complete MLflow run and one registered version per result; the champion is the last that was promoted; the checkout is
clean, with one commit for each month with news; the DVC remote has all that it should have.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _project import clone

MONTHS = [
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
]
NOTHING, MISTAKE, PUT_RIGHT, NEW_KIND = 3, 5, 6, 8
CODES = {0: "promoted", 10: "skipped", 11: "kept", 12: "refused"}


class Arrivals:
    """The source: a folder of classes, and what comes into it month by month."""

    def __init__(self, folder: Path, source: Path, signs: Path, chance: random.Random) -> None:
        self.folder, self.signs, self.chance = folder, signs, chance
        self.coming = sorted(p for label in ("ants", "bees") for p in source.glob(f"**/{label}/*.jpg"))
        if not self.coming:
            sys.exit(f"{source} holds no ants/*.jpg and bees/*.jpg")
        chance.shuffle(self.coming)
        n = len(self.coming)
        self.counts = [n // 6, n // 20, n // 20, 0, n // 20, n // 3, 0, n // 12, 0, n // 12, n // 12, n]
        self.mistaken: list[Path] = []

    def month(self, number: int) -> str:
        """What has come, in words."""
        if number == NOTHING:
            return "nothing"
        if number == NEW_KIND:
            new = sorted(self.signs.glob("**/*.[jJ][pP]*[gG]"))
            for path in self.chance.sample(new, min(40, len(new))):
                self._put(path, "hands")
            return "40 of a new kind"
        if number == PUT_RIGHT:
            for path in self.mistaken:
                path.rename(self.folder / "bees" / path.name)
            return f"{len(self.mistaken)} put right"
        count = self.counts[number]
        new, self.coming = self.coming[:count], self.coming[count:]
        if number == MISTAKE:
            self.mistaken = [self._put(path, "ants") for path in new if path.parent.name == "bees"]
            for path in new:
                if path.parent.name == "ants":
                    self._put(path, "ants")
            return f"{len(new)}, of which {len(self.mistaken)} mislabelled"
        for path in new:
            self._put(path, path.parent.name)
        return str(len(new))

    def _put(self, path: Path, label: str) -> Path:
        target = self.folder / label / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(path, target))


class Project:
    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        clone(folder, **settings)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_", "HEADSTART_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = kept | {"PYTHONPATH": str(folder), "PATH": path, "DVC_NO_ANALYTICS": "true"}

    def run(self, *command: str) -> str:
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=True
        ).stdout

    def retrain(self, kill_after: float | None = None) -> dict[str, Any] | None:
        """The summary of a round; None of one that was killed."""
        command = [sys.executable, "-c", "from headstart.cli import main; main()", "retrain", "--json"]
        with (self.folder.parent / "log.txt").open("a") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=log, text=True,
                start_new_session=True,
            )  # fmt: skip
            try:
                said, _ = process.communicate(timeout=kill_after)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                return None
        if process.returncode not in CODES:
            sys.exit(f"retrain ended with {process.returncode}: {said}\nSee {log.name}")
        summary: dict[str, Any] = json.loads(said)
        assert CODES[process.returncode] == summary["outcome"], summary
        return summary


def lived(project: Project, arrivals: Arrivals, chance: random.Random) -> list[dict[str, Any]]:
    """The twelve summaries, with what came and when the round was killed."""
    killed = set(chance.sample([n for n in range(1, 12) if n != NOTHING], 3))
    seconds, year = 60.0, []
    for number, name in enumerate(MONTHS):
        came, moment, began = arrivals.month(number), None, time.monotonic()
        if number in killed:
            moment = round(chance.uniform(0.02, 0.98) * seconds, 1)
            if (summary := project.retrain(moment)) is None:
                began = time.monotonic()
            else:
                moment = None  # it was quicker than expected
        if number not in killed or moment is not None:
            summary = project.retrain()
            assert summary is not None
            seconds = time.monotonic() - began if summary["outcome"] != "skipped" else seconds
        year.append(summary | {"month": name, "came": came, "killed": moment})
        after = f" | killed after {moment} s, then carried on" if moment is not None else ""
        print(f"{name}: {came} | {summary['outcome']}: {summary['sentence']}{after}", flush=True)
        if summary.get("drift"):
            print(f"  drift: {summary['drift']['sentence']}", flush=True)
    return year


def check(project: Project, year: list[dict[str, Any]], remote: Path) -> None:
    import mlflow

    outcomes = [month["outcome"] for month in year]
    assert outcomes[0] == "promoted"
    assert outcomes[NOTHING] == "skipped"
    assert outcomes[MISTAKE] in ("kept", "refused"), "a month of mislabelled pictures was promoted"
    assert outcomes[NEW_KIND] == "promoted", "a new kind was not taken up"
    assert year[NEW_KIND]["drift"]["real"], "a new kind was not seen to be one"
    client = mlflow.MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    runs = client.search_runs([found.experiment_id for found in client.search_experiments()], max_results=1000)
    results = {month["result"] for month in year}
    assert {run.data.tags["headstart.result"] for run in runs} == results, "a run is lost, or of no result"
    assert len(runs) == len(results), "a result has two runs"
    assert all(run.data.tags["headstart.complete"] == "true" and run.info.status == "FINISHED" for run in runs)
    versions = client.search_model_versions("name = 'headstart'")
    assert sorted(version.run_id for version in versions) == sorted(run.info.run_id for run in runs)
    champion = int(client.get_model_version_by_alias("headstart", "champion").version)
    assert champion == [month["version"] for month in year if month["outcome"] == "promoted"][-1]
    assert int(client.get_model_version_by_alias("headstart", "challenger").version) == len(versions)
    assert project.run("git", "status", "--porcelain", "--untracked-files=no") == ""
    commits = int(project.run("git", "rev-list", "--count", "start..HEAD"))
    assert commits == len(MONTHS) - 1, "a commit is missing, or made twice"
    assert "are in sync" in project.run("dvc", "status", "--cloud", "--remote", "storage", "dvc.yaml")
    assert remote.is_dir()
    counts = ", ".join(f"{outcomes.count(name)} {name}" for name in CODES.values())
    killed = [month["month"] for month in year if month["killed"] is not None]
    print(f"\n{counts}; killed in {', '.join(killed)}; {len(runs)} runs, {len(versions)} versions, champion: {champion}")
    print("A champion, a clean checkout, a registry that agrees, and no run lost or double.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--signs", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--unfreeze", default="none", help="default: none")
    parser.add_argument("--epochs", type=int, default=2, help="default: 2")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--folder", type=Path, help="where it is left to be looked at (default: a temporary one)")
    asked = parser.parse_args()
    if asked.source is None:  # as `make bench` runs it
        sys.exit(print("nothing is measured: --source names no folder of ants and bees"))
    chance = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as scratch:
        place = asked.folder or Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        signs = asked.signs or asked.source.parent / "signs"
        arrivals = Arrivals(place / "pictures", asked.source, signs, chance)
        project = Project(
            place / "project",
            data={"source": str(place / "pictures")},
            threads=asked.threads,
            split={"val": 0.2, "test": 0.3},
            finetune={"unfreeze": asked.unfreeze, "epochs": asked.epochs},
            gate={"margin": 0.03, "max_p": 1.0},  # so few test pictures that hardly a month would pass the defaults
            retrain={"remote": "storage"},
        )
        remote = place / "remote"
        project.run("dvc", "remote", "add", "storage", str(remote))
        who = ("-c", "user.name=year", "-c", "user.email=year@localhost")
        project.run("git", *who, "commit", "-qam", "A project of one's own")
        project.run("git", "tag", "start")
        check(project, lived(project, arrivals, chance), remote)


if __name__ == "__main__":
    main()
