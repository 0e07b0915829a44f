"""The head on pictures unlike photographs, with and without a least deviation of its features (heads.LEAST_DEVIATION).

    python bench/least_deviation.py      # about two minutes

The digits of why_digits.py: the features of most layers hardly vary there, and where all are standardised to the same
deviation those are noise at full size. Cross-validated log-loss and accuracy at the strength that each side would choose.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from _project import with_features
from why_digits import write_digits

from headstart.base.sections import Head
from headstart.models import calibration
from headstart.training import linear_probe
from headstart.training.feature_files import load_features


def cross_validated(features: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Log-loss and accuracy of the held-out pictures."""
    strengths, truth = sorted(Head().C), labels.numpy()
    found = linear_probe.cross_validated(
        features, labels, int(labels.max()) + 1, strengths, Head(), linear_probe.folds_of(truth)
    )
    losses = [calibration.calibrated_losses(logits, truth) for logits in found]
    chosen = linear_probe.within_one_standard_error(losses)
    return float(losses[chosen].mean()), float((found[chosen].argmax(1) == truth).mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pictures",
        type=int,
        nargs="+",
        default=[100, 400, 1511],
        help="default: 100 400 1511 (all)",
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        write_digits(Path(scratch) / "digits")
        project = Path(scratch) / "project"
        with_features(project, str(Path(scratch) / "digits"))
        features, labels = load_features(project / "data/features", "train")
        extra, more = load_features(project / "data/features", "val")
    features, labels = torch.cat([features, extra]), torch.cat([labels, more])
    order = np.random.default_rng(0).permutation(len(labels))
    shipped = linear_probe.LEAST_DEVIATION
    for count in asked.pictures:
        some = torch.from_numpy(order[:count])
        for least in (0.0, shipped):
            linear_probe.LEAST_DEVIATION = least
            loss, accuracy = cross_validated(features[some], labels[some])
            print(f"{count} digits, least deviation {least:g}: log-loss {loss:.3f}, accuracy {accuracy:.3f}", flush=True)
