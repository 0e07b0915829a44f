"""A set on which pre-training does not pay: handwritten digits, and what why says of them.

    python bench/why_digits.py           # about an hour on two quiet cores

scikit-learn's digits: 1,797 of 8×8 pixels in shades of grey (Alpaydin and Kaynak 1998, UCI), enlarged to 64×64. Few things
are less like ImageNet's photographs, and 180 a class are plenty for so simple a task. In a fresh clone of the last commit,
random weights are trained at 64 pixels, which is all there is to see, and the curves have two points, a tenth and all of
the pictures; otherwise the defaults of params.yaml hold.
(Pre-trained networks are not trained at 64: their heads come from features of their own size, and would lose most of what
they know.) Prints why's own sentences.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from _project import stages, with_features

SIDE = 64


def write_digits(folder: Path) -> None:
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (picture, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((picture / 16 * 255).astype(np.uint8))
        grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=3, help="why.folds; default: 3")
    parser.add_argument("--passes", type=int, default=40_000, help="finetune.scratch_passes; default: 40000")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        write_digits(Path(scratch) / "digits")
        project = Path(scratch) / "project"
        source = str(Path(scratch) / "digits")
        why, tuned = {"folds": asked.folds, "fractions": [0.1, 1.0]}, {"scratch_passes": asked.passes, "scratch_size": SIDE}
        with_features(project, source, shown=True, why=why, finetune=tuned)
        stages(project, "why", shown=True)
        found = json.loads((project / "data/why/why.json").read_text(encoding="utf-8"))
        print(json.dumps({key: found[key] for key in ("verdict", "worth_points", "worth_minutes", "curves")}, indent=1))
