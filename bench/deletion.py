"""Do heat maps show what an answer rests on? What they call most important is deleted first, and it has to count.

    python bench/deletion.py                # a few minutes on two cores
    python bench/deletion.py class-token    # one of the networks

The pictures are noise with a small pattern somewhere, which is their class. tf_efficientnet_lite0 has its published
weights and a fitted head, and sees 128 pixels; the transformers are small and trained on such pictures. Cell after cell
of a grid of 64 is turned grey, the hottest first, and the probability of the answer is averaged over the way: the
deletion curve of Petsiuk et al. 2018, "RISE: randomized input sampling for explanation of black-box models". Prints it
for heat maps, for cells in any order, and for those of the pattern first; and the share of the heat that lies on the
pattern.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor
from torch.nn import functional

from headstart.base.arrays import Floats, Ints
from headstart.base.params import Params
from headstart.data.decode import Array
from headstart.evaluation import explain
from headstart.models.backbones import load_trunk
from headstart.models.classifier import Classifier, FittedHead
from headstart.models.heads import LinearHead
from headstart.models.preprocessing import View
from headstart.models.trunk import Trunk, feature_width
from headstart.models.weights import store_backbones

CELLS, AT_ONCE = 8, 8  # on a side; deleted in one step
CLASSES = ("across", "down", "chequered")
VIEW = View(32, 1.0, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 2}
TRANSFORMERS = {
    "class-token": ("vit_tiny_patch16_224", SMALL | {"reg_tokens": 2}),
    "mean-of-tokens": ("vit_tiny_patch16_224", SMALL | {"global_pool": "avg", "class_token": False}),
    "windows": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4)},
    ),
}


def planted(count: int, size: int, random: np.random.Generator) -> tuple[list[Array], Ints, Floats]:
    """Pictures, their classes, and (count, size, size) ones where the pattern is."""
    side = size // 4
    row, column = np.indices((side, side)) // max(1, size // 32) % 2
    patterns = 255 * np.stack([row, column, row ^ column])
    pictures, where = (
        random.normal(128, 64, (count, size, size, 3)).clip(0, 255).astype(np.uint8),
        np.zeros((count, size, size)),
    )
    classes, corners = random.integers(0, 3, count), random.integers(0, size - side + 1, (count, 2))
    for number, (top, left) in enumerate(corners):
        pictures[number, top : top + side, left : left + side] = patterns[classes[number]][..., None]
        where[number, top : top + side, left : left + side] = 1
    return list(pictures), classes, where


def transformer(kind: str, steps: int = 300) -> Classifier:
    """One that has learned to tell such pictures."""
    torch.manual_seed(0)
    name, shape = TRANSFORMERS[kind]
    trunk = Trunk(timm.create_model(name, **shape), VIEW)
    width = feature_width(trunk)
    model = Classifier(trunk, FittedHead(LinearHead.of(torch.zeros(3, width), torch.zeros(3)), 1.0, CLASSES)).train()
    random, optimiser = np.random.default_rng(0), torch.optim.AdamW(model.parameters(), 1e-3)
    for step in range(steps):
        pictures, classes, _ = planted(32, VIEW.size, random)
        optimiser.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 30)
        loss = functional.cross_entropy(model(VIEW.batch(pictures)), torch.from_numpy(classes))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def convolutional(network: str = "tf_efficientnet_lite0@128") -> Classifier:
    """One with its published weights, and a head fitted to such pictures."""
    with tempfile.TemporaryDirectory() as folder:
        store_backbones(Params.model_validate({"backbone": network}), Path(folder) / "none", Path(folder) / "backbone")
        trunk, _ = load_trunk(Path(folder) / "backbone")
    pictures, classes, _ = planted(60, trunk.view.size, np.random.default_rng(0))
    with torch.inference_mode():
        features = torch.cat([trunk.eval()(trunk.view.batch(pictures[n : n + 20])) for n in range(0, 60, 20)])
    mean, scale = features.mean(0), features.std(0) + 1e-3
    ((head, _),) = LinearHead.fit_path((features - mean) / scale, torch.from_numpy(classes), 3, [0.01])
    return Classifier(trunk, FittedHead(head.unstandardised(mean, scale), 1.0, CLASSES)).eval()


@torch.inference_mode()
def deletion(model: Classifier, pictures: list[Array], targets: Ints, importance: Floats) -> Floats:
    """(N,) mean probabilities of the targets on the way from whole pictures to grey ones; lower is better.

    Args:
        importance: (N, H, W), of places.
    """
    cells = functional.adaptive_avg_pool2d(torch.from_numpy(importance).float()[:, None], CELLS).flatten(1)
    order, shown, seen = cells.argsort(1, descending=True), torch.ones_like(cells), model.trunk.view.batch(pictures)
    curve = [_probability(model, seen, targets)]
    for step in range(0, CELLS**2, AT_ONCE):
        shown.scatter_(1, order[:, step : step + AT_ONCE], 0.0)
        mask = functional.interpolate(shown.view(-1, 1, CELLS, CELLS), seen.shape[2:], mode="nearest")
        curve.append(_probability(model, seen * mask, targets))
    mean: Floats = torch.stack(curve).mean(0).numpy()
    return mean


def _probability(model: Classifier, seen: Tensor, targets: Ints) -> Tensor:
    return torch.cat([model(part).softmax(1) for part in seen.split(16)])[range(len(seen)), targets]


def compared(model: Classifier, count: int = 96) -> dict[str, tuple[Floats, Floats]]:
    """By what orders the cells, (count,) deletion curves and (count,) shares of it on the pattern."""
    random = np.random.default_rng(1)
    pictures, _, where = planted(count, model.trunk.view.size, random)
    with torch.inference_mode():
        targets = (
            torch.cat([model(model.trunk.view.batch(pictures[n : n + 16])) for n in range(0, count, 16)]).argmax(1).numpy()
        )
    heat = explain.heat_maps(model, pictures, targets.tolist())
    assert heat is not None
    by = {
        "heat map": heat,
        "any order": random.random((count, CELLS, CELLS))
        .repeat(where.shape[1] // CELLS, 1)
        .repeat(where.shape[1] // CELLS, 2),
        "pattern": where + 1e-6,
    }
    return {
        name: (deletion(model, pictures, targets, each), (each * where).sum((1, 2)) / np.maximum(each.sum((1, 2)), 1e-9))
        for name, each in by.items()
    }


def main() -> None:
    for kind in sys.argv[1:] or ["convolutional", *TRANSFORMERS]:
        found = compared(convolutional() if kind == "convolutional" else transformer(kind))
        for name, (curve, share) in found.items():
            better = (curve < found["any order"][0]).mean()
            print(
                f"{kind:15} {name:10} deletion {curve.mean():.3f}, better than any order on {better:.2f} of the pictures,",
                end=" ",
            )
            print(f"on the pattern {share.mean():.2f}")


if __name__ == "__main__":
    main()
