"""The stage finetune: unfreeze as much as asked and go on from the head.

What takes seconds to import is imported where it is used: one who only wants the head need not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from headstart.base.artifacts import DataFolder, FinetuneFolder
from headstart.base.artifacts.finetune import FinetuneDetails
from headstart.base.files import sha256_of_files, write_text
from headstart.base.identity import code_of, digest_of, inputs_of
from headstart.base.kept import read_kept, write_kept
from headstart.base.params import Params
from headstart.base.paths import state_folder
from headstart.base.terminal import say

if TYPE_CHECKING:
    import torch

OnEpoch = Callable[[dict[str, float]], None]
Live = Callable[[DataFolder, Params], OnEpoch]


def run(params: Params, data: DataFolder, live: Live) -> None:
    """Train; where fine-tuning is off, say so in the stage's files.

    Args:
        live: called with ``data`` and ``params`` before the training, it returns what is called with each row of the curve.
    """
    folder = data.finetune
    if params.finetune_is_on:
        _start(params, data, live)
        return
    FinetuneDetails(ran=False).write(folder.details)
    write_text(folder.curve, "epoch,train_loss,val_log_loss,val_accuracy\n")
    say("fine-tuning is off (finetune.unfreeze: none)")


def _start(params: Params, data: DataFolder, live: Live) -> None:
    """Train: in this process, which may be one of several; in several new ones; or on a cluster."""
    from headstart.training import distributed

    processes = params.finetune.processes
    if processes == 1 or distributed.is_started():
        with distributed.joined(params.threads) as device:
            _train(params, data, device, (lambda row: None) if distributed.rank() else live(data, params))
    elif params.cluster is None:
        distributed.launch(processes)
    else:
        from headstart.base.cluster import connected
        from headstart.training.on_cluster import train_on

        with connected(params.cluster, __name__) as cluster:
            assert cluster is not None
            train_on(cluster, processes, params.threads, partial(_train, params, data), live(data, params))


def _train(params: Params, data: DataFolder, device: torch.device, on_epoch: OnEpoch) -> None:
    from headstart.data.manifest import read_manifest
    from headstart.data.packed import Pixels
    from headstart.models.backbones import load_first
    from headstart.training import distributed
    from headstart.training.head_files import load_start
    from headstart.training.recipe import Recipe, TrainingSetup
    from headstart.training.repeats import finetune_repeatedly

    trunk, card = load_first(data.backbone, data.fetch.network)
    manifest = read_manifest(data.prepare)
    recipe = Recipe(params.finetune, not card.pretrained, params.seed, int((manifest["split"] == "train").sum()))
    key = key_of(params)
    setup = TrainingSetup(
        trunk, load_start(data.head), Pixels(data.prepare), manifest, recipe, device,
        params.features.engine,
    )  # fmt: skip
    finetune_repeatedly(setup, data.finetune, state_folder("finetune") / key, on_epoch, state_folder("answers"))
    if distributed.rank() == 0:
        note_trained(key, data.finetune)


def key_of(params: Params) -> str:
    """A digest of all that the pipeline's training depends on."""
    settings = (params.finetune, params.features, params.seed, params.threads)
    return digest_of([code_of("headstart.training.repeats"), inputs_of("finetune"), settings])


def note_trained(key: str, folder: FinetuneFolder) -> None:
    """Note beside the cache what ``folder`` was made from."""
    write_kept(_last(), {"key": key, "files": sha256_of_files(folder)})


def trained_already(params: Params, folder: FinetuneFolder) -> bool:
    """Whether ``folder`` holds what the pipeline's training with ``params`` gives."""
    known = read_kept(_last())
    return known is not None and known == {"key": key_of(params), "files": sha256_of_files(folder)}


def _last() -> Path:
    """What the pipeline has trained last on this machine, from what."""
    return state_folder("trained") / "finetune.json"
