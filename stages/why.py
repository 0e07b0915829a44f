"""Is pre-training worth it here, and how much of the network should be trained? Measured by learning curves."""

from pathlib import Path

from headstart.checkout import state_folder, write_json
from headstart.compute import set_up
from headstart.errors import run_cleanly
from headstart.params import Params
from headstart.why import answer


def main() -> None:
    params = Params.load()
    found = answer(Path("data"), params, set_up(params.threads), state_folder)
    write_json(Path("data/why/why.json"), found)
    print("\n".join(found["sentences"]))


if __name__ == "__main__":
    run_cleanly(main)
