"""Pass every picture through the frozen backbone, once."""

from pathlib import Path

from headstart.base.device import set_up
from headstart.base.errors import run_cleanly
from headstart.base.identity import inputs_of
from headstart.base.params import Params
from headstart.base.paths import state_folder
from headstart.data.manifest import read_manifest
from headstart.data.packed import Pixels
from headstart.models.backbones import load_trunk
from headstart.training.features import extract

PREPARED = Path("data/prepare")


def main() -> None:
    params = Params.load()
    device = set_up(params.threads)
    trunk, _ = load_trunk(Path("data/backbone"), Path("data/fetch/network.py"))
    pixels, manifest = Pixels(PREPARED), read_manifest(PREPARED)
    timings, kept = state_folder("engines") / "seconds.json", state_folder("answers")
    made_by = inputs_of("features", folders=False)
    extract(trunk, pixels, manifest, device, Path("data/features"), params.features.engine, timings, kept, made_by)


if __name__ == "__main__":
    run_cleanly(main)
