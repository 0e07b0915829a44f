"""Is pre-training worth it here, and how much of the network should be trained? Measured by learning curves."""

from pathlib import Path

from headstart.base.device import set_up
from headstart.base.errors import run_cleanly
from headstart.base.files import write_json
from headstart.base.params import Params
from headstart.base.paths import state_folder
from headstart.studies.transfer_gain import answer


def main() -> None:
    params = Params.load()
    found = answer(Path("data"), params, set_up(params.threads), state_folder)
    write_json(Path("data/why/why.json"), found)
    print("\n".join(found["sentences"]))


if __name__ == "__main__":
    run_cleanly(main)
