"""`headstart models`: what is asked for, in the order asked for, and figures that took long are found once."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from headstart.base.errors import HeadstartError
from headstart.base.kept import read_kept
from headstart.base.measurements import Measurements
from headstart.models.catalogue import published
from headstart.models.listing import COUNTED, SORTS, Query, Row, count, listed, measure, of_network
from tests.studies.test_ranking import in_folder


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


rows = st.lists(
    st.builds(
        Row,
        backbone=st.text("abc._0", min_size=1, max_size=6),
        library=st.sampled_from(["torchvision", "timm"]),
        imagenet_top1=maybe(st.floats(0, 100)),
        imagenet_top5=maybe(st.floats(0, 100)),
        depth=maybe(st.integers(1, 200)),
        parameters=maybe(st.integers(1, 10**10)),
        gmacs=maybe(st.floats(0, 1000)),
        input_size=maybe(st.integers(32, 1000)),
        at_hand=st.booleans(),
    ),
    unique_by=lambda row: row.backbone,
)


@given(rows, st.sampled_from(sorted(SORTS)), maybe(st.integers(1, 20)))
def test_rows_are_in_order_what_is_unknown_comes_last_and_none_is_lost(
    given_rows: list[Row], sort: str, limit: int | None
) -> None:
    found = Query(sort=sort).ordered(given_rows)
    assert sorted(row.backbone for row in found) == sorted(row.backbone for row in given_rows)
    key, more_is_better = SORTS[sort]
    values = [getattr(row, key) for row in found]
    known = [value for value in values if value is not None]
    assert values == known + [None] * (len(values) - len(known))
    assert known == sorted(known, reverse=more_is_better)
    for a, b in pairwise(found):
        assert getattr(a, key) != getattr(b, key) or a.backbone < b.backbone
    assert Query(sort=sort).ordered(given_rows[::-1]) == found
    assert Query(sort=sort, limit=limit).ordered(given_rows) == found[:limit]


@given(
    rows, maybe(st.sampled_from(["torchvision", "timm"])), st.booleans(), maybe(st.floats(0, 1e4)), maybe(st.floats(0, 100))
)
def test_a_row_is_kept_exactly_where_it_is_within_every_bound(
    given_rows: list[Row], library: str | None, there: bool, millions: float | None, top1: float | None
) -> None:
    query = Query(library=library, at_hand=there, max_parameters=millions, min_top1=top1)
    for row in given_rows:
        outside = [
            library is not None and row.library != library,
            there and not row.at_hand,
            millions is not None and (row.parameters is None or row.parameters > millions * 1e6),
            top1 is not None and (row.imagenet_top1 is None or row.imagenet_top1 < top1),
        ]
        assert query.keeps(row) is not any(outside)


KNOWN = ["resnet18", "resnet18.a1_in1k", "resnet34", "tf_efficientnet_lite0", "wide_resnet50_2"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ((), KNOWN),
        (("resnet18",), ["resnet18"]),  # a whole name is that one alone
        (("resnet18*",), ["resnet18", "resnet18.a1_in1k"]),
        (("resnet",), ["resnet18", "resnet18.a1_in1k", "resnet34", "wide_resnet50_2"]),
        (("lite0", "resnet?4"), ["resnet34", "tf_efficientnet_lite0"]),
    ],
)
def test_patterns(patterns: tuple[str, ...], expected: list[str]) -> None:
    assert Query(patterns).names(KNOWN) == expected


def test_a_pattern_that_fits_nothing_is_said_with_what_is_near() -> None:
    with pytest.raises(HeadstartError, match=r"^no backbone matches 'resnet81'; did you mean 'resnet18'"):
        Query(("resnet34", "resnet81")).names(KNOWN)


# --- the rows themselves ----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("HEADSTART_WEIGHTS_MIRROR", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))


def row_of(name: str, mirror: str | None = None) -> Row:
    (row,) = listed(Query((name,)), mirror, in_folder(Path("state")))
    return row


def test_the_same_network_is_listed_once_under_its_shorter_name() -> None:
    found = {row.backbone for row in listed(Query(("tf_efficientnet_lite*",)), None, in_folder(Path("state")))}
    assert found == {f"tf_efficientnet_lite{n}" for n in range(5)}
    assert row_of("tf_efficientnet_lite0.in1k").imagenet_top1 == row_of("tf_efficientnet_lite0").imagenet_top1
    both = {row.backbone for row in listed(Query(("resnet18*",)), None, in_folder(Path("state")))}
    assert {"resnet18", "resnet18.a1_in1k"} <= both  # torchvision's and timm's: two networks


def test_listing_everything_builds_no_network() -> None:
    found = listed(Query(), None, in_folder(Path("state")))
    assert len(found) > 1000
    assert sum(row.imagenet_top1 is not None for row in found) > 1000
    assert sum(row.parameters is not None for row in found) > 1000
    assert all(row.depth is None for row in found)
    count(found, in_folder(Path("state")))
    assert all(row.depth is None for row in found)
    assert not Path("state").exists()


def test_what_nobody_publishes_is_counted_for_few_and_once(capsys: pytest.CaptureFixture[str]) -> None:
    state = in_folder(Path("state"))
    found = [row_of("tf_efficientnet_lite0"), row_of("test_resnet")]
    assert [row.gmacs for row in found] == [None, None]
    count(found, state)
    assert "counting layers: 2 networks" in capsys.readouterr().err
    assert found[0].depth == 50
    assert found[0].gmacs == pytest.approx(0.39, abs=0.01)
    assert found[0].parameters == published("tf_efficientnet_lite0").parameters  # what is published stays
    again = [row_of("tf_efficientnet_lite0"), row_of("test_resnet")]
    count(again, state)
    assert again == found
    assert capsys.readouterr().err == ""


def test_parameters_that_are_counted_are_those_that_are_published() -> None:
    for name in ("squeezenet1_0", "inception_v3", "vit_b_16", "tf_efficientnet_lite0", "mobilenetv3_small_050"):
        found = of_network(name)
        assert list(found) == list(dict.fromkeys([*found]))
        assert set(found) == set(COUNTED)
        assert found["parameters"] == pytest.approx(published(name).parameters, abs=5e3)
        assert found["input_size"] == published(name).input_size


def test_sorting_by_what_is_counted_counts_it_first() -> None:
    found = listed(Query(("test_efficientnet*", "test_resnet"), sort="gmacs", limit=2), None, in_folder(Path("state")))
    assert len(found) == 2
    assert 0 < found[0].gmacs <= found[1].gmacs


# --- at hand ----------------------------------------------------------------------------------------------------------


def test_weights_are_at_hand_in_a_package_a_cache_or_a_folder_and_nowhere_else(tmp_path: Path) -> None:
    assert row_of("tf_efficientnet_lite0").at_hand
    assert not row_of("vgg19").at_hand
    assert not row_of("test_resnet").at_hand
    assert not row_of("test_resnet", "https://127.0.0.1:9/mirror").at_hand
    assert [row.backbone for row in listed(Query(at_hand=True), None, in_folder(Path("state")))] == [
        f"tf_efficientnet_lite{n}" for n in range(3)
    ]

    file = "timm/test_resnet.r160_in1k/model.safetensors"
    (tmp_path / "mirror" / file).parent.mkdir(parents=True)
    save_file({"a": torch.zeros(1)}, tmp_path / "mirror" / file)
    assert row_of("test_resnet", "mirror").at_hand
    assert row_of("test_resnet.r160_in1k", (tmp_path / "mirror").as_uri()).at_hand

    snapshot = tmp_path / "hf/models--timm--test_resnet.r160_in1k/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("abc")
    assert not row_of("test_resnet").at_hand
    (snapshot / "model.safetensors").write_bytes((tmp_path / "mirror" / file).read_bytes())
    assert row_of("test_resnet").at_hand

    checkpoints = tmp_path / "torch/hub/checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "vgg19-dcbb9e9d.pth").write_bytes(b"")
    assert row_of("vgg19").at_hand
    assert not row_of("vgg19_bn").at_hand


# --- times ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def threads() -> Any:
    """Measuring sets the number of threads for the process."""
    before = torch.get_num_threads()
    yield 1
    torch.set_num_threads(before)


def test_times_are_measured_once_and_read_back(threads: int, capsys: pytest.CaptureFixture[str]) -> None:
    query, state = Query(("mobilenetv3_small_050",)), in_folder(Path("state"))
    first = listed(query, None, state)
    assert "random weights, 8 pictures at once, float32, 1 threads" in measure(first, query, threads, state)
    assert "measuring: 1 network in " in capsys.readouterr().err
    assert first[0].forward_ms > 0
    assert first[0].backward_ms > 0
    kept = Path("state/models/milliseconds.json").read_bytes()
    second = listed(query, None, state)
    measure(second, query, threads, state)
    assert second == first
    assert capsys.readouterr().err == ""
    assert Path("state/models/milliseconds.json").read_bytes() == kept


def test_who_interrupts_keeps_what_has_been_measured(
    threads: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    query, state = Query(("test_resnet", "test_efficientnet")), in_folder(Path("state"))
    found = listed(query, None, state)
    create = timm.create_model

    def impatient(name: str, **options: Any) -> Any:
        if name == "test_resnet":
            raise KeyboardInterrupt
        return create(name, **options)

    with monkeypatch.context() as patched:
        patched.setattr(timm, "create_model", impatient)
        with pytest.raises(KeyboardInterrupt):
            measure(found, query, threads, state)
    assert "headstart: interrupted; the networks that are done are kept" in capsys.readouterr().err
    (kept,) = read_kept(Path("state/models/milliseconds.json")).values()
    again = listed(query, None, state)
    measure(again, query, threads, state)
    assert {"forward_ms": again[0].forward_ms, "backward_ms": again[0].backward_ms} == kept
    assert again[1].forward_ms > 0


def test_a_network_that_does_not_fit_is_said_and_the_others_are_measured(
    threads: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("headstart.models.listing.memory", lambda device: (100_000_000, 8_000_000_000))
    query, state = Query(("vgg16", "test_resnet")), in_folder(Path("state"))
    found = listed(query, None, state)
    measure(found, query, threads, state)
    by_name = {row.backbone: row for row in found}
    assert by_name["vgg16"].forward_ms is None
    assert by_name["test_resnet"].forward_ms > 0
    assert "vgg16 is not measured: a step takes" in capsys.readouterr().err
    assert len(Measurements(Path("state/models/milliseconds.json"))._values) == 1  # tried again when there is more memory


def test_everything_is_measured_only_where_somebody_chose_it() -> None:
    query = Query(library="torchvision")
    found = listed(query, None, in_folder(Path("state")))
    with pytest.raises(HeadstartError, match=rf"--measure would run {len(found)} networks; name some, or say --limit 20"):
        measure(found, query, 1, in_folder(Path("state")))
