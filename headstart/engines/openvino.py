"""OpenVINO as an engine for frozen networks on a CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart.engines.base import Engine
from headstart.models.complexity import frozen

PICTURES_PER_REQUEST = 8


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 numbers itself."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def converted(network: nn.Module, example: Tensor, named: bool = True) -> Any:
    """``network`` as an OpenVINO model, traced with ``example``.

    Args:
        named: its operations are called as the modules that they come from. Without names it is made sooner.

    Raises:
        Exception: whatever the tracer or the converter says about a network that it cannot take.
    """
    import openvino
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # The two steps of openvino.convert_model without its telemetry: nothing leaves this machine.
    frontend = openvino.frontend.FrontEndManager().load_by_framework("pytorch")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer's, about shapes that are fixed here on purpose
        # Tracing would compare the trace with the network, which takes three times as long and is done by engine_for. The
        # decoder has to live until it is converted.
        if named:
            decoder = TorchScriptPythonDecoder(network, example_input=example, trace_kwargs={"check_trace": False})
        else:
            with frozen(network):  # parameters that are not constant have no place in the trace of a function
                traced = torch.jit.trace(lambda shown: network(shown), example, check_trace=False)  # type: ignore[no-untyped-call]
            decoder = TorchScriptPythonDecoder(traced)
        return frontend.convert(frontend.load(decoder))


def compiled_for(network: nn.Module, sample: Tensor) -> Callable[[str], Engine]:
    """``network`` converted; compiled, for f32 or bf16, when called. Requests are of eight pictures like those of
    ``sample``, with one stream of one thread per core.

    A stream works alone, so the same picture gives the same bytes with any number of them.
    """
    import openvino

    model = converted(network, torch.zeros(2, *sample.shape[1:], dtype=sample.dtype), named=False)
    model.reshape([PICTURES_PER_REQUEST, *sample.shape[1:]])
    threads = torch.get_num_threads()

    def compiled(precision: str) -> Engine:
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": threads, "INFERENCE_PRECISION_HINT": precision}
        requests = openvino.AsyncInferQueue(openvino.Core().compile_model(model, "CPU", settings), threads + 1)

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

    return compiled
