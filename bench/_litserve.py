"""The packaged classifier behind LitServe: what bench/servers.py compares `headstart serve` with.

python bench/_litserve.py MODEL PORT
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

import litserve
from _serving import BATCH, WAIT_S

from headstart.inference.batch import BatchPredictor


class Pictures(litserve.LitAPI):  # type: ignore[misc]
    def __init__(self, folder: str) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=WAIT_S)
        self.folder = folder

    def setup(self, device: str) -> None:
        self.model = BatchPredictor(Path(self.folder))

    def decode_request(self, request: dict[str, str]) -> Any:
        return self.model.view(self.model.decode(base64.b64decode(request["image"])))

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, inputs: list[Any]) -> Any:
        return [output.probabilities for output in self.model.predict_views(inputs)]

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        best, classes = int(output.argmax()), self.model.classes
        probabilities = dict(zip(classes, output.tolist(), strict=True))
        return {"label": classes[best], "probability": float(output[best]), "probabilities": probabilities}


if __name__ == "__main__":
    server = litserve.LitServer(Pictures(sys.argv[1]), accelerator="cpu", workers_per_device=1, timeout=False)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
