"""Where the time of an epoch of fine-tuning goes, and what other ways of calculating it would bring.

    python bench/finetune_epoch.py                              # two minutes on two quiet cores
    python bench/finetune_epoch.py --pictures 600 --rounds 7

One epoch of the default's first network (upper half, new views, random weights) on generated photographs, under
torch.profiler. Views are made in a process of their own, so "data" is what training waits for. Then steps on one batch,
each way once a round: ratios to what the pipeline does on a CPU, as median (least–most); below 1 is faster.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from tutorial_loop import generate

from headstart.base.device import multiplies_bf16, processor, set_up
from headstart.base.sections import Data, Finetune, Prepare, Split
from headstart.base.threads import cores
from headstart.data.fetch import fetch
from headstart.data.packed import Pixels
from headstart.data.prepare import prepare
from headstart.models.backbones import architecture
from headstart.models.classifier import FittedHead
from headstart.models.heads import LinearHead
from headstart.training.network import TrainedNetwork
from headstart.training.recipe import Recipe, TrainingSetup
from headstart.training.trainer import Trainer
from headstart.training.training_data import TrainingData

PARTS = {"DataLoader": "data", "frozen": "frozen layers", "Optimizer.step": "optimizer", "averaging": "weight average"}
KERNELS = {
    "convolution": "convolutions", r"mm$": "matrix products", "norm": "normalisation", "relu|hardtanh|clamp": "activations",
    "copy_": "copies and casts",
}  # fmt: skip


def named(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def inside(*given: Any) -> Any:
        with record_function(name):
            return call(*given)

    return inside


def where_it_goes(trainer: Trainer) -> None:
    """Of an epoch: all that one of ``PARTS`` calls counts as that part, the rest by kernel, forwards and backwards."""
    data, average = trainer.data, trainer.network.average
    data.frozen = replace(data.frozen, engine=named("frozen", data.frozen.engine))
    average.update_parameters = named("averaging", average.update_parameters)  # type: ignore[method-assign]
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        start = time.perf_counter()
        trainer.train_epoch(1, next(data.epochs(1)))
        whole = time.perf_counter() - start
    seconds = dict.fromkeys([*PARTS.values(), *KERNELS.values()], 0.0)

    def add(event: Any) -> None:
        part = next((name for text, name in PARTS.items() if text in event.name), None)
        kernel = next((name for text, name in KERNELS.items() if re.search(text, event.name)), None)
        if part:
            seconds[part] += event.cpu_time_total / 1e6
            return
        if kernel:
            seconds[kernel] += event.self_cpu_time_total / 1e6
        for child in event.cpu_children:
            add(child)

    for event in profiled.events() or ():
        if event.cpu_parent is None:
            add(event)
    seconds["everything else"] = whole - sum(seconds.values())
    kept = seconds["data"] + seconds["frozen layers"]
    print(f"an epoch of {data.steps} batches, {whole:.1f} s under the profiler, on {processor(trainer.setup.device)}:")
    for name, spent in seconds.items():
        print(f"  {spent / whole:6.1%}  {name}")
    print(f"  with the lower half's answers kept (finetune.views), {1 - kept / whole:.0%} of it remain")


def side_by_side(trainer: Trainer, rounds: int, steps: int) -> None:
    network = trainer.network
    activations, labels = next(next(trainer.data.epochs(1)))
    network.to_train_mode(batch_norm=False)

    def way(model: Any = network.trained, rounded: bool = False, average: bool = True, **how: bool) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(network.parameter_groups, **how or {"fused": True})

        def step() -> None:
            with network.autocast(rounded):
                loss = trainer.loss(model(activations), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if average:
                network.average.update_parameters(network.classifier)

        return step

    ways = {
        "float32": way(), "AdamW by foreach": way(foreach=True), "AdamW one by one": way(foreach=False),
        "no weight average": way(average=False), "torch.compile": way(torch.compile(network.trained)),
    }  # fmt: skip
    if trainer.setup.device.type != "cpu" or multiplies_bf16():
        ways["bfloat16 by autocast"] = way(rounded=True)
    else:
        print("bfloat16 is left out: the processor would emulate it")
    print(f"a step on {len(labels)} pictures, after a first one that took:")
    for name in list(ways):
        start = time.perf_counter()
        try:
            ways[name]()
            print(f"  {time.perf_counter() - start:5.1f} s  {name}", flush=True)
        except Exception as error:  # a machine without a C++ compiler, or a network that the compiler cannot take
            print(f"  {name} is left out: {type(error).__name__}")
            del ways[name]
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, step in ways.items():
            start = time.perf_counter()
            for _ in range(steps):
                step()
            found[name].append(time.perf_counter() - start)
    for name, times in found.items():
        ratios = [mine / ours for mine, ours in zip(times, found["float32"], strict=True)]
        print(f"  {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})  {name}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=96, help="default: 96")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--steps", type=int, default=1, help="in a round, each way; default: 1")
    asked = parser.parse_args()
    device = set_up(None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "pictures"
        for split, first, count in (("train", 0, asked.pictures), ("val", 10_000, 16), ("test", 20_000, 8)):
            generate(folder / split, count, first=first)
        out = Path(name) / "out"
        listed = fetch(Data(source=str(folder)), out / "manifest.csv")
        manifest = prepare(listed, folder, Prepare(), Split(), 0, cores(), out)
        head = FittedHead(LinearHead.of(0.01 * torch.randn(2, 1280), torch.zeros(2)), 1.0, ("even", "odd"))
        trunk = architecture("tf_efficientnet_lite0").trunk()
        recipe = Recipe(Finetune(precision="fp32"), scratch=False, seed=0)
        setup = TrainingSetup(trunk, head, Pixels(out), manifest, recipe, device)
        network = TrainedNetwork(setup, torch.zeros(16, 3, 224, 224, dtype=torch.uint8))
        trainer = Trainer(setup, network, TrainingData(setup, network, out))
        where_it_goes(trainer)
        side_by_side(trainer, asked.rounds, asked.steps)
