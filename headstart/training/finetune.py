"""The stage finetune: unfreeze as much as asked and go on from the head.

What takes seconds to import is imported where it is used: one who only wants the head need not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable

from headstart.base.artifacts import DataFolder, FinetuneFolder
from headstart.base.artifacts.finetune import FinetuneDetails
from headstart.base.files import write_text
from headstart.base.identity import code_of, digest_of, inputs_of
from headstart.base.params import Params
from headstart.base.paths import state_folder
from headstart.base.terminal import say

Live = Callable[[DataFolder, Params], Callable[[dict[str, float]], None]]


def run(params: Params, data: DataFolder, live: Live) -> None:
    """Train; where fine-tuning is off, say so in the stage's files.

    Args:
        live: called with ``data`` and ``params`` before the training, it returns what is called with each row of the curve.
    """
    folder = data.finetune
    if params.finetune_is_on:
        _train(params, data, folder, live)
        return
    FinetuneDetails(ran=False).write(folder.details)
    write_text(folder.curve, "epoch,train_loss,val_log_loss,val_accuracy\n")
    say("fine-tuning is off (finetune.unfreeze: none)")


def _train(params: Params, data: DataFolder, folder: FinetuneFolder, live: Live) -> None:
    from headstart.base.device import set_up
    from headstart.data.manifest import read_manifest
    from headstart.data.packed import Pixels
    from headstart.models.backbones import load_first
    from headstart.training.head_files import load_start
    from headstart.training.recipe import Recipe, TrainingSetup
    from headstart.training.repeats import finetune_repeatedly

    device = set_up(params.threads)
    trunk, card = load_first(data.backbone, data.fetch.network)
    manifest = read_manifest(data.prepare)
    recipe = Recipe(params.finetune, not card.pretrained, params.seed, int((manifest["split"] == "train").sum()))
    settings = (params.finetune, params.features, params.seed, params.threads)
    key = digest_of([code_of("headstart.training.repeats"), inputs_of("finetune"), settings])
    setup = TrainingSetup(
        trunk, load_start(data.head), Pixels(data.prepare), manifest, recipe, device,
        params.features.engine,
    )  # fmt: skip
    finetune_repeatedly(setup, folder, state_folder("finetune") / key, live(data, params), state_folder("answers"))
