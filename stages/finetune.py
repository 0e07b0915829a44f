"""Unfreeze as much as asked and go on from the head; the curve is live in MLflow while it trains."""

from pathlib import Path

from headstart import finetune, tracking
from headstart.backbones import load_trunk
from headstart.checkout import sha256_of_files, state_folder
from headstart.compute import set_up
from headstart.data.pixels import Pixels
from headstart.data.prepare import read_manifest
from headstart.errors import run_cleanly
from headstart.heads import load_head
from headstart.params import Params

DATA = Path("data")
FOLDER = DATA / "finetune"


def main() -> None:
    params = Params.load()
    if not params.finetune_is_on:
        finetune.skip(FOLDER)
        print("fine-tuning is off (finetune.unfreeze: none)")
        return
    device = set_up(params.threads)
    trunk, card = load_trunk(DATA / "backbone", DATA / "fetch" / "network.py")
    recipe = finetune.Recipe(params.finetune, scratch=not card["pretrained"], seed=params.seed)
    inputs = [sha256_of_files(DATA / name) for name in ("prepare", "backbone", "head")]
    resume = state_folder("finetune") / finetune.resume_key(
        inputs, params.finetune.model_dump(), params.features.model_dump(), params.seed, params.threads
    )
    live = tracking.live_or_none(DATA, params)
    finetune.finetune(
        trunk, load_head(DATA / "head"), Pixels(DATA / "prepare"), read_manifest(DATA / "prepare"),
        recipe, device, FOLDER, resume, live or (lambda row: None), params.features.engine,
    )  # fmt: skip


if __name__ == "__main__":
    run_cleanly(main)
