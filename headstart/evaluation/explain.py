"""Grad-CAM: which parts of a picture speak for a class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headstart.base.arrays import Floats
from headstart.data.decode import Array
from headstart.models.classifier import Classifier
from headstart.models.trunk import Trunk, members_of_trunk

BATCH = 4  # pictures of which the last layers keep their activations


def grad_cam(model: Classifier, pictures: list[Array], targets: list[int]) -> Floats | None:
    """What speaks for the classes ``targets``: (N, size, size) in [0, 1] (Selvaraju et al. 2017). Of several networks side
    by side, to the first and as it sees the picture.

    None where the trunk has no spatial activations (pure transformers).
    """
    from captum.attr import LayerAttribution, LayerGradCam

    inputs = model.trunk.view.batch(pictures)
    layer = _last_spatial_layer(model, members_of_trunk(model.trunk)[0], inputs[:1])
    if layer is None:
        return None
    layer.requires_grad_(True)  # what is below it needs no gradients, and keeps nothing
    grad_cam = LayerGradCam(model, layer)
    starts = range(0, len(inputs), BATCH)
    maps: Tensor = torch.cat(
        [grad_cam.attribute(inputs[n : n + BATCH], target=targets[n : n + BATCH], relu_attributions=True) for n in starts]
    ).detach()
    maps = LayerAttribution.interpolate(maps, (model.trunk.view.size,) * 2, "bilinear").detach()[:, 0]
    peak = maps.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    return (maps / peak).double().numpy()


def _last_spatial_layer(model: Classifier, trunk: Trunk, inputs: Tensor) -> nn.Module | None:
    """The last convolution whose output is still a map; None where that only cuts the picture into patches, after which a
    transformer's layers come."""
    last: list[nn.Module] = []

    def remember(module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
            last[:] = [module]

    handles = [m.register_forward_hook(remember) for m in trunk.modules() if isinstance(m, nn.Conv2d)]
    with torch.inference_mode():
        model(inputs)
    for handle in handles:
        handle.remove()
    if not last:
        return None
    layer = last[0]
    weighted = [m for m in trunk.modules() if isinstance(w := getattr(m, "weight", None), Tensor) and w.ndim > 1]
    patches = layer is weighted[0] and len(weighted) > 1 and layer.stride == layer.kernel_size != (1, 1)
    return None if patches else layer
