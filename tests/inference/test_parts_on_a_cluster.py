"""A cluster of two nodes reads a bucket itself: prepare gets the same bytes, predict answers each key once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headstart.base.artifacts import PrepareFolder
from headstart.base.cluster import connected
from headstart.base.sections import Data, Prepare
from headstart.data import pack
from headstart.data.fetch import fetch
from headstart.data.prepare import prepare
from headstart.data.sources import source_of
from headstart.inference import parts as parts_module
from tests import test_cli
from tests.data.pictures import write_pictures
from tests.data.test_in_place import HALVES, uploaded
from tests.inference.test_parts import ORDER, answers, pictures
from tests.inference.test_predictor import known, put_model
from tests.test_cli import Run
from tests.two_nodes import Answers, TwoNodes

pytestmark = pytest.mark.slow
run = test_cli.run  # a fixture


@pytest.fixture
def nodes_that_know_the_bucket(two_nodes: TwoNodes, bucket: str) -> TwoNodes:
    """Their environment has the keys and the endpoint of the bucket."""
    assert bucket
    import ray

    known_here = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    ray.init(two_nodes.address, runtime_env={"env_vars": known_here}, log_to_driver=False, logging_level="ERROR")
    return two_nodes


def test_a_bucket_is_answered_on_the_nodes_and_one_of_them_may_die(
    nodes_that_know_the_bucket: TwoNodes, bucket: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(put_model(tmp_path / "model/artifacts/classifier"))
    folder = pictures(tmp_path / "set", 60)
    (folder / "broken.png").write_bytes(b"no picture")
    where = uploaded(folder, bucket, "in")
    Path("params.yaml").write_text(f"cluster: {nodes_that_know_the_bucket.address}\n")
    monkeypatch.setattr(parts_module, "PER_TASK", 7)
    monkeypatch.setattr(parts_module, "ROWS", 20)
    of_nodes = Answers(monkeypatch, 3, nodes_that_know_the_bucket.remove_second)
    code, _, err = run("predict", where, "--model", "model", "--output", f"s3://{bucket}/out")
    assert (code, err.splitlines()[-1]) == (1, "headstart: 1 of 61 pictures could not be used; the column problem says why")
    rows = answers(f"s3://{bucket}/out")
    assert [row["image"] for row in rows] == [f"{where}/{n:03}.png" for n in range(60)] + [f"{where}/broken.png"]
    assert [row["label"] for row in rows[:60]] == [ORDER[n % 3] for n in range(60)]
    assert of_nodes.taken == 9


def test_a_bucket_is_decoded_on_the_nodes_to_the_same_bytes(
    nodes_that_know_the_bucket: TwoNodes, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {f"{label}/{n:02}.jpg": 100 * k + n for k, label in enumerate(("ants", "bees")) for n in range(12)}
    folder = write_pictures(tmp_path / "set", names, "JPEG")
    (folder / "ants/broken.jpg").write_bytes((folder / "ants/00.jpg").read_bytes()[:700])
    data = Data(source=uploaded(folder, bucket, "set"))
    found, root = fetch(data, Path("manifest.csv")), source_of(data).root(data)
    prepare(found, root, Prepare(), HALVES, 0, 2, tmp_path / "here")
    monkeypatch.setattr(pack, "SENT", 100_000)  # a few pictures
    with connected(nodes_that_know_the_bucket.address, "headstart.data.prepare") as cluster:
        monkeypatch.setattr(pack, "_bytes", None)  # nothing is sent
        prepare(found, root, Prepare(), HALVES, 0, 2, tmp_path / "there", cluster)
    for name in ("pixels", "pixels_index", "audit", "manifest"):
        here, there = (getattr(PrepareFolder(tmp_path / where), name).read_bytes() for where in ("here", "there"))
        assert here == there
