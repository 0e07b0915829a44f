"""Let validation choose, report on the test split once, draw everything."""

from pathlib import Path

from headstart.base.device import set_up
from headstart.base.errors import run_cleanly
from headstart.base.params import Params
from headstart.evaluation.report import evaluate
from headstart.evaluation.summary import verdict


def main() -> None:
    params = Params.load()
    result = evaluate(Path("data"), params, set_up(params.threads), Path("data/evaluate"))
    print(f"{verdict(result)}\nThe whole story: data/evaluate/report.html")


if __name__ == "__main__":
    run_cleanly(main)
