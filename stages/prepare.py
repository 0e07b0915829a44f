"""Audit every picture, split, decode once."""

from pathlib import Path

from headstart.base.errors import run_cleanly
from headstart.base.params import Params
from headstart.base.threads import cores
from headstart.data.packed import Pixels
from headstart.data.prepare import prepare
from headstart.data.sources import locate, read_manifest
from headstart.evaluation import figures

FOLDER = Path("data/prepare")


def main() -> None:
    params = Params.load()
    pictures = read_manifest(Path("data/fetch/manifest.csv"))
    root = locate(params.data).root
    threads = params.threads or cores()
    manifest = prepare(pictures, root, params.prepare, params.split, params.seed, threads, FOLDER)
    figures.sheet(Pixels(FOLDER), manifest, FOLDER / "sheet.png")
    counts = ", ".join(f"{n} {split}" for split, n in manifest["split"].value_counts().items())
    print(f"{len(manifest)} of {len(pictures)} pictures kept ({counts}); see {FOLDER}/audit.json and sheet.png")


if __name__ == "__main__":
    run_cleanly(main)
