"""Is the backbone that rank chooses the one that is best when all are fine-tuned?

    python bench/choice.py                   # emoji, about half an hour on two quiet cores
    python bench/choice.py --source FOLDER   # your own

In a fresh clone of the last commit, with the defaults of params.yaml: rank compares its candidates, and then every
candidate that has weights is fine-tuned and evaluated, which is what rank is there to save. Prints for each what rank said
of it and the fine-tuned network's accuracy on the test pictures, by how many points rank's choice is behind the best (with
the 95% interval of such a difference on the same pictures), and Spearman's rank correlation with the fine-tuned accuracy:
of each of rank's figures, and of the published ImageNet accuracy alone. All of it is kept in choices.json.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import warnings
from pathlib import Path
from typing import Any

from _project import clone, stages

from headstart.base.sections import network_and_view

KEPT = Path(__file__).with_name("choices.json")
FIGURES = {"log_loss": -1, "probe_accuracy": 1, "logme": 1, "knn_accuracy": 1, "imagenet_top1": 1}  # 1: more is better


def measure(source: str, limit: int | None, candidates: list[str] | None) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clone(folder, data={"source": source, "limit": limit}, rank={"members": 1})
        if candidates:
            clone(folder, rank={"candidates": candidates})
        stages(folder, "fetch", "prepare", "rank", shown=True)
        ranking = json.loads((folder / "data/rank/rank.json").read_text(encoding="utf-8"))
        rows = [row for row in ranking["table"] if row["probe_accuracy"] is not None]
        for row in rows:
            network, view = network_and_view(row["backbone"])
            clone(folder, backbone=network, view=view.model_dump())
            stages(folder, "fetch", "backbone", "features", "head", "finetune", "evaluate")
            found = json.loads((folder / "data/evaluate/metrics.json").read_text(encoding="utf-8"))["test"]
            row["chosen"] = row["backbone"] == ranking["choice"]
            tuned, head = found["finetune"], found["head"]
            row |= {f"finetuned_{key}": tuned[key] for key in ("accuracy", "accuracy_low", "accuracy_high", "n")}
            row["right"] = right(folder / "data")
            print(f"{row['backbone']}: fine-tuned {tuned['accuracy']:.3f} on test, head {head['accuracy']:.3f}", flush=True)
        return rows


def right(data: Path) -> list[bool]:
    """Which of the test pictures the fine-tuned network has right; evaluate keeps that only of what it has chosen."""
    import torch

    from headstart.data.manifest import class_names, read_manifest
    from headstart.data.packed import Pixels
    from headstart.models.backbones import load_trunk
    from headstart.training.finetuned import load_finetuned
    from headstart.training.head_files import load_head

    trunk, _ = load_trunk(data / "backbone", data / "fetch" / "network.py")
    model = load_finetuned(data / "finetune", trunk, load_head(data / "head"))
    assert model is not None
    manifest = read_manifest(data / "prepare").reset_index(drop=True)
    test = manifest[manifest["split"] == "test"]
    logits = model.eval().logits_of(Pixels(data / "prepare"), test.index.tolist(), 32, torch.device("cpu"))
    names = class_names(manifest)
    found = [names[i] for i in torch.cat(list(logits)).argmax(1).tolist()]
    return [label == said for label, said in zip(test["label"], found, strict=True)]


def show(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    import numpy as np
    from scipy.stats import spearmanr

    from headstart.evaluation.intervals import paired_difference

    tuned = [row["finetuned_accuracy"] for row in rows]
    best = max(rows, key=lambda row: row["finetuned_accuracy"])
    chosen = next(row for row in rows if row["chosen"])
    difference = paired_difference(np.array(chosen["right"]), np.array(best["right"])).accuracy
    behind = {key: 100 * value for key, value in difference._asdict().items()}
    print(
        f"\n{name}: {chosen['backbone']} was chosen, {best['backbone']} is best fine-tuned; behind by "
        f"{behind['value']:.1f} points ({behind['low']:+.1f} to {behind['high']:+.1f}) on {len(best['right'])} pictures"
    )
    for row in rows:
        del row["right"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all equal: no correlation
        agree = {key: float(spearmanr([sign * row[key] for row in rows], tuned).statistic) for key, sign in FIGURES.items()}
    for key, value in agree.items():
        print(f"rank correlation of {key} with the fine-tuned accuracy: {value:+.2f} ({len(rows)} networks)")
    return {
        "behind_points": {key: round(value, 2) for key, value in behind.items()},
        "rank_correlation": {k: round(v, 3) for k, v in agree.items() if not math.isnan(v)},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="emoji", help="data.source, a folder for instance; default: emoji")
    parser.add_argument("--limit", type=int, help="data.limit, for a quick look; default: all pictures")
    parser.add_argument("--candidates", nargs="+", help="rank.candidates; default: those of params.yaml")
    asked = parser.parse_args()
    given = str(Path(asked.source).resolve()) if Path(asked.source).exists() else asked.source
    label = Path(given).name
    table = measure(given, asked.limit, asked.candidates)
    known = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    known[label] = show(label, table) | {"table": table}
    KEPT.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
