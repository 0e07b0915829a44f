"""Which engine runs a frozen network. The choice is a function of the inputs: the network, the pictures, how many there
are, and the kind of processor. No clock takes part, since which engine it was shows in the last digits of every result.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headstart.base.artifacts.engine import EngineChoice
from headstart.base.safe_text import shortened
from headstart.base.terminal import say
from headstart.engines.base import Engine, Forward
from headstart.engines.eager import Torch
from headstart.engines.openvino import OpenVINO
from headstart.models.complexity import gmacs
from headstart.models.task import SINGLE_LABEL

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (Torch(), OpenVINO())}

SAMPLE = 16  # pictures on which engines are compared

WORTH_COMPARING = 8 * SAMPLE  # pictures; two engines are shown a sample each, and then one has to be compiled

TOLERANCE = 1e-4  # of the largest answer: what is left of it is the order in which sums are made

# What bfloat16 may cost, measured on PROBED pictures: the median cosine between a picture's two feature vectors, the share
# of a probe's answers that stay the same, and the probe's log-loss.
PROBED, COSINE, AGREEMENT, LOG_LOSS = 256, 0.999, 0.99, 0.01


def engine_for(
    network: nn.Module,
    pictures: int,
    sample: Tensor,
    device: torch.device,
    wanted: str = "auto",
    labels: Tensor | None = None,
) -> tuple[Forward, EngineChoice]:
    """The forward pass of ``network`` by the engine that suits it, and which that is.

    Args:
        network: in eval mode, on ``device``; its output is one tensor.
        pictures: how many will be passed, in all.
        sample: (N, 3, H, W) pictures, on which the engine has to agree with torch.
        wanted: an engine's name, or auto. One that fails, disagrees or cannot run here is not used, whatever is wanted.
        labels: (N,) classes of ``sample``; without them bfloat16 is not tried.
    """
    few = sample[:SAMPLE]
    reference = ENGINES["torch"].prepare(network, few, device)
    if wanted == "torch":
        return reference("fp32"), EngineChoice(engine="torch", why="params.yaml asks for it")
    if wanted == "auto" and device.type == "cpu" and pictures < WORTH_COMPARING:
        return reference("fp32"), EngineChoice(
            engine="torch", why=f"{pictures} pictures are too few to prepare another engine"
        )
    work = pictures * gmacs(network, *few.shape[-2:])
    engine = _preferred(work, device) if wanted == "auto" else ENGINES[wanted]
    if not engine.runs_on(device):
        engine = ENGINES["torch"]
    if engine.name == "torch":
        prepared, exact = reference, reference("fp32")
        why = f"{work:.0f} GMACs are too few to prepare another engine"
        if device.type != "cpu":
            why = f"the network runs on {device.type}"
    else:
        try:
            prepared = engine.prepare(network, few, device)
            exact = prepared("fp32")
            objection = _disagreement(engine.name, exact(few), reference("fp32")(few))
        except Exception as error:  # whatever a converter says about a network that it cannot take
            objection = f"{engine.name} cannot take this network ({_in_short(error)})"
        if objection:
            say(f"{objection}; going on with torch")
            return reference("fp32"), EngineChoice(engine="torch", why=objection)
        why = f"within {TOLERANCE:g} of torch on {len(few)} pictures"
    if labels is None or work < engine.bf16_pays_from(device):
        return exact, EngineChoice(engine=engine.name, why=why)
    rounded = prepared("bf16")
    objection = objection_to(rounded(sample), exact(sample), labels)
    if objection:
        say(f"bfloat16 is not used: {objection}")
        return exact, EngineChoice(engine=engine.name, why=f"{why}; bfloat16 was tried and refused: {objection}")
    return rounded, EngineChoice(
        engine=f"{engine.name} bf16", why=f"a probe's answers stay the same on {len(sample)} pictures"
    )


def _preferred(work: float, device: torch.device) -> Engine:
    """Of the engines that run on ``device`` and pay for so much work (GMACs), the one that needs the most to pay."""
    return max((e for e in ENGINES.values() if e.runs_on(device) and e.pays_from <= work), key=lambda e: e.pays_from)


def _disagreement(name: str, found: Tensor, expected: Tensor) -> str | None:
    found, expected = found.cpu(), expected.cpu()
    distance = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if distance <= TOLERANCE:
        return None
    return f"{name}'s answers are {distance:.2g} from torch's, and {TOLERANCE:g} is allowed"


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {shortened(str(error), 120)}"


def objection_to(found: Tensor, expected: Tensor, labels: Tensor) -> str | None:
    """What speaks against features ``found`` in place of ``expected``, both (N, D); None where nothing does.

    A probe, fitted on ``expected`` as the head is, has to give the same answers on both.

    Args:
        found: (N, D), or (N, D, 1, 1).
        expected: likewise.
        labels: (N, ...), encoded.
    """
    from headstart.models.logistic import fit_path  # and SciPy, which takes half a second and is needed for bfloat16 alone

    found, expected, labels = found.flatten(1).cpu(), expected.flatten(1).cpu(), labels.cpu()
    if labels.ndim == 2:  # where there are several, a class that about half of the pictures have stands for all
        labels = labels[:, (labels.double().mean(0) - 0.5).abs().argmin(0)]
    cosine = float(torch.cosine_similarity(found, expected).median())
    if not cosine >= COSINE:
        return f"the median cosine to exact features is {cosine:.4f}, and {COSINE:g} is required"
    mean, scale = expected.mean(0), expected.std(0).clamp_min(1e-8)
    present, numbers = torch.unique(labels, return_inverse=True)
    if len(present) < 2:
        return "the sample has one class only"
    exact, rounded = (expected - mean) / scale, (found - mean) / scale
    ((weight, bias, _),) = fit_path(exact, numbers, len(present), [0.01])
    logits = [torch.addmm(bias, x, weight.T) for x in (exact, rounded)]
    before, after = (SINGLE_LABEL.predict(each) for each in logits)
    same = float((before == after).float().mean())
    if same < AGREEMENT:
        return f"a probe's answers stay the same on {same:.1%} of the pictures, and {AGREEMENT:.0%} is required"
    before_loss, after_loss = (SINGLE_LABEL.losses(each.numpy(), numbers.numpy()).mean() for each in logits)
    moved = float(abs(after_loss - before_loss))
    if moved > LOG_LOSS:
        return f"a probe's log-loss moves by {moved:.3f}, and {LOG_LOSS:g} is allowed"
    return None
