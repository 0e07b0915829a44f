"""The stage prepare: audit every picture, drop duplicates, split, decode once and pack."""

from __future__ import annotations

import shutil
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pandas as pd

from headstart.base.artifacts import DataFolder, PrepareFolder
from headstart.base.cluster import Cluster, connected
from headstart.base.errors import HeadstartError, some
from headstart.base.files import remove_cut_short, replacing
from headstart.base.params import Params
from headstart.base.paths import state_folder
from headstart.base.sections import Prepare, Split
from headstart.base.terminal import say
from headstart.base.threads import cores
from headstart.data.audit import Audit
from headstart.data.contact_sheet import write_contact_sheet
from headstart.data.decode import DARK, SCALED, quiet
from headstart.data.fetch import read_manifest
from headstart.data.groups import assign_splits, count_leaks, distance_from_train
from headstart.data.pack import PackedPicture, pack, write_index
from headstart.data.packed import Pixels, read_file_properties
from headstart.data.picture import InPlace, Picture, classes_of, is_multi_label
from headstart.data.shortcuts import examine_files, warnings_of
from headstart.data.sources import source_of
from headstart.data.splits import SPLITS


def run(params: Params, data: DataFolder) -> None:
    """Audit every picture, split, decode once, and draw a few pictures of each class on a sheet."""
    pictures, folder = read_manifest(data.fetch.manifest), data.prepare
    root, threads = source_of(params.data).root(params.data), params.threads or cores()
    with connected(params.cluster, __name__) as cluster:
        manifest = prepare(pictures, root, params.prepare, params.split, params.seed, threads, folder, cluster)
    write_contact_sheet(Pixels(folder), manifest, folder.sheet)
    counts = ", ".join(f"{n} {split}" for split, n in manifest["split"].value_counts().items())
    say(f"{len(manifest)} of {len(pictures)} pictures kept ({counts}); see {folder.audit} and {folder.sheet.name}")


def prepare(
    pictures: list[Picture],
    root: Path | InPlace,
    settings: Prepare,
    split: Split,
    seed: int,
    threads: int,
    folder: Path,
    cluster: Cluster | None = None,
) -> pd.DataFrame:
    """Write manifest, packed pixels and audit into ``folder`` and return the manifest.

    Pictures already packed there with the same settings, or by a run that was killed, are copied, not decoded again; the
    bytes written are the same either way, and the same if a cluster decodes them.

    Raises:
        HeadstartError: too few pictures or classes are left to learn from.
    """
    audit = Audit()
    pictures = _without_exact_duplicates(pictures, audit)
    folder.mkdir(parents=True, exist_ok=True)
    remove_cut_short(folder)
    files = PrepareFolder(folder)
    with replacing(files.pixels) as part, quiet():
        usable, packing = pack(pictures, root, settings, threads, folder, part, audit, cluster)
        _say_if_dark(audit)
        usable = assign_splits(usable, split, seed, audit)
        usable = _without_untrainable_classes(usable, settings, audit)
        files.pixels_index.unlink(missing_ok=True)  # it describes the file that is replaced now
    write_index(usable, packing, folder)
    shutil.rmtree(state_folder("prepare"), ignore_errors=True)
    manifest = _write_manifest(usable, folder)
    _look_for_shortcuts(manifest, folder, audit)
    own_test = usable[0].picture.split != ""
    audit.report(manifest, count_leaks(usable, split), own_test).write(files.audit)
    return manifest


def _without_exact_duplicates(pictures: list[Picture], audit: Audit) -> list[Picture]:
    """One of each set of equal files; none where their labels differ, since one of the labels is wrong."""
    by_digest: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        if picture.sha256:
            by_digest[picture.sha256].append(picture)
        else:
            audit.drop(picture.path, "a link that leads nowhere")
    unique = []
    for copies in by_digest.values():
        if not copies[0].size:  # empty files are equal, but they are dropped later for being empty
            unique += copies
        elif len({copy.label for copy in copies}) > 1:
            for copy in copies:
                other = next(c for c in copies if c.label != copy.label)
                named = repr(other.label) if other.label else "without a label"
                audit.drop(copy.path, f"label conflict: the same file is {named} in {other.path}")
        else:
            first, *others = sorted(copies, key=lambda copy: (-distance_from_train(copy.split), copy.path))
            unique.append(first)
            for copy in others:
                leak = f", which is in {first.split}" if first.split != copy.split else ""
                if copy.path != first.path:
                    audit.drop(copy.path, f"exact duplicate of {first.path}{leak}")
                else:  # in two rows of a table
                    audit.warnings.append(f"{copy.path} is listed twice{leak or ', in two groups'}; it counts once")
    return sorted(unique, key=lambda picture: picture.path)


def _say_if_dark(audit: Audit) -> None:
    """Warn if most pictures of 16 bits use only the lowest of them, as those from cameras of 10 or 12 bits do."""
    dark = {level: audit.notes[DARK.format(level)] for level in (255, 1023, 4095, 16383)}
    levels = [level for level, count in dark.items() if count]
    if 2 * sum(dark.values()) > audit.notes[SCALED]:
        warning = (
            f"{sum(dark.values())} of {audit.notes[SCALED]} pictures of 16 bits have no value above {levels[-1]} and "
            f"become nearly black; if their white is {levels[-1]}, set prepare.white_level to it"
        )
        audit.warnings.append(warning)
        say(f"headstart: {warning}", file=sys.stderr)


def _look_for_shortcuts(manifest: pd.DataFrame, folder: Path, audit: Audit) -> None:
    """Warn if the files alone tell classes apart."""
    audit.blind, audit.shortcuts = examine_files(manifest, read_file_properties(folder))
    for warning in warnings_of(audit.shortcuts):
        audit.warnings.append(warning)
        say(f"headstart: {warning}", file=sys.stderr)


def _without_untrainable_classes(usable: list[PackedPicture], settings: Prepare, audit: Audit) -> list[PackedPicture]:
    """Drop classes without a training picture, and warn of those with few pictures.

    The pictures of such a class go with it, but not those of a multi-label set, which show something else as well.

    Raises:
        HeadstartError: too few classes are left, or a split is empty.
    """
    several = is_multi_label([p.picture for p in usable])
    counts = Counter((name, p.split) for p in usable for name in p.picture.classes)
    labels = sorted(classes_of([p.picture for p in usable]))
    untrainable = {label for label in labels if not counts[label, "train"]}
    audit.warnings += [f"class {label!r} is left out: it has no training picture" for label in sorted(untrainable)]
    usable = _without_classes(usable, untrainable, audit)
    classes = [label for label in labels if label not in untrainable]
    for label in classes:
        total = sum(counts[label, split] for split in SPLITS)
        missing = [split for split in ("val", "test") if not counts[label, split]]
        if total < settings.min_per_class:
            audit.warnings.append(f"class {label!r} has {total} pictures only; add more or leave it out")
        elif missing:
            audit.warnings.append(f"class {label!r} ({total} pictures) has none in {' and '.join(missing)}")
    left_out = f"; {audit.sentence()}" if audit.dropped else ""
    if several:
        _check_something_to_tell_apart(usable, {label: counts[label, "train"] for label in classes}, audit, left_out)
    elif len(classes) < 2:
        left = "1 class with usable training pictures is" if classes else "no class with usable training pictures is"
        raise HeadstartError(f"{left} left, two are needed; add pictures{left_out}")
    for split in SPLITS:
        if not any(p.split == split for p in usable):
            if split == "test" and usable[0].picture.split:
                raise HeadstartError(f"no usable picture is in the source's test split; add pictures there{left_out}")
            groups = len({p.group for p in usable})
            together = f" (related ones count as one: {groups})" if groups < len(usable) else ""
            raise HeadstartError(
                f"no picture fell into {split}: {len(usable)} pictures{together} are too few for this split; "
                f"raise split.{split}, or add pictures{left_out}"
            )
    return usable


def _without_classes(usable: list[PackedPicture], untrainable: set[str], audit: Audit) -> list[PackedPicture]:
    if is_multi_label([p.picture for p in usable]):
        return [replace(p, picture=p.picture.with_labels(set(p.picture.classes) - untrainable)) for p in usable]
    for p in usable:
        if p.picture.label in untrainable:
            audit.drop(p.picture.path, f"class {p.picture.label!r} has no training picture")
    return [p for p in usable if p.picture.label not in untrainable]


def _check_something_to_tell_apart(
    usable: list[PackedPicture], counts: dict[str, int], audit: Audit, left_out: str
) -> None:
    """Whether a multi-label set has a class that some training pictures have and others have not; warn of each that all
    have, of which nothing can be learned.

    Args:
        counts: training pictures of each class.

    Raises:
        HeadstartError: it has none.
    """
    if not counts:
        raise HeadstartError(f"no class with usable training pictures is left, one is needed; add pictures{left_out}")
    everywhere = [label for label, count in counts.items() if count == sum(p.split == "train" for p in usable)]
    if len(everywhere) == len(counts):
        raise HeadstartError(
            f"every training picture has the same labels ({some(map(repr, everywhere))}), which leaves nothing to tell "
            f"apart; add pictures without them{left_out}"
        )
    for label in everywhere:
        audit.warnings.append(f"class {label!r} is on every training picture; what it looks like cannot be learned")


def _write_manifest(usable: list[PackedPicture], folder: Path) -> pd.DataFrame:
    several = is_multi_label([p.picture for p in usable])
    manifest = pd.DataFrame(
        {
            "path": [p.picture.path for p in usable],
            "label": [p.picture.label for p in usable],
            **({"labels": pd.Series([list(p.picture.classes) for p in usable], dtype=object)} if several else {}),
            "split": [p.split for p in usable],
            "group": [p.group for p in usable],
            "sha256": [p.picture.sha256 for p in usable],
            "width": [p.original_width for p in usable],
            "height": [p.original_height for p in usable],
        }
    )
    with replacing(PrepareFolder(folder).manifest) as part:
        manifest.to_parquet(part, index=False)
    return manifest
