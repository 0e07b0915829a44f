"""One epoch of training on a folder of photographs: headstart against PyTorch's transfer-learning tutorial.

    python bench/epochs.py               # about six minutes on two quiet cores
    python bench/epochs.py --pictures 600 --rounds 3

The tutorial's two loops, as they are written there (ImageFolder, batches of 4, four workers, SGD, eager fp32): the network
as a fixed feature extractor, of which only the last layer is trained, and the whole network fine-tuned. headstart's side is
the second epoch of `finetune` with `unfreeze: last`, whose frozen layers have answered for good in the first (`views: 1`),
and with `unfreeze: all`, on the same pictures, packed as prepare packs them. An epoch is all training pictures and all
validation pictures, on both sides. Both get the same generated 400×533 JPEGs, the same network (tf_efficientnet_lite0,
random weights) and all cores, alternately and each time in a process of its own. Prints seconds for both and, per round,
their ratio as median (least–most).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from _sides import measured, report
from tutorial_loop import generate

TUTORIAL, HEADSTART = "tutorial", "headstart"
KINDS = {"last": "only the last layer", "all": "the whole network"}


def tutorial(folder: Path) -> dict[str, float]:
    import timm
    import torch
    from torch import nn
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    views = {
        "train": transforms.Compose(
            [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalise]
        ),
        "val": transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), normalise]),
    }
    loaders = {
        phase: DataLoader(ImageFolder(folder / phase, view), batch_size=4, shuffle=True, num_workers=4)
        for phase, view in views.items()
    }
    found = {}
    for kind in KINDS:
        model = timm.create_model("tf_efficientnet_lite0", num_classes=2)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(kind == "all" or name.startswith("classifier"))
        optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.001, momentum=0.9)
        loss_of = nn.CrossEntropyLoss()
        start = time.perf_counter()
        for phase, loader in loaders.items():
            model.train(phase == "train")
            for pictures, labels in loader:
                optimizer.zero_grad()
                with torch.set_grad_enabled(phase == "train"):
                    loss = loss_of(model(pictures), labels)
                    if phase == "train":
                        loss.backward()
                        optimizer.step()
        found[kind] = time.perf_counter() - start
    return found


def headstart(folder: Path) -> dict[str, float]:
    import torch

    from headstart.base.device import set_up
    from headstart.base.sections import Data, Finetune, Prepare, Split
    from headstart.base.threads import cores
    from headstart.data.fetch import fetch
    from headstart.data.packed import Pixels
    from headstart.data.prepare import prepare
    from headstart.models.backbones import architecture
    from headstart.models.classifier import FittedHead
    from headstart.models.heads import LinearHead
    from headstart.training.recipe import Recipe, TrainingSetup
    from headstart.training.trainer import finetune

    device = set_up(None)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        pictures = fetch(Data(source=str(folder)), out / "manifest.csv")
        manifest = prepare(pictures, folder, Prepare(), Split(), 0, cores(), out / "prepare")
        head = FittedHead(LinearHead.of(0.01 * torch.randn(2, 1280), torch.zeros(2)), 1.0, ("even", "odd"))
        for kind in KINDS:
            trunk = architecture("tf_efficientnet_lite0").trunk()
            settings = Finetune(unfreeze=kind, epochs=2, views=1)  # type: ignore[arg-type]
            recipe = Recipe(settings, scratch=False, seed=0)
            ends: list[float] = []
            setup = TrainingSetup(trunk, head, Pixels(out / "prepare"), manifest, recipe, device)
            finetune(setup, out / kind, out / "resume", lambda row, ends=ends: ends.append(time.perf_counter()))  # type: ignore[misc]
            found[kind] = ends[1] - ends[0]
    return found


def measure(side: str, asked: argparse.Namespace) -> dict[str, float]:
    return (tutorial if side == TUTORIAL else headstart)(asked.folder)


def fill(asked: argparse.Namespace) -> None:
    held_out = asked.pictures // 5
    generate(asked.folder / "train", asked.pictures)
    generate(asked.folder / "val", held_out, first=asked.pictures)
    generate(asked.folder / "test", 8, first=asked.pictures + held_out)


if __name__ == "__main__":
    _, rounds = measured(__doc__, (TUTORIAL, HEADSTART), measure, 3, {"pictures": 320}, fill)
    for kind, theirs_is in KINDS.items():
        theirs, ours = ([found[side][kind] for found in rounds] for side in (TUTORIAL, HEADSTART))
        report(f"epoch: {theirs_is} of the tutorial's, unfreeze: {kind} of ours", theirs, ours, "s", (TUTORIAL, HEADSTART))
