"""Which picture is for training depends on the picture alone."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.base.artifacts import PrepareFolder
from headstart.base.artifacts.audit import AuditReport
from headstart.base.errors import HeadstartError
from headstart.base.files import sha256_of
from headstart.base.sections import Prepare, Split
from headstart.data.picture import Picture
from headstart.data.prepare import prepare
from headstart.data.splits import SPLITS, split_of, unit_hash
from tests.data.pictures import encoded, photograph

KEYS = [f"picture {i}" for i in range(20_000)]
seeds, parts = st.integers(0, 2**32 - 1), st.floats(0.01, 0.45)


@given(key=st.text(), seed=seeds)
def test_every_key_has_one_place_in_the_unit_interval(key: str, seed: int) -> None:
    assert 0 <= unit_hash(key, seed) < 1
    assert unit_hash(key, seed) == unit_hash(key, seed)


@given(old=st.sets(st.text()), new=st.sets(st.text()), seed=seeds, val=parts, test=parts)
def test_adding_pictures_never_moves_one_that_was_there_before(
    old: set[str], new: set[str], seed: int, val: float, test: float
) -> None:
    before = {key: split_of(key, seed, val, test) for key in sorted(old)}
    after = {key: split_of(key, seed, val, test) for key in sorted(old | new, reverse=True)}
    assert before.items() <= after.items()


@given(key=st.text(), seed=seeds, val=parts, test=parts, more=st.floats(0, 0.1))
def test_a_larger_test_or_val_only_takes_from_train(key: str, seed: int, val: float, test: float, more: float) -> None:
    before = split_of(key, seed, val, test)
    assert split_of(key, seed, val, test + more) in {before, "test" if before == "train" else before}
    assert split_of(key, seed, val + more, test) in {before, "val" if before == "train" else before}


def test_a_place_on_a_border_is_above_it() -> None:
    border = unit_hash("a", 1)
    assert 0.5 < border < 0.9
    assert split_of("a", 1, val=0.1, test=border) == "train"
    assert split_of("a", 1, val=1 - border, test=0.1) == "val"


def test_the_proportions_are_those_asked_for() -> None:
    counts = Counter(split_of(key, 0, 0.1, 0.15) for key in KEYS)
    # Three standard deviations of a binomial count of 20,000 are below 160.
    assert abs(counts["val"] - 2000) < 160
    assert abs(counts["test"] - 3000) < 160


def test_another_seed_is_another_split() -> None:
    moved = sum(split_of(key, 0, 0.1, 0.15) != split_of(key, 1, 0.1, 0.15) for key in KEYS)
    # Two independent splits agree with probability 0.75² + 0.15² + 0.1² = 0.595.
    assert abs(moved / len(KEYS) - 0.405) < 0.02


def test_the_split_of_a_release_stays_that_of_the_next() -> None:
    """These places are in users' results; a change of hash would move pictures from test to train."""
    assert [round(unit_hash(key, seed), 6) for key, seed in (("a", 0), ("b", 0), ("a", 1))] == [
        0.051689,
        0.242785,
        0.529857,
    ]


# --- nothing leaks: the whole of prepare, on real pictures ----------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """A picture file: what it shows, how it is encoded, and what the source says of it."""

    content: int
    kind: str
    label: str
    group: str
    split: str


@cache
def data_of(content: int, kind: str) -> bytes:
    return encoded(photograph(content), kind)


def files(splits: st.SearchStrategy[str]) -> st.SearchStrategy[list[File]]:
    """Many with the same content, equal or re-encoded, under any labels, groups and splits."""
    file = st.builds(
        File, st.integers(0, 40), st.sampled_from(["PNG", "JPEG"]), st.sampled_from(["ants", "bees"]),
        st.sampled_from(["", "", "", "a", "b", "c"]), splits,
    )  # fmt: skip
    return st.lists(file, min_size=25, max_size=45)


def prepared(chosen: list[File], seed: int, val: float, test: float) -> tuple[list[tuple[File, str]], AuditReport] | None:
    """What is kept and in which split; None where too little is left to learn from, which is an error."""
    with tempfile.TemporaryDirectory() as name:
        root, pictures = Path(name), []
        for number, file in enumerate(chosen):
            path = root / f"{number}.{file.kind.lower()}"
            path.write_bytes(data_of(file.content, file.kind))
            pictures.append(Picture(path.name, file.label, file.split, file.group, path.stat().st_size, sha256_of(path)))
        shares = Split(val=val, test=test)
        try:
            manifest = prepare(pictures, root, Prepare(short_side=64), shares, seed, 1, root / "prepare")
        except HeadstartError:
            return None
        kept = [(chosen[int(path.split(".")[0])], split) for path, split in manifest[["path", "split"]].to_numpy()]
        return kept, AuditReport.read(PrepareFolder(root / "prepare").audit)


def gives_way(audit: AuditReport) -> bool:
    """Whether one picture in two formats may be in two splits, since too few would be left for another; that is said."""
    return any("are not kept in one split" in warning for warning in audit.warnings)


@given(files(st.just("")), seeds, parts, parts)
@settings(max_examples=20)
def test_no_group_and_no_copy_of_a_picture_is_in_two_splits(chosen: list[File], seed: int, val: float, test: float) -> None:
    if (found := prepared(chosen, seed, val, test)) is None:
        return
    kept, audit = found
    for tie in ("group",) if gives_way(audit) else ("content", "group"):
        sides = {(getattr(file, tie), split) for file, split in kept if getattr(file, tie) != ""}
        assert max(Counter(tied for tied, _ in sides).values(), default=1) == 1
    assert audit.leaks == 0 or gives_way(audit)


@given(files(st.sampled_from(SPLITS)), seeds, parts)
@settings(max_examples=12)
def test_where_the_source_has_splits_no_copy_stays_in_two_and_groups_that_do_are_counted(
    chosen: list[File], seed: int, val: float
) -> None:
    if (found := prepared(chosen, seed, val, 0.2)) is None:
        return
    kept, audit = found
    contents = {(file.content, split) for file, split in kept}
    groups = {(file.group, split) for file, split in kept if file.group}
    if not gives_way(audit):
        assert len(contents) == len({content for content, _ in contents})
        assert audit.leaks == len(groups) - len({group for group, _ in groups})
    assert {(file.split, split) for file, split in kept} <= {*zip(SPLITS, SPLITS, strict=True), ("train", "val")}
