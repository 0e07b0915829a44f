"""List the pictures to learn from, and take along the user's own network and the digest of their weights' file."""

from pathlib import Path

from headstart.checkout import checkout, replacing, weights_file, write_text
from headstart.data.sources import fetch
from headstart.download import sha256_of
from headstart.errors import HeadstartError, run_cleanly
from headstart.params import Params

FOLDER = Path("data/fetch")


def main() -> None:
    params = Params.load()
    pictures = fetch(params.data, FOLDER / "manifest.csv")
    with replacing(FOLDER / "network.py") as part:
        part.write_bytes(own_network(params.backbone))
    weights = weights_file(params.weights)
    write_text(FOLDER / "weights.sha256", f"{sha256_of(weights) if weights else 'not a file'}\n")
    print(f"{len(pictures)} pictures in {len({p.label for p in pictures})} classes from {params.data.source}")


def own_network(backbone: str) -> bytes:
    """The user's file where backbone is file.py:factory, else a line that says there is none."""
    if ".py:" not in backbone:
        return b"# backbone is not a file of the user's own\n"
    path = checkout() / backbone.rsplit(":", 1)[0]
    try:
        return path.read_bytes()
    except OSError:
        raise HeadstartError(
            f"backbone {backbone!r}: {path} is not there; give its path from the project's folder"
        ) from None


if __name__ == "__main__":
    run_cleanly(main)
