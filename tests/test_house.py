"""The house: what the design says of files, documents and the direction of imports."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

import headstart
from headstart.base.source_code import source_of

PROJECT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [*(PROJECT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")), *(PROJECT / "docs").glob("*.md")]
)
MODULES = sorted((PROJECT / "headstart").rglob("*.py"))
STAGES = sorted((PROJECT / "stages").glob("*.py"))
SCRIPTS = [*MODULES, *STAGES, *(PROJECT / "bench").glob("*.py"), *(PROJECT / "tests").rglob("*.py")]

# The rooms of headstart, the lowest first: a module imports from its own room and from those before it.
ROOMS = (
    "base",
    "data",
    "models",
    "engines",
    "training",
    "evaluation",
    "inference",
    "tracking",
    "studies",
    "monitoring",
    "operations",
    "cli",
)


@cache
def imports(path: Path) -> frozenset[str]:
    """Full names of everything ``path`` imports anywhere; for ``from a import b`` both ``a`` and ``a.b``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def of_the_pipelines() -> set[str]:
    """The stages of the main path, and of the branches off it."""
    files = [PROJECT / "dvc.yaml", *PROJECT.glob("*/dvc.yaml")]
    return {name for file in files for name in yaml.safe_load(file.read_text(encoding="utf-8"))["stages"]}


def module_name(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path) for path in MODULES}


def of_headstart(path: Path) -> set[str]:
    """The modules of headstart that ``path`` imports anywhere, itself not among them."""
    return {name for name in imports(path) & NAMES if name != module_name(path) and name.count(".") > 1}


def room(name: str) -> str:
    return name.split(".")[1]


def tracked() -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    return [PROJECT / name for name in names.split("\0") if name and (PROJECT / name).is_file()]


# --- make and the environment -----------------------------------------------------------------------------------------


def test_make_alone_lists_every_verb() -> None:
    text = (PROJECT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY:(.*)$", text, re.MULTILINE)
    assert phony
    printed = subprocess.run(
        ["make", "--no-print-directory"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout
    listed = dict(line.split(maxsplit=1) for line in printed.splitlines())
    assert set(listed) == set(phony[1].split())
    assert all(listed.values())


@pytest.mark.parametrize(
    ("lock", "least"), [("requirements.lock", 50), ("requirements-dev.lock", 50), ("requirements-ray.lock", 1)]
)
def test_every_locked_requirement_has_an_exact_version_and_hashes(lock: str, least: int) -> None:
    text = (PROJECT / lock).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) > least
    for line in lines:
        assert re.match(r"[A-Za-z0-9._\[\]-]+==\S+ ", line), line[:80]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", line), line[:80]


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock", "requirements-ray.lock"])
def test_the_lock_names_no_index(lock: str) -> None:
    text = (PROJECT / lock).read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*(-i|-f|--index-url|--extra-index-url|--find-links|--trusted-host)\b", text, re.MULTILINE)


def test_the_lock_holds_all_that_pyproject_asks_for() -> None:
    import tomllib

    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for lock, wanted in (
        ("requirements.lock", project["dependencies"]),
        ("requirements-dev.lock", extras["dev"]),
        ("requirements-ray.lock", extras["ray"]),  # what it adds
    ):
        names = {re.split(r"[\[=<>~! ]", name)[0].lower() for name in wanted}
        assert names <= set(re.findall(r"^([a-z0-9._-]+)", (PROJECT / lock).read_text(encoding="utf-8"), re.MULTILINE))


# --- documents --------------------------------------------------------------------------------------------------------


def keys(section: dict[str, object], prefix: str = "") -> Iterator[str]:
    for key, value in section.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{key}.")


def test_every_top_level_key_is_explained() -> None:
    """In a comment of params.yaml, on its line or inside its section, and by its name in the README."""
    text = (PROJECT / "params.yaml").read_text(encoding="utf-8")
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    for key in yaml.safe_load(text):
        section = re.search(rf"^{key}:.*\n(?:[ \n].*\n?)*", text, re.MULTILINE)
        assert section, key
        commented = re.search(r"\s# \S", section[0])
        named = re.search(rf"`{key}[`.]", readme)
        assert commented or key == "seed", f"{key} has no comment in params.yaml"
        assert named, f"{key} is not in the README"


def test_the_readme_names_no_knob_that_does_not_exist() -> None:
    params = yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))
    known = set(keys(params))
    for document in DOCUMENTS:
        for code in re.findall(r"`([^`\n]+)`", document.read_text(encoding="utf-8")):
            named = re.match(r"([a-z_]+\.[A-Za-z_]+)(?::|=|$)", code)
            if named and named[1].split(".")[0] in params:
                assert named[1] in known, f"{document.name}: {code}"
        for key in re.findall(r"-S '?([A-Za-z_.]+)=", document.read_text(encoding="utf-8")):
            assert key in known, f"{document.name}: -S {key}"


def anchors(document: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), f"{document.name}: {target}"
        assert path in tracked() or path == document or path.is_dir(), f"{document.name}: {target} is not in git"
        if anchor:
            assert anchor in anchors(path), f"{document.name}: {target}"


def test_commands_that_documents_show_exist() -> None:
    """Every `make VERB`, `headstart VERB` and stage named in a document."""
    verbs = set(re.findall(r"^([a-z]+):.*##", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    doors = [ast.parse(file.read_text(encoding="utf-8")) for file in (PROJECT / "headstart" / "cli").glob("*.py")]
    functions = {f.name for door in doors for f in door.body if isinstance(f, ast.FunctionDef) and f.decorator_list}
    commands = {name.replace("_", "-") for name in functions}
    stages = of_the_pipelines()
    tests = " ".join(re.findall(r"def (test_\w+)", (PROJECT / "tests/stages/test_pipeline.py").read_text(encoding="utf-8")))
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        code = "\n".join([*re.findall(r"`([^`\n]+)`", text), *re.findall(r"^```[a-z]*\n(.*?)^```", text, re.M | re.S)])
        assert set(re.findall(r"\bmake ([a-z]+)\b", code)) <= verbs, document.name
        assert set(re.findall(r"^(?:\$ )?headstart ([a-z]+(?:-[a-z]+)*)\b", code, re.MULTILINE)) <= commands, document.name
        assert set(re.findall(r"dvc repro (?:studies/dvc\.yaml:)?([a-z]+)\b", code)) <= stages, document.name
        for wanted in re.findall(r"pytest tests/stages -k '?([a-z_ ]+)", code):
            for word in wanted.split(" or "):
                assert word.strip() in tests, f"{document.name}: no test is called {word}"


def test_every_room_has_its_page_in_the_api_reference() -> None:
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (PROJECT / "docs" / "api").glob("*.md")}
    public = pages.pop("index")
    assert "\n::: headstart\n" in public
    assert set(re.findall(r"\w+", re.search(r"members: \[(.*)\]", public)[1])) == set(headstart.__all__)  # type: ignore[index]
    assert set(pages) == set(ROOMS)
    for name, text in pages.items():
        assert f"\n::: headstart.{name}\n" in text


# --- imports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_the_library_knows_neither_dvc_nor_the_stages(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & {"dvc", "stages", "tests", "bench"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_imports_never_point_upwards(path: Path) -> None:
    if path == PROJECT / "headstart" / "__init__.py":  # the door: it names what it opens to, for type checkers alone
        assert not [name for name in source_of(path, path.read_bytes()).imports if name.startswith("headstart")]
        return
    mine = ROOMS.index(room(module_name(path)))
    above = {name for name in of_headstart(path) if ROOMS.index(room(name)) > mine}
    assert not above, f"{path.name} imports upwards: {', '.join(sorted(above))}"


def test_no_import_goes_round_in_a_circle() -> None:
    left = {module_name(path): of_headstart(path) for path in MODULES}
    while free := [name for name, wanted in left.items() if not wanted & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"a circle among {', '.join(sorted(left))}"


def test_no_room_without_an_owner() -> None:
    assert not [p for p in SCRIPTS if re.search(r"(utils?|helpers?|common|misc)", p.stem)]


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.name)
def test_a_stage_can_be_read_aloud_in_a_minute(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 45
    assert not {name.split(".")[0] for name in imports(path)} & {"dvc", "stages", "torch", "mlflow"}
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_every_stage_has_its_script_and_every_script_its_stage() -> None:
    assert {path.stem for path in STAGES} == of_the_pipelines()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_only_the_terminal_prints(path: Path) -> None:
    """What is printed is masked and escaped there."""
    if module_name(path) != "headstart.base.terminal":
        calls = [node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        assert "print" not in {call.id for call in calls if isinstance(call, ast.Name)}


# --- what is in git ---------------------------------------------------------------------------------------------------


def test_nothing_large_and_no_weights_are_committed() -> None:
    for path in tracked():
        assert path.stat().st_size < 1 << 20, path
        assert path.suffix not in (".pth", ".pt", ".safetensors", ".onnx", ".bin", ".db", ".parquet"), path
        assert not path.is_symlink() or path.resolve().is_relative_to(PROJECT), path


def test_no_committed_file_knows_one_machine() -> None:
    strange = re.compile(r"(?<![\w.}])/(home|root|work|Users)/\w+")
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found = strange.search(text)
        assert not found, f"{path.relative_to(PROJECT)}: {found[0] if found else ''}"


def test_nothing_is_unpickled() -> None:
    """Python's pickles are programs. torch's restricted reader, weights_only, is none of them."""
    readers = {"pickle", "_pickle", "dill", "cloudpickle", "joblib.load", "shelve", "marshal", "pandas.read_pickle"}
    calls = {"torch.load", "np.load", "pd.read_pickle", "joblib.load"}
    for path in MODULES:
        assert not readers & imports(path), path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in calls:
                assert "weights_only=True" in {ast.unparse(keyword) for keyword in node.keywords}, path
