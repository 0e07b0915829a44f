"""How much of a network there is: multiply-accumulates, depth, and what training has to remember.

All are read off one forward pass of one black picture. On torch's meta device that pass has shapes and no numbers, so it
takes no memory and hardly any time, however large the network.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from headstart.base.private_names import without_torch_compiler


def gmacs(network: nn.Module, height: int, width: int | None = None) -> float:
    """Billions of multiply-accumulates for one picture of so many pixels; a square one where no width is given."""
    logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)  # it misses Triton, which nothing here uses
    from torch.utils.flop_counter import FlopCounterMode  # a quarter of a second, in stages that count nothing, too

    counter = FlopCounterMode(display=False)
    was_training = network.training
    try:
        # The counter would follow what is learned into autograd's graph, of which there is none here.
        # And no inference_mode, since some networks keep tensors for later passes.
        with without_torch_compiler(), frozen(network), torch.no_grad(), counter:
            network.eval()(_black(network, height, width))
    finally:
        network.train(was_training)
    return counter.get_total_flops() / 2 / 1e9


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """None of its parameters asks for a gradient."""
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in learned:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


def _black(network: nn.Module, height: int, width: int | None = None) -> Tensor:
    """(1, 3, height, width) where the network is."""
    return torch.zeros(1, 3, height, width or height, device=next((p.device for p in network.parameters()), None))


def depth(network: nn.Module, size: int) -> int:
    """The largest number of convolutions and linear layers that follow one another from the picture to the answer.

    Counted as in the networks' names and in tables of depths: ResNet-18 is 18 deep, of which a shortcut's convolution is no
    part since it runs beside two others. Layers count where they hold weights that are learned, so a fixed blur does not;
    attention counts for its projections.
    """
    layers = _Layers()
    with torch.enable_grad(), layers:
        answer = network.eval()(_black(network, size))
    # The longest way through autograd's graph, from the answer down; parameters and the picture are its ends.
    longest: dict[Any, int] = {}
    waiting = [answer.grad_fn]
    while waiting:
        node = waiting[-1]
        below = [found for found, _ in node.next_functions if found is not None]
        if missing := [found for found in below if found not in longest]:
            waiting += missing
        else:
            longest[node] = layers.found.get(node, 0) + max((longest[found] for found in below), default=0)
            waiting.pop()
    return longest[answer.grad_fn]


def remembered(network: nn.Module, size: int) -> int:
    """Bytes that the forward pass of one picture keeps for the backward one, weights left out."""
    weights = {StorageWeakRef(p.untyped_storage()) for p in network.parameters()}  # type: ignore[no-untyped-call]
    kept: dict[StorageWeakRef, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if (reference := StorageWeakRef(storage)) not in weights:  # type: ignore[no-untyped-call]
            kept[reference] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answer = network.eval()(_black(network, size))
    del answer
    return sum(kept.values())


class _Layers(TorchFunctionMode):
    """While it is entered, ``found`` gets autograd's node of everything that is layers, with their number."""

    LAYERS = (
        functional.linear, functional.conv1d, functional.conv2d, functional.conv3d,
        functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d,
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[Any, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        answer = func(*args, **kwargs)
        if func is functional.multi_head_attention_forward:  # to query, key and value, and from what they make
            self.found[answer[0].grad_fn] = 2
        elif func in self.LAYERS:
            weight = kwargs["weight"] if "weight" in kwargs else args[1]
            if weight.requires_grad:
                self.found[answer.grad_fn] = 1
        return answer
