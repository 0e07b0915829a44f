"""Unfreeze as much as asked and go on from the head; the curve is live in MLflow while it trains."""

from pathlib import Path

from headstart.checkout import inputs_of, state_folder, write_json, write_text
from headstart.errors import run_cleanly
from headstart.params import Params

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
    from headstart import finetune, tracking
    from headstart.backbones import load_trunk
    from headstart.compute import set_up
    from headstart.data.manifest import read_manifest
    from headstart.data.pixels import Pixels
    from headstart.heads import load_head

    device = set_up(params.threads)
    trunk, card = load_trunk(DATA / "backbone", DATA / "fetch" / "network.py")
    recipe = finetune.Recipe(params.finetune, scratch=not card["pretrained"], seed=params.seed)
    key = finetune.resume_key(inputs_of("finetune"), params.finetune, params.features, params.seed, params.threads)
    finetune.finetune(
        trunk, load_head(DATA / "head"), Pixels(DATA / "prepare"), read_manifest(DATA / "prepare"), recipe, device, FOLDER,
        state_folder("finetune") / key, tracking.live(DATA, params),
        params.features.engine, state_folder("engines") / "seconds.json", state_folder("answers"),
    )  # fmt: skip


if __name__ == "__main__":
    run_cleanly(main)
