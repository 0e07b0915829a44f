"""Fine-tuning on few pictures, with and without a least number of warm-up steps (finetune.LEAST_WARMUP).

    python bench/few_steps.py                                    # the digits of why_digits.py, about ten minutes
    python bench/few_steps.py --source ~/pictures/hymenoptera    # any other source

Trained on shares of four folds and asked about the fifth, as why does it; the frozen network beside. The same pictures,
heads and seeds for both.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
from _project import with_features
from why_digits import write_digits

from headstart.base.artifacts import DATA
from headstart.base.device import set_up
from headstart.base.params import Params
from headstart.base.progress import hidden
from headstart.data.manifest import read_manifest
from headstart.studies.candidates import Sample
from headstart.studies.learning_curves import FINETUNED, FROZEN, Laboratory, Pictures, Training
from headstart.training import recipe

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="as data.source; default: the digits")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.25], help="default: 0.1 0.25")
    parser.add_argument("--folds", type=int, default=2, help="default: 2")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        write_digits(Path(scratch) / "digits")
        project = Path(scratch) / "project"
        source = str(Path(asked.source).expanduser().resolve()) if asked.source else str(Path(scratch) / "digits")
        with_features(project, source)
        os.chdir(project)
        data, params, device = DATA, Params.load(), set_up(None)
        manifest = read_manifest(data.prepare)
        pictures = Pictures(data, manifest, Sample.of(manifest, params.seed), device)
        shipped = recipe.LEAST_WARMUP
        for share in asked.shares:
            for start, cut, least in ((FROZEN, "none", None), (FINETUNED, "half", 0), (FINETUNED, "half", shipped)):
                recipe.LEAST_WARMUP = least or 0
                state = Path(scratch) / f"state-{least}"
                network = data.fetch.network
                laboratory = Laboratory(pictures, data.backbone, network, params, device, 0.0, state)
                with hidden():
                    found = [laboratory.run(Training(start, cut, fold, share)) for fold in range(asked.folds)]
                accuracy, loss = (
                    np.concatenate([getattr(one, key) for one in found]).mean() for key in ("correct", "losses")
                )
                told = start if least is None else f"{start}, {least} warm-up steps at least"
                print(f"{found[0].n} pictures, {told}: accuracy {accuracy:.3f}, log-loss {loss:.3f}", flush=True)
