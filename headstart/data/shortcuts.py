"""The short form of the search for shortcuts: are classes told apart by properties of the files?

A chest X-ray classifier that reads the hospital instead of the lung (DeGrave et al. 2021, "AI for radiographic COVID-19
detection selects shortcuts over signal") has learned what is on every picture of a source and not what is to be seen.
Where the sources of the classes differ, their files mostly differ too. ``headstart.studies.shortcuts`` looks at the pixels
as well.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from headstart.base.arrays import Bools, Floats
from headstart.base.artifacts.shortcuts import BlindScore, Shortcut
from headstart.base.errors import some
from headstart.data.blind import FALSE_ALARMS, Blindfold, Cases, binned, cases_of, corrected, is_large, one_hot

FILE, BYTES = "file", "bytes"
FILES = {
    FILE: "what the file says (format, colour mode, width, height, EXIF tags, camera, colour profile, compression)",
    BYTES: "what the file says and its size in bytes",
}
TRAITS = ["format", "mode", "exif", "profile", "camera", "compression"]
# A drawing of few colours, or a hand with its fingers spread, has another number of bytes than others: the subject's own.
# So bytes count only where they tell all classes apart and take away this part of what guessing gets wrong; of emoji they
# take away 0.11, of signs 0.09.
MOST_BY_BYTES = 0.5
CLEAR = 0.25  # by how much a sign is commoner in a class than in the others to be named
LEAST_WITH_SIGN = 3


def examine_files(pictures: pd.DataFrame, properties: pd.DataFrame) -> tuple[list[BlindScore], list[Shortcut]]:
    """What the files of a set tell of its classes: the scores for all classes together (of each class where pictures have
    several), and what is found. Both are empty where too few pictures are there to judge.

    Args:
        pictures: the manifest.
        properties: of the pictures, as ``headstart.data.packed.read_file_properties`` returns them.
    """
    cases = cases_of(pictures)
    if not cases:
        return [], []
    fold, of_cases = Blindfold(cases), properties.iloc[cases.rows]
    scores = corrected([score for sees in FILES for score in fold.scores(sees, file_numbers(of_cases, sees), matters)])
    found = found_in_files(scores, cases, of_cases)
    return [score for score in scores if score.label is None or not cases.exclusive], found


def file_numbers(properties: pd.DataFrame, sees: str) -> Floats:
    """(N, D) numbers for a blind classifier that sees the files, ``FILE``, or their sizes in bytes as well, ``BYTES``."""
    width, height = (properties[side].to_numpy(float) for side in ("width", "height"))
    size, traits = list(zip(width, height, strict=True)), [properties[trait] for trait in TRAITS]
    columns = [one_hot(kind) for kind in (*traits, size, list(zip(size, *traits, strict=True)))]
    columns += [binned(v) for v in (width, height, width * height, width / height, properties["compression"])]
    if sees == BYTES:
        count = properties["bytes"].to_numpy(float)
        columns += [binned(count, 20), binned(count / (width * height), 20)]
    return np.hstack(columns)


def found_in_files(scores: list[BlindScore], cases: Cases, properties: pd.DataFrame) -> list[Shortcut]:
    """What the scores of files, corrected, say of classes, with the plainest sign of each."""
    telling = [score for score in scores if score.sees in FILES and score.p < FALSE_ALARMS and matters(score)]
    signs = signs_of(properties) if telling else {}
    clues = {name: clue_of(name, of, signs) for name, of in zip(cases.classes, cases.truth.T, strict=True) if telling}
    found = []
    for score in telling:
        named = some(clue for name, clue in clues.items() if clue and score.label in (None, name))
        found.append(finding(score, "shortcut" if score.sees == FILE else "look", FILES[score.sees], named))
    return found


def matters(score: BlindScore) -> bool:
    """Whether a score of files would be worth a warning if it were not by chance."""
    if score.sees == FILE:
        return is_large(score)
    return score.label is None and 1 - score.accuracy.low < MOST_BY_BYTES * (1 - score.guessing)


def finding(score: BlindScore, kind: Literal["shortcut", "look"], words: str, clue: str = "") -> Shortcut:
    """A score as something that was found.

    Args:
        kind: that of ``Shortcut``.
        words: what tells.
    """
    whom = "the classes apart" if score.label is None else f"class {score.label!r} from the others"
    name = "accuracy" if score.label is None else "balanced accuracy"
    reached = f"{score.accuracy.value:.3f} ({score.accuracy.low:.3f}–{score.accuracy.high:.3f})"
    sentence = f"{words} tells {whom}: {name} {reached}, guessing {score.guessing:.3f}{f'; {clue}' if clue else ''}"
    return Shortcut(
        **{name: getattr(score, name) for name in BlindScore.model_fields}, kind=kind, clue=clue, sentence=sentence
    )


def signs_of(properties: pd.DataFrame) -> dict[str, Bools]:
    """(N,) whether each picture has what the words say, for what may tell a class by its files."""
    signs: dict[str, Bools] = {}
    size = properties["width"].astype(str) + "×" + properties["height"].astype(str) + " pixels"
    named = {"format ": properties["format"], "colour mode ": properties["mode"], "camera ": properties["camera"], "": size}
    for words, values in named.items():
        for value, count in values.value_counts().items():
            if value and count >= LEAST_WITH_SIGN:
                signs[f"{words}{value}"] = (values == value).to_numpy()
    for words, has in {"EXIF tags": properties["exif"], "colour profile": properties["profile"]}.items():
        signs |= {words: has.to_numpy(bool), f"no {words}": ~has.to_numpy(bool)}
    for words in ("width", "height", "compression", "bytes"):
        values = properties[words]
        for limit in np.unique(np.quantile(values, np.linspace(0.05, 0.95, 19), method="nearest")).tolist():
            signs[f"{words} of {limit:g} or more"] = (values >= limit).to_numpy()
            signs[f"{words} below {limit:g}"] = (values < limit).to_numpy()
    return signs


def clue_of(name: str, of_class: Bools, signs: dict[str, Bools]) -> str:
    """The sign that is commonest in a class and rarest in the others, in words; empty where none is clearly commoner."""
    words, shown = max(signs.items(), key=lambda sign: round(sign[1][of_class].mean() - sign[1][~of_class].mean(), 6))
    ours, others = shown[of_class].mean(), shown[~of_class].mean()
    return f"{words}: {ours:.0%} of {name!r}, {others:.0%} of the others" if ours - others >= CLEAR else ""


def warnings_of(found: list[Shortcut]) -> list[str]:
    """The sentences for audit.json: for all classes where they are told together, otherwise for each. Where only bytes
    tell, as of parts before one camera, with a scratch or without, there is none: that is mostly what is to be learned."""
    if all(one.kind == "look" for one in found):
        return []
    shown = [one for one in found if one.label is None] or found
    return [f"{one.sentence}. This may be learned instead of what the pictures show: docs/shortcuts.md" for one in shown]
