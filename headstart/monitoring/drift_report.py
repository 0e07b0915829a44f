"""The findings of drift in words, and as a page with pictures."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from headstart.base.artifacts.drift import Drift, IncomingPictures, NewPictures, Separability, Strangeness
from headstart.base.artifacts.json_file import Interval
from headstart.base.wording import points, share
from headstart.evaluation import pages
from headstart.monitoring.two_sample import MIN_PICTURES

if TYPE_CHECKING:
    from headstart.data.packed import Pixels
    from headstart.monitoring.incoming import Incoming

MAX_SHOWN = 30  # pictures of each kind; drift.json has all of them


def sentence(new: NewPictures | None, incoming: IncomingPictures | None) -> str:
    """What drift.json holds under ``new`` and ``incoming``, in words."""
    words = [_new_pictures(new)] if new else []
    return " ".join(words + ([_incoming_pictures(incoming)] if incoming else []))


def _new_pictures(part: NewPictures) -> str:
    words = _test_result(part, f"{part.pictures} new pictures beside {part.old} old ones")
    within = part.test_within_classes
    if part.test is not None and part.test.differ and within is not None and not within.differ:
        words += " Within the classes no difference shows: only the mix of classes has changed."
    words += _strange(part)
    champion = part.champion
    if champion is None:
        return words
    new, old, difference = champion.disagreement.new, champion.disagreement.old, champion.disagreement.difference
    if old is not None and difference is not None:
        more = points(100 * difference.value, 100 * difference.low, 100 * difference.high, 0)
        words += f" The champion contradicts {new.value:.0%} of their labels and {old.value:.0%} of those of old test "
        words += f"pictures: {more}."
    if champion.unknown_classes:
        words += f" Classes it does not know: {', '.join(champion.unknown_classes)}."
    return words


def _incoming_pictures(part: IncomingPictures) -> str:
    words = _test_result(part, f"{part.pictures} incoming pictures without labels beside {part.old} with")
    words += _strange(part)
    words += f" The classifier's confidence in them is {percent(part.confidence, 'value')} on average."
    if part.unusable:
        words += f" Files that cannot be used: {len(part.unusable)}."
    if part.to_label:
        words += f" The {len(part.to_label)} most worth labelling are in data/drift/to_label."
    return words


def _test_result(part: NewPictures | IncomingPictures, pictures: str) -> str:
    test = part.test
    if test is None:
        return (
            f"{pictures}: too few to compare; {MIN_PICTURES} that are neither near-duplicates nor of one group are needed."
        )
    result = "they differ" if test.differ else "no difference shows"
    if not test.differ and part.strange is not None and part.strange.differ:
        result += " as a whole, but more are of a new kind than chance explains"
    return (
        f"{pictures}: {result}; given a new and an old one, a classifier picks the new one in {percent(test, 'auc')} of "
        "cases (chance: 50%)."
    )


def _strange(part: NewPictures | IncomingPictures) -> str:
    strange = part.strange
    return "" if strange is None else f" New in kind: {strange.count}, {percent(strange, 'share')}; 1% is usual."


def percent(part: Interval | Separability | Strangeness, name: str) -> str:
    return share(getattr(part, name), part.low, part.high)


def write_page(drift: Drift, manifest: pd.DataFrame, pixels: Pixels, incoming: Incoming | None, path: Path) -> None:
    """Write the content of drift.json as a page with the first 30 pictures of each kind.

    Args:
        drift: the content of drift.json.
        manifest: of the pictures in ``pixels``.
    """
    from headstart.monitoring.incoming import Reader

    rows = dict(zip(manifest["path"], range(len(manifest)), strict=True))
    read = Reader(pixels, threads=1)

    def unlabelled(name: str) -> str:
        assert incoming is not None
        picture = read(incoming.folder / name)
        return "" if isinstance(picture, str) else pages.thumbnail(picture.pixels)

    template = pages.template(
        "drift.html.j2",
        thumbnail=lambda name: pages.thumbnail(pixels[rows[name]]),
        unlabelled=unlabelled,
        percent=percent,
    )
    with closing(read.decoders):
        pages.write(path, template, sentence=drift.sentence, new=drift.new, incoming=drift.incoming, shown=MAX_SHOWN)
