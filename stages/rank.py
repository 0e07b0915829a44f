"""Compare the candidates and choose the best one for these pictures."""

from pathlib import Path

from headstart.base.device import set_up
from headstart.base.errors import run_cleanly
from headstart.base.files import write_json
from headstart.base.params import Params
from headstart.base.paths import state_folder
from headstart.data.manifest import read_manifest
from headstart.data.packed import Pixels
from headstart.studies import ranking_report
from headstart.studies.candidates import Candidate, Sample
from headstart.studies.ranking import rank

PREPARED, FOLDER = Path("data/prepare"), Path("data/rank")


def main() -> None:
    params = Params.load()
    device = set_up(params.threads)
    manifest = read_manifest(PREPARED)
    candidates = [Candidate.of(name, Path("data/candidates") / name) for name in params.rank.candidates]
    to_train = int((manifest["split"] == "train").sum())
    sample = Sample.of(manifest, params.seed)
    ranking = rank(candidates, sample, Pixels(PREPARED), to_train, params, device, state_folder)
    ranking_report.write_page(ranking, FOLDER / ranking_report.PAGE)
    write_json(FOLDER / ranking_report.RANK, ranking)
    ranking_report.show(ranking, params.weights)


if __name__ == "__main__":
    run_cleanly(main)
