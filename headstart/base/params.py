"""params.yaml: read, and checked before any work.

This is the only module that validates the file. Stages take the typed objects from here and pass them on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from headstart.base.errors import HeadstartError
from headstart.base.paths import SIDE_BY_SIDE, is_own, members_of, name_of_source
from headstart.base.safe_text import quoted
from headstart.base.sections import (
    AUTO,
    MOST_MEMBERS,
    ClusterAddress,
    Data,
    Drift,
    Evaluate,
    Features,
    Finetune,
    Gate,
    Head,
    Labels,
    Prepare,
    Rank,
    Registry,
    Retrain,
    Section,
    Split,
    Text,
    Tracking,
    Tune,
    View,
    Why,
    network_and_view,
    taken_apart,
)
from headstart.base.validation import explained
from headstart.base.yaml_file import read_yaml

MOST_TOLD = 5  # problems in one sentence


class Params(Section):
    """The whole of params.yaml; every key is optional here, and the shipped file names them all."""

    data: Data = Data()
    backbone: Text = "tf_efficientnet_lite0+tf_efficientnet_lite1+tf_efficientnet_lite2/squeeze"
    weights: Text = "default"
    weights_mirror: str | None = None
    view: View = View()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    cluster: ClusterAddress | None = None
    prepare: Prepare = Prepare()
    split: Split = Split()
    features: Features = Features()
    head: Head = Head()
    finetune: Finetune = Finetune()
    evaluate: Evaluate = Evaluate()
    tracking: Tracking = Tracking()
    registry: Registry = Registry()
    gate: Gate = Gate()
    rank: Rank = Rank()
    why: Why = Why()
    labels: Labels = Labels()
    tune: Tune = Tune()
    drift: Drift = Drift()
    retrain: Retrain = Retrain()

    @model_validator(mode="before")
    @classmethod
    def one_name_and_one_view(cls, given: Any) -> Any:
        """A list of networks as one name, and a single NAME@SIZE/FRAME as a network and its view."""
        backbone = given.get("backbone") if isinstance(given, dict) else None
        if not isinstance(backbone, str | list):
            return given
        names = [backbone] if isinstance(backbone, str) else backbone
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"backbone must be the name of a network or a list of names, found {quoted(backbone)}")
        own = next((name for name in names if is_own(name)), None)
        if own and (len(names) > 1 or SIDE_BY_SIDE in own.rpartition(":")[2]):
            raise ValueError(f"backbone: {quoted(own)} is a network of your own, which cannot stand beside others")
        name, view = SIDE_BY_SIDE.join(names), given.get("view") or {}
        if own or len(members_of(name)) > 1 or not ("@" in name or "/" in name) or not isinstance(view, dict):
            return given | {"backbone": name}
        network_and_view(name, key="backbone")  # says what is wrong with it
        network, its = taken_apart(name, "backbone")
        return given | {"backbone": network, "view": view | its}

    @model_validator(mode="after")
    def networks_that_can_stand_side_by_side(self) -> Self:
        names = members_of(self.backbone)
        if len(names) == 1:
            return self
        if len(names) > MOST_MEMBERS:
            raise ValueError(f"backbone puts {len(names)} networks side by side; {MOST_MEMBERS} is the most")
        for network, view in self.members:
            if self.members.count((network, view)) > 1:
                raise ValueError(f"backbone names {quoted(network)} more than once with the same view; once is enough")
        if self.weights not in ("default", "none"):
            raise ValueError(
                f"weights: {quoted(self.weights)} is for one network, and backbone names several; name one there, or give "
                "default or none here"
            )
        return self

    @property
    def members(self) -> list[tuple[str, View]]:
        """The networks that ``backbone`` puts side by side, with the view of each; mostly one."""
        names = members_of(self.backbone)
        if len(names) == 1:
            return [(self.backbone, self.view)]
        return [network_and_view(name, self.view, "backbone") for name in names]

    @model_validator(mode="after")
    def stored_as_large_as_shown(self) -> Self:
        shown = [("view.size" if view.size == self.view.size else quoted(name), view) for name, view in self.members]
        shown += [(quoted(name), network_and_view(name)[1]) for name in self.rank.candidates]
        for what, view in shown:
            if view.size is not None and view.size > self.prepare.short_side:
                raise ValueError(
                    f"{what} shows the network {view.size} pixels, and pictures are stored with {self.prepare.short_side} "
                    f"on their short side; set prepare.short_side: {view.size}"
                )
        return self

    @property
    def finetune_is_on(self) -> bool:
        return self.finetune.unfreeze != "none"

    @property
    def experiment(self) -> str:
        """The MLflow experiment of the runs: each data source has its own, unless ``tracking.experiment`` names one."""
        return self._of_source if self.tracking.experiment == AUTO else self.tracking.experiment

    @property
    def registered_model(self) -> str | None:
        """The name in MLflow's registry, likewise; None: results are not registered."""
        return self._of_source if self.registry.model == AUTO else self.registry.model

    @property
    def _of_source(self) -> str:
        return f"headstart-{name_of_source(self.data.source)}"

    @classmethod
    def load(cls, path: Path = Path("params.yaml")) -> Self:
        """Read and check the file.

        Raises:
            HeadstartError: the file is missing, is not YAML, or holds a key or value that is not allowed.
        """
        return cls.checked(read_yaml(path), path)

    @classmethod
    def checked(cls, values: dict[str, Any], path: Path) -> Self:
        """From the keys and values of the file at ``path``, or what they are to become.

        Raises:
            HeadstartError: a key or value is not allowed.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = error.errors()
            told = "; ".join(explained(problem, cls) for problem in problems[:MOST_TOLD]).replace("?; ", "? ")
            more = f"; and {len(problems) - MOST_TOLD} more" if len(problems) > MOST_TOLD else ""
            raise HeadstartError(f"{path}: {told}{more}") from None
