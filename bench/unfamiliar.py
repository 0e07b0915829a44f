"""Which score tells pictures that are unlike anything learned: nearest neighbours, Mahalanobis' distance, or the logits?

    python bench/unfamiliar.py emoji hymenoptera ~/signs    # six minutes on two quiet cores, most of it for features
    python bench/unfamiliar.py data ../other/data           # where stages have run up to features, with one backbone

Every set takes its turn as what was learned, and the validation and test pictures of the others are the strangers. The
features are those of the frozen networks of params.yaml. Each score is fitted on the training pictures, and its threshold
is chosen on the validation pictures as the package stage chooses it. Prints for each set of strangers AUROC (how often a
stranger scores higher than an own test picture) and the share of strangers that is found, and the share of own test
pictures that pass.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _project import with_features
from scipy.linalg import solve_triangular
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional

from headstart.base.arrays import Floats
from headstart.inference.familiarity import SHARE, distances
from headstart.models.logistic import fit_path
from headstart.training.feature_files import load_features

Score = Callable[[Tensor], Floats]  # (N, D) features → (N,), higher for strangers


def nearest(features: Tensor, neighbour: int) -> Score:
    """One minus the cosine to a training picture, as packaged models have it (Sun et al. 2022)."""
    reference = functional.normalize(features, dim=1)
    return lambda found: distances(found, reference, neighbour)[0][:, -1].numpy()


def mahalanobis(features: Tensor, labels: Tensor) -> Score:
    """The distance to the nearest class's mean, by the covariance that all classes share, shrunk as Ledoit and Wolf do (Lee
    et al. 2018)."""
    means = torch.stack([features[labels == label].mean(0) for label in labels.unique()]).double()
    rest = features.double() - means[torch.unique(labels, return_inverse=True)[1]]
    lower = np.linalg.cholesky(ledoit_wolf(rest.numpy(), assume_centered=True)[0])

    def whitened(found: Tensor) -> Tensor:
        return torch.from_numpy(solve_triangular(lower, found.double().numpy().T, lower=True).T.copy())

    centres = whitened(means)
    return lambda found: torch.cdist(whitened(found), centres).amin(1).numpy()


def of_logits(features: Tensor, labels: Tensor, score: Callable[[Tensor], Tensor]) -> Score:
    """Of the logits of a logistic regression as the head is one."""
    mean, scale = features.mean(0), features.std(0).clamp_min(1e-8)
    ((weight, bias, _),) = fit_path((features - mean) / scale, labels, int(labels.max()) + 1, [0.003])
    return lambda found: -score((found - mean) / scale @ weight.T + bias).numpy()


def scores(features: Tensor, labels: Tensor) -> dict[str, Score]:
    return {
        "nearest": nearest(features, 1),
        "5th nearest": nearest(features, 5),
        "10th nearest": nearest(features, 10),
        "Mahalanobis": mahalanobis(features, labels),
        "energy": of_logits(features, labels, lambda logits: logits.logsumexp(1)),
        "largest logit": of_logits(features, labels, lambda logits: logits.amax(1)),
    }


def compare(folders: dict[str, Path]) -> None:
    found = {
        name: {s: load_features(folder / "features", s) for s in ("train", "val", "test")}
        for name, folder in folders.items()
    }
    for own, sets in found.items():
        strangers = {
            name: torch.cat([other[split][0] for split in ("val", "test")]) for name, other in found.items() if name != own
        }
        print(f"learned from {own}: {', '.join(f'{len(sets[s][0])} {s}' for s in sets)}", flush=True)
        for name, score in scores(*sets["train"]).items():
            val, test = (score(sets[split][0]) for split in ("val", "test"))
            threshold = np.sort(val)[min(math.ceil((len(val) + 1) * SHARE - 1e-9), len(val)) - 1]
            told = []
            for other, features in strangers.items():
                strange = score(features)
                truth = np.repeat([0, 1], [len(test), len(strange)])
                auroc = roc_auc_score(truth, np.concatenate([test, strange]))
                told.append(f"{other}: AUROC {auroc:.4f}, {(strange > threshold).mean():.1%} found")
            print(f"  {name:13}  own {(test <= threshold).mean():.1%} pass; {'; '.join(told)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", help="sources, as data.source, or folders of stages")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folders = {}
        for number, name in enumerate(asked.sets):
            given, project = Path(name).expanduser(), Path(scratch) / str(number)
            if (given / "features").is_dir():
                folders[name] = given
                continue
            with_features(project, str(given.resolve()) if given.exists() else name)
            folders[name] = project / "data"
        compare(folders)
