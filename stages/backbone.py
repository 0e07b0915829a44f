"""Resolve the architecture and its weights."""

from pathlib import Path

from headstart.base.errors import run_cleanly
from headstart.base.params import Params
from headstart.models.weights import store_backbone

FOLDER = Path("data/backbone")


def main() -> None:
    params = Params.load()
    network = Path("data/fetch/network.py")
    card = store_backbone(params.backbone, params.weights, params.weights_mirror, params.seed, network, FOLDER)
    size = f"{card['parameters'] / 1e6:.1f} M parameters, {card['features']} features"
    print(f"{card['name']}: {card['source']['origin']}, {size}")


if __name__ == "__main__":
    run_cleanly(main)
