"""The classifier over HTTP, as a real server on a free port: what it answers, what it refuses, and that it stays up."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import HTTPException
from fastapi.responses import PlainTextResponse
from fastapi.testclient import TestClient
from PIL import Image

from headstart.base.errors import HeadstartError
from headstart.data.decoders import Rules
from headstart.inference import lanes as lanes_module
from headstart.inference import request_body
from headstart.inference import server as serving
from headstart.inference.batch import BatchPredictor
from headstart.inference.lanes import Lanes
from headstart.inference.own_pages import OwnPagesOnly
from headstart.inference.predictor import Output, load_predictor
from headstart.inference.server import Limits, application, model_info
from tests.data import hostile
from tests.inference import test_predictor as test_served
from tests.inference.test_predictor import CLASSES, plain, png, put_model
from tests.pages_in_browser import look_through
from tests.stages.test_ui import BROWSERS, browser_page

PROJECT = Path(__file__).parents[2]
# As test_served's network, with a convolution that changes nothing, so that Grad-CAM has a map to look at.
NETWORK = """
from torch import nn

def colours(num_classes):
    same = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.dirac_(same.weight)
    net = nn.Sequential(same, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))
    net.input_size, net.mean, net.std = 64, (0, 0, 0), (1, 1, 1)
    return net
"""
MAX_MEGABYTES = 0.2
PATIENCE_S = 120
# One for all, since each reads the machine's certificates first; it gives up idle connections before the server does.
CLIENT = httpx.Client(timeout=PATIENCE_S, limits=httpx.Limits(keepalive_expiry=2))


def dockerfile(instruction: str) -> list[str]:
    """The command that the Dockerfile gives to CMD or HEALTHCHECK."""
    text = (PROJECT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    line = next(line for line in reversed(text.splitlines()) if line.startswith(instruction))
    command: list[str] = json.loads(line[line.index("[") :])
    return command


@dataclass(frozen=True)
class Server:
    address: str
    process: subprocess.Popen[str]

    def post(self, path: str, body: bytes, kind: str = "application/octet-stream") -> tuple[int, Any]:
        reply = CLIENT.post(self.address + path, content=body, headers={"Content-Type": kind})
        return reply.status_code, reply.json()

    def ask(self, body: bytes, kind: str = "application/octet-stream") -> Any:
        status, answer = self.post("/predict", body, kind)
        assert status == 200, answer
        return answer

    def connect(self) -> socket.socket:
        host, port = self.address.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=PATIENCE_S)

    def is_well(self) -> bool:
        well: bool = self.process.poll() is None and self.ask(png(plain("green")))["label"] == "green"
        return well


@contextmanager
def served(folder: Path, *options: str) -> Iterator[Server]:
    """The container's own command, on another folder and a free port."""
    given = {"/model": str(folder), "0.0.0.0": "127.0.0.1", "8000": "0"}
    program, *arguments = (given.get(word, word) for word in dockerfile("CMD"))
    command = [str(Path(sys.executable).parent / program), *arguments, "--trust", *options]
    with (folder.parent / "serve.log").open("w") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        assert f"{folder} is served on http://" in said, (folder.parent / "serve.log").read_text()
        yield Server(said.split()[-1], server)
    finally:
        server.terminate()
        server.communicate(timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "package" / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_served, "NETWORK", NETWORK)
        put_model(folder / "artifacts/classifier")
    return folder


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    with served(model, "--max-megabytes", str(MAX_MEGABYTES)) as running:
        yield running


def halves() -> bytes:
    """Red on the left, blue on the right."""
    picture = plain("blue", 96, 96)
    picture.paste(plain("red", 96, 48), (0, 0))
    return png(picture)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def form(*files: tuple[str, bytes], boundary: bytes = b"cut-here") -> bytes:
    parts = [
        b"--%s\r\nContent-Disposition: form-data; name=\"image\"%s\r\n\r\n%s\r\n"
        % (boundary, f'; filename="{name}"'.encode() if name else b"", data)
        for name, data in files
    ]  # fmt: skip
    return b"".join(parts) + b"--%s--\r\n" % boundary


FORM = "multipart/form-data; boundary=cut-here"


# --- answers ----------------------------------------------------------------------------------------------------------


def test_a_picture_gets_the_models_own_answer_in_every_form(server: Server, model: Path) -> None:
    data = png(Image.effect_noise((70, 90), 80).convert("RGB"))
    expected = load_predictor(model, trust=True).predict([data])[0]
    asked = [
        (data, "image/png"), (data, "application/octet-stream"), (data, "application/x-www-form-urlencoded"),
        (data, "nonsense"), (as_json({"image": text(data)}), "application/json"),
        (as_json({"image": f"data:image/png;base64,{text(data)}"}), "application/json; charset=utf-8"),
        (form(("a.png", data)), FORM), (form(("", b"a note"), ("a.png", data)), 'multipart/form-data; boundary="cut-here"'),
    ]  # fmt: skip
    for body, kind in asked:
        answer = server.ask(body, kind)
        assert list(answer) == ["label", "probability", "probabilities"]
        assert answer["label"] == expected.label
        assert answer["probability"] == pytest.approx(expected.probability, abs=1e-3)
        assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-3)


def test_a_list_of_pictures_gets_a_list_of_answers_in_its_order(server: Server) -> None:
    names = ["green", "red", "blue", "red"]
    pictures = [png(plain(name)) for name in names]
    for body, kind in [
        (as_json({"image": [text(data) for data in pictures]}), "application/json"),
        (form(*(("a.png", data) for data in pictures)), FORM),
    ]:
        assert [answer["label"] for answer in server.ask(body, kind)] == names
    (alone,) = server.ask(as_json({"image": [text(pictures[0])]}), "application/json")
    assert alone["label"] == "green"


def test_many_clients_at_once_get_their_own_answers(server: Server) -> None:
    names = [CLASSES[number % 3] for number in range(120)]
    bodies = {name: png(plain(name)) for name in CLASSES}
    with ThreadPoolExecutor(16) as clients:
        answers = clients.map(lambda name: server.ask(bodies[name])["label"], names)
    assert list(answers) == names


@pytest.mark.usefixtures("model")
def test_health_and_model_tell(server: Server) -> None:
    assert CLIENT.get(f"{server.address}/health").json() == {"status": "ok"}
    about = CLIENT.get(f"{server.address}/model").json()
    assert about["classes"] == list(CLASSES)
    assert (about["backbone"], about["size"], about["figures"]) == ("net.py:colours", 64, None)
    assert (about["max_megabytes"], about["max_megapixels"]) == (MAX_MEGABYTES, 0.5)


def test_the_test_figures_beside_a_model_are_told(tmp_path: Path) -> None:
    folder = put_model(tmp_path / "package/model/artifacts/classifier").parents[1]
    (tmp_path / "evaluate").mkdir()
    figures = {"accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95, "n": 70}
    (tmp_path / "evaluate/metrics.json").write_text(json.dumps({"chosen": "head", "val": {}, "test": {"chosen": figures}}))
    batched = BatchPredictor(folder, trust=True)
    about = model_info(folder, batched, Limits())
    assert about["figures"] == figures
    with TestClient(application(batched, about, Limits(), "ready")) as client:
        assert 'right on\n<span class="whole">90.0% (80.0–95.0)</span> of 70 test pictures' in client.get("/").text
        # This network has no map to look at.
        explained = client.post("/explain", content=png(plain("red"))).json()
        assert (explained["label"], explained["heat"]) == ("red", None)


# --- where the network looked -----------------------------------------------------------------------------------------


def picture_at(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.partition("base64,")[2])))


@pytest.mark.parametrize(("label", "side"), [("red", "left"), ("blue", "right")])
def test_the_heat_lies_where_the_colour_is(label: str, side: str, server: Server) -> None:
    status, answer = server.post(f"/explain?label={label}", halves())
    assert (status, answer["explained"]) == (200, label)
    seen, heat = picture_at(answer["seen"]), np.asarray(picture_at(answer["heat"]))
    assert seen.size == (64, 64)
    assert heat.shape == (64, 64, 4)
    brightness = heat[..., :3].mean(-1)
    left, right = brightness[:, :28].mean(), brightness[:, 36:].mean()
    assert (left > right + 60) if side == "left" else (right > left + 60)


def test_explaining_answers_as_predicting_does(server: Server) -> None:
    data = png(plain("green"))
    status, explained = server.post("/explain", data)
    assert status == 200
    assert explained["explained"] == "green"
    assert {key: explained[key] for key in ("label", "probability", "probabilities")} == server.ask(data)


@pytest.mark.parametrize(
    ("path", "body", "kind", "sentence"),
    [
        ("/explain?label=gren", png(plain("red")), "image/png", "there is no class 'gren'; did you mean 'green'?"),
        (
            "/explain",
            as_json({"image": [text(png(plain("red")))]}),
            "application/json",
            "one picture is explained at a time",
        ),
    ],
    ids=["an unknown class", "a list"],
)
def test_what_cannot_be_explained_is_said(path: str, body: bytes, kind: str, sentence: str, server: Server) -> None:
    assert server.post(path, body, kind) == (400, {"detail": sentence})


# --- hostile bodies ---------------------------------------------------------------------------------------------------


HOSTILE: dict[str, tuple[int, bytes, str, str]] = {
    "nothing": (422, b"", "image/png", r"empty file \(0 bytes\)"),
    "a page": (422, b"<html>hello</html>" * 9, "text/html", "not a picture"),
    "half a picture": (422, png(Image.effect_noise((90, 90), 90))[:3000], "image/png", "truncated or damaged"),
    "a bomb": (422, png(Image.new("L", (4000, 4000))), "image/png", r"this server's limit"),
    "a smaller bomb": (422, png(Image.new("L", (800, 800))), "image/png", r"800×800 pixels is above this server's limit"),
    "a bomb in an icon": (422, hostile.icon_with(hostile.png(2000, 2000)), "image/x-icon", "this server's limit"),
    "a line": (422, png(Image.new("L", (100_000, 1))), "image/png", "more than 100 times as long as wide"),
    "a program": (422, hostile.eps("{} loop"), "image/png", "not a picture"),
    "a format that nobody sends": (422, hostile.flat_qoi(9, 9), "image/png", "QOI is not one of the formats that are read"),
    "a JPEG of many scans": (422, hostile.jpeg_of_scans(700, 700, 2000), "image/jpeg", "more than 100 scans"),
    "many flat pictures": (413, as_json({"image": [text(hostile.flat_webp(700, 700))] * 32}), "application/json",
                           "the pictures of this request have more than 0.5 megapixels together"),
    "no JSON": (400, b"{'image': ", "application/json", "JSON has to be"),
    "deep JSON": (400, b"[" * 100_000, "application/json", "JSON has to be"),
    "a number": (400, as_json({"image": 7}), "application/json", "JSON has to be"),
    "a list of objects": (400, as_json({"image": [{"image": "x"}]}), "application/json", "JSON has to be"),
    "another key": (400, as_json({"picture": "x"}), "application/json", "JSON has to be"),
    "no base64": (400, as_json({"image": "/etc/passwd"}), "application/json", "JSON has to be"),
    "base64 of something else": (422, as_json({"image": text(b"x" * 99)}), "application/json", "not a picture"),
    "no picture": (400, as_json({"image": []}), "application/json", "there is no picture"),
    "one bad among good": (422, as_json({"image": [text(png(plain("red"))), "AAAA"]}), "application/json", "not a picture"),
    "too many": (413, as_json({"image": ["AAAA"] * 65}), "application/json", "65 pictures in one request; at most 64"),
    "a form without files": (400, form(("", b"hello")), FORM, "there is no picture"),
    "a form without end": (400, form(("a.png", b"hello"))[:40], FORM, "the form has no parts"),
    "a form with another boundary": (400, form(("a.png", b"x"), boundary=b"other"), FORM, "the form has no parts"),
    "an endless type": (400, b"x", f'{FORM}; x="{";" * 10_000}"', "the content type is longer"),
    "a form with no boundary": (400, form(("a.png", b"x")), "multipart/form-data", "the form has no parts"),
    "a form of nothing but boundaries": (413, b"\r\n--cut-here" * 9999, FORM, "more than 98 parts"),
    "too large": (413, bytes(300_000), "image/png", r"the body is larger than 0\.2 MB"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_body_is_refused_in_a_sentence_and_the_server_stays_up(case: str, server: Server) -> None:
    status, body, kind, sentence = HOSTILE[case]
    found, answer = server.post("/predict", body, kind)
    assert found == status, answer
    assert list(answer) == ["detail"]
    assert re.search(sentence, answer["detail"]), answer
    assert "\n" not in answer["detail"]
    assert len(answer["detail"]) < 200
    assert server.is_well()


def test_cheap_requests_do_not_wait_for_expensive_ones() -> None:
    """One client's 40 bytes of 100 megapixels are decoded while others get their answers."""
    rules = Rules(short_side=384, max_megapixels=100, formats="common")
    lanes, small, large = Lanes(rules, 1), png(plain("red")), hostile.flat_webp(10_000, 10_000)

    async def crowd() -> list[str]:
        order: list[str] = []

        async def ask(name: str, data: bytes) -> None:
            await lanes.decode([data], lambda picture: picture.shape)
            order.append(name)

        await ask("first", small)
        expensive = asyncio.create_task(ask("expensive", large))
        await asyncio.sleep(0.1)
        for _ in range(5):
            await ask("cheap", small)
        await expensive
        return order

    try:
        assert asyncio.run(crowd()) == ["first", *["cheap"] * 5, "expensive"]
    finally:
        lanes.close()


def test_a_request_with_many_pictures_leaves_others_their_turn() -> None:
    lanes, small = Lanes(Rules(formats="common"), 1), png(plain("red"))

    async def crowd() -> list[str]:
        order: list[str] = []

        async def ask(name: str, count: int) -> None:
            await lanes.decode([small] * count, lambda picture: picture.shape)
            order.append(name)

        await ask("first", 1)
        await asyncio.gather(ask("many", 60), ask("one", 1))
        return order

    try:
        assert asyncio.run(crowd()) == ["first", "one", "many"]
    finally:
        lanes.close()


def test_a_single_picture_does_not_wait_for_all_of_a_large_request(model: Path) -> None:
    batched, seen = BatchPredictor(model, trust=True), np.zeros((64, 64, 3), np.uint8)

    async def crowd() -> list[str]:
        batches, order = serving.Batches(batched, max_batch=4, wait_s=0.001), list[str]()

        async def ask(name: str, place: int) -> None:
            await batches.predict(seen, place)
            order.append(name)

        asked = [asyncio.ensure_future(ask("many", place)) for place in range(60)]
        asked.append(asyncio.ensure_future(ask("one", 0)))
        await asyncio.sleep(0)  # all of them wait now
        with ThreadPoolExecutor(1) as network:
            working = asyncio.create_task(batches.run(network))
            await asyncio.gather(*asked)
            working.cancel()
        return order

    order = asyncio.run(crowd())
    assert len(order) == 61
    assert order.index("one") < 4


def test_what_waits_for_decoding_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes_module, "MAX_WAITING", 30)
    lanes, picture = Lanes(Rules(max_megapixels=100, formats="common"), 1), hostile.flat_webp(1500, 1500)

    async def crowd() -> list[Any]:
        asked = [lanes.decode([picture], lambda picture: picture.shape) for _ in range(3)]
        return await asyncio.gather(*asked, return_exceptions=True)

    try:
        found = asyncio.run(crowd())
    finally:
        lanes.close()
    refused = [answer for answer in found if isinstance(answer, HTTPException)]
    assert [answer.status_code for answer in refused] == [503] * 2  # each counts as 22.5 megapixels
    assert sum(isinstance(answer, list) for answer in found) == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:8000"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "LOCALHOST.:80"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
        ({"Host": "cats.example"}, 200),
        ({"Host": "127.0.0.1:8000", "Origin": "https://cats.example"}, 200),  # a proxy that names the server it asks
        ({"Host": "evil.example:8000"}, 403),
        ({"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}, 403),  # DNS rebinding
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:8000"}, 403),
        ({"Host": "127.0.0.1@evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": "localhost:8000", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost:8000", "Origin": "http://localhost:3000"}, 403),
        ({"Host": "localhost:8000", "Origin": "null"}, 403),
        ({"Host": "localhost:8000", "Origin": ""}, 403),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000.evil.example"}, 403),
    ],
)
def test_pages_of_other_sites_may_not_use_a_server_on_this_machine(headers: dict[str, str], status: int) -> None:
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("an answer")(scope, receive, send)

    guarded = TestClient(OwnPagesOnly(answer, ["cats.example"]))
    for method, path in (("GET", "/model"), ("POST", "/predict")):
        reply = guarded.request(method, path, content=b"x" if method == "POST" else None, headers=headers)
        assert reply.status_code == status, reply.text
        assert status == 200 or list(reply.json()) == ["detail"]


def test_the_guard_stands_on_loopback(server: Server) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        assert CLIENT.get(f"{server.address}/health", headers=headers).status_code == 403
    own = {"Origin": server.address}
    assert CLIENT.post(f"{server.address}/predict", content=png(plain("red")), headers=own).json()["label"] == "red"


def test_a_body_without_end_is_cut_off(server: Server) -> None:
    chunk = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
    with server.connect() as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent = 0
        with suppress(ConnectionError):  # the server hangs up
            while sent < 1 << 30:
                connection.sendall(chunk)
                sent += len(chunk)
        assert sent < 64 << 20
    assert server.is_well()


@pytest.mark.parametrize("head", [b"Content-Length: 99999999999", b"Content-Length: 300000\r\nExpect: 100-continue"])
def test_a_body_that_is_announced_as_too_large_need_not_be_sent(head: bytes, server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n\r\n")
        reply = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert reply.startswith(b"HTTP/1.1 413 ")
    assert b"the body is larger than 0.2 MB" in reply
    assert server.is_well()


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\nonly this",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 300_000,
    ],
    ids=["half a body", "a chunk of no length", "not HTTP", "a head without end"],
)
def test_a_broken_connection_breaks_nothing_else(sent: bytes, server: Server) -> None:
    with server.connect() as connection:
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass
        except OSError:
            pass
    assert server.is_well()


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/predict", 405), ("POST", "/nowhere", 404)])
def test_other_paths_and_methods_are_refused(method: str, path: str, status: int, server: Server) -> None:
    reply = CLIENT.request(method, server.address + path)
    assert reply.status_code == status
    assert list(reply.json()) == ["detail"]


@pytest.fixture
def in_process(model: Path) -> Iterator[tuple[TestClient, BatchPredictor]]:
    batched = BatchPredictor(model, trust=True)
    app = application(batched, model_info(model, batched, Limits()), Limits(), "ready")
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client, batched


def test_bodies_of_all_clients_together_are_bounded(
    in_process: tuple[TestClient, BatchPredictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = in_process
    data = png(plain("red"))
    monkeypatch.setattr(request_body, "MAX_PENDING_BYTES", len(data) - 1)
    reply = client.post("/predict", content=data)
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    monkeypatch.setattr(request_body, "MAX_PENDING_BYTES", len(data))
    for _ in range(3):  # what was answered, or refused, is held no longer
        assert client.post("/predict", content=data).status_code == 200


def test_pictures_that_wait_for_the_network_are_bounded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MAX_PENDING_BYTES", 0)  # then there is room for one request's pictures
    batched = BatchPredictor(model, trust=True)
    taken, go_on, predict_views = threading.Event(), threading.Event(), batched.predict_views

    def slowly(pictures: list[np.ndarray]) -> list[Output]:
        taken.set()
        go_on.wait(PATIENCE_S)
        return predict_views(pictures)

    monkeypatch.setattr(batched, "predict_views", slowly)

    async def crowd() -> list[Any]:
        batches = serving.Batches(batched, max_batch=8, wait_s=0.001)
        with ThreadPoolExecutor(1) as network:
            working = asyncio.create_task(batches.run(network))
            seen = np.zeros((64, 64, 3), np.uint8)
            first = [asyncio.create_task(batches.predict(seen)) for _ in range(8)]
            await asyncio.to_thread(taken.wait, PATIENCE_S)
            others = [asyncio.create_task(batches.predict(seen)) for _ in range(serving.MAX_PICTURES + 3)]
            await asyncio.sleep(0.1)
            go_on.set()
            found = await asyncio.gather(*first, *others, return_exceptions=True)
            working.cancel()
        return found

    found = asyncio.run(crowd())
    refused = [answer for answer in found if isinstance(answer, HTTPException)]
    assert [answer.status_code for answer in refused] == [503] * 3
    assert sum(isinstance(answer, Output) for answer in found) == 8 + serving.MAX_PICTURES


@pytest.mark.parametrize("asked", ["inf", "400", "0"])
def test_a_limit_that_cannot_be_kept_is_refused(asked: str, model: Path) -> None:
    command = [str(Path(sys.executable).with_name("headstart")), "serve", "--model", str(model), "--max-megabytes", asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 2
    assert "--max-megabytes" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_body_that_does_not_arrive_is_not_waited_for(
    in_process: tuple[TestClient, BatchPredictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_body, "BODY_TIMEOUT_S", 0.2)

    async def drop_by_drop() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0.05)

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(in_process[0].app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.post("/predict", content=drop_by_drop())

    reply = asyncio.run(post())
    assert (reply.status_code, reply.json()) == (408, {"detail": "the body did not arrive within 0.2 s"})


def test_a_failure_of_the_network_fails_one_batch_and_not_the_server(
    in_process: tuple[TestClient, BatchPredictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, batched = in_process
    with monkeypatch.context() as patch:
        patch.setattr(batched, "predict_views", lambda pictures: 1 / 0)
        reply = client.post("/predict", content=png(plain("red")))
        assert (reply.status_code, list(reply.json())) == (500, ["detail"])
    assert client.post("/predict", content=png(plain("red"))).json()["label"] == "red"


# --- start and end ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_told_to_stop_answers_what_is_under_way_and_ends_well(number: signal.Signals, model: Path) -> None:
    with served(model, "--wait-ms", "2000") as running, ThreadPoolExecutor(1) as client:
        under_way = client.submit(running.ask, png(plain("blue")))
        time.sleep(0.7)
        running.process.send_signal(number)
        assert under_way.result()["label"] == "blue"
        assert running.process.wait(PATIENCE_S) == 0
        with pytest.raises(httpx.ConnectError):
            CLIENT.get(f"{running.address}/health")
    assert (model.parent / "serve.log").read_text() == ""


def test_a_port_that_is_taken_is_said(server: Server, tmp_path: Path) -> None:
    with pytest.raises(HeadstartError, match=r"cannot listen on 127\.0\.0\.1:\d+ \(.*\); see --port and --host"):
        serving.serve(tmp_path, "127.0.0.1", int(server.address.rsplit(":", 1)[1]), Limits())


def test_a_folder_without_a_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(HeadstartError, match=r"classifier\.json is not there; run `dvc repro package`"):
        serving.serve(tmp_path, "127.0.0.1", 0, Limits())


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_a_picture_dropped_on_the_page_is_answered_and_explained(server: Server, tmp_path: Path) -> None:
    if not any(map(shutil.which, BROWSERS)):
        pytest.skip(f"no browser on PATH (looked for {', '.join(BROWSERS)})")
    (tmp_path / "halves.png").write_bytes(halves())
    (tmp_path / "notes.txt").write_text("not a picture")
    with browser_page(tmp_path / "profile") as page:
        page.set_default_timeout(PATIENCE_S * 1000)
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(server.address)
        assert ", ".join(CLASSES) in page.locator("body").inner_text()

        # Dropped, as from a file manager.
        data = text(png(plain("green")))
        dropped = page.evaluate_handle(
            """data => {
                const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), transfer = new DataTransfer()
                transfer.items.add(new File([bytes], "green.png", {type: "image/png"}))
                return transfer
            }""",
            data,
        )
        page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
        page.get_by_role("status").filter(has_text="green, 100.0%").wait_for()

        # Chosen, and explained for one class after the other.
        page.set_input_files("#file", tmp_path / "halves.png")
        page.get_by_role("status").filter(has_not_text="green").wait_for()  # or a bar that is replaced would be pressed
        for label in ("red", "blue"):
            page.get_by_role("button", name=label).focus()
            page.keyboard.press("Enter")
            page.locator("#explained").filter(has_text=label).wait_for()
            assert page.get_by_role("button", name=label).get_attribute("aria-pressed") == "true"
            page.wait_for_function("name => document.activeElement.innerText.startsWith(name)", arg=label)
        page.wait_for_function("document.getElementById('heatmap').naturalWidth === 64")
        assert page.locator("#heatmap").is_visible()
        assert page.locator("#input-picture").is_visible()
        page.get_by_role("checkbox").uncheck()
        assert not page.locator("#heatmap").is_visible()
        assert page.locator("#input-picture").is_visible()
        page.get_by_role("checkbox").check()
        look_through(page, "serve", tmp_path, ("1280-light",))
        assert not complaints

        # What is no picture is said on the page, and the next one is answered.
        page.set_input_files("#file", tmp_path / "notes.txt")
        page.get_by_role("status").filter(has_text="not a picture that Pillow can read").wait_for()
        assert not page.locator("#answer").is_visible()
        page.set_input_files("#file", tmp_path / "halves.png")
        page.locator("#answer").wait_for()
        assert not [url for url in asked if not url.startswith((server.address, "data:", "blob:"))]


# --- the container ----------------------------------------------------------------------------------------------------


def test_the_containers_health_is_the_servers(server: Server) -> None:
    port = server.address.rsplit(":", 1)[1]
    _, *check = dockerfile("HEALTHCHECK")
    healthy = [word.replace("8000", port) for word in check]
    assert subprocess.run([sys.executable, *healthy], capture_output=True).returncode == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = [word.replace("8000", str(free.getsockname()[1])) for word in check]
        assert subprocess.run([sys.executable, *nobody], capture_output=True).returncode != 0


def test_the_image_is_built_from_the_lock_and_runs_as_nobody_special() -> None:
    text = (PROJECT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert [line.split()[1] for line in lines if line.startswith("USER")][-1].split(":")[0] not in ("0", "root")
    for line in lines:
        if "uv pip install" in line:
            assert "--require-hashes -r requirements.lock" in line or "--no-deps --no-build-isolation ." in line
    version = re.search(r"UV_VERSION := (\S+)", (PROJECT / "Makefile").read_text(encoding="utf-8"))
    assert version
    assert f"uv=={version[1]}" in text


def test_the_image_gets_what_it_copies_and_nothing_else() -> None:
    text = (PROJECT / "Dockerfile").read_text(encoding="utf-8")
    copied = {name for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for name in line.split()[:-1]}
    ignored = (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    assert copied == {line[1:] for line in ignored if line.startswith("!")}
    assert all((PROJECT / name).exists() for name in copied)


@pytest.mark.slow
def test_the_image_builds_and_answers(model: Path) -> None:
    if os.environ.get("HEADSTART_DOCKER") != "1":
        pytest.skip("HEADSTART_DOCKER=1 builds the image, which takes a Docker daemon, a package registry and some 10 GB")
    subprocess.run(["docker", "build", "-t", "headstart-test", "."], cwd=PROJECT, check=True)
    mount = f"{model}:/model:ro"
    started = ["docker", "run", "-d", "--rm", "-p", "127.0.0.1::8000", "-v", mount, "headstart-test"]
    name = subprocess.run(started, check=True, capture_output=True, text=True).stdout.strip()
    try:
        found = subprocess.run(["docker", "port", name, "8000"], check=True, capture_output=True, text=True).stdout.strip()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                reply = httpx.post(f"http://{found}/predict", content=png(plain("red")))
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(1)
        assert reply.json()["label"] == "red"
    finally:
        subprocess.run(["docker", "stop", name], check=True)
