"""What runs a frozen network: torch, or OpenVINO where it gives the same answers faster.

OpenVINO fuses normalisation and activation layers into the convolutions and keeps one stream per core busy, which eager
torch does not; where the processor has bfloat16 it can use that (bench/engines.py). Compiling takes seconds, so which of
them is worth it depends on the network, on the machine and on how many pictures there are: it is measured.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.base.measurements import Measurements, machine
from headstart.engines.base import Engine
from headstart.engines.openvino import PICTURES_PER_REQUEST, compiled_for, has_bfloat16

WORTH_COMPILING, WORTH_ROUNDING = 8.0, 20.0  # seconds that a pass takes; a shorter one ends sooner as it is

SAMPLE = 16  # pictures on which engines are timed and compared

WORTH_COMPARING = 8 * SAMPLE  # pictures; two engines are shown four samples to be compared, and then one has to be compiled

TOLERANCE = 1e-4  # of the largest answer: what is left of it is the order in which sums are made

# What bfloat16 may cost, measured on PROBED pictures: the median cosine between a picture's two feature vectors, the share
# of a probe's answers that stay the same, and the probe's log-loss.
PROBED, COSINE, AGREEMENT, LOG_LOSS = 256, 0.999, 0.99, 0.01


class Stopwatch:
    """Seconds per picture of each engine that ran a network on this machine. They are kept in ``file``, so that a network
    that was measured once is run with the same engine ever after, and gives the same bytes."""

    def __init__(self, network: nn.Module, sample: Tensor, file: Path | None = None) -> None:
        self.key = Measurements.key(machine(), sample.shape[1:], str(network))
        self.sample, self.kept = sample, Measurements(file)
        self.measured: dict[str, float] = dict(self.kept.get(self.key, {}))
        self.answers: dict[str, Tensor] = {}

    def answer(self, name: str, engine: Engine) -> Tensor:
        if name not in self.answers:
            self.answers[name] = engine(self.sample).cpu()
        return self.answers[name]

    def seconds(self, name: str, engine: Engine) -> float:
        if name not in self.measured:
            self.answer(name, engine)  # the first pass sets things up
            # Work for all of OpenVINO's streams.
            count = max(len(self.sample), PICTURES_PER_REQUEST * torch.get_num_threads())
            pictures = self.sample[torch.arange(count) % len(self.sample)]
            start = time.perf_counter()
            engine(pictures).cpu()  # an accelerator is done when its answers are here
            self.measured[name] = (time.perf_counter() - start) / count
            self.kept[self.key] = self.measured
        return self.measured[name]


def engine_for(
    network: nn.Module,
    pictures: int,
    sample: Tensor,
    device: torch.device,
    wanted: str = "auto",
    labels: Tensor | None = None,
    timings: Path | None = None,
) -> tuple[Engine, dict[str, Any]]:
    """The engine to run ``network`` with, and what to tell about it: ``engine`` and ``why``.

    An engine takes (N, 3, H, W) pictures, as ``network`` does, and gives the network's output for them, on ``device``.

    Args:
        network: in eval mode, on ``device``; its output is one tensor.
        pictures: how many will be passed, in all.
        sample: (N, 3, H, W) pictures, on which engines are timed and have to agree with torch.
        wanted: torch, openvino or auto. OpenVINO that fails or disagrees is not used, whatever is wanted.
        labels: (N,) classes of ``sample``; without them bfloat16 is not tried.
        timings: file in which what was measured is kept from run to run.
    """

    def eager(batch: Tensor) -> Tensor:
        with torch.no_grad():  # not inference_mode, whose tensors no training may start from
            found: Tensor = network(batch.to(device))
        return found

    if wanted == "torch":
        return eager, {"engine": "torch", "why": "params.yaml asks for it"}
    few = sample[:SAMPLE]
    watch = Stopwatch(network, few, timings)
    if device.type != "cpu":
        exactly = {"engine": "torch", "why": f"the network runs on {device.type}"}
        return _rounded_if_as_good(watch, eager, _autocast(network, device), exactly, sample, labels)
    if wanted == "auto":
        if pictures < WORTH_COMPARING:
            return eager, {"engine": "torch", "why": "to compare engines would take longer than the whole pass"}
        if pictures * watch.seconds("torch", eager) < WORTH_COMPILING:
            return eager, {"engine": "torch", "why": "compiling would take longer than the whole pass"}
        if watch.measured.get("openvino", 0) > watch.measured["torch"]:
            return eager, {"engine": "torch", "why": "measured on this machine, OpenVINO is slower"}
    reason = ""
    try:
        compiled = compiled_for(network, few)
        fast = compiled("f32")
        expected, found = watch.answer("torch", eager), watch.answer("openvino", fast)
    except Exception as error:  # whatever a converter says about a network that it cannot take
        reason = f"OpenVINO cannot take this network ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
    else:
        distance = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
        if not distance <= TOLERANCE:
            reason = f"OpenVINO's answers are {distance:.2g} from torch's, and {TOLERANCE:g} is allowed"
    if reason:
        print(f"{reason}; going on with torch")
        return eager, {"engine": "torch", "why": reason}
    if wanted == "auto" and watch.seconds("openvino", fast) > watch.seconds("torch", eager):
        return eager, {"engine": "torch", "why": "measured on this machine, OpenVINO is slower"}
    told = {"engine": "openvino", "why": f"within {TOLERANCE:g} of torch on {len(few)} pictures"}
    if labels is None or not has_bfloat16() or pictures * watch.seconds("openvino", fast) < WORTH_ROUNDING:
        return fast, told
    return _rounded_if_as_good(watch, fast, compiled("bf16"), told, sample, labels)


def _rounded_if_as_good(
    watch: Stopwatch, exact: Engine, rounded: Engine, told: dict[str, Any], sample: Tensor, labels: Tensor | None
) -> tuple[Engine, dict[str, Any]]:
    """``rounded`` where it is the faster one and nothing speaks against it, ``exact`` otherwise, and what to tell."""
    if labels is None:
        return exact, told
    objection = objection_to(rounded(sample), exact(sample), labels)
    if objection:
        print(f"bfloat16 is not used: {objection}")
        return exact, told | {"why": f"{told['why']}; bfloat16 was tried and refused: {objection}"}
    name = f"{told['engine']} bf16"
    if watch.seconds(name, rounded) > watch.seconds(told["engine"], exact):
        return exact, told
    return rounded, {"engine": name, "why": f"a probe's answers stay the same on {len(sample)} pictures"}


def _autocast(network: nn.Module, device: torch.device) -> Engine:
    """torch with bfloat16 where that is the faster way and float32 where it has to be."""

    def run(batch: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            found: Tensor = network(batch.to(device))
        return found.float()

    return run


def objection_to(found: Tensor, expected: Tensor, labels: Tensor) -> str | None:
    """What speaks against features ``found`` in place of ``expected``, both (N, D); None where nothing does.

    A probe, fitted on ``expected`` as the head is, has to give the same answers on both.
    """
    from headstart.models.logistic import fit_path  # and SciPy, which takes half a second and is needed for bfloat16 alone

    found, expected, labels = found.flatten(1).cpu(), expected.flatten(1).cpu(), labels.cpu()
    cosine = float(torch.cosine_similarity(found, expected).median())
    if not cosine >= COSINE:
        return f"the median cosine to exact features is {cosine:.4f}, and {COSINE:g} is required"
    mean, scale = expected.mean(0), expected.std(0).clamp_min(1e-8)
    present, numbers = torch.unique(labels, return_inverse=True)
    if len(present) < 2:
        return "the sample has one class only"
    exact, rounded = (expected - mean) / scale, (found - mean) / scale
    ((weight, bias, _),) = fit_path(exact, numbers, len(present), [0.01])
    before, after = (torch.log_softmax(torch.addmm(bias, x, weight.T), dim=1) for x in (exact, rounded))
    same = float((before.argmax(1) == after.argmax(1)).float().mean())
    if same < AGREEMENT:
        return f"a probe's answers stay the same on {same:.1%} of the pictures, and {AGREEMENT:.0%} is required"
    moved = float((after - before).gather(1, numbers[:, None]).mean().abs())
    if moved > LOG_LOSS:
        return f"a probe's log-loss moves by {moved:.3f}, and {LOG_LOSS:g} is allowed"
    return None
