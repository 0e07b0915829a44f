"""What shapes a stage's output: its script, the modules that it imports, the versions of libraries, and its inputs.

All of it is computed. ``fetch``, which always runs, writes what it finds into ``data/fetch/code/STAGE.json``; every stage
depends on its own file there, so an edit or an upgrade reruns the stages that it can change, and no others. Whatever else
is kept from run to run (half-finished trainings, stored activations, learning curves, trials, packed pictures) is keyed by
``code_of`` and ``inputs_of``.

Imports are read from the source and not from ``sys.modules``: those inside functions count too, those for type checkers do
not. A string that is the name of a module, or of a file in headstart such as a template, counts as an import of it. A
module's digest is taken from its parsed code without docstrings: comments, docstrings and layout change nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from headstart.base.artifacts import DATA, DataFolder
from headstart.base.dvc_files import md5_of
from headstart.base.errors import HeadstartError, some
from headstart.base.files import read_json, sha256_of, sha256_of_files, write_json
from headstart.base.kept import read_kept, write_kept
from headstart.base.paths import STATE, checkout, state_folder
from headstart.base.source_code import Source, source_of
from headstart.base.yaml_file import read_yaml, value_of

PACKAGE = Path(__file__).parents[1]
PIPELINES = (Path("dvc.yaml"), Path("studies") / "dvc.yaml")
# Libraries that shape no output: they show progress, lock files, count cores, carry files whose digest is checked, say who
# works, or read parameters, whose values DVC compares.
WITHOUT_EFFECT = {
    "aiohttp", "filelock", "fsspec", "huggingface_hub", "joblib", "psutil", "pydantic", "ray", "rich", "ruamel",
    "threadpoolctl", "typer", "yaml",
}  # fmt: skip
# The room whose modules tell MLflow what a stage does: they are part of its identity, their libraries are not.
OBSERVERS = "headstart.tracking."
OWN_NETWORKS = "models.backbones"  # of headstart; what builds the user's own network, whose libraries then count


@dataclass(frozen=True)
class Code:
    """The code that shapes an output.

    Attributes:
        modules: digests by the name of the script, of headstart's modules and of its other files.
        libraries: versions by the name of the distribution.
    """

    modules: dict[str, str]
    libraries: dict[str, str]

    def changes_since(self, other: Code) -> list[str]:
        """What differs in ``other``, an earlier one: ``headstart.training.features``, ``timm 1.0.1 → 1.0.2``."""
        modules = {
            name for name in self.modules.keys() | other.modules.keys() if self.modules.get(name) != other.modules.get(name)
        }
        versions = [
            f"{name} {other.libraries.get(name, 'not used')} → {self.libraries.get(name, 'not used')}"
            for name in sorted(self.libraries.keys() | other.libraries.keys())
            if self.libraries.get(name) != other.libraries.get(name)
        ]
        return [*sorted(modules), *versions]


def code(stage: str, data: DataFolder) -> Code:
    """The code of a stage of this project. The user's own network is read from ``data`` where the stage builds networks."""
    return _code([Path("stages") / f"{stage}.py"], data.fetch.network)


@cache
def code_of(*modules: str) -> str:
    """One digest over the code of headstart's ``modules`` and of all that they import, libraries included."""
    return digest_of(asdict(code_used_by(*modules)))


def code_used_by(*modules: str) -> Code:
    """The code of headstart's ``modules`` and of all that they import."""
    return _code([_modules()[name] for name in modules])


def modules_of(module: str) -> dict[str, Path]:
    """The files of ``module`` and of all that it imports of headstart, by their modules' names."""
    names = {path: name for name, path in _modules().items()}
    return dict(sorted((names[path], path) for path, _ in _closure([_modules()[module]]) if path in names))


def write_code(data: DataFolder) -> None:
    """Write the code of every stage of this project below ``data``, for the stages to depend on."""
    for script in sorted(Path("stages").glob("*.py")):
        write_json(data.fetch.code.of(script.stem), asdict(code(script.stem, data)))
    _files().keep()


def recorded_code(data: DataFolder, stage: str) -> Code | None:
    """The code of a stage as ``fetch`` found it last; None where that is not known."""
    try:
        return Code(**read_json(data.fetch.code.of(stage)))
    except (OSError, ValueError, TypeError):
        return None


def recorded_libraries(data: DataFolder, stages: Iterable[str]) -> dict[str, str]:
    """The versions of all libraries that shape the outputs of ``stages``."""
    recorded = (recorded_code(data, stage) for stage in stages)
    return dict(sorted(item for one in recorded if one for item in one.libraries.items()))


def changes(data: DataFolder, stage: str) -> list[str]:
    """What differs between the code that ``fetch`` recorded for a stage and the code and libraries that are here now."""
    recorded = recorded_code(data, stage)
    if recorded is None or not (Path("stages") / f"{stage}.py").exists():
        return []
    return code(stage, data).changes_since(recorded)


def check_code(data: DataFolder, stage: str) -> None:
    """See to it that a stage runs the code that it is known by.

    Raises:
        HeadstartError: its code was edited, or a library changed, since ``fetch`` looked.
    """
    if changed := changes(data, stage):
        raise HeadstartError(
            f"the code of {stage} has changed since fetch recorded it ({some(changed)}); run `dvc repro`, which records it"
        )


def made_by_other_code(data: DataFolder, stages: Iterable[str]) -> str | None:
    """A sentence for those who are shown an output: it was made by other code or libraries than are here; None where it
    was not."""
    changed = {stage: found for stage in stages if (found := changes(data, stage))}
    if not changed:
        return None
    all_changes = sorted({change for found in changed.values() for change in found})
    what = f"{', '.join(changed)} {'was' if len(changed) == 1 else 'were'} made"
    return f"{what} by other code or libraries than are here now: {some(all_changes)}"


def outdated(data: DataFolder, stages: Iterable[str]) -> str | None:
    """As ``made_by_other_code``, once the pipeline is at rest: a stage that last ran with other code than ``fetch`` has
    recorded since, by DVC's lock files, was made by other code too. One from other inputs or parameters than are here is of
    an older state, such as a study of labels that were corrected since."""
    wanted = list(stages)
    if sentence := made_by_other_code(data, wanted):
        return sentence
    stale = [
        stage
        for stage, digest in _locked_code().items()
        if stage in wanted and (file := data.fetch.code.of(stage)).exists() and md5_of(file) != digest
    ]
    if stale:
        return f"{', '.join(stale)} last ran with other code or libraries than are here now"
    older = _changed_inputs(wanted)
    changed = some(dict.fromkeys(what for found in older.values() for what in found))
    return f"{', '.join(older)} last ran before {changed} changed" if older else None


def _locked() -> dict[str, Any]:
    """What DVC's lock files say of each stage: what it last ran with, and what it wrote."""
    import yaml

    locks = [file.with_suffix(".lock") for file in PIPELINES]
    stages = [item for lock in locks if lock.exists() for item in yaml.safe_load(lock.read_text("utf-8"))["stages"].items()]
    return {name.split("@")[0]: entry for name, entry in stages}


def _locked_code() -> dict[str, str]:
    """DVC's digest of the code that each stage last ran with."""
    return {
        stage: dep["md5"]
        for stage, entry in _locked().items()
        for dep in entry.get("deps", [])
        if Path(dep["path"]).name == f"{stage}.json" and "md5" in dep
    }


def _changed_inputs(stages: Iterable[str]) -> dict[str, list[str]]:
    """The inputs and parameters that are others now than those with which a stage last ran, of stages that have such."""
    locked = _locked()
    written = {out["path"]: out.get("md5") for entry in locked.values() for out in entry.get("outs", [])}
    entries = {stage: locked[stage] for stage in stages if stage in locked}
    files = {file for entry in entries.values() for file in entry.get("params", {})}
    values = {file: read_yaml(Path(file)) if Path(file).exists() else {} for file in files}
    older = {}
    for stage, entry in entries.items():
        changed = []
        for dep in entry.get("deps", []):
            path = Path(dep["path"])
            if path != DATA.fetch.code.of(stage):
                now = written.get(dep["path"]) or (md5_of(path) if path.is_file() else None)
                changed += [dep["path"]] if now is not None and now != dep.get("md5") else []
        for file, params in entry.get("params", {}).items():
            changed += [f"{key} in {file}" for key, value in params.items() if value_of(values[file], key) != value]
        if changed:
            older[stage] = changed
    return older


def digest_of(value: Any) -> str:
    """A short name for ``value``: equal exactly where everything in it is equal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:20]


def inputs_of(stage: str) -> dict[str, str]:
    """A digest of everything but code that a stage depends on, by its path.

    Raises:
        HeadstartError: one of them is not there.
    """
    paths = [Path(name) for name in _stages()[stage].get("deps", [])]
    try:
        return {
            path.as_posix(): sha256_of_files(path) if path.is_dir() else sha256_of(path)
            for path in paths
            if path != DATA.fetch.code.of(stage)
        }
    except FileNotFoundError as error:
        raise HeadstartError(f"{error.filename} is not there; `dvc repro {stage}` makes what {stage} needs") from None


def params_of(*stages: str) -> list[str]:
    """The keys of params.yaml that the stages read, dotted."""
    known = _stages()
    return sorted({key for stage in stages for key in known[stage].get("params", [])})


def main_stages() -> list[str]:
    """The stages of the pipeline itself, in their order."""
    return list(_pipeline(PIPELINES[0]))


def _stages() -> dict[str, Any]:
    return {name: stage for file in PIPELINES if file.exists() for name, stage in _pipeline(file).items()}


def _pipeline(file: Path) -> dict[str, Any]:
    import yaml

    stages: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))["stages"]
    return stages


# --- reading code -------------------------------------------------------------------------------------------------


def _code(roots: list[Path], network_file: Path | None = None) -> Code:
    files, names = _files(), {path: name for name, path in _modules().items()}
    closure = dict(_closure(roots))
    modules = {names.get(path) or _file_name(path): source.digest for path, source in closure.items()}
    imported = {
        name.split(".")[0]
        for path, source in closure.items()
        if not names.get(path, "").startswith(OBSERVERS)
        for name in source.imports
    }
    if network_file is not None and f"headstart.{OWN_NETWORKS}" in modules and network_file.exists():
        imported |= {name.split(".")[0] for name in files.read(network_file).imports}
    libraries = dict(filter(None, map(files.version, imported - sys.stdlib_module_names - {"headstart"} - WITHOUT_EFFECT)))
    return Code(dict(sorted(modules.items())), dict(sorted(libraries.items())))


def _closure(roots: list[Path]) -> Iterator[tuple[Path, Source]]:
    """The roots and every file of headstart that they need, directly or not."""
    modules, files = _modules(), _other_files()
    waiting, seen = list(roots), set(roots)
    while waiting:
        path = waiting.pop()
        source = _files().read(path)
        yield path, source
        needed = {modules[name] for name in _with_packages(source.imports) if name in modules}
        needed |= {known[name] for name in source.strings for known in (modules, files) if name in known}
        waiting += needed - seen
        seen |= needed


def _with_packages(imports: Iterable[str]) -> set[str]:
    """Importing a.b.c runs a and a.b as well."""
    parts = (name.split(".") for name in imports)
    return {".".join(part[: n + 1]) for part in parts if part[0] == "headstart" for n in range(len(part))}


@cache
def _modules() -> dict[str, Path]:
    """headstart's modules by name."""
    paths = (path.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("*.py"))
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): PACKAGE.parent / path for path in paths}


@cache
def _other_files() -> dict[str, Path]:
    """headstart's templates and tables by the name that code calls them by."""
    return {p.name: p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}


def _file_name(path: Path) -> str:
    return path.relative_to(PACKAGE.parent).as_posix() if path.is_relative_to(PACKAGE) else path.as_posix()


class _Files:
    """Reads files, and remembers from run to run what it has parsed, by their content: to parse all of headstart takes most
    of a second."""

    def __init__(self) -> None:
        self.file = checkout() / STATE / "identity" / "sources.json"  # not made here: a node of a cluster reads, too
        self.known: dict[str, Any] = read_kept(self.file) or {}
        self.used: dict[str, Any] = {}
        self.versions: dict[str, tuple[str, str] | None] = {}

    def read(self, path: Path) -> Source:
        content = path.read_bytes()
        key = hashlib.sha256(path.suffix.encode() + content).hexdigest()
        if key not in self.used:
            self.used[key] = self.known.get(key) or astuple(_parsed(path, content))
        digest, imports, strings = self.used[key]
        return Source(digest, tuple(imports), tuple(strings))

    def version(self, module: str) -> tuple[str, str] | None:
        """The distribution that ``module`` comes from, and its version; None where it is not installed."""
        if module not in self.versions:
            self.versions[module] = self._version(module)
        return self.versions[module]

    def _version(self, module: str) -> tuple[str, str] | None:
        for name in (self.known.get(f"import {module}"), module):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                if name:
                    return self._found(module, name)
        return next((self._found(module, name) for name in _distributions().get(module, [])), None)

    def _found(self, module: str, name: str) -> tuple[str, str]:
        """Without the local part of the version: builds of torch for other processors are the same library."""
        version = importlib.metadata.version(name).partition("+")[0]
        self.used[f"import {module}"] = name
        return name, version

    def keep(self) -> None:
        """Remember what was used, and forget the rest: called by the one that reads the code of all stages."""
        if self.used.keys() != self.known.keys():
            write_kept(state_folder("identity") / self.file.name, self.used)


@cache
def _files() -> _Files:
    return _Files()


_distributions = cache(importlib.metadata.packages_distributions)  # it reads the files of all: a second


def _parsed(path: Path, content: bytes) -> Source:
    if path.suffix == ".py":
        return source_of(path, content)
    text = content.decode("utf-8", "replace")
    names = tuple(sorted(name for name in _other_files() if name != path.name and name in text))  # {% include %}
    return Source(hashlib.sha256(content).hexdigest()[:16], (), names)
