"""export: the classifier as ONNX or OpenVINO, for those who have neither headstart nor torch.

What leaves here was read back and asked: its answers on real pictures are torch's, and what whole numbers of 8 bits cost
in accuracy is measured.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.base.arrays import Floats, Ints
from headstart.base.errors import HeadstartError
from headstart.base.files import write_json, write_text
from headstart.base.private_names import fold_openvino_batch_norm
from headstart.data.decode import Array
from headstart.data.manifest import read_manifest
from headstart.data.packed import Pixels
from headstart.engines.openvino import converted
from headstart.evaluation import metrics
from headstart.inference.predictor import BATCH, load_predictor
from headstart.models.classifier import Classifier
from headstart.models.preprocessing import Normalise, View, batches

FORMS = ("onnx", "openvino", "int8")
ABOUT = "classifier.json"
PARITY = 1e-3  # the largest difference from torch's probabilities that is let pass
COMPARED, CALIBRATED = 256, 300  # pictures: enough to show a difference, and NNCF's own default
EXACTLY = {"INFERENCE_PRECISION_HINT": "f32"}  # otherwise OpenVINO rounds to bfloat16 where the processor has it
HEAD = r"__module\.model\.head/.*"  # as OpenVINO names its operations

Run = Callable[[Array], NDArray[np.float32]]  # (N, size, size, 3) uint8 → (N, classes)


class WholeClassifier(nn.Module):
    """(N, size, size, 3) uint8 pictures, as they lie in memory → (N, classes) calibrated probabilities: normalisation and
    temperature are inside, so that nobody can forget them."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.normalise, self.model = Normalise(model.trunk.view), model

    def forward(self, pictures: Tensor) -> Tensor:
        return self.model.probabilities(self.model(self.normalise(pictures.permute(0, 3, 1, 2))))


def export(model: Path, to: str, data: Path, folder: Path, max_cost: float) -> str:
    """Write the packaged ``model`` into ``folder``: in form ``to``, with classes, preprocessing and a README.

    Args:
        model: the folder that holds MLmodel.
        to: one of ``FORMS``. onnx and openvino are compared with torch, int8 (post-training quantisation by NNCF, on
            training pictures) is compared in accuracy.
        data: the folder of the stages' folders; the pictures of its prepare are used.
        folder: an earlier export in it is replaced when the new one is whole.
        max_cost: accuracy on the validation pictures that int8 may cost.

    Returns:
        A sentence for the user.

    Raises:
        HeadstartError: there is no model, there are no pictures, the network cannot be converted, its answers differ or
            cost too much, or ``folder`` holds something else. Nothing is written then.
    """
    if not 0 <= max_cost < 1:
        raise HeadstartError(f"--max-cost {max_cost:g}; give a share between 0 and 1, such as 0.01")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / ABOUT).exists()):
        raise HeadstartError(f"{folder} holds something that is no export; name another --output")
    predictor = load_predictor(model)
    network, view = WholeClassifier(predictor.model).eval(), predictor.model.trunk.view
    pixels, manifest = Pixels(data / "prepare"), read_manifest(data / "prepare")
    pictures = Pictures(pixels, manifest, view)
    home = folder.resolve()  # a link to a folder stays one
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(prefix=f".{home.name}.", dir=home.parent)
    except OSError as error:
        raise HeadstartError(f"--output {folder} cannot be written: {error.strerror}") from None
    with beside as scratch:
        part = Path(scratch) / home.name
        part.mkdir()
        run = _written(network, to, pictures, part)
        checked = (
            _cost(network, run, pictures, predictor.classes, max_cost)
            if to == "int8"
            else _parity(network, run, pictures, to)
        )
        about = {
            "model": _file(to),
            "classes": list(predictor.classes),
            "input": f"pictures (N, {view.size}, {view.size}, 3) uint8, red green blue",
            "output": "probabilities (N, classes) float32",
            "size": view.size,
            "short_side": view.short_side,
            "interpolation": view.interpolation,
            "inside": {"mean": view.mean, "std": view.std, "temperature": predictor.model.temperature},
            "checked": checked,
        }
        write_json(part / ABOUT, about)
        write_text(part / "README.md", _readme(to, about))
        shutil.rmtree(home, ignore_errors=True)
        part.rename(home)
    megabytes = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    return f"{folder} ({megabytes:.1f} MB): {checked['sentence']}; how to use it: {folder / 'README.md'}"


class Pictures:
    """The pictures of data/prepare as a network is shown them."""

    def __init__(self, pixels: Pixels, manifest: pd.DataFrame, view: View) -> None:
        self.pixels, self.manifest, self.view = pixels, manifest, view

    def rows(self, split: str, most: int | None = None) -> Ints:
        """Those of a split, or ``most`` of them, evenly spread."""
        rows = np.flatnonzero(self.manifest["split"] == split)
        return rows if most is None else rows[np.unique(np.linspace(0, len(rows) - 1, most).astype(int))]

    def answers(self, rows: Ints, *runs: Run) -> list[Floats]:
        """(N, classes) of each of ``runs``, which are shown one picture alone first and the others in batches."""
        found: list[list[NDArray[np.float32]]] = [[] for _ in runs]
        for some in (rows[:1], rows[1:]):
            for _, shown in batches(self.view, self.pixels, some.tolist(), BATCH):
                for each, run in zip(found, runs, strict=True):
                    each.append(run(shown.permute(0, 2, 3, 1).contiguous().numpy()))
        return [np.concatenate(each).astype(np.float64) for each in found]

    def one(self, row: int) -> Array:
        """(1, size, size, 3) uint8."""
        return self.view(self.pixels[row])[None]


def _file(to: str) -> str:
    return "model.onnx" if to == "onnx" else "model.xml"


def _written(network: WholeClassifier, to: str, pictures: Pictures, folder: Path) -> Run:
    """Convert ``network``, write it, and return what runs the file that was written."""
    file, example = folder / _file(to), torch.zeros(2, *pictures.one(0).shape[1:], dtype=torch.uint8)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if to == "onnx":
                return _onnx(network, example, file)
            return _openvino(network, example, file, pictures if to == "int8" else None)
    except Exception as error:  # whatever a converter says about a network that it cannot take
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise HeadstartError(f"--to {to}: this network cannot be converted ({reason})") from None


def _onnx(network: WholeClassifier, example: Tensor, file: Path) -> Run:
    import onnxruntime

    any_number = {"pictures": {0: torch.export.Dim("N")}}
    torch.onnx.export(
        network, (example,), file, input_names=["pictures"], output_names=["probabilities"], dynamic_shapes=any_number,
        external_data=False, verbose=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda shown: session.run(None, {"pictures": shown})[0]


def _openvino(network: WholeClassifier, example: Tensor, file: Path, calibration: Pictures | None) -> Run:
    import openvino

    model = converted(network, example)
    model.reshape([-1, *example.shape[1:]])
    # Otherwise NNCF would round what is between convolution and batch-norm, whose channels differ in size by orders of
    # magnitude.
    fold_openvino_batch_norm(model)
    for port, name in ((model.input(0), "pictures"), (model.output(0), "probabilities")):
        port.get_tensor().set_names({name})
    if calibration is not None:
        nncf = _nncf()
        shown = nncf.Dataset(calibration.rows("train", CALIBRATED).tolist(), calibration.one)
        with contextlib.redirect_stdout(io.StringIO()):  # its bars
            # Not the head: the standardisation of the features is folded into it, so that a small feature with a large
            # weight says as much as a large one, and would be rounded away.
            exact = nncf.IgnoredScope(patterns=[HEAD])
            mixed = nncf.QuantizationPreset.MIXED
            model = nncf.quantize(model, shown, preset=mixed, subset_size=CALIBRATED, ignored_scope=exact)
    openvino.save_model(model, file, compress_to_fp16=False)
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(file), "CPU", EXACTLY)
    return lambda shown: compiled(shown)[0].copy()


def _nncf() -> Any:
    """NNCF, without the telemetry that it sends unless told otherwise: nothing leaves this machine."""
    name = "openvino_telemetry"
    present = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # as if it were not installed, which NNCF is prepared for
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # which misses CUDA where nobody wants it
    try:
        import nncf
    finally:
        del sys.modules[name]
        if present is not None:
            sys.modules[name] = present
    nncf.set_log_level(logging.ERROR)
    return nncf


def _torch(network: WholeClassifier) -> Run:
    def run(shown: Array) -> NDArray[np.float32]:
        with torch.inference_mode():
            found: NDArray[np.float32] = network(torch.from_numpy(shown)).numpy()
        return found

    return run


def _parity(network: WholeClassifier, run: Run, pictures: Pictures, to: str) -> dict[str, Any]:
    """The largest difference from torch on validation pictures.

    Raises:
        HeadstartError: it is above ``PARITY``.
    """
    rows = pictures.rows("val", COMPARED)
    expected, found = pictures.answers(rows, _torch(network), run)
    difference = float(np.abs(found - expected).max())
    if not difference <= PARITY:
        raise HeadstartError(
            f"--to {to} is refused: its probabilities differ from torch's by up to {difference:.2g} on {len(rows)} "
            f"validation pictures, and {PARITY:g} is allowed"
        )
    sentence = f"its probabilities are within {difference:.1g} of torch's on {len(rows)} validation pictures"
    return {"pictures": len(rows), "largest_difference": difference, "sentence": sentence}


def _cost(
    network: WholeClassifier, run: Run, pictures: Pictures, classes: tuple[str, ...], max_cost: float
) -> dict[str, Any]:
    """What the accuracy on all validation pictures loses from torch to ``run``, with its paired 95 % interval.

    Raises:
        HeadstartError: it is more than ``max_cost``.
    """
    rows = pictures.rows("val")
    task = network.model.task
    labels = task.encode(pictures.manifest["label"].iloc[rows], classes)  # -1 where the classifier does not know the class
    before, after = (metrics.Scores(p, labels, task) for p in pictures.answers(rows, _torch(network), run))
    gain = metrics.gain(before, after)
    cost, low, high = (0.0 - gain[key] for key in ("accuracy", "high", "low"))  # and no -0.0
    same = float((before.predicted == after.predicted).mean())
    told = (
        f"{100 * cost:+.1f} points of accuracy ({100 * low:+.1f} to {100 * high:+.1f}) on {len(rows)} validation pictures"
    )
    if cost > max_cost:
        raise HeadstartError(f"--to int8 is refused: it costs {told}, and --max-cost allows {100 * max_cost:.1f}")
    return {
        "pictures": len(rows),
        "cost": {"accuracy": cost, "low": low, "high": high},
        "same_answer": same,
        "sentence": f"it costs {told}, and {same:.1%} of them get the same answer",
    }


RUNNERS = {
    "onnx": (
        "onnxruntime",
        'session = onnxruntime.InferenceSession("model.onnx")',
        'session.run(None, {"pictures": pixels})[0][0]',
    ),
    "openvino": (
        "openvino",
        f'compiled = openvino.compile_model("model.xml", "CPU", {EXACTLY})',
        "compiled(pixels)[0][0]",
    ),
}


def _readme(to: str, about: dict[str, Any]) -> str:
    package, load, call = RUNNERS["onnx" if to == "onnx" else "openvino"]
    return f"""# A classifier of pictures in {len(about["classes"])} classes

Exported by headstart (--to {to}): {about["checked"]["sentence"]}.
In: {about["input"]}. Out: {about["output"]}, calibrated.
Normalisation and temperature are inside the network; resizing and cropping are not.
After `pip install {package} numpy pillow`:

```python
import json
import numpy as np, {package}
from PIL import Image

about = json.load(open("classifier.json", encoding="utf-8"))
{load}
image = Image.open("picture.jpg").convert("RGB")
wide, high = (about["short_side"] * side // min(image.size) for side in image.size)
left, top = round((wide - about["size"]) / 2), round((high - about["size"]) / 2)
image = image.resize((wide, high), Image.Resampling.{about["interpolation"].upper()})
pixels = np.asarray(image.crop((left, top, left + about["size"], top + about["size"])))[None]
probabilities = {call}
print(about["classes"][probabilities.argmax()], float(probabilities.max()))
```

headstart also turns pictures upright by their EXIF tag and lays transparency over white.
"""
