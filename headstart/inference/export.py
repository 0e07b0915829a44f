"""export: the classifier as ONNX or OpenVINO, for use without headstart and torch.

Every export is loaded again and checked: its probabilities on real pictures are compared with torch's, and the accuracy
that 8-bit integers cost is measured.
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
from headstart.base.artifacts import DataFolder
from headstart.base.errors import HeadstartError
from headstart.base.files import write_json, write_text
from headstart.base.private_names import fold_openvino_batch_norm
from headstart.base.safe_text import shortened
from headstart.base.wording import points
from headstart.data.decode import Array
from headstart.data.manifest import read_manifest
from headstart.data.packed import Pixels
from headstart.engines.openvino import converted, core
from headstart.evaluation import metrics
from headstart.evaluation.intervals import numbered
from headstart.inference.predictor import BATCH, load_predictor
from headstart.models.classifier import Classifier
from headstart.models.preprocessing import Normalise, View, batches
from headstart.models.task import MultiLabel, Task, task_of

FORMS = ("onnx", "openvino", "int8")
DESCRIPTION = "classifier.json"
MAX_DIFFERENCE = 1e-3  # from torch's probabilities
PARITY_PICTURES, CALIBRATION_PICTURES = 256, 300  # enough to show a difference, and NNCF's default
FULL_PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}  # OpenVINO's default is bfloat16 on processors that have it
HEAD_OPERATIONS = r"__module\.model\.head[./].*"  # the names that OpenVINO gives them

Run = Callable[[Array], NDArray[np.float32]]  # (N, size, size, 3) uint8 → (N, classes)


class WholeClassifier(nn.Module):
    """(N, size, size, 3) uint8 pictures, channels last → (N, classes) calibrated probabilities. Normalisation and
    temperature are inside, so that users cannot forget them."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.normalise, self.model = Normalise(model.trunk.view), model

    def forward(self, pictures: Tensor) -> Tensor:
        return self.model.probabilities(self.model(self.normalise(pictures.permute(0, 3, 1, 2))))


def export(model: Path, to: str, data: DataFolder, folder: Path, max_cost: float, trust: bool = False) -> str:
    """Write the packaged ``model`` into ``folder`` in the form ``to``, with classes, preprocessing and a README.

    Args:
        model: the folder that holds MLmodel.
        to: one of ``FORMS``. The probabilities of onnx and openvino are compared with torch's; int8 (post-training
            quantisation by NNCF on training pictures) is compared in accuracy.
        data: the folder of the stages' folders, of which prepare's pictures are used.
        folder: an earlier export in it is replaced once the new one is complete.
        max_cost: the accuracy on the validation pictures that int8 may cost.
        trust: as for ``load_predictor``.

    Returns:
        A sentence for the user.

    Raises:
        HeadstartError: there is no model, there are no pictures, the network cannot be converted, its probabilities differ
            or it costs too much, or ``folder`` holds something else. Then nothing is written.
    """
    if not 0 <= max_cost < 1:
        raise HeadstartError(f"--max-cost {max_cost:g}; give a share between 0 and 1, such as 0.01")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / DESCRIPTION).exists()):
        raise HeadstartError(f"{folder} holds something that is not an export; name another --output")
    predictor = load_predictor(model, trust)
    network, view = WholeClassifier(predictor.model).eval(), predictor.model.trunk.view
    pixels, manifest = Pixels(data.prepare), read_manifest(data.prepare)
    pictures = Pictures(pixels, manifest, view)
    target = folder.resolve()  # a link to a folder stays a link
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise HeadstartError(f"--output {folder} cannot be written: {error.strerror}") from None
    with temporary as scratch:
        part = Path(scratch) / target.name
        part.mkdir()
        run = _convert(network, to, pictures, part)
        checked = (
            _cost(network, run, pictures, predictor.classes, max_cost)
            if to == "int8"
            else _parity(network, run, pictures, to)
        )
        description = {
            "model": _file(to),
            "classes": list(predictor.classes),
            "input": f"pictures (N, {', '.join(map(str, view.shape))}, 3) uint8, red green blue",
            "output": "probabilities (N, classes) float32",
            **_thresholds(predictor.model.task, predictor.classes),
            "views": [
                {
                    "size": each.size,
                    "frame": each.frame,
                    "short_side": each.short_side,
                    "interpolation": each.interpolation,
                    "fill": [round(255 * value) for value in each.mean],
                }
                for each in view.different
            ],
            "inside": {"mean": view.mean, "std": view.std, "temperature": predictor.model.temperature},
            "checked": checked,
        }
        write_json(part / DESCRIPTION, description)
        write_text(part / "README.md", _readme(to, description, predictor.rules.white_level))
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    megabytes = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    return f"{folder} ({megabytes:.1f} MB): {checked['sentence']}; how to use it: {folder / 'README.md'}"


class Pictures:
    """The pictures of data/prepare as the network sees them."""

    def __init__(self, pixels: Pixels, manifest: pd.DataFrame, view: View) -> None:
        self.pixels, self.manifest, self.view = pixels, manifest, view

    def rows(self, split: str, at_most: int | None = None) -> Ints:
        """The rows of a split, or ``at_most`` of them, evenly spread."""
        rows = np.flatnonzero(self.manifest["split"] == split)
        return rows if at_most is None else rows[np.unique(np.linspace(0, len(rows) - 1, at_most).astype(int))]

    def probabilities(self, rows: Ints, *runs: Run) -> list[Floats]:
        """(N, classes) from each of ``runs``, which get one picture alone first and then the others in batches."""
        parts: list[list[NDArray[np.float32]]] = [[] for _ in runs]
        for some in (rows[:1], rows[1:]):
            for _, pictures in batches(self.view, self.pixels, some.tolist(), BATCH):
                channels_last = pictures.permute(0, 2, 3, 1).contiguous().numpy()
                for part, run in zip(parts, runs, strict=True):
                    part.append(run(channels_last))
        return [np.concatenate(part).astype(np.float64) for part in parts]

    def picture(self, row: int) -> Array:
        """(1, size, size, 3) uint8."""
        return self.view(self.pixels[row])[None]


def _file(to: str) -> str:
    return "model.onnx" if to == "onnx" else "model.xml"


def _convert(network: WholeClassifier, to: str, pictures: Pictures, folder: Path) -> Run:
    """Convert ``network``, write it, and return a function that runs the written file."""
    file, example = folder / _file(to), torch.zeros(2, *pictures.picture(0).shape[1:], dtype=torch.uint8)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if to == "onnx":
                return _onnx(network, example, file)
            return _openvino(network, example, file, pictures if to == "int8" else None)
    except Exception as error:  # converters raise all kinds of errors for networks that they do not support
        reason = f"{type(error).__name__}: {shortened(str(error), 200)}"
        raise HeadstartError(f"--to {to}: this network cannot be converted ({reason})") from None


def _onnx(network: WholeClassifier, example: Tensor, file: Path) -> Run:
    import onnxruntime

    dynamic_shapes = {"pictures": {0: torch.export.Dim("N")}}
    torch.onnx.export(
        network, (example,), file, input_names=["pictures"], output_names=["probabilities"], dynamic_shapes=dynamic_shapes,
        external_data=False, verbose=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda pictures: session.run(None, {"pictures": pictures})[0]


def _openvino(network: WholeClassifier, example: Tensor, file: Path, calibration: Pictures | None) -> Run:
    import openvino

    model = converted(network, example)
    model.reshape([-1, *example.shape[1:]])
    # Otherwise NNCF would round the values between convolution and batch-norm, whose channels differ by orders of
    # magnitude.
    fold_openvino_batch_norm(model)
    for port, name in ((model.input(0), "pictures"), (model.output(0), "probabilities")):
        port.get_tensor().set_names({name})
    if calibration is not None:
        nncf = _nncf()
        dataset = nncf.Dataset(calibration.rows("train", CALIBRATION_PICTURES).tolist(), calibration.picture)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints progress bars
            # The head stays exact: standardisation is folded into its weights, so a small feature with a large weight
            # counts as much as a large feature, and would be rounded away.
            exact = nncf.IgnoredScope(patterns=[HEAD_OPERATIONS])
            mixed = nncf.QuantizationPreset.MIXED
            model = nncf.quantize(model, dataset, preset=mixed, subset_size=CALIBRATION_PICTURES, ignored_scope=exact)
    openvino.save_model(model, file, compress_to_fp16=False)
    compiled = core().compile_model(core().read_model(file), "CPU", FULL_PRECISION)
    return lambda pictures: compiled(pictures)[0].copy()


def _nncf() -> Any:
    """NNCF without its telemetry, which is on by default: nothing leaves this machine."""
    name = "openvino_telemetry"
    present = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # as if it were not installed, which NNCF handles
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns that CUDA is missing
    try:
        import nncf
    finally:
        del sys.modules[name]
        if present is not None:
            sys.modules[name] = present
    nncf.set_log_level(logging.ERROR)
    return nncf


def _torch(network: WholeClassifier) -> Run:
    def run(pictures: Array) -> NDArray[np.float32]:
        with torch.inference_mode():
            probabilities: NDArray[np.float32] = network(torch.from_numpy(pictures)).numpy()
        return probabilities

    return run


def _parity(network: WholeClassifier, run: Run, pictures: Pictures, to: str) -> dict[str, Any]:
    """The largest difference from torch on validation pictures.

    Raises:
        HeadstartError: it is above ``MAX_DIFFERENCE``.
    """
    rows = pictures.rows("val", PARITY_PICTURES)
    expected, exported = pictures.probabilities(rows, _torch(network), run)
    difference = float(np.abs(exported - expected).max())
    if not difference <= MAX_DIFFERENCE:
        raise HeadstartError(
            f"--to {to} is refused: its probabilities differ from torch's by up to {difference:.2g} on {len(rows)} "
            f"validation pictures; {MAX_DIFFERENCE:g} is allowed"
        )
    sentence = f"its probabilities are within {difference:.1g} of torch's on {len(rows)} validation pictures"
    return {"pictures": len(rows), "largest_difference": difference, "sentence": sentence}


def _cost(
    network: WholeClassifier, run: Run, pictures: Pictures, classes: tuple[str, ...], max_cost: float
) -> dict[str, Any]:
    """The accuracy on all validation pictures that ``run`` loses compared with torch, with its paired 95% interval.

    Raises:
        HeadstartError: it is more than ``max_cost``.
    """
    rows = pictures.rows("val")
    task = network.model.task
    if task_of(pictures.manifest).kind != task.kind:
        raise HeadstartError(
            f"--to int8 is measured on the pictures of data/prepare, which are {task_of(pictures.manifest).kind}, and the "
            f"model is {task.kind}; run `dvc repro package`"
        )
    labels = task.labels_of(pictures.manifest.iloc[rows], classes)
    groups = numbered(pictures.manifest["group"].to_numpy(str)[rows])
    before, after = (metrics.Scores(p, labels, task, groups) for p in pictures.probabilities(rows, _torch(network), run))
    gain = metrics.gain(before, after)
    cost, low, high = (0.0 - gain[key] for key in ("accuracy", "high", "low"))  # never -0.0
    same = float(task.correct(after.predicted, before.predicted).mean())
    loss = f"{points(100 * cost, 100 * low, 100 * high)} of accuracy on {len(rows)} validation pictures"
    if cost > max_cost:
        raise HeadstartError(f"--to int8 is refused: it costs {loss}, and --max-cost allows {100 * max_cost:.1f}")
    return {
        "pictures": len(rows),
        "cost": {"accuracy": cost, "low": low, "high": high},
        "same_answer": same,
        "sentence": f"it costs {loss}, and {same:.1%} of them get the same answer",
    }


RUNNERS = {
    "onnx": (
        "onnxruntime",
        'session = onnxruntime.InferenceSession("model.onnx")',
        'session.run(None, {"pictures": pixels})[0][0]',
    ),
    "openvino": (
        "openvino",
        f'compiled = openvino.compile_model("model.xml", "CPU", {FULL_PRECISION})',
        "compiled(pixels)[0][0]",
    ),
}


def _framing(view: dict[str, Any], of: str, into: str) -> str:
    """Lines of Python that make the picture ``into`` of the picture ``of``, as a view does."""
    size, how = view["size"], f"Image.Resampling.{view['interpolation'].upper()}"
    if view["frame"] == "squeeze":
        return f"{into} = {of}.resize(({size}, {size}), {how})"
    if view["frame"] == "pad":
        return f"""wide, high = (max(1, round({size} * side / max({of}.size))) for side in {of}.size)
whole = Image.new("RGB", ({size}, {size}), {tuple(view["fill"])})
whole.paste({of}.resize((wide, high), {how}), (({size} - wide) // 2, ({size} - high) // 2))
{into} = whole"""
    return f"""wide, high = ({view["short_side"]} * side // min({of}.size) for side in {of}.size)
left, top = round((wide - {size}) / 2), round((high - {size}) / 2)
{into} = {of}.resize((wide, high), {how}).crop((left, top, left + {size}, top + {size}))"""


def _all_framed(views: list[dict[str, Any]]) -> str:
    """Lines of Python that make of ``image`` what the network takes: its one view, or several one below the other."""
    if len(views) == 1:
        return _framing(views[0], "image", "image")
    sizes = [view["size"] for view in views]
    lines = [f'stacked, top = Image.new("RGB", ({max(sizes)}, {sum(sizes)})), 0']
    for view in views:
        lines += [_framing(view, "image", "seen"), "stacked.paste(seen, (0, top))", "top += seen.height"]
    return "\n".join([*lines, "image = stacked"])


def _thresholds(task: Task, classes: tuple[str, ...]) -> dict[str, list[float]]:
    """What has to be known to answer with several labels; nothing where the most probable class is the answer."""
    if not isinstance(task, MultiLabel):
        return {}
    return {"thresholds": [0.5] * len(classes) if task.thresholds is None else list(task.thresholds)}


def _readme(to: str, description: dict[str, Any], white_level: int) -> str:
    package, load, call = RUNNERS["onnx" if to == "onnx" else "openvino"]
    several, answer = "", 'print(description["classes"][probabilities.argmax()], float(probabilities.max()))'
    if "thresholds" in description:
        several = (
            "A picture may have any number of them: those whose probability reaches their threshold in classifier.json.\n"
        )
        answer = """for name, probability, least in zip(description["classes"], probabilities, description["thresholds"]):
    if probability >= least:
        print(name, float(probability))"""
    return f"""# A classifier of pictures in {len(description["classes"])} classes

Exported by headstart (--to {to}): {description["checked"]["sentence"]}.
{several}In: {description["input"]}. Out: {description["output"]}, calibrated.
Normalisation and temperature are inside the network; resizing and framing are not.
It does not say which pictures are unlike anything learned; `headstart predict` and `headstart serve` do.
After `pip install {package} numpy pillow`:

```python
import json
import numpy as np, {package}
from PIL import Image, ImageOps
description = json.load(open("classifier.json", encoding="utf-8"))
{load}
image = ImageOps.exif_transpose(Image.open("picture.jpg"))
if image.mode.startswith("I"):  # 16 bits
    image = Image.fromarray(np.minimum(np.asarray(image, "uint32") * 255 // {white_level}, 255).astype("uint8"))
image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
{_all_framed(description["views"])}
pixels = np.asarray(image)[None]
probabilities = {call}
{answer}
```
"""
