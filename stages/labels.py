"""Find pictures whose label looks wrong, that look like no other, or look the same; never among test."""

from pathlib import Path

from headstart import gallery
from headstart.compute import set_up
from headstart.data.manifest import read_manifest
from headstart.data.pixels import Pixels
from headstart.errors import run_cleanly
from headstart.params import Params
from headstart.suspects import examine, training_and_validation

PREPARED, FOLDER = Path("data/prepare"), Path("data/labels")


def main() -> None:
    params = Params.load()
    device = set_up(params.threads)
    pictures, features = training_and_validation(read_manifest(PREPARED), Path("data/features"), device)
    found = examine(pictures, features)
    gallery.write(found, Pixels(PREPARED), pictures, params.labels.shown, FOLDER)
    gallery.show(found, FOLDER)


if __name__ == "__main__":
    run_cleanly(main)
