"""Compare the candidates and choose the best one for these pictures."""

from pathlib import Path

from headstart import ranked
from headstart.candidates import Candidate, Sample
from headstart.checkout import state_folder, write_json
from headstart.compute import set_up
from headstart.data.manifest import read_manifest
from headstart.data.pixels import Pixels
from headstart.errors import run_cleanly
from headstart.params import Params
from headstart.ranking import rank

PREPARED, FOLDER = Path("data/prepare"), Path("data/rank")


def main() -> None:
    params = Params.load()
    device = set_up(params.threads)
    manifest = read_manifest(PREPARED)
    candidates = [Candidate.of(name, Path("data/candidates") / name) for name in params.rank.candidates]
    to_train = int((manifest["split"] == "train").sum())
    sample = Sample.of(manifest, params.seed)
    ranking = rank(candidates, sample, Pixels(PREPARED), to_train, params, device, state_folder)
    ranked.write_page(ranking, FOLDER / ranked.PAGE)
    write_json(FOLDER / ranked.RANK, ranking)
    ranked.show(ranking, params.weights)


if __name__ == "__main__":
    run_cleanly(main)
