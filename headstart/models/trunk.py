"""A network without its classifier: find it, take it off, cut what is left into blocks that can be unfrozen one by one."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from headstart.base.errors import HeadstartError
from headstart.base.safe_text import shortened
from headstart.models.preprocessing import View
from headstart.models.side_by_side import SideBySide

IMAGENET_CLASSES = 1000


MOST_STAGES = 6  # more are the blocks of a transformer, of which every quarter's last is taken


class Trunk(nn.Module):
    """A network without its classifier: (N, 3, H, W) normalised pictures → (N, D) features.

    Where its view asks for the stages, the mean features of each stage stand behind those of the last layer: of a
    convolutional network the mean of its maps, of a transformer the class token and the mean of the patches. What the first
    layers know and the last have forgotten helps with pictures unlike those of the training (Evci et al. 2022, "Head2Toe:
    utilizing intermediate representations for better transfer learning").
    """

    def __init__(self, network: nn.Module, view: View) -> None:
        super().__init__()
        if not isinstance(network, SideBySide):
            _take_off(network)
        self.network = network.to(memory_format=torch.channels_last)
        self.view = view

    def forward(self, pictures: Tensor) -> Tensor:
        if self.view.stages and not isinstance(self.network, SideBySide):  # whose members have views of their own
            return _of_all_stages(self.network, pictures)
        features: Tensor = self.network(pictures)
        return features.flatten(1)

    def blocks(self) -> list[list[nn.Parameter]]:
        """The parameters in blocks, input side first: the steps of unfreezing and of layer-wise learning rates.

        Containers are opened up, and so is whatever holds more than half of all parameters, since one block that is most
        of the network is no step. Networks register their parts in the order they use them.
        """
        total = sum(p.numel() for p in self.network.parameters())
        return [block for block in _blocks(self.network, total) if block]


def plain(trunk: Trunk) -> Trunk:
    """The same network, with the same weights in memory, of which the last layer's features alone are wanted: those that
    fine-tuning trains."""
    same = copy(trunk)
    same.view = replace(trunk.view, stages=False)
    return same


def has_stages(network: nn.Module) -> bool:
    """Whether it has timm's interface to the features of its stages."""
    return hasattr(network, "forward_intermediates") and hasattr(network, "forward_head")


def _of_all_stages(network: Any, pictures: Tensor) -> Tensor:
    """(N, D) features: the last layer's, and behind them the means of each stage."""
    count = len(network.feature_info)
    indices = list(range(count)) if count <= MOST_STAGES else [count * part // 4 - 1 for part in range(1, 5)]
    tokens = {"return_prefix_tokens": True} if getattr(network, "num_prefix_tokens", 0) else {}
    last, stages = network.forward_intermediates(pictures, indices=indices, **tokens)
    found = [network.forward_head(last).flatten(1)]
    for stage in stages:
        maps, prefix = stage if tokens else (stage, None)
        found.append(maps.mean((2, 3)))
        if prefix is not None:
            found.append(prefix[:, 0])
    return torch.cat(found, dim=1)


def feature_width(trunk: Trunk) -> int:
    """D of the (N, D) features, from one forward pass.

    Raises:
        HeadstartError: the network cannot work on pictures of its view's size, or gives something else than features.
    """
    height, width = trunk.view.shape
    try:
        with torch.inference_mode():
            features = trunk.eval()(torch.zeros(2, 3, height, width))
    except Exception as error:  # whatever the user's own forward raises
        reason = shortened(str(error), 200)
        raise HeadstartError(
            f"the network fails on two {height}×{width} pictures: {type(error).__name__}: {reason}"
        ) from None
    if features.ndim != 2 or len(features) != 2:
        raise HeadstartError(f"the network gives {tuple(features.shape)} for two pictures; features must be (2, D)")
    found: int = features.shape[1]
    return found


def find_classifier(network: nn.Module, classes: int | None = None) -> str:
    """The dotted name of the last linear layer or convolution: the classifier ('' where there is none).

    SqueezeNet's is a 1×1 convolution before its pooling, everybody else's a linear layer; auxiliary heads (Inception,
    GoogLeNet) are gone before this is asked.
    """
    last = ""
    for name, module in network.named_modules():
        width = getattr(module, "out_features", None) or getattr(module, "out_channels", None)
        if isinstance(module, nn.Linear | nn.Conv2d) and (classes is None or width == classes):
            last = name
    return last


def _take_off(network: nn.Module) -> None:
    """Remove the classifier, and auxiliary heads with it, in place."""
    for auxiliary in ("AuxLogits", "aux1", "aux2"):
        if getattr(network, auxiliary, None) is not None:
            setattr(network, auxiliary, None)
            network.aux_logits = False  # type: ignore[assignment]
    if hasattr(network, "transform_input"):
        network.transform_input = False  # type: ignore[assignment]
    if hasattr(network, "reset_classifier") and hasattr(network, "pretrained_cfg"):  # timm's own way
        network.reset_classifier(0)  # type: ignore[operator]
        return
    name = find_classifier(network, IMAGENET_CLASSES)
    if not name:
        raise HeadstartError(
            f"{type(network).__name__} has no linear layer or convolution with num_classes outputs to take off; "
            "the factory must build its classifier from the num_classes it is given"
        )
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())


def _blocks(module: nn.Module, total: int) -> list[list[nn.Parameter]]:
    found = [list(module.parameters(recurse=False))]
    for child in module.children():
        size = sum(p.numel() for p in child.parameters())
        has_children = any(True for _ in child.children())
        if isinstance(child, nn.Sequential | nn.ModuleList) or (has_children and size > total / 2):
            found += _blocks(child, total)
        else:
            found.append(list(child.parameters()))
    return found


def members_of_trunk(trunk: Trunk) -> list[Trunk]:
    """The trunks that stand side by side in ``trunk``, or itself."""
    if not isinstance(trunk.network, SideBySide):
        return [trunk]
    members: list[Trunk] = list(trunk.network.members)  # type: ignore[arg-type]
    return members


def beside(trunk: Trunk, other: Trunk) -> Trunk:
    """Two trunks side by side, as one; each may be several itself."""
    view = replace(trunk.view, beside=(*trunk.view.beside, other.view.first, *other.view.beside))
    return Trunk(SideBySide([*members_of_trunk(trunk), *members_of_trunk(other)], view), view)
