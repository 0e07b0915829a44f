"""What the user knows better than the source is done as said, and what cannot be done is said."""

from __future__ import annotations

import csv
import re
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.base.errors import HeadstartError
from headstart.base.sections import Data
from headstart.data.corrections import corrected
from headstart.data.fetch import fetch
from headstart.data.picture import Picture
from tests.data.pictures import everything_below, write_pictures

MANIFEST = Path("data/fetch/manifest.csv")
NAMES = {f"{label}/{i}.png": 10 * k + i for k, label in enumerate(("ants", "bees", "wasps")) for i in range(3)}


@pytest.fixture
def source(project: Path) -> Path:
    return write_pictures(project / "set", NAMES)


def fetched(**keys: object) -> dict[str, str]:
    return {p.path: p.label for p in fetch(Data(source="set", **keys), MANIFEST)}  # type: ignore[arg-type]


def complaint(**keys: object) -> str:
    with pytest.raises(HeadstartError) as caught:
        fetched(**keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(name: str, text: str) -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


def test_rows_of_suspects_csv_can_be_pasted_into_both(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything_below(source)
    exclude = write("out.csv", "path,label,suggested,quality\nants/0.png,ants,bees,0.1\n./bees/1.png,bees,ants,0.2\n")
    relabel = write("right.csv", "path,was,label,quality\nants/1.png,ants,bees,0.1\n")
    found = fetched(exclude=exclude, relabel=relabel)
    assert found == {
        path: "bees" if path == "ants/1.png" else path.split("/")[0]
        for path in NAMES
        if path not in ("ants/0.png", "bees/1.png")
    }
    assert fetched() == {path: path.split("/")[0] for path in NAMES}
    assert everything_below(source) == before
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("place", ["{project}/out.csv", "out.csv", "~/out.csv"])
def test_the_table_is_found_from_the_checkout(project: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Also from the temporary folder that DVC runs an experiment in."""
    write("out.csv", "path\nants/0.png\n")
    monkeypatch.setenv("HOME", str(project))
    experiment = project / ".dvc" / "tmp" / "exps" / "tmpx"
    experiment.mkdir(parents=True)
    monkeypatch.chdir(experiment)
    monkeypatch.setenv("DVC_ROOT", str(experiment))
    assert "ants/0.png" not in fetched(exclude=place.format(project=project))


@pytest.mark.usefixtures("source")
def test_an_edit_of_the_table_changes_the_manifest_and_no_edit_does_not() -> None:
    relabel = write("right.csv", "path,label\nants/1.png,bees\n")
    fetched(relabel=relabel)
    first = MANIFEST.read_bytes()
    fetched(relabel=relabel)
    assert MANIFEST.read_bytes() == first
    write("right.csv", "path,label\n")  # a table of which nothing is left is one all the same
    fetched(relabel=relabel)
    assert MANIFEST.read_bytes() != first


@pytest.mark.usefixtures("source")
def test_a_picture_in_both_tables_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    exclude, relabel = write("out.csv", "path\nants/0.png\n"), write("right.csv", "path,label\nants/0.png,bees\n")
    assert "ants/0.png" not in fetched(exclude=exclude, relabel=relabel)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("source")
def test_the_limit_counts_what_the_corrections_leave() -> None:
    exclude = write("out.csv", "path\nbees/0.png\n")
    relabel = write("right.csv", "path,label\nants/0.png,bees\nants/1.png,bees\n")
    assert Counter(fetched(exclude=exclude, relabel=relabel, limit=3).values()) == {"ants": 1, "bees": 3, "wasps": 3}


@pytest.mark.usefixtures("source")
def test_paths_that_the_source_does_not_have_are_told_in_one_line_and_passed_over(
    capsys: pytest.CaptureFixture[str],
) -> None:
    exclude = write("out.csv", "path\nants/0.png\n" + "".join(f"ants/9{i}.png\n" for i in range(5)))
    relabel = write("right.csv", "path,label\nbees/7.png,dragons\nbees/0.png,ants\n")  # nor does its class matter then
    found = fetched(exclude=exclude, relabel=relabel)
    assert len(found) == len(NAMES) - 1
    assert found["bees/0.png"] == "ants"
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "headstart: data.exclude names ants/90.png, ants/91.png, ants/92.png and 2 more, which data.source does not have "
        "(any more); ignored",
        "headstart: data.relabel names bees/7.png, which data.source does not have (any more); ignored",
    ]


@pytest.mark.usefixtures("source")
def test_a_row_that_changes_nothing_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """A row of suspects.csv under `path,label,suggested,quality` gives the picture the label that is suspected."""
    relabel = write("right.csv", "path,label,suggested,quality\nants/0.png,ants,bees,0.1\n")
    assert fetched(relabel=relabel) == fetched()
    assert "data.relabel gives ants/0.png the label that the source has; " in capsys.readouterr().err


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize(
    ("key", "text", "sentence"),
    [
        ("exclude", "file\nants/0.png\n", r"t\.csv has no column 'path' \(it has file\); needed: path$"),
        (
            "relabel",
            "path,class\nants/0.png,bees\n",
            r"t\.csv has no column 'label' \(it has path, class\); needed: path, ",
        ),
        ("relabel", "path,label\nants/0.png,\n", r"t\.csv, line 2: empty label"),
        ("exclude", "path,label\n,ants\n", r"t\.csv, line 2: empty path"),
        (
            "relabel",
            "path,label\nants/0.png,beees\n",
            r"data\.relabel 't\.csv', line 2: .* no class 'beees'; did you mean 'bees'\?",
        ),
        ("relabel", "path,label\nants/0.png,dragon\n", r"no class 'dragon'; it has ants, bees, wasps"),
        (
            "relabel",
            "path,label\nants/0.png,bees\nants/0.png,bees\nants/0.png,wasps\n",
            r"line 4: ants/0\.png becomes 'wasps' here and 'bees' above; keep one of them",
        ),
        (
            "exclude",
            "path\n" + "".join(f"{p}\n" for p in NAMES if p[0] != "a"),
            r"has one class only \('ants'\) after data\.exclude and data\.relabel; at least two",
        ),
        (
            "exclude",
            "path\n" + "".join(f"{p}\n" for p in NAMES),
            "has no class after data.exclude and data.relabel; at least two",
        ),
    ],
)
def test_what_is_wrong_in_a_table_is_one_sentence(key: str, text: str, sentence: str) -> None:
    assert re.search(sentence, complaint(**{key: write("t.csv", text)}))


@pytest.mark.usefixtures("source")
def test_a_table_that_is_not_there_says_where_it_was_looked_for(project: Path) -> None:
    for key in ("exclude", "relabel"):
        message = complaint(**{key: "out.csv"})
        assert message.startswith(f"data.{key} 'out.csv': there is no file {project / 'out.csv'}; ")


# --- of any set and any tables ------------------------------------------------------------------------------------------

names = st.text(
    st.characters(codec="utf-8", exclude_characters="\0/\r\n", exclude_categories=["Cs"]), min_size=1, max_size=8
)
paths = names.map(str.strip).filter(lambda name: name not in ("", ".", ".."))


@given(
    st.dictionaries(
        paths, st.tuples(st.sampled_from("abc"), st.booleans(), st.none() | st.sampled_from("abc")), max_size=12
    )
)
def test_each_picture_comes_out_as_the_tables_say_whatever_its_name(
    plan: dict[str, tuple[str, bool, str | None]],
) -> None:
    pictures = [Picture(f"x/{path}", label) for path, (label, _, _) in plan.items()]
    pictures += [Picture(f"{label}.png", label) for label in "abc"]
    with tempfile.TemporaryDirectory() as name:
        tables = {"exclude": Path(name) / "exclude.csv", "relabel": Path(name) / "relabel.csv"}
        for key, table in tables.items():
            with table.open("w", encoding="utf-8", newline="") as stream:
                rows = csv.writer(stream)
                rows.writerow(["note", "path", "label"])
                for path, (label, out, new) in plan.items():
                    if out if key == "exclude" else new:
                        rows.writerow(["", f"x/{path}", new if key == "relabel" else label])
        found = corrected(pictures, Data(**{key: str(table) for key, table in tables.items()}))  # type: ignore[arg-type]
    wanted = [Picture(f"x/{path}", new or label) for path, (label, out, new) in plan.items() if not out]
    assert found == wanted + pictures[len(plan) :]


# --- groups -----------------------------------------------------------------------------------------------------------


def groups(**keys: object) -> dict[str, str]:
    return {p.path: p.group for p in fetch(Data(source="set", **keys), MANIFEST)}  # type: ignore[arg-type]


@pytest.mark.usefixtures("source")
def test_groups_are_those_of_a_table_or_of_a_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(groups().values()) == {""}
    assert groups(group=r"(\d)\.png$") == {path: path[-5] for path in NAMES}
    assert groups(group=r"[01]\.png$") == {path: path[-5:] if path[-5] in "01" else "" for path in NAMES}
    assert groups(group=r"(ant|bee)s/(\d)|wasps")["ants/2.png"] == "ant/2"
    table = write("groups.csv", "path,group,more\nants/0.png,café,x\n./bees/1.png,cafe\u0301,y\nelse.png,z,\n")
    found = groups(group=table)
    assert found["ants/0.png"] == found["bees/1.png"] == "café"
    assert [path for path, group in found.items() if group] == ["ants/0.png", "bees/1.png"]
    assert "data.group names else.png" in capsys.readouterr().err


@pytest.mark.usefixtures("source")
def test_groups_of_the_source_are_kept_demanded_or_dropped() -> None:
    table = write("pictures.csv", "path,label,group\n" + "".join(f"set/{p},{p.split('/')[0]},g{p[-5]}\n" for p in NAMES))
    for setting, expected in (("auto", {"g0", "g1", "g2"}), ("column", {"g0", "g1", "g2"}), ("none", {""})):
        assert {p.group for p in fetch(Data(source=table, group=setting), MANIFEST)} == expected
    with pytest.raises(HeadstartError, match=r"data\.group is column, and data.source has no column group"):
        groups(group="column")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("nothing like this", "every picture is in no group; the first path is 'ants/0.png'"),
        ("s/", "every picture is in one group ('s/')"),
        ("lost.csv", "there is no file"),
    ],
)
@pytest.mark.usefixtures("source")
def test_groups_that_are_none_are_one_sentence(setting: str, words: str) -> None:
    assert words in complaint(group=setting)
