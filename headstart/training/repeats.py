"""The same training several times, with other seeds: an average of them is kept, and how far they lie apart is known.

Chance in training (the order of pictures, random views, random weights) moves a figure as chance in the pictures does
(Bouthillier et al. 2021, "Accounting for variance in machine learning benchmarks"), and averaging takes most of it out. All
repeats start from the same head and network, so the mean of their weights is mostly as good as the mean of their answers
(Wortsman et al. 2022, "Model soups") and costs one network.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from headstart.base.arrays import Floats
from headstart.base.artifacts import FinetuneFolder
from headstart.base.artifacts.finetune import KEPT, FinetuneDetails, Kept, Repeats
from headstart.base.files import replacing, sha256_of_files, write_text
from headstart.base.kept import read_kept, say_damaged, write_kept
from headstart.base.terminal import say
from headstart.engines.batching import inference_batch
from headstart.models.calibration import calibrated_losses, fit_temperature
from headstart.models.classifier import Classifier, averaged
from headstart.models.heads import LinearHead
from headstart.training import distributed
from headstart.training.checkpoint import Row
from headstart.training.finetuned import curve_of, load_finetuned, load_val_logits
from headstart.training.linear_probe import standard_error
from headstart.training.recipe import TrainingSetup
from headstart.training.trainer import finetune

FINISHED = "finished.json"  # the digest of what a repeat that came to its end has left behind


def finetune_repeatedly(
    setup: TrainingSetup,
    folder: Path,
    resume: Path,
    on_epoch: Callable[[Row], None] = lambda row: None,
    cache: Path | None = None,
) -> None:
    """Train as often as ``finetune.repeats`` says. Once is ``finetune``, to the byte; of several trainings ``folder`` gets
    all, each in a folder of its own, and an average of them as validation asks for.

    A repeat that came to its end is not trained again by a run that finds it in ``resume``, and one that was stopped goes
    on. Frozen layers' activations are those of the first repeat.

    Args:
        on_epoch: as for ``finetune``; of several trainings a row has the number of its ``repeat`` too.
    """
    count = setup.recipe.settings.repeats
    if count == 1:
        finetune(setup, folder, resume, on_epoch, cache)
        return
    homes = [FinetuneFolder(resume, f"repeat-{number}") for number in range(1, count + 1)]
    for number, home in enumerate(homes, start=1):
        own = replace(setup, trunk=deepcopy(setup.trunk), recipe=replace(setup.recipe, repeat=number))

        def with_number(row: Row, number: int = number) -> None:
            on_epoch({"repeat": number} | row)

        with distributed.first_alone():
            finished = _is_finished(home)
        if finished:
            say(f"{own.recipe.told}: an earlier run finished it")
            for row in curve_of(home):
                with_number(row)
        else:
            finetune(own, home, resume / f"running-{number}", with_number, cache or resume / "answers")
            if distributed.rank() == 0:
                write_kept(home / FINISHED, sha256_of_files(home))
    if distributed.rank() == 0:
        _write(setup, homes, FinetuneFolder(folder))
        shutil.rmtree(resume, ignore_errors=True)


def _is_finished(home: FinetuneFolder) -> bool:
    known = read_kept(home / FINISHED)
    whole = known is not None and known == sha256_of_files(home, leave_out=(FINISHED,))
    if known is not None and not whole:
        say_damaged(home)
    if not whole:
        shutil.rmtree(home, ignore_errors=True)
    return whole


@dataclass(frozen=True)
class _Average:
    """What may be kept of the repeats.

    Attributes:
        logits: of the validation pictures.
    """

    kept: Kept
    model: Classifier
    logits: Tensor


def _write(setup: TrainingSetup, homes: list[FinetuneFolder], folder: FinetuneFolder) -> None:
    """Keep an average of the finished repeats in ``homes``, and all of them."""
    labels, task = setup.labels[setup.rows("val")], setup.head.task
    details = [FinetuneDetails.read(home.details) for home in homes]
    logits = [load_val_logits(home) for home in homes]
    losses = [calibrated_losses(each.numpy(), labels, task) for each in logits]
    best = int(np.argmin([each.mean() for each in losses]))
    averages = _averages(setup, homes, logits, best)
    of_averages: list[Floats] = [calibrated_losses(each.logits.numpy(), labels, task) for each in averages]
    groups = setup.manifest["group"].to_numpy(str)[setup.rows("val")]
    chosen = averages[int(_pays(of_averages[0] - of_averages[1], groups))]
    for number, home in enumerate(homes, start=1):
        own = folder.repeat(number)
        shutil.rmtree(own, ignore_errors=True)
        shutil.copytree(home, own, ignore=shutil.ignore_patterns(FINISHED))
    with replacing(folder.weights) as part:
        save_file({key: value.contiguous() for key, value in chosen.model.state_dict().items()}, part)
    with replacing(folder.val_logits) as part:
        save_file({"logits": chosen.logits}, part)
    repeats = Repeats(
        count=len(homes),
        kept=chosen.kept,
        candidates={each.kept: float(loss.mean()) for each, loss in zip(averages, of_averages, strict=True)},
        val_log_loss=[float(each.mean()) for each in losses],
        val_accuracy=[float(task.correct(task.predict(each.numpy()), labels).mean()) for each in logits],
    )
    temperature = fit_temperature(chosen.logits.numpy(), labels, task)
    details[best].model_copy(update={"temperature": temperature, "repeats": repeats}).write(folder.details)
    curves = [pd.read_csv(home.curve, dtype=str) for home in homes]
    together = pd.concat(curves, keys=range(1, len(homes) + 1), names=["repeat"]).reset_index("repeat")
    write_text(folder.curve, together.to_csv(index=False, lineterminator="\n"))
    told = ", ".join(f"{accuracy:.3f}" for accuracy in repeats.val_accuracy)
    say(f"finetune: {len(homes)} repeats, validation accuracies {told}; kept: {KEPT[chosen.kept]}")


def _pays(lower_by: Floats, groups: NDArray[Any]) -> bool:
    """Whether more networks, or one chosen on these pictures, are clearly better than the mean of the weights, which is
    neither: by two standard errors, since every training was chosen on the validation pictures already, which flatters all
    but that mean.

    Args:
        lower_by: (N,) by how much the log-loss of each validation picture is lower.
        groups: (N,) names.
    """
    return bool(lower_by.mean() > 2 * standard_error(lower_by, groups))


def _averages(setup: TrainingSetup, homes: list[FinetuneFolder], logits: list[Tensor], best: int) -> list[_Average]:
    """The mean of the weights, which costs one network; and the mean in log-probabilities, which costs as many as there are
    repeats, or, where the head is not linear and has no such mean, the best repeat."""

    def loaded(home: FinetuneFolder) -> Classifier:
        model = load_finetuned(home, deepcopy(setup.trunk), setup.head)
        assert model is not None
        return model.eval()

    models = [loaded(home) for home in homes]
    soup = loaded(homes[0])
    states = [model.state_dict() for model in models]
    soup.load_state_dict({key: _mean([state[key] for state in states]) for key in states[0]})
    rows, batch = setup.rows("val").tolist(), inference_batch(soup.to(setup.device), soup.trunk.view, setup.device)
    of_soup = torch.cat(list(soup.logits_of(setup.pixels, rows, batch, setup.device)))
    found = [_Average("soup", soup.cpu(), of_soup)]
    if not isinstance(setup.head.module, LinearHead):
        return [*found, _Average("best", models[best], logits[best])]
    share = 1 / len(models)
    together = torch.stack([each * (share / model.temperature) for each, model in zip(logits, models, strict=True)]).sum(0)
    return [*found, _Average("average", averaged(models, [share] * len(models)), together)]


def _mean(tensors: list[Tensor]) -> Tensor:
    """Element by element; of counters the first."""
    first = tensors[0]
    return torch.stack([each.double() for each in tensors]).mean(0).to(first) if first.is_floating_point() else first
