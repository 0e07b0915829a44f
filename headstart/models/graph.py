"""Networks rearranged to train with less work: cut where training starts, frozen batch-norm folded into convolutions.

What comes out shares its parameters and buffers with the network that went in, so it trains that network.
"""

from __future__ import annotations

import copy
from itertools import chain, pairwise

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module
from torch.nn import functional

TOLERANCE = 1e-4  # of the largest answer: what is left of it is the order in which sums are made


class _Tracer(fx.Tracer):
    """Looks only into modules that are trained in part: the cut lies inside of those."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return len({p.requires_grad for p in m.parameters()}) < 2


def split_frozen(network: nn.Module, sample: Tensor) -> tuple[nn.Module, nn.Module] | None:
    """``network`` cut in two, at the last point before which nothing is trained: the frozen part, and the rest.

    Both share their parameters with ``network``, which has to be in eval mode. None where nothing is frozen, where more
    than one tensor crosses the cut, where the network's forward cannot be traced, or where the two give something else for
    ``sample`` than the whole.
    """
    try:
        graph = fx.GraphModule(network, _Tracer().trace(network))
        trained: set[fx.Node] = set()
        for node in graph.graph.nodes:
            module = graph.get_submodule(str(node.target)) if node.op == "call_module" else nn.Module()
            if any(p.requires_grad for p in module.parameters()) or any(n in trained for n in node.all_input_nodes):
                trained.add(node)
        crossing = {n for n in graph.graph.nodes if n not in trained and any(user in trained for user in n.users)}
        if len(crossing) != 1 or next(iter(crossing)).op == "placeholder":
            return None
        parts = split_module(graph, network, lambda node: int(node in trained))
        frozen, rest = parts.get_submodule("submod_0"), parts.get_submodule("submod_1")
        with torch.no_grad():
            same = _agree(rest(frozen(sample)), network(sample))
    except Exception:  # whatever a forward does with a tensor that has no values yet
        return None
    return (frozen, rest) if same else None


class _FoldedConv(nn.Module):
    """A convolution and the batch-norm behind it, with its frozen statistics, as one convolution. Gradients reach the
    convolution's weight and the batch-norm's scale and shift as they would one by one."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self.conv, self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        if conv.bias is not None:
            shift = shift + conv.bias * scale
        weight = conv.weight * scale.view(-1, 1, 1, 1)
        return functional.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


def fold_batch_norm(network: nn.Module, sample: Tensor) -> nn.Module:
    """``network`` with batch-norm folded into the 1×1 and grouped convolutions before it, to train with frozen statistics.

    Every activation is then read and written once less, forwards and backwards, which on a CPU is worth it where there is
    little else to do for each of them (bench/folding.py). It is the folding of Jacob et al. 2018, "Quantization and
    training of neural networks for efficient integer-arithmetic-only inference", section 3.2.

    Args:
        network: in eval mode. Where it gives something else for ``sample`` than the folded one, it comes back as it is.
    """
    shared = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    folded = copy.deepcopy(network, shared)
    _fold_inside(folded)
    with torch.no_grad():
        return folded if _agree(folded(sample), network(sample)) else network


def _fold_inside(network: nn.Module) -> None:
    """Networks register their parts in the order they use them; where one does not, the comparison above notices."""
    for (name, part), (next_name, norm) in pairwise([*network.named_children(), ("", nn.Identity())]):
        if _foldable(part, norm):
            setattr(network, name, _FoldedConv(part, norm))  # type: ignore[arg-type]
            behind = nn.Sequential(norm.drop, norm.act) if _with_activation(norm) else nn.Identity()  # type: ignore[arg-type]
            setattr(network, next_name, behind)
        else:
            _fold_inside(part)


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    return (
        type(conv) is nn.Conv2d
        and conv.padding_mode == "zeros"
        and (conv.kernel_size == (1, 1) or conv.groups > 1)  # those wait for memory; a dense 3×3 gains nothing
        and isinstance(norm, nn.BatchNorm2d)
        and (type(norm) is nn.BatchNorm2d or _with_activation(norm))
        and norm.affine
        and norm.track_running_stats
        and norm.num_features == conv.out_channels
    )


def _with_activation(norm: nn.Module) -> bool:
    from timm.layers.norm_act import BatchNormAct2d  # seconds, which networks that are not trained need not wait for

    return type(norm) is BatchNormAct2d


def _agree(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())
