"""Where a network looked: Grad-CAM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headstart.base.arrays import Floats
from headstart.data.decode import Array
from headstart.models.classifier import Classifier

AT_ONCE = 4  # pictures of which the last layers remember what they gave


def grad_cam(model: Classifier, pictures: list[Array], targets: list[int]) -> Floats | None:
    """Where the network looked for ``targets``: (N, size, size) in [0, 1] (Selvaraju et al. 2017).

    None where the trunk has no spatial map to look at (pure transformers).
    """
    from captum.attr import LayerAttribution, LayerGradCam

    inputs = model.trunk.view.batch(pictures)
    layer = _last_spatial_layer(model, inputs[:1])
    if layer is None:
        return None
    layer.requires_grad_(True)  # what is below it needs no gradients, and remembers nothing
    looked = LayerGradCam(model, layer)
    some = range(0, len(inputs), AT_ONCE)
    maps: Tensor = torch.cat(
        [looked.attribute(inputs[n : n + AT_ONCE], target=targets[n : n + AT_ONCE], relu_attributions=True) for n in some]
    ).detach()
    maps = LayerAttribution.interpolate(maps, (model.trunk.view.size,) * 2, "bilinear").detach()[:, 0]
    peak = maps.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    return (maps / peak).double().numpy()


def _last_spatial_layer(model: Classifier, inputs: Tensor) -> nn.Module | None:
    """The last convolution whose output is still a map; None where that only cuts the picture into patches, after which a
    transformer's layers come."""
    last: list[nn.Module] = []

    def remember(module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
            last[:] = [module]

    handles = [m.register_forward_hook(remember) for m in model.trunk.modules() if isinstance(m, nn.Conv2d)]
    with torch.inference_mode():
        model(inputs)
    for handle in handles:
        handle.remove()
    if not last:
        return None
    found = last[0]
    weighted = [m for m in model.trunk.modules() if isinstance(w := getattr(m, "weight", None), Tensor) and w.ndim > 1]
    patches = found is weighted[0] and len(weighted) > 1 and found.stride == found.kernel_size != (1, 1)
    return None if patches else found
