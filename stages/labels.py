"""Find pictures whose label looks wrong, that look like no other, or look the same; never among test."""

from pathlib import Path

from headstart.base.device import set_up
from headstart.base.errors import run_cleanly
from headstart.base.params import Params
from headstart.data.manifest import read_manifest
from headstart.data.packed import Pixels
from headstart.studies import label_issues_report
from headstart.studies.label_issues import examine, training_and_validation

PREPARED, FOLDER = Path("data/prepare"), Path("data/labels")


def main() -> None:
    params = Params.load()
    device = set_up(params.threads)
    pictures, features = training_and_validation(read_manifest(PREPARED), Path("data/features"), device)
    found = examine(pictures, features)
    label_issues_report.write(found, Pixels(PREPARED), pictures, params.labels.shown, FOLDER)
    label_issues_report.show(found, FOLDER)


if __name__ == "__main__":
    run_cleanly(main)
