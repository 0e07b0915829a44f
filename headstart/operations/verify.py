"""headstart verify: a tracked result is made again from what git and DVC's cache have of it, and compared byte by byte.

The revision is the commit whose dvc.lock holds the result. Its code is written into a temporary folder, beside those of
`dvc exp run --temp`: what was downloaded is found from there, and the user's own files are left alone. Every stage is run
on the inputs that it had, as far as the cache still has them, so that one difference is not told as many.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from headstart.base.artifacts import DATA, DataFolder
from headstart.base.artifacts.track import TrackedResult
from headstart.base.dvc_files import Output, in_cache, listing_in, listing_of, locked_outputs, md5_of, md5_of_listing
from headstart.base.errors import HeadstartError, some
from headstart.base.identity import recorded_code
from headstart.base.params import Params
from headstart.base.paths import EXPERIMENT_FOLDER, checkout
from headstart.base.progress import progress
from headstart.base.terminal import say
from headstart.operations.git_branch import ask_git

LOCK = "dvc.lock"
NAMED = 5  # files that a line names
# Stages that read what is not in the project: pictures, and weights that somebody has published.
FETCH, PREPARE, BACKBONE = "fetch", "prepare", "backbone"


@dataclass
class Verdict:
    """What was found.

    Attributes:
        result: its digest.
        revision: the commit, or "uncommitted files".
        compared: files that were made again.
        differences: a line for each output that differs or is damaged in the cache; none where all is identical.
        notes: what could not be made again, and why.
    """

    result: str
    revision: str
    compared: int = 0
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        about = f"result {self.result[:7]} of {self.revision}"
        if self.differences:
            return [f"{about} differs:", *(f"  {line}" for line in self.differences), *self.notes]
        return [f"{about}: identical, {self.compared} files", *self.notes]


def verify(run: str | None, params: Params) -> Verdict:
    """Make a result again, all of it but its log, and compare.

    Args:
        run: of MLflow, or the digest of a result; the first characters are enough. None: the result in data/.

    Raises:
        HeadstartError: the run is not known, or neither git nor the folder has its dvc.lock.
    """
    tracked = _tracked(run, params)
    revision, lock = _revision(tracked)
    verdict = Verdict(tracked.result, revision or "uncommitted files")
    outputs = [out for out in locked_outputs(lock) if out.stage != "track"]
    cache = _Cache(_cache_folder())
    verdict.differences += cache.check(outputs)
    with _temporary_checkout(revision, lock) as folder:
        if changed := _changed_params(lock, folder / "params.yaml"):
            verdict.differences.append(
                f"params.yaml is not that of the result: {', '.join(changed)}; commit it with {LOCK}"
            )
        else:
            _Derivation(folder, outputs, cache, verdict).run()
    return verdict


def _tracked(run: str | None, params: Params) -> TrackedResult:
    if run is None:
        return TrackedResult.read(DATA.track.details)
    from headstart.tracking.store import RESULT, experiment_id, opened

    name = params.experiment
    with opened() as client:
        runs = client.search_runs([experiment_id(client, name)], f"tags.`{RESULT}` LIKE '%'", max_results=50_000)
    found = {
        r.data.tags[RESULT]
        for r in runs
        if r.info.run_name == run or r.info.run_id.startswith(run) or r.data.tags[RESULT].startswith(run)
    }
    if len(found) != 1:
        what = "no run" if not found else f"{len(found)} results"
        raise HeadstartError(
            f"{what} of the experiment {name!r} in MLflow answers to {run!r}; give the run's id, its name or its result"
        )
    return TrackedResult(result=found.pop(), experiment=name)


def _revision(tracked: TrackedResult) -> tuple[str | None, str]:
    """The commit whose dvc.lock holds the result (None: it was not committed yet), and that dvc.lock."""
    with tempfile.TemporaryDirectory() as scratch:
        tracked.write(Path(scratch) / DATA.track.details.name)
        md5 = md5_of_listing(listing_of(Path(scratch)))
    for commit in (ask_git("log", "--all", f"-S{md5}", "--format=%H", "--", LOCK) or "").split():
        lock = ask_git("show", f"{commit}:./{LOCK}") or ""
        if md5 in lock:
            return commit, lock
    here = Path(LOCK).read_text(encoding="utf-8") if Path(LOCK).exists() else ""
    if md5 in here:
        return None, here
    raise HeadstartError(
        f"no commit has a {LOCK} with result {tracked.result[:7]}; commit {LOCK} after `dvc repro`, so that a result can "
        "be made again"
    )


def _changed_params(lock: str, file: Path) -> list[str]:
    """The keys of params.yaml that have other values than those that the stages ran with."""
    values, found = yaml.safe_load(file.read_text(encoding="utf-8")), set[str]()
    for stage, entry in yaml.safe_load(lock)["stages"].items():
        for key, value in entry.get("params", {}).get(file.name, {}).items() if stage != "track" else ():
            now = values
            for part in key.split("."):
                now = now.get(part) if isinstance(now, dict) else None
            if now != value:
                found.add(key)
    return sorted(found)


def _cache_folder() -> Path:
    asked = subprocess.run(
        [sys.executable, "-m", "dvc", "cache", "dir"], capture_output=True, text=True, check=False,
        env=os.environ | {"DVC_NO_ANALYTICS": "true"},
    )  # fmt: skip
    if asked.returncode:
        raise HeadstartError(f"DVC does not say where its cache is: {' '.join(asked.stderr.split())[:200]}")
    return Path(asked.stdout.strip())


class _Cache:
    """DVC's cache, and which of its objects are what their names say."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.whole = folder, dict[str, bool]()

    def check(self, outputs: list[Output]) -> list[str]:
        """Read every object of the outputs; a line for each that is damaged."""
        wanted = {out.md5: out.path for out in outputs}
        found = []
        for out in outputs:
            if out.md5.endswith(".dir") and self._is_whole(out.md5):
                wanted |= {md5: f"{out.path}/{name}" for name, md5 in self.listing(out).items()}
        with progress("cache", len(wanted), "files") as advance:
            for md5, name in wanted.items():
                if not self._is_whole(md5) and in_cache(self.folder, md5).exists():
                    mend = f"delete {in_cache(self.folder, md5)} and run `dvc pull` or `dvc commit --force`"
                    found.append(f"{name} is damaged in the cache; {mend}")
                advance()
        return found

    def _is_whole(self, md5: str) -> bool:
        if md5 not in self.whole:
            file = in_cache(self.folder, md5)
            self.whole[md5] = file.is_file() and md5_of(file) == md5.removesuffix(".dir")
        return self.whole[md5]

    def listing(self, out: Output) -> dict[str, str]:
        """The files of an output by their names in it, "" for one that is a file; none where the cache has not got them."""
        if not out.md5.endswith(".dir"):
            return {"": out.md5}
        return listing_in(in_cache(self.folder, out.md5).read_bytes()) if self._is_whole(out.md5) else {}

    def take(self, out: Output, project: Path) -> bool:
        """Put an output into ``project`` in place of what is there; False where the cache has not got all of it."""
        listing = self.listing(out)
        if not listing or not all(self._is_whole(md5) for md5 in listing.values()):
            return False
        target = project / out.path
        if target.is_dir():
            shutil.rmtree(target)
        for name, md5 in listing.items():
            file = target / name if name else target
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)
            shutil.copyfile(in_cache(self.folder, md5), file)
        return True


@contextmanager
def _temporary_checkout(revision: str | None, lock: str) -> Iterator[Path]:
    beside = Path(f"{checkout()}{EXPERIMENT_FOLDER}")
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="verify-", dir=beside, ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        if revision is not None:
            packed = subprocess.run(["git", "archive", revision], capture_output=True, check=False)
            if packed.returncode:
                raise HeadstartError(f"git has not got all of {revision}: {' '.join(packed.stderr.decode().split())[:200]}")
            subprocess.run(["tar", "-x", "-C", scratch], input=packed.stdout, check=True)
        else:
            for name in (ask_git("ls-files", "-z") or "").split("\0"):
                if name and Path(name).is_file():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(name, folder / name)
        (folder / LOCK).write_text(lock, encoding="utf-8")
        yield folder


class _Derivation:
    """The stages, run again one after the other."""

    def __init__(self, folder: Path, outputs: list[Output], cache: _Cache, verdict: Verdict) -> None:
        self.folder, self.cache, self.verdict = folder, cache, verdict
        self.stages: dict[str, Any] = yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
        self.outputs = {stage: [out for out in outputs if out.stage == stage] for stage in self.stages}
        self.left_out: set[str] = set()  # stages whose inputs are gone

    def run(self) -> None:
        wanted = [stage for stage in self.stages if self.outputs[stage]]
        self._take(BACKBONE)  # the first place to look for weights
        for number, stage in enumerate(wanted, start=1):
            if stage in self.left_out and self._take(stage):
                continue
            say(f"verify: {stage} ({number} of {len(wanted)})", file=sys.stderr, flush=True)
            if stage == FETCH:
                if not self._fetch():
                    return
                continue
            if not self._run(stage):
                self.verdict.differences.append(f"{stage} failed when it was run again; its message is above")
                return
            different = [line for out in self.outputs[stage] for line in self._compared(out)]
            self.verdict.differences += different
            if different and not self._take(stage):
                self.verdict.notes.append(f"the cache has not got all of {stage}, so what follows it ran on the new output")

    def _run(self, stage: str) -> bool:
        """Run a stage with the code of the temporary folder, its output on the error stream."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("DVC_")}
        ours = {
            "PYTHONPATH": str(self.folder),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder / 'mlflow.db'}",  # not the user's: nothing is tracked
        }
        command = self.stages[stage]["cmd"]
        ended = subprocess.run(command, shell=True, cwd=self.folder, env=inherited | ours, stdout=sys.stderr, check=False)
        return ended.returncode == 0

    def _fetch(self) -> bool:
        """Look at the pictures and the code as they are now; False where nothing can be made again. What follows runs on
        what the result's own fetch found."""
        ran, data = self._run(FETCH), DataFolder(self.folder, DATA)
        (out,) = self.outputs[FETCH]
        now, code = listing_of(data.fetch), {stage: recorded_code(data, stage) for stage in self.stages}
        if not self._take(FETCH):
            self.verdict.differences.append(f"{out.path} is not in the cache any more, so nothing can be made again")
            return False
        changed = {
            change
            for stage, found in code.items()
            if found and self.outputs[stage] and (recorded := recorded_code(data, stage))
            for change in found.changes_since(recorded)
        }
        if changed:
            made_by = "made by other code than the commit has, or other libraries than are here"
            self.verdict.differences.append(f"{made_by}: {some(sorted(changed), NAMED)}")
            return False
        then = listing_of(data.fetch)
        for file, stage, what in (
            (data.fetch.manifest, PREPARE, "the pictures"),
            (data.fetch.weights_digest, BACKBONE, "the file of weights"),
        ):
            if not ran or now.get(file.name) != then.get(file.name):
                self.left_out.add(stage)
                self.verdict.notes.append(f"{what} changed since: {stage} was not run again")
        return True

    def _take(self, stage: str) -> bool:
        """Put a stage's own outputs into place; False where the cache has not got all of them."""
        taken = [self.cache.take(out, self.folder) for out in self.outputs.get(stage, [])]
        return all(taken)

    def _compared(self, out: Output) -> list[str]:
        """The files of an output that differ, in one line; none where it is the same to the byte."""
        path = self.folder / out.path
        if not path.exists():
            return [f"{out.path} was not made"]
        now = {"": md5_of(path)} if path.is_file() else listing_of(path)
        self.verdict.compared += len(now)
        if (now[""] if path.is_file() else md5_of_listing(now)) == out.md5:
            return []
        then = self.cache.listing(out)
        names = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name)) if then else []
        if not then or path.is_file():
            return [f"{out.path} differs"]
        return [f"{out.path} differs in {some(names, NAMED)}"]
