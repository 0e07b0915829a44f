"""The head's whole path of strengths against one fit of scikit-learn's (headstart.logistic.fit_path).

    python bench/head_path.py            # about ten minutes on two quiet cores
    python bench/head_path.py --rows 5000 --rounds 5

50,000 rows of 1,280 features in 100 classes, as a frozen network gives them: directions of very different variance, and
classes that overlap. One LogisticRegression at scikit-learn's own tolerance against all seven strengths of params.yaml,
alternately and each time in a process of its own, on the same float32 features and with all cores. scikit-learn's strength
is that of the seven which its fit ends soonest for among those worth having (0.003). Prints seconds for both, the ratio of
each round as median (least–most), and how far the log-loss on new rows is from that of scikit-learn run to the end.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median

from _sides import alternate, spread

ONE, PATH = "one fit", "path"
STRENGTHS = [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 1.0]
STRENGTH = 0.003
WIDTH, CLASSES, NEW = 1280, 100, 5000


def measure(side: str, rows: int) -> dict[str, float]:
    """Seconds, and the log-loss on new rows at STRENGTH."""
    from headstart import compute

    compute.set_up(None)
    import numpy as np
    import torch

    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator) * torch.logspace(0, -2, WIDTH)[:, None]
    centres = 0.35 * torch.randn(CLASSES, WIDTH, generator=generator)
    labels = torch.randint(0, CLASSES, (rows + NEW,), generator=generator)
    features = (centres[labels] + torch.randn(rows + NEW, WIDTH, generator=generator)) @ mixing
    features = (features - features[:rows].mean(0)) / features[:rows].std(0)
    x, y, new, new_labels = features[:rows], labels[:rows], features[rows:], labels[rows:]
    start = time.perf_counter()
    if side == ONE:
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=STRENGTH, max_iter=1000).fit(x.numpy(), y.numpy())
        seconds = time.perf_counter() - start
        weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    else:
        from headstart.logistic import fit_path

        path = list(fit_path(x, y, CLASSES, STRENGTHS))
        seconds = time.perf_counter() - start
        weight, bias, _ = path[STRENGTHS.index(STRENGTH)]
    logits = torch.addmm(bias.float(), new, weight.float().T).double()
    loss = float(torch.nn.functional.cross_entropy(logits, new_labels))
    assert np.isfinite(loss)
    return {"seconds": seconds, "log_loss": loss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=(ONE, PATH), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        print(json.dumps(measure(asked.side, asked.rows)))
        return
    rounds = alternate("head_path.py", (ONE, PATH), asked.rounds, "--rows", str(asked.rows))
    theirs, ours = ([found[side]["seconds"] for found in rounds] for side in (ONE, PATH))
    print(
        f"{asked.rows} rows: one fit {median(theirs):.1f} s, seven strengths {median(ours):.1f} s, ratio "
        f"{spread([o / t for t, o in zip(theirs, ours, strict=True)])}, {len(rounds)} rounds; log-loss at {STRENGTH:g} "
        f"{rounds[0][ONE]['log_loss']:.4f} and {rounds[0][PATH]['log_loss']:.4f}"
    )


if __name__ == "__main__":
    main()
