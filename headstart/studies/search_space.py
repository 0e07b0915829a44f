"""What tune searches: the knobs, their values, and the present settings that all others are compared with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from headstart.base.artifacts.tune import Knobs
from headstart.base.errors import HeadstartError
from headstart.base.identity import digest_of
from headstart.base.params import Params
from headstart.base.sections import Finetune, is_range
from headstart.base.terminal import say
from headstart.models.trunk import Trunk
from headstart.training.augmentation import train_size
from headstart.training.recipe import Recipe

STARTUP = 5  # trials that are drawn at random, and that many are trained to the end before any is stopped
FACTOR = 10  # a range that spans more is searched by its logarithm
SIGNIFICANT = 3  # digits of a number that was drawn: lr 0.000731 and not 0.0007312845
WITHOUT_EFFECT = {  # by whether the network starts from random weights
    True: ("unfreeze", "epochs", "patience", "lr", "head_lr", "layer_decay", "batch_norm"),
    False: ("scratch_lr", "scratch_epochs", "scratch_passes", "scratch_size"),
}


@dataclass(frozen=True)
class Search:
    """What is searched.

    Attributes:
        settings: the present ones.
        scratch: whether the network starts from random weights.
        seed: of the trainings.
        pictures: how many are trained on.
        space: the values of each knob that has an effect here.
    """

    settings: Finetune
    scratch: bool
    seed: int
    pictures: int
    space: dict[str, list[Any]]

    @classmethod
    def of(cls, params: Params, scratch: bool, pictures: int, one_size: bool = False) -> Search:
        """
        Args:
            one_size: whether training is at the same size whatever ``size_ratio`` says.

        Raises:
            HeadstartError: there is nothing to search, or the present settings, which all others are compared with, are
                not in the space.
        """
        if not params.finetune_is_on:
            raise HeadstartError(
                "params.yaml: finetune.unfreeze is none, so there is no fine-tuning to tune; set it to last, half or all"
            )
        idle = [key for key in params.tune.space if key in WITHOUT_EFFECT[scratch] or (one_size and key == "size_ratio")]
        space = {key: values for key, values in params.tune.space.items() if key not in idle}
        weights = "random weights" if scratch else "pre-trained weights"
        if not space:
            raise HeadstartError(
                f"params.yaml: with {weights} no knob in tune.space has an effect ({', '.join(idle)}); add one that has"
            )
        if idle:
            say(f"tune: not searched, as they have no effect with this network and {weights}: {', '.join(idle)}")
        for key, values in space.items():
            present = getattr(params.finetune, key)
            held = values[0] <= present <= values[1] if is_range(values) and present is not None else present in values
            if not held:
                raise HeadstartError(
                    f"params.yaml: tune.space.{key} does not hold the present finetune.{key}, {written(present)}; widen "
                    "it, since everything is compared with the present settings"
                )
        return cls(params.finetune, scratch, params.seed, pictures, space)

    @property
    def present(self) -> Knobs:
        return {key: getattr(self.settings, key) for key in self.space}

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        return {key: _distribution(values) for key, values in self.space.items()}

    @property
    def prunes(self) -> bool:
        """Whether trials are comparable epoch by epoch: one that has more of them learns longer at a high rate."""
        return not {"epochs", "scratch_epochs", "scratch_passes"} & self.space.keys()

    def knobs(self, drawn: Knobs) -> Knobs:
        """What was drawn, with numbers a person can read; present values stay what they are."""
        found = {}
        for key, values in self.space.items():
            value = found[key] = drawn[key]
            if isinstance(value, float) and is_range(values) and value != self.present[key]:
                found[key] = min(max(float(f"{value:.{SIGNIFICANT}g}"), values[0]), values[1])
        return found

    def with_knobs(self, knobs: Knobs) -> Finetune:
        return Finetune.model_validate(self.settings.model_dump() | knobs)

    def recipe(self, settings: Finetune) -> Recipe:
        return Recipe(settings, self.scratch, self.seed, self.pictures)

    def key(self, *more: Any) -> str:
        """A name for the study: all that shapes its trials. The present values of what is searched do not."""
        fixed = self.settings.model_dump(exclude=set(self.space))
        return digest_of([fixed, self.space, STARTUP, *more])


def _distribution(values: list[Any]) -> BaseDistribution:
    if not is_range(values):
        return CategoricalDistribution(values)
    low, high = values
    by_logarithm = low > 0 and high / low >= FACTOR
    if isinstance(low, int):
        return IntDistribution(low, high, log=by_logarithm)
    return FloatDistribution(low, high, log=by_logarithm)


def written(value: Any) -> str:
    """As it stands in params.yaml."""
    return value if isinstance(value, str) else json.dumps(value)


def is_one_size(params: Params, scratch: bool, trunk: Trunk) -> bool:
    """Whether all of ``size_ratio``'s values come to the same pixels, as with transformers that are built for one size."""
    tried = [params.finetune.model_copy(update={"size_ratio": ratio}) for ratio in params.tune.space.get("size_ratio", [])]
    ratios = [Recipe(settings, scratch, params.seed).size_ratio(trunk.view.size) for settings in tried]
    return len({train_size(trunk, ratio) for ratio in ratios}) == 1
