"""Find one candidate's weights and pass a sample of the pictures through it: python stages/candidate.py NAME."""

import sys
from pathlib import Path

from headstart.base.device import set_up
from headstart.base.errors import run_cleanly
from headstart.base.params import Params
from headstart.base.paths import state_folder
from headstart.data.manifest import read_manifest
from headstart.data.packed import Pixels
from headstart.studies.candidates import Sample, store_candidate

PREPARED = Path("data/prepare")


def main() -> None:
    name = sys.argv[1]
    params = Params.load()
    device = set_up(params.threads)
    sample = Sample.of(read_manifest(PREPARED), params.seed)
    count = sample.sizes(params.rank.first, params.rank.first)[0]
    timings = state_folder("engines") / "seconds.json"
    store_candidate(
        name, Pixels(PREPARED), sample, count, params.seed, params.weights_mirror, device, Path("data/candidates") / name,
        params.features.engine, timings,
    )  # fmt: skip


if __name__ == "__main__":
    run_cleanly(main)
