"""params.yaml is checked before any work, and what is wrong with it is said in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.base.sections import View, network_and_view
from headstart.base.yaml_file import set_values

SHIPPED = Path(__file__).parents[2] / "params.yaml"


def load(folder: Path, text: str | bytes) -> Params:
    path = folder / "params.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return Params.load(path)


def complaint(folder: Path, text: str | bytes) -> str:
    with pytest.raises(HeadstartError) as caught:
        load(folder, text)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{folder / 'params.yaml'}")


def keys(value: Any, before: str = "") -> Iterator[str]:
    """Every full key path of a nested mapping."""
    for key, below in value.items():
        yield before + key
        if isinstance(below, dict):
            yield from keys(below, f"{before}{key}.")


def modelled_keys(model: type[BaseModel], before: str = "") -> Iterator[str]:
    for key, field in model.model_fields.items():
        yield before + key
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from modelled_keys(field.annotation, f"{before}{key}.")


# --- the shipped file ---------------------------------------------------------------------------------------------


def test_the_shipped_file_holds_the_defaults() -> None:
    assert Params.load(SHIPPED) == Params()


@pytest.mark.parametrize(
    ("source", "name"),
    {
        "emoji": "emoji", "~/pictures/birds/": "birds", "C:\\pictures\\birds": "birds", "torchvision:CIFAR10": "CIFAR10",
        "../birds.v2.tar.gz": "birds.v2", "labels.csv": "labels", "s3://bucket/birds": "birds", "az://birds/": "birds",
        "https://me:secret@host/a/Vögel im Winter.zip?token=secret": "Vögel-im-Winter",
        "~/train-{00..12}.tar": "train-00..12", "/": "pictures", ".": "pictures", "b" * 4000: "b" * 100,
    }.items(),
)  # fmt: skip
def test_experiment_and_registered_model_are_named_after_the_source_unless_they_are_named(source: str, name: str) -> None:
    params = Params.model_validate({"data": {"source": source}})
    assert params.experiment == params.registered_model == f"headstart-{name}"
    both = {"tracking": {"experiment": "all of us"}, "registry": {"model": None}}
    named = Params.model_validate(params.model_dump() | both)
    assert (named.experiment, named.registered_model) == ("all of us", None)


def test_near_duplicates_can_be_switched_off(tmp_path: Path) -> None:
    assert load(tmp_path, "split: {near_duplicate_bits: null}").split.near_duplicate_bits is None


def test_the_shipped_file_names_every_key_so_that_each_can_be_swept() -> None:
    named = [
        key for key in keys(yaml.safe_load(SHIPPED.read_text())) if not key.startswith("tune.space.")
    ]  # any of finetune
    assert sorted(named) == sorted(modelled_keys(Params))


@pytest.mark.parametrize("address", ["auto", "head:6379", "10.0.0.7:6379", "ray://10.0.0.7:10001", "ray://[::1]:10001"])
def test_a_cluster_has_an_address(tmp_path: Path, address: str) -> None:
    assert load(tmp_path, f"cluster: {address}").cluster == address


@pytest.mark.parametrize("address", ["head", "http://head:6379", "ray://head", "head:6379/x", "''"])
def test_what_is_no_address_of_a_cluster_is_said(tmp_path: Path, address: str) -> None:
    told = ": cluster must be auto, null or an address such as 10.0.0.7:6379 or ray://10.0.0.7:10001, found "
    assert complaint(tmp_path, f"cluster: {address}").startswith(told)


def test_every_section_can_be_left_out(tmp_path: Path) -> None:
    assert load(tmp_path, "") == load(tmp_path, "# nothing\n") == Params()


def test_what_dvc_writes_for_a_small_rate_is_a_number(tmp_path: Path) -> None:
    """`dvc exp run -S finetune.lr=1e-5` leaves 1e-05 in the file, which PyYAML by itself reads as text."""
    params = load(tmp_path, "finetune: {lr: 1e-05, weight_decay: 2E-2, scratch_lr: 1.5e-3}\nhead: {C: [1e-3, 1e+1]}")
    assert (params.finetune.lr, params.finetune.weight_decay, params.finetune.scratch_lr) == (1e-5, 0.02, 0.0015)
    assert params.head.C == [0.001, 10]


# --- the file itself ----------------------------------------------------------------------------------------------


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(HeadstartError, match=r"absent\.yaml is not here; run this from the project's top folder"):
        Params.load(tmp_path / "absent.yaml")


def test_a_folder_in_its_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(HeadstartError, match="cannot be read: Is a directory"):
        Params.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("finetune: [", "line 1, column 12"),
        ("seed: 1\n\tepochs: 2\n", "line 2"),
        ("seed: \x01", "special characters are not allowed"),
        (b"seed: \xff\xfe", "can't decode byte 0xff"),
        ("seed: 2020-13-45", "month must be in 1..12"),
        ("? {a: b}\n: c", "unhashable key"),
        ("finetune:\n  precision: 0x" + "f" * 5000, "a number of more than 300 digits in"),
        ("? 0b" + "1" * 20_000 + "\n: 1", "line 1, column 3"),
    ],
)
def test_a_file_that_is_not_yaml_is_told_with_the_place(tmp_path: Path, text: str | bytes, where: str) -> None:
    message = complaint(tmp_path, text)
    assert message.startswith(" is not valid YAML: ")
    assert where in message


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("seed: !!python/object/apply:os.system [id]", "!!python/object/apply:os.system"),
        ("seed: !!bool x", "!!bool"),  # on which PyYAML raises a KeyError
        ("seed: !!timestamp x", "!!timestamp"),  # and here an AttributeError
        ("seed: !!int ''", "!!int"),
        ("!!set {a: b}", "!!set"),
        ("seed: !own 1", "!own"),
    ],
)
def test_a_tag_is_told_with_its_line(tmp_path: Path, text: str, tag: str) -> None:
    assert complaint(tmp_path, f"\n{text}") == f", line 2: {tag!r} is a tag; write the value without it"


@pytest.mark.parametrize(("text", "kind"), [("[1, 2]", "list"), ("hello", "str"), ("3", "int"), ("false", "bool")])
def test_a_file_that_is_no_mapping_is_told_what_was_found(tmp_path: Path, text: str, kind: str) -> None:
    assert complaint(tmp_path, text) == f" must hold keys and values, found {kind}"


# --- keys and values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("backbon: resnet18", "unknown key 'backbon'; did you mean 'backbone'?"),
        ("finetune: {precison: bf16}", "unknown key 'finetune.precison'; did you mean 'precision'?"),
        ("split: {xyz: 1}", "unknown key 'split.xyz'; allowed here: val, test, near_duplicate_bits"),
        ("head: {1: 2}", "unknown key 'head.1'; allowed here: kind, C, class_weight"),
        ("head:", "head must hold keys and values (kind, C, class_weight), found None"),
        (
            "data: emoji",
            "data must hold keys and values (source, label_separator, mirror, exclude, relabel, group, limit), "
            "found 'emoji'",
        ),
        ("seed: soon", "seed must be a valid integer, found 'soon'"),
        ("seed: true", "seed must be a valid integer, found True"),
        ("seed: 1.5", "seed must be a valid integer, found 1.5"),
        ("data: {source: no}", "data.source must be a valid string, found False"),
        ("data: {mirror: 3}", "data.mirror must be a valid string or null, found 3"),
        ("backbone: ''", "backbone must have at least 1 character, found ''"),
        ("finetune: {hflip: 1}", "finetune.hflip must be a valid boolean, found 1"),
        ("finetune: {lr: fast}", "finetune.lr must be a valid number, found 'fast'"),
        ("head: {C: 1}", "head.C must be a valid list, found 1"),
        ("head: {C: []}", "head.C must have at least 1 item, found []"),
        ("head: {C: [1, 0]}", "head.C.1 must be greater than 0, found 0"),
        (
            "finetune: {unfreeze: hlaf}",
            "finetune.unfreeze must be 'none', 'last', 'half' or 'all', found 'hlaf'; did you mean 'half'?",
        ),
        ("finetune: {unfreeze: off}", "finetune.unfreeze must be 'none', 'last', 'half' or 'all', found False"),
        (
            "head: {class_weight: balancd}",
            "head.class_weight must be 'balanced' or null, found 'balancd'; did you mean 'balanced'?",
        ),
        ("threads: 0", "threads must be greater than or equal to 1 or null, found 0"),
        ("finetune: {ema: 1}", "finetune.ema must be less than 1, found 1"),
        ("prepare: {jpeg_quality: 101}", "prepare.jpeg_quality must be less than or equal to 100, found 101"),
        ("finetune: {lr: .nan}", "finetune.lr must be a finite number, found nan"),
        ("finetune: {lr: .inf}", "finetune.lr must be a finite number, found inf"),
        ("finetune: {lr: 1e400}", "finetune.lr must be a finite number, found inf"),
        ("head: {C: [-.inf]}", "head.C.0 must be a finite number, found -inf"),
        ("split: {val: 0.5, test: 0.5}", "split.val + split.test is 1; leave at least 0.1 for training"),
        ("head: {C: [1e100]}", "head.C.0 must be less than or equal to 1000000, found 1e+100"),
        ("head: {C: [1, 1e-300]}", "head.C holds 1e-300; the smallest strength is 1e-10"),
        ("threads: 100000", "threads must be less than or equal to 1024 or null, found 100000"),
        ("evaluate: {bootstrap: 1000000000}", "evaluate.bootstrap must be less than or equal to 100000, found 1000000000"),
        ("finetune: {batch_size: 100000}", "finetune.batch_size must be less than or equal to 8192, found 100000"),
        ("finetune: {lr: 1e300}", "finetune.lr must be less than or equal to 1000000000, found 1e+300"),
        ("prepare: {short_side: 100000}", "prepare.short_side must be less than or equal to 4096, found 100000"),
    ],
)
def test_a_wrong_key_or_value_is_told_with_its_path_what_was_found_and_what_is_allowed(
    tmp_path: Path, text: str, sentence: str
) -> None:
    assert complaint(tmp_path, text) == f": {sentence}"


@pytest.mark.parametrize(
    "text",
    [
        f"seed: {'x' * 200_000}",
        f"{'x' * 1000}: 1",
        f"? {'x' * 1000}\n: 1",
        f"head: {{C: {['a'] * 90}}}",
        f"head: {{C: {[1] * 9000}}}",
        f"rank: {{candidates: ['{'x' * 100_000}', '{'x' * 100_000}']}}",
        f"tune: {{space: {{lr: {list(range(9000))}}}}}",
        f"retrain: {{webhook: '{'x' * 10_000}'}}",
        f"backbone: [{'[' * 40}{']' * 40}]",
        f"finetune: {{lr: {'9' * 4000}}}",
    ],
)
def test_what_is_refused_is_not_told_whole(tmp_path: Path, text: str) -> None:
    assert len(complaint(tmp_path, text)) < 800


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in pairwise("abcdefghij")
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 1500 + "]" * 1500, ", line 1: nested more than 50 deep; parameters are at most 4"),
        ("data: " + "{a: " * 1500 + "1" + "}" * 1500, ", line 1: nested more than 50 deep; parameters are at most 4"),
        ("- " * 1500, ", line 1: nested more than 50 deep; parameters are at most 4"),
        ("".join(f"{' ' * n}a:\n" for n in range(500)), ", line 50: nested more than 50 deep; parameters are at most 4"),
        (BOMB, ", line 4: more than 10,000 values, or an alias that holds itself"),
        (BOMB.replace("\n", "\n# \n"), ", line 7: more than 10,000 values, or an alias that holds itself"),
        ("seed: &a [*a]", ", line 1: more than 10,000 values, or an alias that holds itself"),
        ("seed: &a {b: {c: *a}}", ", line 1: more than 10,000 values, or an alias that holds itself"),
        ("seed: 1 # " + "x" * 5_000_000, " has 5,000,010 characters; of parameters at most 250,000 are read"),
    ],
)
def test_a_file_that_would_not_end_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    assert complaint(tmp_path, text) == sentence


def test_aliases_are_taken_where_they_stand_for_something_small(tmp_path: Path) -> None:
    params = load(tmp_path, "data: {source: &here pets, exclude: *here}\nrank: {candidates: &c [a, b]}\ntune: {trials: 3}")
    assert (params.data.source, params.data.exclude) == ("pets", "pets")


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    message = complaint(tmp_path, "seed: -1\nfinetune: {epochs: 0}")
    assert message == (
        ": seed must be greater than or equal to 0, found -1; finetune.epochs must be greater than or equal to 1, found 0"
    )


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.integers(), max_size=2)
)


@given(key=st.sampled_from(sorted(modelled_keys(Params))), value=SCALARS)
@example(key="finetune.lr", value=float("nan"))
@example(key="finetune.weight_decay", value=2**53 + 1)  # no float is that number
@example(key="finetune.crop_min", value="1E0")
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_under_any_key_is_taken_as_it_is_or_refused_by_the_key_s_name(
    tmp_path: Path, key: str, value: object
) -> None:
    raw: Any = value
    for part in reversed(key.split(".")):
        raw = {part: raw}
    try:
        # Quoted, since PyYAML's plain 1E0 is a text in YAML 1.1 and a number in 1.2, which headstart reads.
        params: Any = load(tmp_path, yaml.safe_dump(raw, default_style='"' if isinstance(value, str) else None))
    except HeadstartError as error:
        assert key in str(error)
        assert "\n" not in str(error)
    else:
        for part in key.split("."):
            params = getattr(params, part)
        assert params == (float(value) if isinstance(params, float) and isinstance(value, int) else value)


@given(text=st.text(max_size=40))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_at_all_ends_in_a_traceback(tmp_path: Path, text: str) -> None:
    try:
        load(tmp_path, text.encode("utf-8", "surrogatepass"))
    except HeadstartError as error:
        assert "params.yaml" in str(error)


@pytest.mark.parametrize("section", [Params().data, Params().finetune, Params()])
def test_params_cannot_be_changed_after_the_door(section: BaseModel) -> None:
    name = next(iter(type(section).model_fields))
    with pytest.raises(ValueError, match="frozen"):
        setattr(section, name, getattr(section, name))


# --- candidates of the ranking ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("candidates: []", "rank.candidates must have at least 1 item, found []"),
        ("candidates: [resnet18, vgg16, resnet18]", "rank.candidates names 'resnet18' 2 times; once is enough"),
        ("candidates: ['my_net.py:small']", "rank.candidates: 'my_net.py:small' is a network of your own"),
        ("candidates: ['../resnet18']", "rank.candidates: '../resnet18' is not the name of a network"),
        ("candidates: ['a; rm b']", "rank.candidates: 'a; rm b' is not the name of a network"),
        ("candidates: ['resnet18@/pad']", "rank.candidates: in 'resnet18@/pad', size must be a valid integer, found ''"),
        ("candidates: ['resnet18@9']", "in 'resnet18@9', size must be greater than or equal to 16, found 9"),
        ("candidates: ['resnet18@224/stretch']", "frame must be 'centre', 'squeeze' or 'pad', found 'stretch'"),
        ("candidates: ['resnet18/']", "frame must be 'centre', 'squeeze' or 'pad', found ''"),
        ("candidates: ['resnet18/pad/pad']", "frame must be 'centre', 'squeeze' or 'pad', found 'pad/pad'"),
        ("candidates: ['resnet18@0224']", "size must be a valid integer, found '0224'"),
        ("candidates: ['@224']", "rank.candidates: '@224' is not the name of a network"),
        ("candidates: ['resnet18@512']", "'resnet18@512' shows the network 512 pixels, and pictures are stored with 384"),
        ("{first: 500, pictures: 100}", "rank.first is 500, more than rank.pictures, 100"),
        ("budget: {image_per_s: 3}", "unknown key 'rank.budget.image_per_s'; did you mean 'images_per_s'?"),
        ("budget: {megabytes: -1.0}", "rank.budget.megabytes must be greater than 0 or null, found -1.0"),
    ],
)
def test_what_is_wrong_with_the_candidates_is_said(tmp_path: Path, section: str, expected: str) -> None:
    text = f"rank: {section}" if section.startswith("{") else f"rank:\n  {section}"
    assert expected in complaint(tmp_path, text)


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        ("resnet18", ("resnet18", View())),
        ("resnet18@288", ("resnet18", View(size=288))),
        ("resnet18/pad", ("resnet18", View(frame="pad"))),
        (
            "vit_tiny_patch16_224.augreg_in21k@160/squeeze",
            ("vit_tiny_patch16_224.augreg_in21k", View(size=160, frame="squeeze")),
        ),
    ],
)
def test_a_candidate_is_a_network_and_its_view(candidate: str, expected: tuple[str, View]) -> None:
    assert network_and_view(candidate) == expected


def test_what_is_shown_is_not_larger_than_what_is_stored(tmp_path: Path) -> None:
    text = "view: {size: 512}"
    assert "view.size shows the network 512 pixels" in complaint(tmp_path, text)
    assert "set prepare.short_side: 512" in complaint(tmp_path, text)
    assert load(tmp_path, "view: {size: 512}\nprepare: {short_side: 512}").view.size == 512


# --- what tuning searches -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ("{precison: [fp32, bf16]}", "unknown key 'tune.space.precison'; did you mean 'precision'?"),
        ("{xyz: [1, 2]}", "unknown key 'tune.space.xyz'; allowed here: unfreeze, epochs, views,"),
        ("{repeats: [1, 3]}", "unknown key 'tune.space.repeats'"),
        ("{lr: [-1, 1]}", "tune.space.lr: finetune.lr must be greater than 0, found -1"),
        (
            "{unfreeze: [hlaf, all]}",
            "tune.space.unfreeze: finetune.unfreeze must be 'none', 'last', 'half' or 'all', found",
        ),
        ("{unfreeze: [hlaf, all]}", "did you mean 'half'?"),
        ("{unfreeze: [none, all]}", "tune.space.unfreeze names 'none', which is no fine-tuning"),
        ("{epochs: [1.5, 3]}", "tune.space.epochs: finetune.epochs must be a valid integer, found 1.5"),
        ("{lr: [0.01, 0.001]}", "tune.space.lr must go from the smaller to the larger number, found [0.01, 0.001]"),
        ("{lr: [0.01]}", "tune.space.lr must hold two numbers, from and to, or two names or more, found [0.01]"),
        ("{augment: [none, light, none]}", "tune.space.augment names 'none' 2 times; once is enough"),
        ("{lr: 0.01}", "tune.space.lr must be a valid list, found 0.01"),
        ("{}", "tune.space must have at least 1 item, found {}"),
        ("[lr]", "tune.space must be a valid dictionary, found ['lr']"),
    ],
)
def test_what_is_wrong_with_the_space_is_said(tmp_path: Path, space: str, expected: str) -> None:
    assert expected in complaint(tmp_path, f"tune: {{space: {space}}}")


def test_the_values_of_the_space_are_those_of_the_knobs(tmp_path: Path) -> None:
    space = load(tmp_path, "tune: {space: {weight_decay: [0, 1], hflip: [false, true], views: [null, 2, 4]}}").tune.space
    assert space == {"weight_decay": [0.0, 1.0], "hflip": [False, True], "views": [None, 2, 4]}
    assert isinstance(space["weight_decay"][1], float)


# --- values written into it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "backbone: a  # mine\nfinetune:\n  lr: 0.001  # fast\n",
            "backbone: b  # mine\nfinetune:\n  lr: 1e-05  # fast\n",
        ),
        ("finetune:\n  # mine\n  ema: 0.5\n", "backbone: b\nfinetune:\n  # mine\n  lr: 1e-05\n  ema: 0.5\n"),
        ("finetune: {ema: 0.5}  # mine\n", "backbone: b\nfinetune: {lr: 1e-05, ema: 0.5} # mine\n"),
        ("finetune: {}\n", "backbone: b\nfinetune:\n  lr: 1e-05\n"),
        ("# mine\nseed: 1\n", "# mine\nfinetune: {lr: 1e-05}\nbackbone: b\nseed: 1\n"),
        ("# mine", "# mine\nfinetune: {lr: 1e-05}\nbackbone: b\n"),
        ("", "finetune: {lr: 1e-05}\nbackbone: b\n"),
        ("{backbone: a}", "{finetune: {lr: 1e-05}, backbone: b}\n"),
    ],
)
def test_values_are_written_where_they_stand_or_into_their_section(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(before)
    assert set_values(path, {"backbone": "b", "finetune.lr": 1e-5}) == ["backbone: b", "finetune.lr: 1e-05"]
    assert path.read_text() == after
    assert (Params.load(path).backbone, Params.load(path).finetune.lr) == ("b", 1e-5)
    assert set_values(path, {"backbone": "b", "finetune.lr": 1e-5}) == []


def test_a_value_is_all_that_changes_in_the_shipped_file(tmp_path: Path) -> None:
    path, shipped = tmp_path / "params.yaml", (Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8")
    path.write_text(shipped, encoding="utf-8")
    set_values(path, {"finetune.unfreeze": "last", "finetune.hflip": True, "rank.budget.megabytes": 20})
    written = path.read_text(encoding="utf-8").splitlines()
    changed = [line for line, before in zip(written, shipped.splitlines(), strict=True) if line != before]
    assert [line.split("#")[0].strip() for line in changed] == ["unfreeze: last", "hflip: true", "megabytes: 20"]


def test_lists_keep_their_indentation(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = "backbone: a\nrank:\n  candidates:\n    - resnet18\n    - 'alexnet'  # old\n"
    path.write_text(text)
    set_values(path, {"backbone": "b"})
    assert path.read_text() == text.replace("backbone: a", "backbone: b")
