"""Unfreeze as much as asked and go on from the head; the curve is live in MLflow while it trains."""

from pathlib import Path

from headstart.base.errors import run_cleanly
from headstart.base.files import write_json, write_text
from headstart.base.identity import inputs_of
from headstart.base.params import Params
from headstart.base.paths import state_folder

DATA, FOLDER = Path("data"), Path("data/finetune")


def main() -> None:
    params = Params.load()
    if params.finetune_is_on:
        train(params)
    else:
        write_json(FOLDER / "finetune.json", {"ran": False})
        write_text(FOLDER / "curve.csv", "epoch,train_loss,val_log_loss,val_accuracy\n")
        print("fine-tuning is off (finetune.unfreeze: none)")


def train(params: Params) -> None:
    # Imported here: they take seconds, which one who only wants the head need not wait.
    from headstart.base.device import set_up
    from headstart.data.manifest import read_manifest
    from headstart.data.packed import Pixels
    from headstart.models.backbones import load_trunk
    from headstart.tracking import runs
    from headstart.training import finetune
    from headstart.training.linear_probe import load_head
    from headstart.training.recipe import Recipe

    device = set_up(params.threads)
    trunk, card = load_trunk(DATA / "backbone", DATA / "fetch" / "network.py")
    recipe = Recipe(params.finetune, scratch=not card["pretrained"], seed=params.seed)
    key = finetune.resume_key(inputs_of("finetune"), params.finetune, params.features, params.seed, params.threads)
    finetune.finetune(
        trunk, load_head(DATA / "head"), Pixels(DATA / "prepare"), read_manifest(DATA / "prepare"), recipe, device, FOLDER,
        state_folder("finetune") / key, runs.live(DATA, params),
        params.features.engine, state_folder("engines") / "seconds.json", state_folder("answers"),
    )  # fmt: skip


if __name__ == "__main__":
    run_cleanly(main)
