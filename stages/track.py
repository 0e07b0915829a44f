"""Log this result to MLflow, once."""

from pathlib import Path

from headstart.base.errors import run_cleanly
from headstart.base.params import Params
from headstart.tracking.runs import track


def main() -> None:
    print(track(Path("data"), Params.load(), Path("data/track")))


if __name__ == "__main__":
    run_cleanly(main)
