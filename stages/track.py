"""Log this result to MLflow, once."""

from pathlib import Path

from headstart.errors import run_cleanly
from headstart.params import Params
from headstart.tracking import track


def main() -> None:
    print(track(Path("data"), Params.load(), Path("data/track")))


if __name__ == "__main__":
    run_cleanly(main)
