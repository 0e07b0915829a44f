"""Train a classifier on the cached features."""

from pathlib import Path

import numpy as np

from headstart.base.device import set_up
from headstart.base.errors import run_cleanly
from headstart.base.params import Params
from headstart.data.manifest import class_names, read_manifest
from headstart.training.features import load_features
from headstart.training.linear_probe import train_head

FEATURES = Path("data/features")


def main() -> None:
    params = Params.load()
    device = set_up(params.threads)
    train, val = (load_features(FEATURES, split, device) for split in ("train", "val"))
    manifest = read_manifest(Path("data/prepare")).set_index("split")
    groups = np.concatenate([manifest.loc[["train"], "group"], manifest.loc[["val"], "group"]])
    train_head(train, val, class_names(manifest), params.head, Path("data/head"), groups)


if __name__ == "__main__":
    run_cleanly(main)
