"""Heat maps: which places of a picture speak for a class.

Of a convolutional network it is Grad-CAM on the last map (Selvaraju et al. 2017, "Grad-CAM: visual explanations from deep
networks via gradient-based localization"). A transformer has no such map, and each of its layers mixes what it knows of
places. So all its layer norms are asked: what one passes on for a place, times its gradient (Draelos and Carin 2020, "Use
HiResCAM instead of Grad-CAM for faithful explanations"), as far as that speaks for the class, added up. By the last one
alone, small transformers are hardly told better than by chance; bench/deletion.py measures the sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from headstart.base.arrays import Floats
from headstart.data.decode import Array
from headstart.models.classifier import Classifier
from headstart.models.heads import LinearHead
from headstart.models.preprocessing import View
from headstart.models.trunk import Trunk, members_of_trunk

BATCH = 4  # pictures of which the last layers of a convolutional network keep their activations; of a transformer all do
# The place, as shares of height and width, whose change shows in which order tokens are, and how far the change reaches.
PROBED, REACH = (0.3, 0.7), 1 / 32


def heat_maps(
    model: Classifier, pictures: list[Array], targets: list[int], advance: Callable[[int], object] = lambda _: None
) -> Floats | None:
    """What speaks for the classes ``targets``: (N, size, size) in [0, 1]. Of several networks side by side, what does so
    to the first, as it sees the picture.

    None where no layer has a map or tokens in rows and columns.

    Args:
        advance: is told how many pictures more are done.
    """
    from captum.attr import LayerAttribution, LayerGradCam, LayerGradientXActivation

    model.requires_grad_(False)  # what is below the layers that are looked at keeps nothing
    first, device = members_of_trunk(model.trunk)[0], next(model.parameters()).device
    layers, width = _layers(first, first.view.batch(pictures[:1]).to(device))
    if not layers:
        return None
    view, score = _scored(model, first, width)
    convolution = isinstance(layers[0], nn.Conv2d)
    attribution = LayerGradCam(score, layers[0]) if convolution else LayerGradientXActivation(score, layers)
    maps, at_once = [], BATCH if convolution else 1
    for layer in layers:
        layer.requires_grad_(True)
    for n in range(0, len(pictures), at_once):
        seen = view.batch(pictures[n : n + at_once]).to(device)
        found = attribution.attribute(seen, target=targets[n : n + at_once])
        grids = [found[:, 0]] if convolution else [_grid(tokens).sum(-1) for tokens in found]
        large = [LayerAttribution.interpolate(g.relu()[:, None], (first.view.size,) * 2, "bilinear")[:, 0] for g in grids]
        maps.append(torch.stack(large).sum(0).detach().cpu())
        advance(len(seen))
    together = torch.cat(maps)
    heat: Floats = (together / together.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)).numpy()
    return heat


def _scored(model: Classifier, first: Trunk, width: int) -> tuple[View, Callable[[Tensor], Tensor]]:
    """What is shown, and what makes logits of it, as far as the first network matters. The others take most of the time,
    and under a linear head its gradients do not depend on them."""
    head = model.head
    if not model.trunk.view.beside or not isinstance(head, LinearHead):
        return model.trunk.view, model
    return first.view, lambda seen: functional.linear(first(seen), head.weight[:, :width])


def _layers(trunk: Trunk, picture: Tensor) -> tuple[list[nn.Module], int]:
    """The last convolution whose output is still a map; or, if it only cuts the picture into patches or a transformer's
    layers come after it, the layer norms behind it. Empty where these do not have the places in rows and columns. And how
    many features the trunk gives."""
    outputs: dict[nn.Module, Tensor] = {}  # in the order in which they are there

    def remember(module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            outputs.pop(module, None)
            outputs[module] = output

    size = picture.shape[-1]
    y, x, reach = (round(share * size) for share in (*PROBED, REACH))
    changed = picture.clone()
    changed[:, :, y - reach : y + reach + 1, x - reach : x + reach + 1] += 2
    handles = [m.register_forward_hook(remember) for m in trunk.modules() if isinstance(m, nn.Conv2d) or _is_layer_norm(m)]
    with torch.inference_mode():
        width = trunk(torch.cat([picture, changed])).shape[1]
    for handle in handles:
        handle.remove()
    order = list(outputs)
    maps = [n for n, m in enumerate(order) if isinstance(m, nn.Conv2d) and min(outputs[m].shape[2:]) > 1]
    behind = order[maps[-1] + 1 :] if maps else order
    norms = [m for m in behind if not isinstance(m, nn.Conv2d) and _has_grid(outputs[m])]
    if maps and len(norms) < 2 and not _cuts_patches(trunk, order[maps[-1]]):
        return [order[maps[-1]]], width
    return (norms if norms and _is_in_order(_grid(outputs[norms[0]])) else []), width


def _is_layer_norm(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return ("layernorm" in name or "rmsnorm" in name) and isinstance(getattr(module, "weight", None), nn.Parameter)


def _cuts_patches(trunk: Trunk, convolution: nn.Module) -> bool:
    weighted = [m for m in trunk.modules() if isinstance(w := getattr(m, "weight", None), Tensor) and w.ndim > 1]
    first = convolution is weighted[0] and len(weighted) > 1
    return first and convolution.stride == convolution.kernel_size != (1, 1)


def _grid(tokens: Tensor) -> Tensor:
    """(N, tokens, C), class tokens and registers first, or (N, side, side, C) → (N, side, side, C). Pictures are square,
    and so are grids."""
    if tokens.ndim == 4:
        return tokens
    side = math.isqrt(tokens.shape[1])
    return tokens[:, tokens.shape[1] - side**2 :].reshape(len(tokens), side, side, -1)


def _has_grid(tokens: Tensor) -> bool:
    return tokens.shape[1] > 3 if tokens.ndim == 3 else tokens.ndim == 4 and 1 < tokens.shape[1] == tokens.shape[2]


def _is_in_order(grid: Tensor) -> bool:
    """Whether of two pictures that differ in one place only, (2, side, side, C), the tokens differ most in that place.
    Some networks sort them differently, or have tokens that belong to no place."""
    side = grid.shape[1]
    most = int(np.argmax((grid[0] - grid[1]).square().sum(-1).cpu().numpy()))
    found = np.add(divmod(most, side), 0.5)
    return bool((np.abs(found - np.multiply(PROBED, side)) <= 1 + REACH * side).all())
