"""Pack the chosen classifier as an MLflow model."""

from pathlib import Path

from headstart.base.errors import run_cleanly
from headstart.base.params import Params
from headstart.inference.package import package


def main() -> None:
    package(Path("data"), Params.load(), Path("data/package"))
    print("data/package/model is ready: headstart predict PICTURE, or mlflow models serve -m data/package/model")


if __name__ == "__main__":
    run_cleanly(main)
