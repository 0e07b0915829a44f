"""Try settings of fine-tuning within a budget of time, and say whether any is better than the present ones."""

from collections.abc import Callable
from pathlib import Path

from headstart.base.errors import run_cleanly
from headstart.base.files import read_json, write_json
from headstart.base.identity import inputs_of
from headstart.base.params import Finetune, Params
from headstart.base.paths import state_folder

DATA, FOLDER = Path("data"), Path("data/tune")


def main() -> None:
    params = Params.load()
    # Imported here: they take seconds, which one whose params.yaml is wrong need not wait.
    from headstart.base.device import set_up
    from headstart.data.manifest import read_manifest
    from headstart.data.packed import Pixels
    from headstart.models.backbones import load_trunk
    from headstart.studies import tuning, tuning_report
    from headstart.tracking import study_runs
    from headstart.training import finetune, recipe
    from headstart.training.linear_probe import load_head

    search = tuning.Search.of(params, scratch=not read_json(DATA / "backbone" / "card.json")["pretrained"])
    device = set_up(params.threads)
    head, manifest, pixels = load_head(DATA / "head"), read_manifest(DATA / "prepare"), Pixels(DATA / "prepare")

    def train(settings: Finetune, folder: Path, resume: Path, on_epoch: Callable[[dict[str, float]], None]) -> None:
        trunk, _ = load_trunk(DATA / "backbone", DATA / "fetch" / "network.py")
        finetune.finetune(
            trunk, head, pixels, manifest, recipe.Recipe(settings, search.scratch, params.seed), device, folder, resume,
            on_epoch, params.features.engine, state_folder("engines") / "seconds.json", state_folder("answers"),
        )  # fmt: skip

    study = search.key(inputs_of("finetune"), params.features, params.seed, params.threads)
    labels = tuning.validation_labels(manifest, head.classes)
    runs = study_runs.StudyRuns(params, study)
    found = tuning.tune(train, labels, search, params, study, state_folder("tune"), runs)
    tuning_report.write_page(found, FOLDER / tuning_report.PAGE)
    write_json(FOLDER / tuning_report.TUNE, found)
    tuning_report.show(found)


if __name__ == "__main__":
    run_cleanly(main)
