"""OpenVINO as an engine for frozen networks on a CPU.

It fuses normalisation and activation layers into the convolutions and keeps one stream per core busy, which eager torch
does not; where the processor has bfloat16 it can use that (bench/engines.py).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart.base.device import multiplies_bf16
from headstart.base.private_names import torchscript_decoder
from headstart.engines.base import Engine, Forward, Precision
from headstart.models.complexity import frozen

PICTURES_PER_REQUEST = 8


class OpenVINO(Engine):
    """Where both limits come from: two quiet cores with AMX, pictures of 224 pixels, pictures per second of the bare pass.

    =====================  ============  =============  =============
    network (GMACs)        torch fp32    OpenVINO fp32  OpenVINO bf16
    =====================  ============  =============  =============
    Lite0 (0.385)          47            149            259
    ResNet-18 (1.8)        46            63             122
    =====================  ============  =============  =============

    Converting, compiling and comparing takes some four seconds. OpenVINO saves 15 ms for each picture of Lite0, so they are
    earned back after 280 pictures, 105 GMACs. bfloat16 saves 2.8 ms more, and compiling it and comparing it on 256 pictures
    takes another six seconds: 2,100 pictures, 820 GMACs. Plain convolutions gain less per GMAC: of ResNet-18 OpenVINO pays
    from 680 pictures on, and what is lost with fewer is less than those four seconds. ``python bench/engines.py`` prints
    what both limits would be on the machine that it runs on.
    """

    name = "openvino"
    pays_from = 100.0

    def bf16_pays_from(self, device: torch.device) -> float:
        return 1000.0 if multiplies_bf16() else math.inf

    def prepare(self, network: nn.Module, sample: Tensor, device: torch.device) -> Callable[[Precision], Forward]:
        return compiled_for(network, sample)


@cache
def core() -> Any:
    """The ``openvino.Core`` of this process.

    There is one, and it is never freed. One that loads the CPU plugin gives the thread an alternate signal stack; when it
    is freed, it puts back the stack that it found and unmaps its own. Where two are freed in the order in which they were
    made, the thread is left with an unmapped stack, and the next signal, be it Ctrl-C, ends the process with SIGSEGV.
    """
    import openvino

    return openvino.Core()


def converted(network: nn.Module, example: Tensor, named: bool = True) -> Any:
    """``network`` as an OpenVINO model, traced with ``example``.

    Args:
        named: its operations are called as the modules that they come from. Without names it is made sooner.

    Raises:
        Exception: whatever the tracer or the converter says about a network that it cannot take.
    """
    import openvino

    # The two steps of openvino.convert_model without its telemetry: nothing leaves this machine.
    frontend = openvino.frontend.FrontEndManager().load_by_framework("pytorch")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer's, about shapes that are fixed here on purpose
        # Tracing would compare the trace with the network, which takes three times as long and is done by select. The
        # decoder has to live until it is converted.
        if named:
            decoder = torchscript_decoder(network, example_input=example, trace_kwargs={"check_trace": False})
        else:
            with frozen(network):  # parameters that are not constant have no place in the trace of a function
                traced = torch.jit.trace(lambda shown: network(shown), example, check_trace=False)  # type: ignore[no-untyped-call]
            decoder = torchscript_decoder(traced)
        return frontend.convert(frontend.load(decoder))


def compiled_for(network: nn.Module, sample: Tensor) -> Callable[[Precision], Forward]:
    """``network`` converted; compiled, for a precision, when called. Requests are of eight pictures like those of
    ``sample``, with one stream of one thread per core.

    A stream works alone, so the same picture gives the same bytes with any number of them.
    """
    import openvino

    model = converted(network, torch.zeros(2, *sample.shape[1:], dtype=sample.dtype), named=False)
    model.reshape([PICTURES_PER_REQUEST, *sample.shape[1:]])
    threads = torch.get_num_threads()

    def compiled(precision: Precision) -> Forward:
        hint = {"fp32": "f32", "bf16": "bf16"}[precision]
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": threads, "INFERENCE_PRECISION_HINT": hint}
        requests = openvino.AsyncInferQueue(core().compile_model(model, "CPU", settings), threads + 1)

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
