"""Try settings of fine-tuning within a budget of time, and say whether any is better than the present ones."""

from collections.abc import Callable
from pathlib import Path

from headstart.checkout import inputs_of, read_json, state_folder, write_json
from headstart.errors import run_cleanly
from headstart.params import Finetune, Params

DATA, FOLDER = Path("data"), Path("data/tune")


def main() -> None:
    params = Params.load()
    # Imported here: they take seconds, which one whose params.yaml is wrong need not wait.
    from headstart import finetune, tracking, tuned, tuning
    from headstart.backbones import load_trunk
    from headstart.compute import set_up
    from headstart.data.manifest import read_manifest
    from headstart.data.pixels import Pixels
    from headstart.heads import load_head

    search = tuning.Search.of(params, scratch=not read_json(DATA / "backbone" / "card.json")["pretrained"])
    device = set_up(params.threads)
    head, manifest, pixels = load_head(DATA / "head"), read_manifest(DATA / "prepare"), Pixels(DATA / "prepare")

    def train(settings: Finetune, folder: Path, resume: Path, on_epoch: Callable[[dict[str, float]], None]) -> None:
        trunk, _ = load_trunk(DATA / "backbone", DATA / "fetch" / "network.py")
        finetune.finetune(
            trunk, head, pixels, manifest, finetune.Recipe(settings, search.scratch, params.seed), device, folder, resume,
            on_epoch, params.features.engine, state_folder("engines") / "seconds.json", state_folder("answers"),
        )  # fmt: skip

    study = search.key(inputs_of("finetune"), params.features, params.seed, params.threads)
    labels = tuning.validation_labels(manifest, head.classes)
    runs = tracking.StudyRuns(params, study)
    found = tuning.tune(train, labels, search, params, study, state_folder("tune"), runs)
    tuned.write_page(found, FOLDER / tuned.PAGE)
    write_json(FOLDER / tuned.TUNE, found)
    tuned.show(found)


if __name__ == "__main__":
    run_cleanly(main)
