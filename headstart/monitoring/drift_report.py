"""What came of drift: in words, and on a page of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from headstart.base.files import write_text
from headstart.evaluation import pages
from headstart.monitoring.two_sample import AT_LEAST

if TYPE_CHECKING:
    from headstart.data.packed import Pixels
    from headstart.monitoring.incoming import Incoming

FOUND, PAGE = "drift.json", "drift.html"
SHOWN = 30  # pictures of each kind on the page; drift.json has all of them


def sentence(numbers: dict[str, Any]) -> str:
    """What drift.json holds under ``new`` and ``incoming``, in words."""
    words = {"new": _of_new, "incoming": _of_incoming}
    return " ".join(words[name](part) for name, part in numbers.items())


def _of_new(part: dict[str, Any]) -> str:
    words = _comparison(part, f"{part['pictures']} new pictures beside {part['old']} old ones")
    within = part["test_within_classes"]
    if part["test"] is not None and part["test"]["differ"] and within is not None and not within["differ"]:
        words += " Within the classes no difference is to be seen: it is the mix of classes that changed."
    words += _strange(part)
    champion = part["champion"]
    if champion is None:
        return words
    if champion["disagreement"]["difference"] is not None:
        new, old = (f"{champion['disagreement'][side]['value']:.0%}" for side in ("new", "old"))
        points = (f"{100 * champion['disagreement']['difference'][key]:+.0f}" for key in ("value", "low", "high"))
        words += f" The champion contradicts {new} of their labels, and {old} of those of old test pictures: "
        words += "{} points ({} to {}).".format(*points)
    if champion["unknown_classes"]:
        words += f" Classes it does not know: {', '.join(champion['unknown_classes'])}."
    return words


def _of_incoming(part: dict[str, Any]) -> str:
    words = _comparison(part, f"{part['pictures']} incoming pictures without labels beside {part['old']} with")
    words += _strange(part)
    words += f" The classifier is sure of them by {percent(part['confidence'], 'value')} on average."
    if part["unusable"]:
        words += f" Files that cannot be used: {len(part['unusable'])}."
    if part["to_label"]:
        words += f" The {len(part['to_label'])} most worth labelling are in data/drift/to_label."
    return words


def _comparison(part: dict[str, Any], pictures: str) -> str:
    test = part["test"]
    if test is None:
        return f"{pictures}: too few to compare, {AT_LEAST} that are no near-duplicates nor of one group are needed."
    found = "they differ" if test["differ"] else "no difference is to be seen"
    if not test["differ"] and part["strange"] is not None and part["strange"]["differ"]:
        found += " as a whole, but more are of a new kind than chance explains"
    return (
        f"{pictures}: {found}; of a new and an old one it is told which is new in {percent(test, 'auc')} of cases, and "
        "chance is 50%."
    )


def _strange(part: dict[str, Any]) -> str:
    strange = part["strange"]
    return "" if strange is None else f" New in kind: {strange['count']}, {percent(strange, 'share')}; 1% is usual."


def percent(part: dict[str, Any], key: str) -> str:
    """A share with its interval."""
    return f"{part[key]:.0%} ({part['low']:.0%} to {part['high']:.0%})"


def write_page(
    found: dict[str, Any], manifest: pd.DataFrame, pixels: Pixels, incoming: Incoming | None, path: Path
) -> None:
    """All that drift.json holds, with the first 30 pictures of each kind.

    Args:
        manifest: of the pictures in ``pixels``.
    """
    from headstart.monitoring.incoming import Reader

    rows = dict(zip(manifest["path"], range(len(manifest)), strict=True))
    read = Reader(pixels)

    def unlabelled(name: str) -> str:
        assert incoming is not None
        seen = read(incoming.folder / name)
        return "" if isinstance(seen, str) else pages.thumbnail(seen.pixels)

    text = pages.template(
        "drift.html.j2",
        thumbnail=lambda name: pages.thumbnail(pixels[rows[name]]),
        unlabelled=unlabelled,
        percent=percent,
    ).render(sentence=found["sentence"], new=found.get("new"), incoming=found.get("incoming"), shown=SHOWN)
    write_text(path, text)
