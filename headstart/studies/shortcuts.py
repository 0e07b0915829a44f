"""shortcuts: can classes be told apart without a look at the subject?

Deliberately blind classifiers, cross-validated, each seeing one thing only of the training and validation pictures. What
the files say and a line around the picture have nothing to do with the subject: where they tell classes apart, the score of
any classifier is worth less than it seems. Colours, light, corners and surroundings may be the subject's own. They are
listed, and named only where they do about as well as a probe on the network's features, or where one corner tells what the
other three do not, as a watermark or a time stamp would.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from PIL import Image

from headstart.base.arrays import Bools, Floats, Ints
from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.shortcuts import BlindScore, Shortcut, Shortcuts
from headstart.base.device import set_up
from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.base.progress import progress
from headstart.data.blind import FALSE_ALARMS, FOLDS, Blindfold, Cases, cases_of, corrected, in_centre, is_large, smooth
from headstart.data.decode import Array
from headstart.data.manifest import is_multi_label, read_manifest
from headstart.data.packed import Pixels, read_file_properties
from headstart.data.shortcuts import FILES, file_numbers, finding, found_in_files, matters
from headstart.models.task import MULTI_LABEL, SINGLE_LABEL
from headstart.studies import shortcuts_report
from headstart.training.feature_files import training_and_validation
from headstart.training.linear_probe import held_out_logits

FRAME, CORNERS = "frame", ("top left", "top right", "bottom left", "bottom right")
SEES = FILES | {
    FRAME: "a line along the edges",
    **{corner: f"the {corner} corner" for corner in CORNERS},
    "border": "the outermost line of pixels",
    "light": "the light (brightness, contrast, sharpness, saturation, entropy, aspect ratio)",
    "thumbnail": "the picture at 4×4 pixels",
    "colours": "the histogram of colours",
    "surroundings": "the picture without its centre",
}
# A classifier that sees the subject too should do clearly better than one that does not: one that gets so much of the
# probe's gain over guessing is worth a look.
PART_OF_PROBE = 0.9
# A corner that tells so much more of a class than the other three on average, in balanced accuracy, is worth a look. A
# watermark on all pictures of a class brings 0.2 to 0.4, one on 80% of them and 20% of the others 0.1 or more. Of the
# emoji no corner has more than 0.05, but in photographs of hands the arm comes from one corner (bench/shortcuts.py).
ABOVE_OTHER_CORNERS = 0.1
SIDE = 16  # of the picture whose centre is masked
MAPPED, COLOURS = 12, 4  # sides of a corner's maps; levels of each primary colour


def pixel_numbers(pixels: Pixels, cases: Cases) -> dict[str, Floats]:
    """(N, D) numbers for each blind classifier that sees something of the pixels."""
    seen: dict[str, list[Floats]] = {}
    with progress("shortcuts", len(cases.rows)) as advance:
        for row in cases.rows:
            for name, numbers in numbers_of(pixels[int(row)]).items():
                seen.setdefault(name, []).append(numbers.astype(np.float32).ravel())
            advance()
    return {name: np.array(rows) for name, rows in seen.items()}


def numbers_of(pixels: Array) -> dict[str, Floats]:
    """What each blind classifier sees of one picture, (height, width, 3) uint8."""
    picture = Image.fromarray(pixels)
    small = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    medium = np.asarray(picture.resize((64, 64), Image.Resampling.BOX)).reshape(-1, 3)
    colour = (medium.astype(int) * COLOURS // 256) @ COLOURS ** np.arange(3)
    edges = _edges(pixels, 0)
    grey = np.asarray(picture.convert("L"), np.float32)
    return {
        FRAME: _line(pixels),
        **dict(zip(CORNERS, _corners(grey), strict=True)),
        "border": np.array([[edge.mean(0), edge.std(0)] for edge in edges]),
        "light": _light(pixels, grey),
        "thumbnail": small.reshape(4, 4, 4, 4, 3).mean((1, 3)),
        "colours": np.sqrt(np.bincount(colour, minlength=COLOURS**3) / len(colour)),
        "surroundings": small[~in_centre(SIDE)],
    }


def _edges(pixels: Array, inwards: int) -> list[Floats]:
    """The four lines of pixels, (length, 3), that many pixels from the edges."""
    height, width = pixels.shape[:2]
    k, along, down = inwards, slice(inwards, width - inwards), slice(inwards, height - inwards)
    lines = (pixels[k, along], pixels[height - 1 - k, along], pixels[down, k], pixels[down, width - 1 - k])
    return [line.astype(np.float32) for line in lines]


def _line(pixels: Array) -> Floats:
    """How far the outermost and the second line of pixels differ from the next one inwards, along at least three quarters
    of each edge: up and down in each colour at the middle two edges, and all four edges in order. A drawn line differs all
    along, and what a picture shows hardly ever does."""
    found: list[Floats] = []
    if min(pixels.shape[:2]) < 8:
        return np.zeros(20)
    for inwards in (0, 1):
        pairs = zip(_edges(pixels, inwards), _edges(pixels, inwards + 1), strict=True)
        steps = [outer[1:-1] - inner for outer, inner in pairs]
        up, down = (np.array([np.quantile(np.maximum(sign * step, 0), 0.25, axis=0) for step in steps]) for sign in (1, -1))
        found += [np.median(up, 0), np.median(down, 0), np.sort(np.abs(up - down).max(1))]
    return np.concatenate(found)


def _corners(grey: Floats) -> list[Floats]:
    """Of each corner, a third of the shorter side, turned to be the top left one: a map of how much detail is where, and of
    the direction in which the grey values rise there."""
    height, width = grey.shape
    side = max(min(8, height, width), min(height, width) // 3)
    found = []
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        corner = grey[:: -1 if down else 1, :: -1 if right else 1][:side, :side]
        across, along = np.diff(corner, axis=1)[:-1], np.diff(corner, axis=0)[:, :-1]
        detail = np.log(_mapped(np.hypot(across, along)) + 3)
        rise = np.concatenate([_mapped(across), _mapped(along)])
        found.append(np.concatenate([1.5 * detail, np.clip(rise / (np.abs(rise).mean() + 2), -3, 3) / 2]))
    return found


def _mapped(values: Floats) -> Floats:
    picture = Image.fromarray(values.astype(np.float32))
    return np.asarray(picture.resize((MAPPED, MAPPED), Image.Resampling.BOX)).ravel()


def _light(pixels: Array, grey: Floats) -> Floats:
    share = np.bincount(grey.astype(np.uint8).ravel() // 8, minlength=32) / grey.size
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    detail = np.log(sum(np.square(np.diff(grey, axis=axis)).sum() for axis in (0, 1)) / grey.size + 1e-2)
    saturation = np.ptp(pixels, axis=2).mean()
    dark, bright = np.percentile(grey, [5, 95])
    return np.array(
        [grey.mean(), grey.std(), entropy, detail, saturation, dark, bright, np.log(grey.shape[1] / grey.shape[0])]
    )


@dataclass(frozen=True)
class Examined:
    """
    Attributes:
        result: what shortcuts.json holds.
        shown: for each that was found, in order, pictures that look most like the class or classes to the blind classifier:
            headings with the rows of the manifest.
    """

    result: Shortcuts
    shown: list[dict[str, list[int]]]


def examine(
    pictures: pd.DataFrame, properties: pd.DataFrame, pixels: Pixels, features: Floats | None, shown: int
) -> Examined:
    """
    Args:
        pictures: the manifest.
        properties: as ``headstart.data.packed.read_file_properties`` returns them.
        features: (N, D) of the manifest's pictures; those of test pictures are not looked at. None: without a probe.
        shown: pictures under a heading.

    Raises:
        HeadstartError: fewer than two classes have pictures enough.
    """
    cases = cases_of(pictures)
    if not cases:
        several = is_multi_label(pictures)
        raise HeadstartError(
            f"to look for shortcuts takes {'a class' if several else 'two classes'} with at least {FOLDS} training and "
            f"validation pictures{' and as many without it,' if several else ''} that are no near-duplicates nor of one "
            f"group; found {len(cases.classes)} in data/prepare/manifest.parquet"
        )
    fold, of_cases = Blindfold(cases), properties.iloc[cases.rows]
    scores = [s for sees in FILES for s in fold.scores(sees, file_numbers(of_cases, sees), matters)]
    for sees, numbers in pixel_numbers(pixels, cases).items():
        scores += fold.scores(sees, smooth(numbers))
    probe = {} if features is None else _probe(fold, features[cases.rows])
    scores = [score.model_copy(update={"probe": probe.get(score.label)}) for score in corrected(scores)]
    found = found_in_files(scores, cases, of_cases) + found_in_pixels(scores)
    found.sort(key=lambda one: (one.kind != "shortcut", one.label is not None, one.guessing - one.accuracy.value))
    result = Shortcuts(
        pictures=len(cases.rows), left_out=cases.left_out, alarms=FALSE_ALARMS, sees=SEES, found=found, scores=scores
    )
    return Examined(result, [_gallery(fold, one, shown) for one in found])


def _probe(fold: Blindfold, features: Floats) -> dict[str | None, float]:
    """What a regression on (N, D) features reaches with the same pictures held out: together (under None) and by class."""
    import torch

    cases, task = fold.cases, SINGLE_LABEL if fold.cases.exclusive else MULTI_LABEL
    labels = cases.truth.argmax(1) if cases.exclusive else cases.truth.astype(np.int64)
    folds: list[tuple[Ints, Ints]] = [
        (np.flatnonzero(fold.folds[0] != n), np.flatnonzero(fold.folds[0] == n)) for n in range(FOLDS)
    ]
    logits = held_out_logits(torch.from_numpy(features), labels, folds, task)
    answers = task.probabilities(logits.astype(np.float64)) - cases.truth.mean(0)
    return {score.label: score.accuracy.value for score in fold.rated("probe", answers)}


def found_in_pixels(scores: list[BlindScore]) -> list[Shortcut]:
    """What the scores, corrected, say of classes beside what the files say."""
    found = []
    corners = {(s.sees, s.label): s.accuracy.value for s in scores if s.sees in CORNERS}
    for score in scores:
        if score.sees in FILES or score.p >= FALSE_ALARMS or not is_large(score):
            continue
        gain = score.accuracy.value - score.guessing
        if score.sees == FRAME:
            found.append(finding(score, "shortcut", SEES[FRAME]))
        elif score.sees in CORNERS:
            others = np.mean([corners[corner, score.label] for corner in CORNERS if corner != score.sees])
            if score.label is not None and score.accuracy.value - others >= ABOVE_OTHER_CORNERS:
                found.append(finding(score, "look", SEES[score.sees], f"the other corners reach {others:.3f} on average"))
        elif score.probe is not None and gain >= PART_OF_PROBE * (score.probe - score.guessing):
            found.append(finding(score, "look", SEES[score.sees], f"the network's features reach {score.probe:.3f}"))
    return found


def _gallery(fold: Blindfold, one: Shortcut, shown: int) -> dict[str, list[int]]:
    """The pictures that seem most like a class, from it and from the others; or like each class, from it."""
    cases, answers = fold.cases, fold.answers[one.sees]

    def surest(of: Bools, number: int) -> list[int]:
        order = np.argsort(-answers[:, number], kind="stable")
        rows: list[int] = cases.rows[order[of[order]][:shown]].tolist()
        return rows

    if one.label is None:
        return {name: surest(cases.truth[:, n], n) for n, name in enumerate(cases.classes)}
    number = cases.classes.index(one.label)
    of_class = cases.truth[:, number]
    return {one.label: surest(of_class, number), "others that look like it": surest(~of_class, number)}


def run(params: Params, data: DataFolder) -> None:
    """The stage shortcuts: find what tells classes apart without a look at the subject; never in test."""
    device = set_up(params.threads)
    manifest = read_manifest(data.prepare)
    rows, known = training_and_validation(manifest, data.features, device)
    features = np.zeros((len(manifest), known.shape[1]), np.float32)
    features[rows.index] = known.cpu().numpy()
    pixels = Pixels(data.prepare)
    examined = examine(manifest, read_file_properties(data.prepare), pixels, features, shortcuts_report.SHOWN)
    shortcuts_report.write(examined.result, examined.shown, pixels, manifest, data.shortcuts)
    shortcuts_report.show(examined.result, data.shortcuts)
