"""`headstart models`: networks in a table, with what their publishers say, what is counted and what is measured here."""

from __future__ import annotations

import csv
import fnmatch
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torchvision

from headstart.base import terminal
from headstart.base.device import accelerator_name, memory, set_up
from headstart.base.errors import HeadstartError, nearest
from headstart.base.measurements import Measurements, machine
from headstart.base.progress import progress
from headstart.base.safe_text import shortened
from headstart.base.terminal import Column, number, say, say_json
from headstart.models.backbones import Architecture, architecture
from headstart.models.catalogue import LIBRARIES, names, published, with_tag
from headstart.models.complexity import depth, gmacs, remembered
from headstart.models.weight_sources import at_hand

FORMATS = ("text", "csv", "json")
# --sort → the column, and whether more is better, so that the largest comes first.
SORTS = {
    "name": ("backbone", False),
    "top1": ("imagenet_top1", True),
    "top5": ("imagenet_top5", True),
    "depth": ("depth", False),
    "parameters": ("parameters", False),
    "gmacs": ("gmacs", False),
    "size": ("input_size", False),
}
COUNTED = ("depth", "parameters", "gmacs", "input_size")
AT_MOST_COUNTED, AT_MOST_MEASURED = 50, 20  # networks, where nobody asked for so many
TOGETHER = 8  # pictures that a measured step takes
Found = dict[str, float | None]  # attributes of a row


@dataclass
class Row:
    """A network; None where nothing is known."""

    backbone: str
    library: str
    imagenet_top1: float | None = None
    imagenet_top5: float | None = None
    tested_at: int | None = None
    depth: int | None = None
    parameters: int | None = None
    gmacs: float | None = None
    input_size: int | None = None
    at_hand: bool = False
    forward_ms: float | None = None
    backward_ms: float | None = None


def _millions(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.1f} M"


COLUMNS: tuple[Column, ...] = (
    ("backbone", "backbone", str),
    ("library", "library", str),
    ("top-1", "imagenet_top1", number(".3f")),
    ("top-5", "imagenet_top5", number(".3f")),
    ("tested at", "tested_at", number("d")),
    ("depth", "depth", number("d")),
    ("parameters", "parameters", _millions),
    ("GMACs", "gmacs", number(".3f")),
    ("input", "input_size", number("d")),
    ("at hand", "at_hand", lambda there: "yes" if there else ""),
)
TIMES: tuple[Column, ...] = (
    ("forward ms", "forward_ms", number(".1f")),
    ("backward ms", "backward_ms", number(".1f")),
)


@dataclass(frozen=True)
class Query:
    """Which rows, and in what order.

    Attributes:
        patterns: names, or parts of them, in which * and ? stand for anything; a whole name is that one alone.
        sort: a key of ``SORTS``. What is not known comes last.
        max_parameters: in millions.
        min_top1: in percent.

    Raises:
        HeadstartError: a value that is not allowed.
    """

    patterns: tuple[str, ...] = ()
    sort: str = "name"
    library: str | None = None
    at_hand: bool = False
    max_parameters: float | None = None
    min_top1: float | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        for option, value, allowed in (("sort", self.sort, tuple(SORTS)), ("library", self.library, LIBRARIES)):
            if value is not None and value not in allowed:
                raise HeadstartError(f"--{option} {value!r}; allowed: {', '.join(allowed)}")
        if self.limit is not None and self.limit < 1:
            raise HeadstartError(f"--limit {self.limit}; give 1 or more")

    def names(self, known: Iterable[str]) -> list[str]:
        """Those of ``known`` that a pattern fits.

        Raises:
            HeadstartError: there is none for a pattern.
        """
        known = list(known)
        found: set[str] = set()
        for pattern in self.patterns or ("*",):
            wanted = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
            fitting = {pattern} & set(known) or set(fnmatch.filter(known, wanted))
            if not fitting:
                hint = nearest(pattern, known)
                raise HeadstartError(f"no backbone matches {pattern!r}" + (f"; {hint}" if hint else ""))
            found |= fitting
        return sorted(found)

    def keeps(self, row: Row) -> bool:
        """Whether ``row`` is asked for. What is not known is within no bound."""
        parameters, top1 = row.parameters, row.imagenet_top1
        return (
            self.library in (None, row.library)
            and (row.at_hand or not self.at_hand)
            and (self.max_parameters is None or (parameters is not None and parameters <= self.max_parameters * 1e6))
            and (self.min_top1 is None or (top1 is not None and top1 >= self.min_top1))
        )

    def ordered(self, rows: Iterable[Row]) -> list[Row]:
        """Sorted, equal ones by name, and cut at ``limit``."""
        key, more_is_better = SORTS[self.sort]
        rows = sorted(rows, key=lambda row: row.backbone)
        known = sorted(
            (row for row in rows if getattr(row, key) is not None),
            key=lambda row: getattr(row, key),
            reverse=more_is_better,
        )
        return [*known, *(row for row in rows if getattr(row, key) is None)][: self.limit]


def listed(query: Query, mirror: str | None, state: Callable[[str], Path]) -> list[Row]:
    """The rows that ``query`` asks for, with what is published, and with that by which they are sorted.

    Args:
        mirror: where weights may lie, as in params.yaml.
        state: a folder by name, in which what took long is kept from run to run.

    Raises:
        HeadstartError: there is no such row.
    """
    known = names()
    chosen = query.names(known)
    # Of two names for the same network and weights the shorter is enough.
    doubled = {with_tag(name) for name in chosen if known[name] == "timm" and "." not in name}
    rows = []
    for name in chosen:
        if name in doubled and "." in name:
            continue
        figures = published(name)
        row = Row(
            backbone=name,
            library=known[name],
            imagenet_top1=figures.top1,
            imagenet_top5=figures.top5,
            tested_at=figures.tested_at,
            parameters=figures.parameters,
            gmacs=figures.gmacs,
            input_size=figures.input_size,
            at_hand=at_hand(name, known[name], mirror),
        )
        rows.append(row)
    kept = [row for row in rows if query.keeps(row)]
    if not kept:
        raise HeadstartError(f"none of the {len(rows)} backbones that match is within all of the options given")
    if SORTS[query.sort][0] in COUNTED:
        _count(kept, (SORTS[query.sort][0],), state)
    return query.ordered(kept)


# --- what is counted ----------------------------------------------------------------------------------------------


def count(rows: list[Row], state: Callable[[str], Path]) -> None:
    """Fill in of ``COUNTED`` what is not known, from the networks themselves, unless they are many."""
    if len(rows) <= AT_MOST_COUNTED:
        _count(rows, COUNTED, state)


def _count(rows: list[Row], columns: tuple[str, ...], state: Callable[[str], Path]) -> None:
    versions = {"timm": timm.__version__, "torchvision": torchvision.__version__}
    incomplete = [row for row in rows if any(getattr(row, column) is None for column in columns)]
    if incomplete:
        counted = Measurements(state("models") / "counted.json")
        keys = {row.backbone: counted.key(row.backbone, versions[row.library]) for row in incomplete}
        _fill(incomplete, counted, keys, lambda row: of_network(row.backbone), "counting layers")


def of_network(name: str) -> Found:
    """``COUNTED`` of the whole network; None where it cannot run without numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what libraries say of their own old names
        try:
            arch = architecture(name)
            size = arch.view.size
            with torch.device("meta"):
                network = arch.create()
                parameters = sum(p.numel() for p in network.parameters())
                found: Found = {
                    "parameters": parameters,
                    "gmacs": round(gmacs(network, size), 4),
                    "depth": depth(network, size),
                }
        except Exception:  # each network that looks at its numbers stumbles in its own way
            return dict.fromkeys(COUNTED)
    return found | {"input_size": size}


# --- what is measured ---------------------------------------------------------------------------------------------


def measure(rows: list[Row], query: Query, threads: int | None, state: Callable[[str], Path]) -> str:
    """Fill in ``forward_ms`` and ``backward_ms``; what was done, in a sentence.

    Args:
        threads: as in params.yaml.

    Raises:
        HeadstartError: that would be many networks, and nobody chose them.
    """
    if len(rows) > AT_MOST_MEASURED and not query.patterns and query.limit is None:
        raise HeadstartError(
            f"--measure would run {len(rows)} networks; name some, or say --limit {AT_MOST_MEASURED} or what you like"
        )
    device = set_up(threads)
    versions = timm.__version__, torchvision.__version__
    times = Measurements(state("models") / "milliseconds.json")
    keys = {row.backbone: times.key(machine(), row.backbone, versions, TOGETHER) for row in rows}
    _fill(rows, times, keys, lambda row: milliseconds(row.backbone, device), "measuring")
    where = accelerator_name() or f"{torch.get_num_threads()} threads"
    return f"Milliseconds per picture: random weights, {TOGETHER} pictures at once, float32, {where}."


def milliseconds(name: str, device: torch.device) -> Found | None:
    """What a picture takes forward and backward through the whole network in torch, all of it trained, batch norm frozen:
    the better of two steps, after a first that sets things up. None where that fails or memory is too small."""
    try:
        arch = architecture(name)
        _refuse_what_does_not_fit(arch, device)
        network = arch.whole().eval().to(device).to(memory_format=torch.channels_last)
        size = arch.view.size
        pictures = torch.rand(TOGETHER, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        forward, backward = [], []
        for _ in range(3):
            start = time.perf_counter()
            answer = network(pictures).float().sum()
            answer.item()  # an accelerator is done when the answer is here
            between = time.perf_counter()
            answer.backward()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            end = time.perf_counter()
            network.zero_grad(set_to_none=True)
            forward.append(between - start)
            backward.append(end - between)
    except Exception as error:  # whatever a network may say; the others can be measured all the same
        say(f"headstart: {name} is not measured: {shortened(str(error), 200)}", file=sys.stderr)
        return None
    each = 1000 / TOGETHER
    return {"forward_ms": round(min(forward[1:]) * each, 3), "backward_ms": round(min(backward[1:]) * each, 3)}


def _refuse_what_does_not_fit(arch: Architecture, device: torch.device) -> None:
    """Before the system ends the process for it.

    Raises:
        HeadstartError: weights, gradients and what a step remembers are more than is free.
    """
    with torch.device("meta"):
        network = arch.create()
        weights = 4 * sum(p.numel() for p in network.parameters())
        needed, (free, _) = 2 * weights + TOGETHER * remembered(network, arch.view.size), memory(device)
    if needed > free:
        raise HeadstartError(f"a step takes {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free")


def _fill(
    rows: list[Row], kept: Measurements, keys: dict[str, str], find: Callable[[Row], Found | None], what: str
) -> None:
    """Put into each row what is kept under its key, or what ``find`` gives, which is kept at once: who interrupts loses one
    network's. What a row has already stays."""
    missing = [row for row in rows if keys[row.backbone] not in kept]
    if missing:
        with progress(what, len(missing), "networks") as advance:
            try:
                for row in missing:
                    found = find(row)
                    if found is not None:
                        kept[keys[row.backbone]] = found
                    advance()
            except KeyboardInterrupt:
                say("headstart: interrupted; the networks that are done are kept", file=sys.stderr)
                raise
    for row in rows:
        for name, value in kept.get(keys[row.backbone], {}).items():
            if getattr(row, name) is None:
                setattr(row, name, value)


# --- how it is shown ----------------------------------------------------------------------------------------------


def show(rows: list[Row], form: str, note: str | None = None) -> None:
    """Print ``rows``: a table with ``note`` below it, csv, or one JSON object per line.

    Args:
        note: what was measured; without it rows have no times.
    """
    columns = COLUMNS + TIMES if note else COLUMNS
    keys = [key for _, key, _ in columns]
    if form == "json":
        for row in rows:
            say_json({key: getattr(row, key) for key in keys})
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(keys)
        writer.writerows(
            [json.dumps(v) if isinstance(v, bool) else v for v in (getattr(row, k) for k in keys)] for row in rows
        )
    else:
        terminal.show(rows, columns)
        if note:
            say(note)
        if len(rows) > AT_MOST_COUNTED and any(row.depth is None for row in rows):
            say(f"What nobody has published is counted for {AT_MOST_COUNTED} rows at most, or to sort by it.")
