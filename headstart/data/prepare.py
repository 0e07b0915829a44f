"""prepare: audit every picture, drop duplicates, split, decode once and pack."""

from __future__ import annotations

import json
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from headstart.base.errors import HeadstartError
from headstart.base.files import remove_cut_short, replacing, write_json
from headstart.base.params import Params, Prepare, Split
from headstart.base.progress import progress
from headstart.base.threads import cores
from headstart.data import duplicates
from headstart.data.contact_sheet import sheet
from headstart.data.decode import DECODER, SPARED, Array, Unusable, decode, fingerprint, quiet
from headstart.data.fetch import read_manifest
from headstart.data.manifest import MANIFEST
from headstart.data.packed import INDEX, PIXELS, Pixels, encode
from headstart.data.picture import Picture
from headstart.data.sources import locate
from headstart.data.splits import SPLITS, split_of

AUDIT = "audit.json"


@dataclass(frozen=True)
class Usable:
    """A picture that passed the audit, and where it is packed."""

    picture: Picture
    span: tuple[int, int]  # offset and length, in bytes
    height: int
    width: int
    original_height: int
    original_width: int
    phash: int
    thumbnail: bytes
    notes: tuple[str, ...]
    split: str = ""
    group: str = ""


@dataclass(frozen=True)
class Job:
    root: Path
    picture: Picture
    short_side: int
    max_megapixels: float
    jpeg_quality: int | None


def prepare(
    pictures: list[Picture], root: Path, settings: Prepare, split: Split, seed: int, threads: int, folder: Path
) -> pd.DataFrame:
    """Write manifest, packed pixels and audit into ``folder`` and return the manifest.

    Pictures already packed there with the same settings are copied, not decoded again; the bytes written are the same
    either way.

    Raises:
        HeadstartError: too little is left to learn from.
    """
    audit = _Audit()
    pictures = _without_exact_duplicates(pictures, audit)
    folder.mkdir(parents=True, exist_ok=True)
    remove_cut_short(folder)
    with replacing(folder / PIXELS) as part, quiet():
        usable, quality = _packed(pictures, root, settings, threads, folder, part, audit)
        usable = _split(usable, split, seed, audit)
        usable = _learnable(usable, settings, audit)
        (folder / INDEX).unlink(missing_ok=True)  # it speaks of the file that is replaced now
    manifest = _write(usable, _packing(settings, quality), folder)
    write_json(folder / AUDIT, audit.report(manifest, _leaks(usable, split)))
    return manifest


class _Audit:
    """What was left out and why, in path order at the end."""

    def __init__(self) -> None:
        self.dropped: dict[str, str] = {}
        self.warnings: list[str] = []
        self.notes: Counter[str] = Counter()

    def drop(self, path: str, reason: str) -> None:
        self.dropped[path] = reason

    def report(self, manifest: pd.DataFrame, leaks: int) -> dict[str, Any]:
        counts = manifest.groupby(["label", "split"]).size()
        return {
            "kept": len(manifest),
            "dropped": [{"path": path, "reason": self.dropped[path]} for path in sorted(self.dropped)],
            "warnings": self.warnings,
            "leaks": leaks,
            "converted": dict(sorted(self.notes.items())),
            "classes": {
                str(label): {part: int(counts.get((label, part), 0)) for part in SPLITS}
                for label in sorted(manifest["label"].unique())
            },
        }


# --- audit --------------------------------------------------------------------------------------------------------


def _without_exact_duplicates(pictures: list[Picture], audit: _Audit) -> list[Picture]:
    """One of each set of equal files; none where their labels differ, since one of the labels is wrong."""
    by_digest: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        by_digest[picture.sha256].append(picture)
    kept = []
    for twins in by_digest.values():
        if twins[0].size and len({twin.label for twin in twins}) > 1:
            for twin in twins:
                other = next(t for t in twins if t.label != twin.label)
                audit.drop(twin.path, f"label conflict: the same file is {other.label!r} in {other.path}")
            continue
        if not twins[0].size:
            kept += twins  # empty files are equal, but that is not what is wrong with them
            continue
        first, *rest = sorted(twins, key=lambda twin: (-_held_out(twin.split), twin.path))
        kept.append(first)
        for twin in rest:
            leak = f", which is in {first.split}" if first.split != twin.split else ""
            audit.drop(twin.path, f"exact duplicate of {first.path}{leak}")
    return sorted(kept, key=lambda picture: picture.path)


def _held_out(split: str) -> int:
    """Of two equal pictures in two splits, the one further from training is kept."""
    return SPLITS.index(split) if split else 0


def _stored_bytes(job: Job) -> int:
    """Bytes that a picture would take raw, from its header alone; 0 where there is no telling."""
    try:
        with Image.open(job.root / job.picture.path) as image:
            width, height = image.size
    except Exception:  # the audit itself gives the reason
        return 0
    short = min(width, height)
    scale = job.short_side / short if short > SPARED * job.short_side else 1.0
    return round(width * scale) * round(height * scale) * 3


def _decode_job(job: Job) -> tuple[Usable, bytes] | str:
    """The picture, not packed yet, and what is to be stored of it; or why it cannot be used."""
    try:
        decoded = decode(job.root / job.picture.path, job.short_side, job.max_megapixels)
    except Unusable as reason:
        return str(reason)
    width, height = decoded.image.size
    usable = Usable(
        job.picture, (0, 0), height, width, decoded.height, decoded.width, *fingerprint(decoded.image), decoded.notes
    )
    return usable, encode(decoded.image, job.jpeg_quality)


def _packed(
    pictures: list[Picture], root: Path, settings: Prepare, threads: int, folder: Path, file: Path, audit: _Audit
) -> tuple[list[Usable], int | None]:
    """The pictures that passed, packed into ``file`` in their order, and the JPEG quality they are stored with; None where
    they are raw.

    Each is written as soon as it is decoded, so that memory does not grow with the set. What the split leaves out later
    stays in the file and is in no index.
    """
    jobs = [Job(root, picture, settings.short_side, settings.max_megapixels, None) for picture in pictures]
    raw = sum(_spread(_stored_bytes, jobs, threads))
    quality = settings.jpeg_quality if raw > settings.raw_gb * 1e9 else None
    known = _already_packed(folder, _packing(settings, quality))
    fresh = [replace(job, jpeg_quality=quality) for job in jobs if job.picture.sha256 not in known]
    decoded = _spread(_decode_job, fresh, threads)
    usable = []
    at = 0
    with progress("prepare", len(fresh)) as advance, file.open("wb") as stream:
        for picture in pictures:
            if picture.sha256 in known:
                row, read = known[picture.sha256]
                stored = read().data
            else:
                found = next(decoded)
                advance()
                if isinstance(found, str):
                    audit.drop(picture.path, found)
                    continue
                row, stored = found
            stream.write(stored)
            usable.append(replace(row, picture=picture, span=(at, len(stored))))
            at += len(stored)
            audit.notes.update(row.notes)
            audit.warnings += [f"{picture.path}: {note}" for note in row.notes if note.startswith("animated")]
    return usable, quality


def _spread(function: Callable[[Job], Any], jobs: list[Job], threads: int) -> Iterator[Any]:
    """``map`` over threads, a few jobs ahead of whoever takes the results: Pillow decodes, resizes and encodes without
    Python's lock, and threads neither start up nor send pixels from process to process."""
    ahead: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for job in jobs:
            ahead.append(pool.submit(function, job))
            if len(ahead) > 8 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _packing(settings: Prepare, quality: int | None) -> dict[bytes, bytes]:
    packing = {
        "decoder": DECODER,
        "short_side": settings.short_side,
        "max_megapixels": settings.max_megapixels,
        "jpeg_quality": quality,
    }
    return {b"headstart": json.dumps(packing).encode()}


def _already_packed(folder: Path, packing: dict[bytes, bytes]) -> dict[str, tuple[Usable, Callable[[], Array]]]:
    """What an earlier run packed the same way, by SHA-256, and what reads the bytes stored of it."""
    try:
        pixels = Pixels(folder)
        if pixels.settings.get(b"headstart") != packing[b"headstart"]:
            return {}
        rows = pq.read_table(folder / INDEX).to_pylist()
        return {
            row["sha256"]: (
                Usable(
                    Picture("", ""), (0, 0), row["height"], row["width"], row["original_height"], row["original_width"],
                    row["phash"], row["thumbnail"], tuple(row["notes"]),
                ),
                partial(pixels.raw, i),
            )
            for i, row in enumerate(rows)
        }  # fmt: skip
    except (HeadstartError, KeyError):
        return {}


# --- split --------------------------------------------------------------------------------------------------------


def _near_pairs(usable: list[Usable], bits: int) -> Array:
    hashes = np.array([u.phash for u in usable], np.uint64)
    thumbnails = np.frombuffer(b"".join(u.thumbnail for u in usable), np.uint8).reshape(len(usable), -1)
    return duplicates.near_pairs(hashes, thumbnails, bits)  # type: ignore[return-value]


def _split(usable: list[Usable], split: Split, seed: int, audit: _Audit) -> list[Usable]:
    """Give each picture its split and group.

    A group is the user's own where given, joined with whatever its pictures' near-duplicates belong to.
    """
    if not usable:
        return usable
    pairs = _near_pairs(usable, split.near_duplicate_bits)
    for i, j in pairs:
        a, b = usable[i].picture, usable[j].picture
        if a.label != b.label:
            audit.warnings.append(f"near-duplicates with two labels: {a.path} ({a.label}) and {b.path} ({b.label})")
    given = usable[0].picture.split != ""
    if given:
        usable, pairs = _without_leaks(usable, pairs, audit)
        for group, parts in _parts_of_groups(usable).items():
            if len(parts) > 1:
                audit.warnings.append(f"group {group!r} is in {' and '.join(sorted(parts))}, as the source has it: a leak")
    members: dict[str, int] = {}
    joined = [pairs] if len(pairs) else []
    for i, u in enumerate(usable):
        if u.picture.group:
            joined.append(np.array([[members.setdefault(u.picture.group, i), i]]))
    component = duplicates.clusters(np.concatenate(joined) if joined else np.empty((0, 2), np.int64), len(usable))
    keys = _group_keys(usable, component)
    cut_val = given and not any(u.picture.split == "val" for u in usable)
    result = []
    for u, number in zip(usable, component, strict=True):
        key = keys[int(number)]
        if not given:
            part = split_of(key, seed, split.val, split.test)
        elif cut_val and u.picture.split == "train":
            part = split_of(key, seed, split.val, 0.0)
        else:
            part = u.picture.split
        result.append(replace(u, split=part, group=key))
    return result


def _group_keys(usable: list[Usable], component: np.ndarray[Any, Any]) -> dict[int, str]:
    """The name each group is split by.

    A user's group goes by its name. Near-duplicates go by the digest of the one with the shortest, then first path: a
    copy added later ("a copy.jpg" beside "a.jpg") usually has a longer name and leaves the group where it was.
    """
    first: dict[int, Usable] = {}
    for u, number in zip(usable, component, strict=True):
        best = first.get(int(number))
        if best is None or _order(u) < _order(best):
            first[int(number)] = u
    return {number: u.picture.group or u.picture.sha256 for number, u in first.items()}


def _order(u: Usable) -> tuple[bool, str, int, str]:
    return (not u.picture.group, u.picture.group, len(u.picture.path), u.picture.path)


def _without_leaks(
    usable: list[Usable], pairs: np.ndarray[Any, Any], audit: _Audit
) -> tuple[list[Usable], np.ndarray[Any, Any]]:
    """With splits given by the user: of near-duplicates in two splits, the one nearer to training goes."""
    gone: set[int] = set()
    for i, j in sorted(map(tuple, pairs.tolist())):
        a, b = _held_out(usable[i].picture.split), _held_out(usable[j].picture.split)
        if a == b or i in gone or j in gone:
            continue
        loser, keeper = (i, j) if a < b else (j, i)
        gone.add(loser)
        twin = usable[keeper].picture
        audit.drop(usable[loser].picture.path, f"near-duplicate of {twin.path}, which is in {twin.split}")
    new_row = np.cumsum([i not in gone for i in range(len(usable))]) - 1
    left = np.array([(new_row[i], new_row[j]) for i, j in pairs if i not in gone and j not in gone], np.int64)
    return [u for i, u in enumerate(usable) if i not in gone], left.reshape(-1, 2)


def _leaks(usable: list[Usable], split: Split) -> int:
    """Pairs of near-duplicates, or of one group, that ended on two sides: counted from the result, not assumed."""
    if not usable:
        return 0
    crossing = sum(usable[i].split != usable[j].split for i, j in _near_pairs(usable, split.near_duplicate_bits))
    return int(crossing) + sum(len(parts) - 1 for parts in _parts_of_groups(usable).values())


def _parts_of_groups(usable: list[Usable]) -> dict[str, set[str]]:
    """In which splits the user's own groups are."""
    parts: dict[str, set[str]] = defaultdict(set)
    for u in usable:
        if u.picture.group:
            parts[u.picture.group].add(u.split or u.picture.split)
    return parts


def _learnable(usable: list[Usable], settings: Prepare, audit: _Audit) -> list[Usable]:
    """Leave out classes that nothing can be learned of, and say which others are thin."""
    counts = Counter((u.picture.label, u.split) for u in usable)
    labels = sorted({u.picture.label for u in usable})
    lost = [label for label in labels if not counts[label, "train"]]
    for label in lost:
        audit.warnings.append(f"class {label!r} is left out: it has no training picture")
        for u in usable:
            if u.picture.label == label:
                audit.drop(u.picture.path, f"class {label!r} has no training picture")
    usable = [u for u in usable if u.picture.label not in lost]
    for label in (label for label in labels if label not in lost):
        total = sum(counts[label, part] for part in SPLITS)
        missing = [part for part in ("val", "test") if not counts[label, part]]
        if total < settings.min_per_class:
            audit.warnings.append(f"class {label!r} has {total} pictures only; add more or leave it out")
        elif missing:
            audit.warnings.append(f"class {label!r} ({total} pictures) has none in {' and '.join(missing)}")
    kept = sorted({u.picture.label for u in usable})
    parts = {u.split for u in usable}
    advice = "see data/prepare/audit.json for what was left out and why, and add pictures"
    if len(kept) < 2:
        raise HeadstartError(f"{len(kept)} class with usable training pictures is left, two are needed; {advice}")
    for part in SPLITS:
        if part not in parts:
            raise HeadstartError(
                f"no picture fell into {part}: {len(usable)} pictures are too few for this split; raise split.val or "
                f"split.test, or {advice}"
            )
    return usable


# --- files --------------------------------------------------------------------------------------------------------


def _write(usable: list[Usable], packing: dict[bytes, bytes], folder: Path) -> pd.DataFrame:
    index = pa.table(
        {
            "sha256": [u.picture.sha256 for u in usable],
            "offset": np.array([u.span[0] for u in usable], np.int64),
            "length": np.array([u.span[1] for u in usable], np.int64),
            "height": [u.height for u in usable],
            "width": [u.width for u in usable],
            "original_height": [u.original_height for u in usable],
            "original_width": [u.original_width for u in usable],
            "phash": pa.array([u.phash for u in usable], pa.uint64()),
            "thumbnail": [u.thumbnail for u in usable],
            "notes": pa.array([list(u.notes) for u in usable], pa.list_(pa.string())),
        }
    ).replace_schema_metadata(packing)
    with replacing(folder / INDEX) as part:
        pq.write_table(index, part)
    manifest = pd.DataFrame(
        {
            "path": [u.picture.path for u in usable],
            "label": [u.picture.label for u in usable],
            "split": [u.split for u in usable],
            "group": [u.group for u in usable],
            "sha256": [u.picture.sha256 for u in usable],
            "width": [u.original_width for u in usable],
            "height": [u.original_height for u in usable],
        }
    )
    with replacing(folder / MANIFEST) as part:
        manifest.to_parquet(part, index=False)
    return manifest


def run(params: Params, data: Path) -> None:
    """Audit every picture, split, decode once, and show a few of each class on a sheet."""
    pictures, folder = read_manifest(data / "fetch" / "manifest.csv"), data / "prepare"
    root, threads = locate(params.data).root, params.threads or cores()
    manifest = prepare(pictures, root, params.prepare, params.split, params.seed, threads, folder)
    sheet(Pixels(folder), manifest, folder / "sheet.png")
    counts = ", ".join(f"{n} {split}" for split, n in manifest["split"].value_counts().items())
    print(f"{len(manifest)} of {len(pictures)} pictures kept ({counts}); see {folder}/audit.json and sheet.png")
