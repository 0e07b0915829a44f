"""The head's whole path of strengths against one fit of scikit-learn's (headstart.models.logistic.fit_path).

    python bench/head_path.py            # about ten minutes on two quiet cores
    python bench/head_path.py --rows 5000 --rounds 5

50,000 rows of 1,280 features in 100 overlapping classes, with as much variance along each of their principal axes as a
frozen EfficientNet-Lite0's have. One LogisticRegression at scikit-learn's own tolerance against all seven strengths of
params.yaml, alternately and each time in a process of its own, on the same float32 features and with all cores. Prints
seconds for both, the ratio of each round as median (least–most), and the log-loss of both on new rows.
"""

from __future__ import annotations

import time

from _sides import measured, report

ONE, PATH = "one fit", "path"
STRENGTHS = [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 1.0]
STRENGTH = 0.003
WIDTH, CLASSES, NEW = 1280, 100, 5000


def measure(side: str, rows: int) -> dict[str, float]:
    """Seconds, and the log-loss on new rows at STRENGTH."""
    from headstart.base import device

    device.set_up(None)
    import numpy as np
    import torch

    generator = torch.Generator().manual_seed(0)
    axis = torch.arange(WIDTH)
    spread = (50 * (1 + axis / 2) ** -0.75 * torch.exp(-axis / 400)).sqrt()  # EfficientNet-Lite0's on the embedded default
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q
    centres = 0.15 * torch.randn(CLASSES, WIDTH, generator=generator)
    labels = torch.randint(0, CLASSES, (rows + NEW,), generator=generator)
    features = ((centres[labels] + torch.randn(rows + NEW, WIDTH, generator=generator)) * spread) @ turn
    features = (features - features[:rows].mean(0)) / features[:rows].std(0)
    x, y, new, new_labels = features[:rows], labels[:rows], features[rows:], labels[rows:]
    start = time.perf_counter()
    if side == ONE:
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=STRENGTH, max_iter=1000).fit(x.numpy(), y.numpy())
        seconds = time.perf_counter() - start
        weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    else:
        from headstart.models.logistic import fit_path

        path = list(fit_path(x, y, CLASSES, STRENGTHS))
        seconds = time.perf_counter() - start
        weight, bias, _ = path[STRENGTHS.index(STRENGTH)]
    logits = torch.addmm(bias.float(), new, weight.float().T).double()
    loss = float(torch.nn.functional.cross_entropy(logits, new_labels))
    assert np.isfinite(loss)
    return {"seconds": seconds, "log_loss": loss}


if __name__ == "__main__":
    asked, rounds = measured(__doc__, (ONE, PATH), lambda side, asked: measure(side, asked.rows), 3, {"rows": 50_000})
    theirs, ours = ([found[side]["seconds"] for found in rounds] for side in (ONE, PATH))
    report(f"head: one scikit-learn fit, seven strengths of ours; {asked.rows} × {WIDTH}", theirs, ours, "s", (ONE, PATH))
    print(f"log-loss at {STRENGTH:g}: {rounds[0][ONE]['log_loss']:.4f} and {rounds[0][PATH]['log_loss']:.4f}")
