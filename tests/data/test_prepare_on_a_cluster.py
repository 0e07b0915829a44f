"""A cluster of two nodes decodes to the bytes that this machine decodes to, whatever happens to a node."""

from __future__ import annotations

from pathlib import Path

import pytest

from headstart.base.cluster import Cluster, connected
from headstart.base.sections import Data, Prepare
from headstart.data import pack
from headstart.data.fetch import fetch
from headstart.data.prepare import prepare
from tests.data.pictures import encoded, photograph
from tests.data.test_prepare import EVEN, SMALL, files
from tests.two_nodes import Answers, TwoNodes

pytestmark = pytest.mark.slow
MODULE = "headstart.data.prepare"
PICTURES = 200


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs, a few of them larger, and some that cannot be used."""
    folder = tmp_path_factory.mktemp("set")
    for number in range(PICTURES):
        file = folder / ("ants", "bees")[number % 2] / f"{number:03d}.jpg"
        file.parent.mkdir(exist_ok=True)
        content = encoded(photograph(number, (1200, 900) if number % 20 == 3 else (160, 120)), "JPEG")
        file.write_bytes(content[: 1 + len(content) // 2] if number % 40 == 7 else content)
    return folder


def prepared(source: Path, folder: Path, settings: Prepare, cluster: Cluster | None = None) -> dict[str, bytes]:
    pictures = fetch(Data(source=str(source)), folder.parent / "fetched.csv")
    prepare(pictures, source, settings, EVEN, 0, 2, folder, cluster)
    return files(folder)


@pytest.mark.parametrize("settings", [SMALL, Prepare(short_side=64, raw_gb=0)], ids=["raw", "jpeg"])
def test_a_cluster_decodes_to_the_same_bytes(
    two_nodes: TwoNodes, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Prepare
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pack, "SENT", 100_000)  # a few pictures; the truncated ones and the rest alternate
    expected = prepared(source, tmp_path / "here", settings)
    with connected(two_nodes.address, MODULE) as cluster:
        assert prepared(source, tmp_path / "there", settings, cluster) == expected


def test_a_node_that_dies_half_way_and_pictures_too_large_to_send_change_nothing(
    two_nodes: TwoNodes, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pack, "SENT", 45_000)  # two pictures with their pixels, and less than a large one
    expected = prepared(source, tmp_path / "here", SMALL)
    answers = Answers(monkeypatch, 20, two_nodes.remove_second)
    with connected(two_nodes.address, MODULE) as cluster:
        assert prepared(source, tmp_path / "there", SMALL, cluster) == expected
    assert 20 < answers.taken <= PICTURES // 2
