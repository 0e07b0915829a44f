"""The pipeline on a GPU: each part beside the bare network on the same GPU, and its answers beside the CPU's.

    python bench/gpu.py                          # the default project, a GPU that torch can use
    python bench/gpu.py --limit 20 --epochs 1    # 20 pictures a class
    python bench/gpu.py --device cpu --limit 8 --backbone tf_efficientnet_lite0 --size 96   # the same code without a GPU

In a fresh clone of the last commit every stage runs once on the GPU. Then, with its pictures, features, fine-tuning,
predict and serve are measured by themselves. Prints pictures per second, beside those of the bare forward pass or the bare
training step of the same network in the same arithmetic, on a batch that is on the GPU already, and their ratio; and the
share of the time in which the GPU waits for pictures that are decoded, cropped and brought to it. A share over a fifth says
that the processor is too slow for the GPU, or decodes too slowly.

Fails if the CPU would answer otherwise: features have to pass the check that bfloat16 has to pass, the head and the
fine-tuned network have to give the same answers on 99% of the validation pictures, predict on 99% of all that are shown.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _project import clone, stages
from _serving import CLIENTS, free_port, headstart, jpegs, load, running

if TYPE_CHECKING:
    import torch

STAGES = ("features", "head", "finetune", "evaluate", "package")
WARM_UP, STEPS = 3, 10  # of the bare network
COMPARED = 256  # pictures
SAME = 0.99  # of the answers


class Wait:
    """Passes through what it is given, and counts the seconds that it takes to come."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, given: Iterable[Any]) -> Iterator[Any]:
        iterator = iter(given)
        while True:
            start = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.seconds += time.perf_counter() - start
            yield item


def finished(device: torch.device) -> None:
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize()


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """What one takes, of several in a row."""
    for _ in range(WARM_UP):
        call()
    finished(device)
    start = time.perf_counter()
    for _ in range(STEPS):
        call()
    finished(device)
    return (time.perf_counter() - start) / STEPS


def told(what: str, rate: float, bare: float, beside: str, waited: float | None = None) -> None:
    idle = "" if waited is None else f", {waited:.0%} of the time waiting for pictures"
    print(f"{what}: {rate:.0f} pictures/s, {beside} {bare:.0f}, ratio {rate / bare:.2f}{idle}", flush=True)


def agreed(what: str, share: float) -> None:
    print(f"{what}: {share:.1%} of the answers are the CPU's", flush=True)
    if share < SAME:
        sys.exit(f"{what}: {SAME:.0%} are required")


class Project:
    """A project whose pictures are decoded and whose stages have run."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        import torch

        from headstart.base.artifacts import DataFolder
        from headstart.base.params import Params
        from headstart.data.manifest import read_manifest
        from headstart.data.packed import Pixels

        os.chdir(folder)
        self.device, self.cpu, self.data, self.params = device, torch.device("cpu"), DataFolder("data"), Params.load()
        self.pixels, self.manifest = Pixels(self.data.prepare), read_manifest(self.data.prepare)

    def features(self) -> None:
        """Of the first network."""
        import numpy as np
        import torch

        from headstart.data.manifest import class_names
        from headstart.engines.select import objection_to
        from headstart.models.backbones import load_first
        from headstart.models.task import task_of
        from headstart.training.features import FeatureExtractor, engine_of

        trunk, _ = load_first(self.data.backbone, self.data.fetch.network)
        extractor = FeatureExtractor(trunk, self.pixels, self.device)
        forward, choice = engine_of(extractor, self.manifest, self.params.features.engine)
        print(f"features: {choice.engine} ({choice.why})")
        rows = np.arange(len(self.manifest))
        shown = extractor.at_once(rows[: extractor.batch]).to(self.device)
        bare = len(shown) / seconds_of(lambda: forward(shown), self.device)
        wait, start = Wait(), time.perf_counter()
        for pictures in wait(extractor.batches(rows)):
            found = forward(pictures).float().cpu()
        spent = time.perf_counter() - start
        assert found.isfinite().all()
        told("features", len(rows) / spent, bare, "the bare forward pass", wait.seconds / spent)
        some = rows[np.unique(np.linspace(0, len(rows) - 1, COMPARED).astype(int))]
        ours = torch.cat([forward(part).float().cpu() for part in extractor.batches(some)])
        exact = FeatureExtractor(trunk, self.pixels, self.cpu).features(some, lambda count=1: None)
        labels = task_of(self.manifest).labels_of(self.manifest, class_names(self.manifest))[some]
        if objection := objection_to(ours, exact, torch.from_numpy(labels)):
            sys.exit(f"features: not the CPU's: {objection}")
        print(f"features: a probe's answers are those on the CPU's features of {len(some)} pictures")

    def head(self) -> None:
        from headstart.data.manifest import class_names
        from headstart.models.task import task_of
        from headstart.training.feature_files import load_features
        from headstart.training.linear_probe import train_head

        found, task = [], task_of(self.manifest)
        with tempfile.TemporaryDirectory() as scratch:
            for device in (self.device, self.cpu):
                train, val = (load_features(self.data.features, split, device) for split in ("train", "val"))
                start = time.perf_counter()
                head = train_head(train, val, class_names(self.manifest), self.params.head, Path(scratch), task=task)
                print(f"head on {device.type}: {time.perf_counter() - start:.1f} s")
                found.append(task.predict(head.logits(val[0].cpu()).numpy()))
        agreed("head", float((found[0] == found[1]).mean()))

    def finetune(self) -> None:
        """An epoch, and what the network that it leaves says of the validation pictures."""
        import torch

        from headstart.engines.select import SAMPLE
        from headstart.models.backbones import load_first
        from headstart.models.preprocessing import batches
        from headstart.training.head_files import load_start
        from headstart.training.network import TrainedNetwork
        from headstart.training.recipe import Recipe, TrainingSetup
        from headstart.training.trainer import Trainer
        from headstart.training.training_data import TrainingData

        trunk, card = load_first(self.data.backbone, self.data.fetch.network)
        pictures = int((self.manifest["split"] == "train").sum())
        recipe = Recipe(self.params.finetune, not card.pretrained, self.params.seed, pictures)
        head = load_start(self.data.head)
        setup = TrainingSetup(trunk, head, self.pixels, self.manifest, recipe, self.device, self.params.features.engine)
        _, sample = next(batches(trunk.view, self.pixels, setup.rows("val")[:SAMPLE].tolist(), SAMPLE))
        network = TrainedNetwork(setup, sample)
        print(f"finetune: {network.precision.precision} ({network.precision.why})")
        with tempfile.TemporaryDirectory() as scratch:
            data = TrainingData(setup, network, Path(scratch))
            trainer = Trainer(setup, network, data)
            network.to_train_mode(recipe.batch_norm_trained)
            activations, labels = next(next(data.epochs(1)))
            labels = labels.to(self.device)
            bare = len(labels) / seconds_of(lambda: trainer._step(activations, labels, 0.0), self.device)
            wait, start = Wait(), time.perf_counter()
            for activations, labels in wait(next(data.epochs(1))):
                trainer._step(activations, labels.to(self.device), 1.0)
                finished(self.device)  # so that what follows waits for pictures and for nothing else
            spent = time.perf_counter() - start
            told("finetune", data.batch * data.steps / spent, bare, "the bare training step", wait.seconds / spent)
            ours = trainer.validation_logits(network.trained)
        model = network.classifier.cpu().eval()
        exact = torch.cat(list(model.logits_of(self.pixels, setup.rows("val").tolist(), 64, self.cpu)))
        agreed("finetune", float((head.task.predict(ours) == head.task.predict(exact)).float().mean()))

    def predict(self, folder: Path) -> None:
        import numpy as np

        from headstart.data.decode import Unusable
        from headstart.inference.batch import BatchPredictor
        from headstart.inference.predictor import load_predictor

        files = []
        for number, content in enumerate(jpegs() * 16):
            files.append(folder / f"{number}.jpg")
            files[-1].write_bytes(content)
        batched = BatchPredictor(self.data.package.model, len(files))
        views = [batched.view(batched.decode(file)) for file in files[: batched.batch]]
        bare = len(views) / seconds_of(lambda: batched.predict_views(views), self.device)
        start = time.perf_counter()
        found = list(batched.predict_files(files))
        rate = len(files) / (time.perf_counter() - start)
        told("predict", rate, bare, "views that are decoded", max(0.0, 1 - rate / bare))
        expected = load_predictor(self.data.package.model).predict(files[:COMPARED])
        names = list(batched.classes)
        same = [
            not isinstance(output, Unusable) and names[int(np.argmax(output.probabilities))] == answer.label
            for (_, output), answer in zip(found, expected, strict=False)
        ]
        agreed("predict", float(np.mean(same)))
        self._serve(bare)

    def _serve(self, bare: float) -> None:
        port, files, count = free_port(), jpegs(), 10 * CLIENTS
        with running(*headstart(self.data.package.model, port), port=port):
            load(port, "/predict", "image/jpeg", files, CLIENTS)
            start = time.perf_counter()
            load(port, "/predict", "image/jpeg", files, count)
            told("serve", count / (time.perf_counter() - start), bare, "views that are decoded")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu",), help="run all of it without a GPU")
    parser.add_argument("--source", default="emoji", help="data.source; default: emoji")
    parser.add_argument("--limit", type=int, help="pictures per class; default: all")
    parser.add_argument("--backbone", help="default: that of params.yaml")
    parser.add_argument("--size", type=int, help="view.size; default: the publisher's")
    parser.add_argument("--epochs", type=int, default=4, help="default: 4")
    asked = parser.parse_args()
    if asked.device:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from headstart.base.device import accelerator, processor, set_up

    if not asked.device and accelerator() is None:
        sys.exit("torch sees no GPU on this machine; `python bench/gpu.py --device cpu` runs the same code without one")
    device = set_up(None)
    print(f"on {processor(device)}")
    with tempfile.TemporaryDirectory() as scratch:
        folder, settings = Path(scratch) / "project", {} if asked.backbone is None else {"backbone": asked.backbone}
        given = {"source": asked.source, "limit": asked.limit}
        clone(folder, data=given, view={"size": asked.size}, finetune={"epochs": asked.epochs}, **settings)
        stages(folder, "fetch", "prepare", "backbone")
        for stage in STAGES:
            start = time.perf_counter()
            stages(folder, stage)
            print(f"stage {stage}: {time.perf_counter() - start:.1f} s", flush=True)
        project = Project(folder, device)
        project.features()
        project.head()
        project.finetune()
        pictures = Path(scratch) / "pictures"
        pictures.mkdir()
        project.predict(pictures)


if __name__ == "__main__":
    main()
