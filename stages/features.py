"""Pass every picture through the frozen backbone, once."""

from pathlib import Path

from headstart.backbones import load_trunk
from headstart.checkout import state_folder
from headstart.compute import set_up
from headstart.data.manifest import read_manifest
from headstart.data.pixels import Pixels
from headstart.errors import run_cleanly
from headstart.features import extract
from headstart.params import Params

PREPARED = Path("data/prepare")


def main() -> None:
    params = Params.load()
    device = set_up(params.threads)
    trunk, _ = load_trunk(Path("data/backbone"), Path("data/fetch/network.py"))
    pixels, manifest = Pixels(PREPARED), read_manifest(PREPARED)
    timings = state_folder("engines") / "seconds.json"
    extract(
        trunk, pixels, manifest, device, Path("data/features"), params.features.engine, timings, state_folder("answers")
    )


if __name__ == "__main__":
    run_cleanly(main)
