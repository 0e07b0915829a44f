"""What runs a frozen network: torch, or OpenVINO where it gives the same answers faster.

OpenVINO fuses normalisation and activation layers into the convolutions and keeps one stream per core busy, which eager
torch does not (bench/engines.py). It takes seconds to compile a network, so it is asked only where that pays back.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.data.pixels import Pixels
from headstart.views import View, batches

Engine = Callable[[Tensor], Tensor]
WORTH_COMPILING = 1000  # pictures; with fewer, the seconds spent on compiling do not come back (bench/engines.py)
PICTURES_PER_REQUEST = 8
TOLERANCE = 1e-4  # of the largest answer: what is left of it is the order in which sums are made
SAMPLE = 16


def engine_for(
    network: nn.Module, pictures: int, sample: Tensor, device: torch.device, wanted: str = "auto"
) -> tuple[Engine, dict[str, Any]]:
    """The engine to run ``network`` with, and what to tell about it: ``engine`` and ``why``.

    An engine takes (N, 3, H, W) normalised pictures and gives the network's output for them, on ``device``.

    Args:
        network: in eval mode, on ``device``; its output is one tensor.
        pictures: how many will be passed, in all.
        sample: (N, 3, H, W) normalised pictures, on which OpenVINO has to agree with torch.
        wanted: torch, openvino or auto. OpenVINO that fails or disagrees is not used, whatever is wanted.
    """

    def eager(batch: Tensor) -> Tensor:
        with torch.no_grad():  # not inference_mode, whose tensors no training may start from
            found: Tensor = network(batch.to(device))
        return found

    if wanted == "torch":
        return eager, {"engine": "torch", "why": "params.yaml asks for it"}
    if device.type != "cpu":
        return eager, {"engine": "torch", "why": f"the network runs on {device.type}"}
    if wanted == "auto" and pictures < WORTH_COMPILING:
        return eager, {"engine": "torch", "why": f"fewer than {WORTH_COMPILING} pictures: compiling would not pay back"}
    sample = sample[:SAMPLE]
    try:
        fast = _openvino(network, sample.shape[1:])
        expected, found = eager(sample), fast(sample)
    except Exception as error:  # whatever a converter says about a network that it cannot take
        reason = f"OpenVINO cannot take this network ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
    else:
        distance = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
        if distance <= TOLERANCE:
            return fast, {"engine": "openvino", "why": f"within {TOLERANCE:g} of torch on {len(sample)} pictures"}
        reason = f"OpenVINO's answers are {distance:.2g} from torch's, and {TOLERANCE:g} is allowed"
    print(f"{reason}; going on with torch")
    return eager, {"engine": "torch", "why": reason}


def answers_of(
    engine: Engine,
    view: View,
    pixels: Pixels,
    rows: NDArray[np.integer[Any]],
    batch: int,
    file: Path,
    each: Callable[[Sequence[int], NDArray[np.float32]], None] = lambda rows, found: None,
) -> np.memmap[Any, np.dtype[np.float32]]:
    """(len(rows), ...) float32 in ``file``: what ``engine`` makes of the pictures ``rows``, written as it comes, so that
    memory does not grow with their number.

    Args:
        rows: at least one.
        each: called for every batch, with its rows and what was found for them.
    """
    stored: np.memmap[Any, np.dtype[np.float32]] | None = None
    at = 0
    for chunk, pictures in batches(view, pixels, rows.tolist(), batch):
        found = engine(pictures).float().cpu().numpy()
        each(chunk, found)
        if stored is None:
            stored = np.memmap(file, np.float32, "w+", shape=(len(rows), *found.shape[1:]))
        stored[at : at + len(chunk)] = found
        at += len(chunk)
    assert stored is not None
    return stored


def _openvino(network: nn.Module, shape: torch.Size) -> Engine:
    """Compiled for requests of eight pictures of ``shape``, one stream of one thread per core.

    A stream works alone, so the same picture gives the same bytes with any number of them.
    """
    import openvino
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example = torch.zeros(PICTURES_PER_REQUEST, *shape)
    # The two steps of openvino.convert_model without its telemetry: nothing leaves this machine.
    frontend = openvino.frontend.FrontEndManager().load_by_framework("pytorch")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer's, about shapes that are fixed here on purpose
        decoder = TorchScriptPythonDecoder(network, example_input=example)  # has to live until it is converted
        model = frontend.convert(frontend.load(decoder))
    model.reshape(list(example.shape))
    threads = torch.get_num_threads()
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    requests = openvino.AsyncInferQueue(compiled, threads + 1)

    def run(batch: Tensor) -> Tensor:
        pictures = batch.contiguous().numpy()
        missing = -len(pictures) % PICTURES_PER_REQUEST
        if missing:
            pictures = np.concatenate([pictures, np.zeros((missing, *pictures.shape[1:]), pictures.dtype)])
        found: dict[int, Any] = {}
        requests.set_callback(lambda request, at: found.__setitem__(at, request.get_output_tensor(0).data.copy()))
        for at in range(0, len(pictures), PICTURES_PER_REQUEST):
            requests.start_async({0: pictures[at : at + PICTURES_PER_REQUEST]}, at)
        requests.wait_all()
        rows = np.concatenate([found[at] for at in sorted(found)])
        return torch.from_numpy(rows[: len(rows) - missing])

    return run
