"""List the pictures to learn from, and take along the user's own network and the digest of their weights' file."""

from pathlib import Path

from headstart.base.errors import run_cleanly
from headstart.base.files import replacing, write_text
from headstart.base.params import Params
from headstart.base.paths import network_file, weights_file
from headstart.data.download import sha256_of
from headstart.data.sources import fetch

FOLDER = Path("data/fetch")


def main() -> None:
    params = Params.load()
    pictures = fetch(params.data, FOLDER / "manifest.csv")
    own = network_file(params.backbone)
    with replacing(FOLDER / "network.py") as part:
        part.write_bytes(own.read_bytes() if own else b"# backbone is not a file of the user's own\n")
    weights = weights_file(params.weights)
    write_text(FOLDER / "weights.sha256", f"{sha256_of(weights) if weights else 'not a file'}\n")
    print(f"{len(pictures)} pictures in {len({p.label for p in pictures})} classes from {params.data.source}")


if __name__ == "__main__":
    run_cleanly(main)
