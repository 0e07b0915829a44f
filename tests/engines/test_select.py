"""What runs frozen layers: the same answers as torch, and torch where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from headstart.base.files import read_json, write_json
from headstart.engines.openvino import PICTURES_PER_REQUEST, compiled_for, has_bfloat16
from headstart.engines.select import (
    WORTH_COMPARING,
    Stopwatch,
    _autocast,
    _rounded_if_as_good,
    engine_for,
    objection_to,
)
from headstart.models.backbones import architecture

CPU = torch.device("cpu")
MANY = 10**6


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


@pytest.mark.parametrize("count", [1, PICTURES_PER_REQUEST, PICTURES_PER_REQUEST * 3 + 1])
def test_openvino_answers_for_any_number_of_pictures_in_their_order(count: int) -> None:
    network = small()
    pictures = torch.randn(count, 3, 32, 32)
    engine, told = engine_for(network, MANY, pictures, CPU, "openvino")
    assert told["engine"] == "openvino"
    with torch.no_grad():
        expected = network(pictures)
    assert torch.allclose(engine(pictures), expected, atol=1e-5)
    assert torch.equal(engine(pictures), engine(pictures))
    assert all(parameter.requires_grad for parameter in network.parameters())  # as before


def test_openvino_agrees_with_torch_on_a_real_network() -> None:
    trunk = architecture("resnet18").trunk().eval()
    pictures = torch.randn(9, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    engine, told = engine_for(trunk, MANY, pictures, CPU, "openvino")
    assert told["engine"] == "openvino"
    with torch.no_grad():
        expected = trunk(pictures)
    assert (engine(pictures) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(("wanted", "device"), [("torch", "cpu"), ("auto", "meta")])
def test_torch_runs_it_where_asked_and_where_it_is_no_cpu(wanted: str, device: str) -> None:
    _, told = engine_for(small(), 10**9, torch.randn(2, 3, 32, 32), torch.device(device), wanted)
    assert told["engine"] == "torch"


def test_a_pass_that_takes_no_time_is_not_worth_compiling() -> None:
    _, told = engine_for(small(), WORTH_COMPARING, torch.randn(2, 3, 32, 32), CPU)
    assert (told["engine"], told["why"]) == ("torch", "compiling would take longer than the whole pass")


def test_for_few_pictures_no_engines_are_compared(tmp_path: Path) -> None:
    network, pictures, file = small(), torch.randn(4, 3, 32, 32), tmp_path / "seconds.json"
    write_json(file, {Stopwatch(network, pictures).key: {"torch": 1000.0, "openvino": 0.01}})
    assert engine_for(network, WORTH_COMPARING, pictures, CPU, timings=file)[1]["engine"] == "openvino"
    _, told = engine_for(network, WORTH_COMPARING - 1, pictures, CPU, timings=file)
    assert (told["engine"], told["why"]) == ("torch", "to compare engines would take longer than the whole pass")
    network.forward = None  # type: ignore[assignment]
    engine_for(network, WORTH_COMPARING - 1, pictures, CPU)  # nor is the network run


@pytest.mark.parametrize(("openvino", "expected"), [(0.001, "openvino"), (0.03, "torch")])
def test_what_was_measured_once_decides_ever_after(openvino: float, expected: str, tmp_path: Path) -> None:
    network, pictures, file = small(), torch.randn(4, 3, 32, 32), tmp_path / "seconds.json"
    write_json(file, {"another": {"torch": 5.0}, Stopwatch(network, pictures).key: {"torch": 0.01, "openvino": openvino}})
    assert engine_for(network, 1000, pictures, CPU, timings=file)[1]["engine"] == expected
    assert engine_for(network, 700, pictures, CPU, timings=file)[1]["engine"] == "torch"  # 7 s
    assert "another" in read_json(file)


def test_every_stream_has_work_while_engines_are_timed() -> None:
    shown, threads = [], torch.get_num_threads()

    def engine(pictures: Tensor) -> Tensor:
        shown.append(pictures)
        return pictures

    try:
        torch.set_num_threads(5)
        sample = torch.arange(16.0)[:, None, None, None]
        Stopwatch(small(), sample).seconds("openvino", engine)
    finally:
        torch.set_num_threads(threads)
    first, timed = shown
    assert torch.equal(first, sample)
    assert len(timed) == 5 * PICTURES_PER_REQUEST
    assert torch.equal(timed[16:32], sample)


def test_timings_are_measured_and_kept(tmp_path: Path) -> None:
    network, pictures, file = small(), torch.randn(4, 3, 32, 32), tmp_path / "seconds.json"
    first = engine_for(network, 10**7, pictures, CPU, timings=file)[1]
    kept = file.read_bytes()
    (measured,) = read_json(file).values()
    assert set(measured) == {"torch", "openvino"}
    assert min(measured.values()) > 0
    assert engine_for(network, 10**7, pictures, CPU, timings=file)[1] == first
    assert file.read_bytes() == kept


# --- bfloat16 -------------------------------------------------------------------------------------------------------


def features(offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Three overlapping clouds of 300 feature vectors."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    centres = torch.randn(3, 32, generator=generator)
    return centres[labels] + 0.7 * torch.randn(300, 32, generator=generator) + offset, labels


def test_rounding_to_bfloat16_is_let_pass() -> None:
    exact, labels = features()
    assert objection_to(exact.bfloat16().float(), exact, labels) is None


def test_features_that_point_elsewhere_are_refused() -> None:
    exact, labels = features()
    assert "median cosine" in str(objection_to(exact + 0.2 * torch.randn(exact.shape), exact, labels))


def test_rounding_that_changes_answers_is_refused_however_near_the_features_are() -> None:
    exact, labels = features(offset=2000)  # bfloat16 knows 2000 and 2008 and nothing between
    found = exact.bfloat16().float()
    assert float(torch.cosine_similarity(found, exact).median()) > 0.999
    assert "a probe's" in str(objection_to(found, exact, labels))


def test_a_sample_of_one_class_decides_nothing() -> None:
    exact, labels = features()
    assert objection_to(exact, exact, torch.zeros_like(labels)) == "the sample has one class only"


def test_bfloat16_is_compiled_and_runs_whatever_the_processor() -> None:
    network, pictures = small(), torch.randn(11, 3, 32, 32)
    compiled = compiled_for(network, pictures)
    exact, rounded = compiled("f32")(pictures), compiled("bf16")(pictures)
    assert torch.cosine_similarity(exact, rounded).median() > 0.999
    assert isinstance(has_bfloat16(), bool)


@pytest.mark.parametrize(
    ("shift", "slower", "expected"), [(0.0, 0.0, "torch bf16"), (0.0, 9.0, "torch"), (9.0, 0.0, "torch")]
)
def test_rounding_is_used_where_it_is_faster_and_changes_no_answer(
    shift: float, slower: float, expected: str, tmp_path: Path
) -> None:
    network, file = nn.Linear(32, 32).requires_grad_(False), tmp_path / "seconds.json"
    torch.nn.init.eye_(network.weight)
    sample, labels = features()
    watch = Stopwatch(network, sample[:4], file)
    watch.measured = {"torch": 1.0, "torch bf16": 0.5 + slower}
    rounded = _autocast(network, CPU)

    def shifted(batch: Tensor) -> Tensor:
        return rounded(batch) + shift * torch.randn(batch.shape)

    _, told = _rounded_if_as_good(watch, network, shifted, {"engine": "torch", "why": "asked"}, sample, labels)
    assert told["engine"] == expected
    assert ("refused: the median cosine" in told["why"]) is (shift > 0)
    assert _rounded_if_as_good(watch, network, shifted, {"engine": "torch", "why": ""}, sample, None)[0] is network


class Moody(nn.Module):
    """Takes a way that depends on the pictures; tracing follows only the one for black ones."""

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.mean((2, 3)) + (1 if pictures.abs().sum() == 0 else 0)


class Unwilling(nn.Module):
    def forward(self, pictures: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            raise ValueError("not when somebody is looking")
        return pictures.mean((2, 3))


@pytest.mark.parametrize(("network", "reason"), [(Moody(), "from torch's"), (Unwilling(), "cannot take this network")])
def test_a_network_that_openvino_cannot_take_or_gets_wrong_stays_with_torch(
    network: nn.Module, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = torch.randn(4, 3, 16, 16)
    engine, told = engine_for(network.eval(), MANY, pictures, CPU, "openvino")
    assert told["engine"] == "torch"
    assert reason in told["why"]
    assert "going on with torch" in capsys.readouterr().out
    assert engine(pictures).shape == (4, 3)
