"""The sections of params.yaml: which keys each has, and what may stand in them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from headstart.base.artifacts.card import Frame
from headstart.base.errors import nearest
from headstart.base.paths import is_own
from headstart.base.safe_text import quoted
from headstart.base.validation import explained

Fraction = Annotated[float, Field(ge=0, lt=1)]

Positive = Annotated[float, Field(gt=0)]

Rate = Annotated[float, Field(gt=0, le=1e9)]  # beyond it a step overflows; before, a training that diverges says so

Strength = Annotated[float, Field(gt=0, le=1e6)]

Count = Annotated[int, Field(ge=1, le=10**9)]

Text = Annotated[str, Field(min_length=1, max_length=4096)]

NETWORK_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # folders are named after it

MOST_MEMBERS = 8  # networks side by side

AUTO = "auto"  # a name that follows from the data source

GROUP_WORDS = ("auto", "column", "none")

TABLES = (".csv", ".parquet")

CLUSTER = re.compile(r"auto|(ray://)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):[0-9]{1,5}")  # what ray.init takes as an address


def _a_cluster(address: str) -> str:
    if not CLUSTER.fullmatch(address):
        raise ValueError(
            "cluster must be auto, null or an address such as 10.0.0.7:6379 or ray://10.0.0.7:10001, found "
            f"{quoted(address)}"
        )
    return address


ClusterAddress = Annotated[str, AfterValidator(_a_cluster)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(Section):
    source: Text = "emoji"
    label_separator: Annotated[str, Field(min_length=1, max_length=100)] = ";"
    mirror: str | None = None
    exclude: Text | None = None
    relabel: Text | None = None
    group: Text = "auto"
    limit: Count | None = None

    @field_validator("group")
    @classmethod
    def a_word_a_table_or_a_pattern(cls, group: str) -> str:
        if group not in GROUP_WORDS and not group.lower().endswith(TABLES):
            try:
                re.compile(group)
            except re.error as error:
                raise ValueError(
                    f"data.group must be {', '.join(GROUP_WORDS)}, a table (.csv or .parquet) or a regular expression on "
                    f"the path, found {quoted(group)}: {error}"
                ) from None
        return group


class Prepare(Section):
    short_side: Annotated[int, Field(ge=64, le=4096)] = 384
    raw_gb: Annotated[float, Field(ge=0)] = 1.0
    jpeg_quality: Annotated[int, Field(ge=80, le=100)] = 95
    max_megapixels: Positive = 100.0
    formats: Literal["all", "common"] = "all"
    white_level: Annotated[int, Field(ge=255, le=65535)] = 65535
    min_per_class: Annotated[int, Field(ge=3)] = 3


class View(Section):
    """
    Attributes:
        size: of what the network is shown, in pixels; None: as its publisher has it.
        stages: whether the mean features of all its stages stand beside those of its last layer.
    """

    size: Annotated[int, Field(ge=16, le=2048)] | None = None
    frame: Frame = "centre"
    stages: bool = False


PUBLISHED_VIEW = View()


class Split(Section):
    val: Annotated[float, Field(gt=0, lt=1)] = 0.15
    test: Annotated[float, Field(gt=0, lt=1)] = 0.15
    near_duplicate_bits: Annotated[int, Field(ge=0, le=16)] | None = 4

    @model_validator(mode="after")
    def something_left_to_learn_from(self) -> Self:
        if self.val + self.test > 0.9:
            raise ValueError(f"split.val + split.test is {self.val + self.test:g}; leave at least 0.1 for training")
        return self


class Features(Section):
    engine: Literal["auto", "torch", "openvino"] = "auto"


class Head(Section):
    kind: Literal["linear", "mlp"] = "linear"
    C: Annotated[list[Strength], Field(min_length=1, max_length=100)] = [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 1.0]
    class_weight: Literal["balanced"] | None = None

    @field_validator("C")
    @classmethod
    def large_enough_to_divide_by(cls, strengths: list[float]) -> list[float]:
        if min(strengths) < 1e-10:
            raise ValueError(f"head.C holds {min(strengths):g}; the smallest strength is 1e-10")
        return strengths


class Finetune(Section):
    unfreeze: Literal["none", "last", "half", "all"] = "half"
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 4
    repeats: Annotated[int, Field(ge=1, le=100)] = 1
    views: Annotated[int, Field(ge=1, le=10_000)] | None = None
    patience: Count = 3
    batch_size: Annotated[int, Field(ge=2, le=8192)] = 32
    processes: Annotated[int, Field(ge=1, le=1024)] = 1
    size_ratio: Annotated[float, Field(gt=0.2, le=2)] = 1.0
    lr: Rate = 1e-3
    head_lr: Rate = 6e-4
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 0.02
    warmup: Fraction = 0.1
    label_smoothing: Fraction = 0.1
    ema: Fraction = 0.98
    batch_norm: Literal["frozen", "trained"] = "frozen"
    crop_min: Annotated[float, Field(gt=0, le=1)] = 0.5
    hflip: bool = False
    augment: Literal["none", "light", "trivial"] = "light"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    scratch_lr: Rate = 2e-3
    scratch_epochs: Annotated[int, Field(ge=1, le=10_000)] = 10
    scratch_passes: Count = 40_000
    scratch_size: Annotated[int, Field(ge=32, le=1024)] = 128


class Evaluate(Section):
    bootstrap: Annotated[int, Field(ge=100, le=100_000)] = 2000
    mistakes: Annotated[int, Field(ge=0, le=1000)] = 12
    folds: Literal["auto"] | int | None = "auto"

    @field_validator("folds", mode="before")
    @classmethod
    def auto_or_a_number(cls, folds: Any) -> Any:
        if folds is None or folds == "auto" or (type(folds) is int and 3 <= folds <= 100):
            return folds
        raise ValueError(f"evaluate.folds must be 'auto', a whole number from 3 to 100 or null, found {quoted(folds)}")


class Tracking(Section):
    experiment: Text = AUTO
    model: bool = True


class Registry(Section):
    model: Annotated[str, Field(pattern=f"^{NETWORK_NAME.pattern}$")] | None = AUTO


class Gate(Section):
    metric: Literal[
        "accuracy", "mean_average_precision", "balanced_accuracy", "macro_f1", "micro_f1", "matthews_corrcoef", "log_loss"
    ] = "accuracy"
    max_p: Annotated[float, Field(gt=0, le=1)] = 0.05
    margin: Annotated[float, Field(ge=0)] = 0.01
    class_margin: Annotated[float, Field(ge=0, le=1)] = 0.1
    min_pictures: Count = 10
    max_ece: Annotated[float, Field(gt=0, le=1)] = 0.1
    max_slowdown: Positive = 1.5
    accept_shortcut: Text | None = None


class Budget(Section):
    images_per_s: Positive | None = None
    megabytes: Positive | None = None


class Rank(Section):
    candidates: Annotated[list[Text], Field(min_length=1)] = [f"tf_efficientnet_lite{n}" for n in range(3)]
    first: Annotated[int, Field(ge=20)] = 500
    pictures: Annotated[int, Field(ge=20)] = 2000
    members: Annotated[int, Field(ge=1, le=MOST_MEMBERS)] = 4
    budget: Budget = Budget()

    @model_validator(mode="after")
    def each_candidate_once_and_with_weights(self) -> Self:
        for name in self.candidates:
            told, times = quoted(name), self.candidates.count(name)
            if times > 1:
                raise ValueError(f"rank.candidates names {told} {times} times; once is enough")
            if is_own(name):
                raise ValueError(
                    f"rank.candidates: {told} is a network of your own, which has no published weights to rank"
                )
            network_and_view(name)
        if self.first > self.pictures:
            raise ValueError(f"rank.first is {self.first}, more than rank.pictures, {self.pictures}")
        return self


class Why(Section):
    fractions: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] = [0.1, 0.25, 0.5, 1.0]
    folds: Annotated[int, Field(ge=1, le=5)] = 3

    @model_validator(mode="after")
    def up_to_all_pictures(self) -> Self:
        if self.fractions != sorted(set(self.fractions)) or self.fractions[-1] != 1:
            raise ValueError(f"why.fractions must ascend and end with 1.0 (all pictures), found {quoted(self.fractions)}")
        return self


class Labels(Section):
    shown: Count = 30


class Drift(Section):
    incoming: Text | None = None
    export: Count = 50


class Tune(Section):
    minutes: Positive = 30.0
    trials: Count | None = None
    space: Annotated[dict[str, list[Any]], Field(min_length=1)] = {
        "lr": [0.0001, 0.005],
        "head_lr": [0.0001, 0.005],
        "unfreeze": ["last", "half", "all"],
        "augment": ["none", "light", "trivial"],
        "size_ratio": [0.7, 1.4],
    }

    @field_validator("space")
    @classmethod
    def each_knob_is_one_of_finetune(cls, space: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The same space, its values typed as ``Finetune`` has them."""
        return {key: cls._values(key, values) for key, values in space.items()}

    @staticmethod
    def _values(key: str, values: list[Any]) -> list[Any]:
        here = f"tune.space.{key}"
        knobs = [
            knob for knob in Finetune.model_fields if knob not in ("repeats", "processes")
        ]  # which make nothing better
        if key not in knobs:
            raise ValueError(f"unknown key {here!r}; {nearest(key, knobs) or 'allowed here: ' + ', '.join(knobs)}")
        try:
            values = [getattr(Finetune.model_validate({key: value}), key) for value in values]
        except ValidationError as error:
            problem = dict(error.errors()[0]) | {"loc": (key,)}
            raise ValueError(f"{here}: {explained(problem, Finetune, 'finetune.')}") from None
        if len(values) < 2:
            raise ValueError(f"{here} must hold two numbers, from and to, or two names or more, found {quoted(values)}")
        if is_range(values) and values[0] >= values[1]:
            raise ValueError(f"{here} must go from the smaller to the larger number, found {quoted(values)}")
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"{here} names {quoted(value)} {values.count(value)} times; once is enough")
        if key == "unfreeze" and "none" in values:
            raise ValueError(f"{here} names 'none', which is no fine-tuning; last, half and all can be searched")
        return values


class Retrain(Section):
    remote: Text | None = None
    branch: Text | None = None
    push: bool = False
    webhook: Text | None = None

    @field_validator("webhook")
    @classmethod
    def an_address(cls, webhook: str | None) -> str | None:
        if webhook is not None and not webhook.startswith(("http://", "https://")):
            raise ValueError(f"retrain.webhook must begin with http:// or https://, found {quoted(webhook)}")
        return webhook


def network_and_view(candidate: str, view: View = PUBLISHED_VIEW, key: str = "rank.candidates") -> tuple[str, View]:
    """``NAME[@SIZE][/FRAME][/stages]``, as ``backbone`` and ``rank.candidates`` have them, taken apart.

    Args:
        view: what holds where ``candidate`` says nothing.

    Raises:
        ValueError: it is none of these.
    """
    name, given = taken_apart(candidate, key)
    try:
        return name, View.model_validate(view.model_dump() | given)
    except ValidationError as error:
        told = explained(error.errors()[0], View).replace(" or null", "")
        raise ValueError(f"{key}: in {quoted(candidate)}, {told}") from None


def taken_apart(candidate: str, key: str) -> tuple[str, dict[str, Any]]:
    """The name of the network, and what is said of its view."""
    rest, *chosen = candidate.split("/")
    name, at, size = rest.partition("@")
    if not NETWORK_NAME.fullmatch(name):
        raise ValueError(f"{key}: {quoted(candidate)} is not the name of a network; `headstart models` lists them")
    given: dict[str, Any] = {}
    if at:
        given["size"] = int(size) if re.fullmatch("[1-9][0-9]{0,6}", size) else size
    if chosen and chosen[-1] == "stages":
        given["stages"] = bool(chosen.pop())
    if chosen:
        given["frame"] = "/".join(chosen)
    return name, given


def is_range(values: list[Any]) -> bool:
    """Whether values of ``tune.space`` are the ends of a range; they are a choice otherwise."""
    return len(values) == 2 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
