"""The names of promised files."""

from __future__ import annotations

from pathlib import Path

# A packaged model's own files, below the folder that holds MLmodel. Named here and not in served, so that a model can be
# packed without torch.
CLASSIFIER = Path("artifacts/classifier")

DETAILS, WEIGHTS, NETWORK = "classifier.json", "classifier.safetensors", "network.py"
