"""Copies of test pictures among the training pictures: how many prepare finds, how many evaluate, and what they add.

    python bench/leaks.py ~/pictures/hymenoptera_data

The source has a folder train and one to test on, with a folder per class in each. Of the first 20 test pictures of each
class a copy is put into train, cut by 8% and every other one mirrored; then the pipeline runs without fine-tuning.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from _project import stages, with_features
from PIL import Image, ImageOps

from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.audit import AuditReport
from headstart.base.artifacts.metrics import Metrics
from headstart.evaluation.summary import of_leaks

COPIES, CUT = 20, 0.04  # of each class; on every side
PLANTED = "planted-"


def plant(source: Path, test: str) -> int:
    """Put the copies among the training pictures; how many there are."""
    count = 0
    for folder in sorted(path for path in (source / test).iterdir() if path.is_dir()):
        for number, file in enumerate(sorted(folder.iterdir())[:COPIES]):
            picture = Image.open(file).convert("RGB")
            width, height = picture.size
            box = tuple(round(side) for side in (CUT * width, CUT * height, (1 - CUT) * width, (1 - CUT) * height))
            copy = picture.crop(box)
            copy = ImageOps.mirror(copy) if number % 2 else copy
            copy.save(source / "train" / folder.name / f"{PLANTED}{file.stem}.jpg", quality=85)
            count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--test", default="val", help="the name of the folder to test on; default: val")
    parser.add_argument("--network", default="tf_efficientnet_lite0")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source, project = Path(scratch) / "source", Path(scratch) / "project"
        shutil.copytree(asked.source, source)
        count = plant(source, asked.test)
        with_features(project, str(source), backbone=asked.network, finetune={"unfreeze": "none"})
        stages(project, "head", "finetune", "evaluate")
        data = DataFolder(project, "data")
        audit, result = AuditReport.read(data.prepare.audit), Metrics.read(data.evaluate.metrics)
    left_out = sum(PLANTED in entry.path for entry in audit.dropped)
    assert result.leaks is not None
    pairs = [(Path(pair.test).stem, Path(pair.learned).stem) for pair in result.leaks.pairs]
    found = sum(learned == f"{PLANTED}{test}" for test, learned in pairs)
    print(f"of {count} copies prepare leaves out {left_out}; evaluate finds {found}, and {len(pairs) - found} other pairs")
    print(of_leaks(result.leaks, result.test["chosen"]))


if __name__ == "__main__":
    main()
