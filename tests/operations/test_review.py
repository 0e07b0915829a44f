"""`headstart review`: what is shown, what becomes of judgements, and that none is lost, in a real browser too."""

from __future__ import annotations

import csv
import io
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from headstart.base.artifacts import DATA
from headstart.base.artifacts.drift import Drift
from headstart.base.artifacts.labels import Counts, DuplicatePair, LabelIssues, Outlier, Suspect
from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.data import fetch, prepare
from headstart.data.judgements import JudgedSince, Judgement, Judgements
from headstart.data.sources import source_of
from headstart.operations import review
from headstart.operations.review_server import Desk, application
from tests.pages_in_browser import look_through
from tests.stages.test_ui import browser_page

if TYPE_CHECKING:
    from playwright.sync_api import Page

# Every test has a copy of the prepared project as its current folder.
pytestmark = pytest.mark.usefixtures("project")

PARAMS = """# the user's own file
data:
  source: set      # a comment that stays
  exclude: null    # pictures to leave out
  relabel: null
split: {val: 0.2, test: 0.2, near_duplicate_bits: null}
tracking: {model: false}
"""
CLASSES = ("ants", "bees", "wasps")
PATIENCE_S = 60


def colour(number: int) -> tuple[int, int, int]:
    """Another for each number."""
    return number % 7 * 36, number // 7 % 7 * 36, number // 49 * 36


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose pictures are fetched and prepared: 60 of each of three classes, and one file under two labels."""
    folder = tmp_path_factory.mktemp("prepared")
    for number in range(180):
        file = folder / "set" / CLASSES[number % 3] / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), colour(number)).save(file)
    for name in ("ants", "bees"):
        Image.new("RGB", (16, 16), "white").save(folder / "set" / name / "same.png")
    (folder / "params.yaml").write_text(PARAMS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        params = Params.load()
        (folder / "data").mkdir()
        write_manifest(params)
        prepare.run(params, DATA)
    return folder


def write_manifest(params: Params) -> None:
    DATA.fetch.mkdir(exist_ok=True)
    fetch.fetch(params.data, DATA.fetch.manifest)


@pytest.fixture
def project(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the current folder."""
    subprocess.run(["cp", "-r", f"{prepared}/.", str(tmp_path)], check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def manifest() -> dict[str, str]:
    """The label of each training and validation picture."""
    table = review.read_manifest(DATA.prepare).query("split != 'test'")
    return dict(zip(table["path"], table["label"], strict=True))


def other(label: str) -> str:
    return CLASSES[(CLASSES.index(label) + 1) % 3]


def plant(suspects: list[str], outliers: list[str] = [], duplicates: list[tuple[str, str]] = []) -> None:  # noqa: B006
    """labels.json, with those issues."""
    labels = manifest()
    issues = LabelIssues(
        counts=Counts(
            pictures=len(labels), judged=len(labels), suspects=len(suspects), label_issues=0, outliers=len(outliers),
            duplicates=len(duplicates), duplicates_under_two_labels=0,
        ),
        left_out=[],
        suspects=[
            Suspect(
                path=path, label=labels[path], suggested=other(labels[path]), quality=0.1, probability=0.02,
                suggested_probability=0.93,
            )
            for path in suspects
        ],
        outliers=[Outlier(path=path, label=labels[path], distance=4.2) for path in outliers],
        duplicates=[
            DuplicatePair(paths=[*pair], labels=[labels[path] for path in pair], splits=["train", "val"], distance=0.1)
            for pair in duplicates
        ],
    )  # fmt: skip
    issues.write(DATA.labels.details)


def rows(name: str) -> list[dict[str, str]]:
    with Path(name).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def paths(name: str) -> list[str]:
    return [row["path"] for row in rows(name)]


# --- the tables -------------------------------------------------------------------------------------------------------


def test_a_judgement_is_written_and_params_yaml_names_the_tables_from_then_on() -> None:
    judgements = Judgements(several=False)
    _, told, _ = judgements.judge([Judgement("ants/000.png", "bees", "ants")])
    assert told == ["data.relabel: relabel.csv"]
    _, told, _ = judgements.judge([Judgement("bees/001.png", None, "bees"), Judgement("wasps/002.png", "wasps", "wasps")])
    assert told == ["data.exclude: exclude.csv"]
    assert rows("relabel.csv") == [{"path": "ants/000.png", "was": "ants", "label": "bees"}]
    assert rows("exclude.csv") == [{"path": "bees/001.png"}]
    assert rows("kept.csv") == [{"path": "wasps/002.png", "label": "wasps", "was": "wasps", "twin": ""}]
    text = Path("params.yaml").read_text()
    assert text.replace("exclude.csv", "null").replace("relabel.csv", "null").split() == PARAMS.split()
    write_manifest(Params.load())  # which the pipeline takes
    assert {p.path: p.label for p in fetch.read_manifest(DATA.fetch.manifest)}["ants/000.png"] == "bees"


def test_a_later_judgement_wins_and_what_it_was_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    judgements = Judgements(several=False)
    for label in ("bees", None, "wasps"):
        judgements.judge([Judgement("ants/000.png", label, "ants")])
    assert rows("relabel.csv") == [{"path": "ants/000.png", "was": "ants", "label": "wasps"}]
    assert rows("exclude.csv") == []
    judgements.judge([Judgement("ants/000.png", "ants", "ants")])
    assert rows("relabel.csv") == []
    assert paths("kept.csv") == ["ants/000.png"]
    # After a run the label is the corrected one: keeping it leaves the row, going back to the source's removes it.
    judgements.judge([Judgement("ants/003.png", "bees", "ants")])
    judgements.judge([Judgement("ants/003.png", "bees", "bees")])
    assert paths("relabel.csv") == ["ants/003.png"]
    judgements.judge([Judgement("ants/003.png", "ants", "bees")])
    assert rows("relabel.csv") == []
    write_manifest(Params.load())
    assert capsys.readouterr().err == ""  # no row without effect, of which fetch would warn


def test_a_table_of_the_users_keeps_its_other_columns_and_rows() -> None:
    Path("mine.csv").write_text('path,label,note\n./ants/000.png,bees,"looks, odd"\nants/006.png,wasps,\n')
    Path("params.yaml").write_text(PARAMS.replace("relabel: null", "relabel: mine.csv"))
    judgements = Judgements(several=False)
    (step,), told, _ = judgements.judge([Judgement("ants/000.png", "wasps", "ants")])
    judgements.judge([Judgement("bees/001.png", "ants", "bees")])
    assert told == []
    assert rows("mine.csv") == [
        {"path": "./ants/000.png", "label": "wasps", "note": "looks, odd"},
        {"path": "ants/006.png", "label": "wasps", "note": ""},
        {"path": "bees/001.png", "label": "ants", "note": ""},
    ]
    judgements.undo([step])
    assert rows("mine.csv")[0]["label"] == "bees"


def test_a_file_that_happens_to_have_the_default_name_is_left_alone() -> None:
    Path("relabel.csv").write_text("path,label\nants/000.png,bees\n")  # from a time before; it is not in use
    _, told, _ = Judgements(several=False).judge([Judgement("bees/001.png", "ants", "bees")])
    assert told == ["data.relabel: relabel-2.csv"]
    assert paths("relabel-2.csv") == ["bees/001.png"]
    assert paths("relabel.csv") == ["ants/000.png"]


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("mine.parquet", "", "data.relabel 'mine.parquet' is no .csv, which judgements are written to; save it as one"),
        ("mine.csv", "file,label\n", "mine.csv has no column 'path'"),
        ("mine.csv", 'path,label\n"ants', "mine.csv, line 2"),
    ],
)
def test_a_table_that_cannot_be_written_is_said(name: str, text: str, complaint: str) -> None:
    Path(name).write_text(text)
    Path("params.yaml").write_text(PARAMS.replace("relabel: null", f"relabel: {name}"))
    with pytest.raises(HeadstartError, match=re.escape(complaint)):
        Judgements(several=False).judge([Judgement("ants/000.png", "bees", "ants")])
    assert Path(name).read_text() == text


def test_undo_gives_back_what_was_and_not_what_somebody_else_has_judged_since() -> None:
    judgements = Judgements(several=False)
    judgements.judge([Judgement("ants/000.png", "bees", "ants")])
    steps, *_ = judgements.judge([Judgement("ants/000.png", None, "ants")])
    judgements.undo(steps)
    assert judgements.tables().of("ants/000.png").label == "bees"
    assert rows("exclude.csv") == []
    judgements.judge([Judgement("ants/000.png", "wasps", "ants")])
    with pytest.raises(JudgedSince):
        judgements.undo(steps)
    assert judgements.tables().of("ants/000.png").label == "wasps"


def test_labels_in_a_table_are_understood_as_the_pipeline_understands_them() -> None:
    Path("mine.csv").write_text("path,labels,twin\n0.png,dog|cat,1.png\n")
    Path("params.yaml").write_text("data: {source: set, label_separator: '|', relabel: mine.csv}\n")
    assert Judgements(several=True).tables().of("0.png").label == "cat;dog"


def test_labels_of_a_multi_label_set_may_be_none() -> None:
    judgements = Judgements(several=True)
    judgements.judge([Judgement("0.png", "", "cat;dog"), Judgement("1.png", "cat;dog", ""), Judgement("2.png", "", "")])
    assert rows("relabel.csv") == [
        {"path": "0.png", "was": "cat;dog", "labels": ""},
        {"path": "1.png", "was": "(none)", "labels": "cat;dog"},
    ]
    assert judgements.tables().of("2.png").settles("")
    judgements.judge([Judgement("1.png", "", "")])
    assert paths("relabel.csv") == ["0.png"]


KILLED = """
import sys
from headstart.data.judgements import Judgement, Judgements
judgements = Judgements(several=False)
for number in range(1000):
    label = (None, "bees", "ants")[number % 3]
    judgements.judge([Judgement(f"ants/{number}.png", label, "ants")])
    print(number, flush=True)
"""


def test_of_several_processes_one_is_killed_and_no_judgement_is_lost() -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    others = [threading.Thread(target=judge_some, args=(name,)) for name in ("a", "b")]
    for thread in others:
        thread.start()
    process.stdout.readline()
    process.kill()
    printed = [0, 1, *map(int, process.stdout.read().split())]
    process.wait()
    for thread in others:
        thread.join()
    found = {*paths("exclude.csv"), *paths("relabel.csv"), *paths("kept.csv")}
    assert {f"ants/{number}.png" for number in printed} <= found
    assert {f"{name}/{number}" for name in ("a", "b") for number in range(20)} <= found


def judge_some(name: str) -> None:
    judgements = Judgements(several=False)
    for number in range(20):
        judgements.judge([Judgement(f"{name}/{number}", (None, "bees", "ants")[number % 3], "ants")])


# --- what is shown ----------------------------------------------------------------------------------------------------


@contextmanager
def asked() -> Iterator[TestClient]:
    with TestClient(application(Desk(DATA), "http://127.0.0.1", False), base_url="http://127.0.0.1") as client:
        yield client


def test_each_kind_is_a_list_with_what_is_known_of_the_pictures(project: Path) -> None:
    a, b, c, *_ = manifest()
    plant([a], [b], [(b, c)])
    with asked() as client:
        page = client.get("/queue").json()
        assert [queue["key"] for queue in page["queues"]] == ["suspects", "duplicates", "outliers"]
        conflict, suspect, pair, outlier = page["items"]
        assert [shown["path"] for shown in conflict["pictures"]] == ["ants/same.png", "bees/same.png"]
        assert "same file under different labels" in conflict["why"]
        label = manifest()[a]
        assert suspect["model"] == [
            {"label": other(label), "probability": 0.93}, {"label": label, "probability": 0.02},
        ]  # fmt: skip
        assert suspect["suggested"] == [other(label)]
        assert [shown["path"] for shown in pair["pictures"]] == [b, c]
        assert "4.2 times as far" in outlier["why"]
        assert page["open"] == [0, 1, 2, 3]
        assert page["notes"] == []
        for item in page["items"]:  # the pictures themselves, packed or read from the source
            for shown in item["pictures"]:
                reply = client.get(f"/{shown['address']}")
                assert reply.headers["content-type"] == "image/png"
                (project / "shown.png").write_bytes(reply.content)
                assert Image.open("shown.png").getpixel((3, 3)) == Image.open(f"set/{shown['path']}").getpixel((3, 3))


def test_a_picture_that_is_not_packed_is_read_where_it_is(project: Path) -> None:
    Path("params.yaml").write_text(PARAMS.replace("source: set", f"source: file://{project}/set"))
    with asked() as client:
        (conflict,) = client.get("/queue").json()["items"]
        assert conflict["pictures"][0]["path"] == "ants/same.png"
        reply = client.get(conflict["pictures"][0]["address"])
        assert Image.open(io.BytesIO(reply.content)).getpixel((3, 3)) == (255, 255, 255)
        (project / "set/bees/same.png").write_bytes(b"no picture any more")
        reply = client.get(conflict["pictures"][1]["address"])
        assert reply.status_code == 422
        assert reply.json()["detail"].startswith("bees/same.png: ")


def test_what_is_judged_is_not_shown_again_until_its_label_is_another() -> None:
    a, b, c, *_ = manifest()
    plant([a, b, c])
    with asked() as client:
        digest = client.get("/queue").json()["digest"]
        for item, verdict in ((1, "keep"), (2, "leave out")):
            client.post("/judge", json={"digest": digest, "item": item, "verdict": verdict}).raise_for_status()
    with asked() as client:
        assert client.get("/queue").json()["open"] == [0, 3]
    Path("kept.csv").write_text(Path("kept.csv").read_text().replace(manifest()[a], other(manifest()[a])))
    with asked() as client:
        assert client.get("/queue").json()["open"] == [0, 1, 3]


def test_of_two_that_look_the_same_one_is_left_out_or_both_are_kept() -> None:
    a, b, c, d, *_ = manifest()
    plant([], [], [(a, b), (c, d)])
    with asked() as client:
        digest = client.get("/queue").json()["digest"]

        def judge(item: int, verdict: str, picture: int = 0, labels: tuple[str, ...] = ()) -> Any:
            body = {"digest": digest, "item": item, "verdict": verdict, "picture": picture, "labels": labels}
            return client.post("/judge", json=body).raise_for_status().json()

        assert judge(0, "label", 1, ("ants",))["open"] == [1, 2]  # one label is left of the conflict
        assert judge(1, "label", 0, (other(manifest()[a]),))["open"] == [1, 2]  # it is still twice the same
        assert judge(1, "keep")["open"] == [2]
        assert judge(2, "leave out", 1)["open"] == []
    assert paths("exclude.csv") == [d]
    assert [row["path"] for row in rows("relabel.csv")] == ["bees/same.png", a]  # kept as it was judged
    assert {(row["path"], row["twin"]) for row in rows("kept.csv")} == {(a, b), (b, a)}


def test_lists_of_an_older_state_are_said_and_passed_over() -> None:
    a, b, c, *_ = manifest()
    plant([a, b], [c])
    found = LabelIssues.read(DATA.labels.details)
    stale = found.suspects[0].model_copy(update={"label": "moths"})
    gone = found.outliers[0].model_copy(update={"path": "gone.png"})
    found.model_copy(update={"suspects": [stale, found.suspects[1]], "outliers": [gone]}).write(DATA.labels.details)
    with asked() as client:
        page = client.get("/queue").json()
    assert [item["pictures"][0]["path"] for item in page["items"]] == ["ants/same.png", b]
    assert page["notes"] == [
        "The lists were made from other pictures or labels than data/prepare has now; 2 entries are passed over. "
        "dvc repro studies/dvc.yaml:labels makes them again."
    ]


def test_without_anything_to_look_at_the_command_says_what_finds_something() -> None:
    audit = DATA.prepare.audit
    audit.write_text(audit.read_text().replace("label conflict", "exact duplicate"))
    with pytest.raises(HeadstartError, match=r"nothing to review yet; `dvc repro studies/dvc\.yaml:labels` finds"):
        review.read(DATA)


def test_pictures_without_a_label_get_one_and_are_ready_to_be_learned_from() -> None:
    folder = DATA.drift.to_label
    folder.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (16, 16), (number, 200, 200)).save(folder / f"00{number}-new.png")
    part = {"count": 0, "share": 0.0, "low": 0.0, "high": 0.0, "p": 1.0, "differ": False, "pictures": []}
    incoming = {
        "pictures": 3, "found": 3, "unusable": {}, "old": 9, "test": None, "guesses": {}, "strange": part,
        "confidence": {"value": 0.5, "low": 0.4, "high": 0.6},
        "to_label": [
            {"path": f"00{n}-new.png", "original": f"inbox/{n}/new.png", "guess": "bees", "probability": 0.4, "why": "odd"}
            for n in range(3)
        ],
    }  # fmt: skip
    Drift.model_validate({"real": True, "sentence": "", "incoming": incoming}).write(DATA.drift.details)
    with asked() as client:
        page = client.get("/queue").json()
        digest, places = page["digest"], [n for n, item in enumerate(page["items"]) if item["queue"] == "unlabelled"]
        item = page["items"][places[0]]
        assert (item["suggested"], item["pictures"][0]["path"], item["why"]) == (
            ["bees"], "inbox/0/new.png", "Worth labelling: odd.",
        )  # fmt: skip
        assert client.get(f"/{item['pictures'][0]['address']}").status_code == 200

        def judge(item: int, verdict: str, *labels: str) -> httpx.Response:
            return client.post("/judge", json={"digest": digest, "item": item, "verdict": verdict, "labels": labels})

        assert judge(places[0], "keep").status_code == 400
        judge(places[0], "label", "wasps").raise_for_status()
        undone = judge(places[1], "label", "ants").raise_for_status().json()["undo"]
        client.post("/undo", json={"digest": digest, "steps": undone}).raise_for_status()
        judge(places[2], "label", "ants").raise_for_status()
        assert judge(places[2], "leave out").raise_for_status().json()["open"] == [0, places[1]]
    Path("params.yaml").write_text("data: {source: labelled.csv}\n")
    (picture,) = source_of(Params.load().data).listing(Params.load().data).pictures
    assert picture.label == "wasps"
    assert [file.name for file in Path("labelled").iterdir()] == [Path(picture.path).name]
    assert Path(picture.path).read_bytes() == (folder / "000-new.png").read_bytes()


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("/picture/0/0000000000000000", 404),  # of another state of the data
        ("/picture/999999/0000000000000000", 404),
        ("/picture/-1/0000000000000000", 404),
        ("/picture/../../params.yaml", 404),
        ("/picture/%2e%2e%2f%2e%2e%2fparams.yaml/x", 404),
        ("/picture/x/y", 422),
    ],
)
def test_only_pictures_of_the_lists_are_given_out(address: str, status: int) -> None:
    with asked() as client:
        assert client.get(address).status_code == status


@pytest.mark.parametrize(
    ("change", "status", "complaint"),
    [
        ({"digest": "old"}, 409, "the lists have changed since this page was opened; reload it"),
        ({"item": 99}, 400, "there is no such item"),
        ({"item": -1}, 400, "there is no such item"),
        ({"picture": 2}, 400, "the item has no such picture"),
        ({"verdict": "label", "labels": ["moths"]}, 400, "there is no class 'moths'"),
        ({"verdict": "label", "labels": []}, 400, "each picture has one label"),
        ({"verdict": "drop"}, 400, "the request is not understood"),
    ],
)
def test_a_judgement_that_makes_no_sense_changes_nothing(change: dict[str, Any], status: int, complaint: str) -> None:
    with asked() as client:
        body = {"digest": client.get("/queue").json()["digest"], "item": 0, "verdict": "keep"} | change
        reply = client.post("/judge", json=body)
        assert reply.status_code == status
        assert complaint in reply.json()["detail"]
        assert client.post("/judge", content="{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert not [name for name in ("kept.csv", "relabel.csv", "exclude.csv") if Path(name).exists()]


# --- the page ---------------------------------------------------------------------------------------------------------


class Running:
    """The command itself, on a port that stays the same when it is started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.address = folder, f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [str(Path(sys.executable).with_name("headstart")), "review", "--no-open", "--port", str(self.port)]
        self.log = (self.folder / "review.log").open("a")
        self.process = subprocess.Popen(command, cwd=self.folder, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                httpx.get(self.address, timeout=PATIENCE_S)
            except httpx.TransportError:
                assert self.process.poll() is None, (self.folder / "review.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            else:
                return

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def running(project: Path) -> Iterator[Callable[[], Running]]:
    started: list[Running] = []

    def start() -> Running:
        started.append(Running(project))
        return started[-1]

    yield start
    for server in started:
        server.kill()


def shown_path(page: Page) -> str:
    return page.locator(".path").first.inner_text()


def press(page: Page, key: str) -> str:
    """Press a key that judges, and wait for the next picture; the path of the one that was judged."""
    path = shown_path(page)
    page.keyboard.press(key)
    page.wait_for_function(
        "path => document.getElementById('item').hidden || document.querySelector('.path').textContent !== path", arg=path
    )
    return path


@pytest.mark.browser
def test_a_hundred_suspects_are_judged_by_keyboard_and_a_killed_server_loses_none(
    running: Callable[[], Running], tmp_path: Path
) -> None:
    labels = manifest()
    suspects = [*labels][:100]
    plant(suspects)
    server = running()
    expected: dict[str, str | None] = {}
    with browser_page(tmp_path / "profile") as page:
        page.set_default_timeout(PATIENCE_S * 1000)
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        foreign: list[str] = []
        page.on("request", lambda request: foreign.append(request.url))
        page.goto(server.address)
        page.get_by_role("button", name="Suspects (100)").wait_for()

        def judge(key: str) -> None:
            path = press(page, key)
            label = labels[path]
            expected[path] = {"k": label, "s": other(label), "x": None}.get(
                key, CLASSES[int(key) - 1] if key.isdigit() else ""
            )

        for number in range(40):
            judge("kxs123"[number % 6])
        # Undo shows the picture again, and then it is judged otherwise.
        judge("x")
        page.keyboard.press("u")
        page.get_by_role("button", name="Suspects (60)").wait_for()
        assert shown_path(page) == [*expected][-1]
        judge("k")
        # Killed; what is judged meanwhile is kept by the page until the server is back.
        server.kill()
        path = shown_path(page)
        page.keyboard.press("x")
        page.get_by_text("Not saved yet").wait_for()
        server.start()
        page.wait_for_function("path => document.querySelector('.path').textContent !== path", arg=path)
        expected[path] = None
        while len(expected) < 100:
            judge("kxs"[len(expected) % 3])
        page.get_by_text("Nothing is left here. Duplicates: 1").wait_for()
        page.get_by_role("button", name="Duplicates (1)").click()
        page.keyboard.press("o")
        page.locator("figure.active").get_by_text("bees/same.png").wait_for()
        page.keyboard.press("x")
        page.get_by_text("All is judged").wait_for()
        assert not complaints
        assert all(url.startswith(server.address) for url in foreign)
    tables = Judgements(several=False).tables()
    for path, label in expected.items():
        state = tables.of(path)
        assert state.excluded == (label is None), path
        if label is not None:
            assert (state.label or labels[path]) == label, path
            assert (state.kept is not None) == (label == labels[path]), path
    assert tables.of("bees/same.png").excluded
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(PATIENCE_S) == 0
    assert "`dvc repro` takes them into account" in Path("review.log").read_text()


def other_sites_and_other_names_are_refused(server: Running) -> None:
    digest = httpx.get(f"{server.address}/queue").json()["digest"]
    body = {"digest": digest, "item": 0, "verdict": "leave out"}
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        assert httpx.post(f"{server.address}/judge", json=body, headers=headers).status_code == 403
    as_json = {"Content-Type": "application/json"}
    assert httpx.post(f"{server.address}/judge", content=b" " * 2_000_000, headers=as_json).status_code == 413
    assert not Path("exclude.csv").exists()


@pytest.mark.browser
def test_two_browsers_at_once_judge_the_union(running: Callable[[], Running], tmp_path: Path) -> None:
    plant([*manifest()][:20])
    server = running()
    other_sites_and_other_names_are_refused(server)
    with browser_page(tmp_path / "profile") as one:
        two = one.context.new_page()
        for page in (one, two):
            page.set_default_timeout(PATIENCE_S * 1000)
            page.goto(server.address)
            page.get_by_role("button", name="Suspects (20)").wait_for()
        judged = []
        for _ in range(6):
            two.keyboard.press("ArrowLeft")  # from the end
            judged += [press(one, "k"), press(two, "x")]
        assert len({*judged}) == 12
        assert {*paths("kept.csv"), *paths("exclude.csv")} == {*judged}
        two.get_by_role("button", name=re.compile(r"Suspects \(8\)")).wait_for()  # what the other has judged is gone here
        look_through(one, "review", tmp_path)
        one.keyboard.press("Tab")
        assert one.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        several_labels_are_toggled_and_found_by_typing(one)


def several_labels_are_toggled_and_found_by_typing(page: Page) -> None:
    """The data are those of a multi-label set of 40 classes by now."""
    table = review.read_manifest(DATA.prepare)
    table["label"] = [f"class {row % 40:02d}" for row in table.index]
    table["labels"] = [[label] for label in table["label"]]
    table.to_parquet(DATA.prepare.manifest, index=False)
    found = LabelIssues.read(DATA.labels.details)
    path, label = table.loc[40, ["path", "label"]]
    suspect = found.suspects[0].model_copy(update={"path": path, "label": label, "suggested": "class 03"})
    found.model_copy(update={"suspects": [suspect]}).write(DATA.labels.details)
    page.reload()
    page.get_by_role("button", name="Suspects (1)").click()
    page.get_by_role("button", name="Keep", exact=True).wait_for()
    page.keyboard.press("1")  # the labels that it has, and the one that is suggested, come first
    page.keyboard.press("/")
    page.keyboard.type("17")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Save: class 17", exact=True).wait_for()
    page.keyboard.press("2")
    page.keyboard.press("k")
    page.get_by_role("button", name="Suspects (0)").wait_for()
    assert [(row["path"], row["was"], row["labels"]) for row in rows("relabel.csv")] == [(path, label, "class 03;class 17")]
