"""Whether what params.yaml names exists, asked before any picture is looked at."""

from __future__ import annotations

from contextlib import suppress

from headstart.base.artifacts import DataFolder
from headstart.base.artifacts.card import Card
from headstart.base.errors import HeadstartError
from headstart.base.params import Params
from headstart.base.paths import network_file, weights_file


def check_names(params: Params, data: DataFolder) -> None:
    """See to it that ``backbone`` and ``weights`` are known. To import the libraries that know takes seconds, so what the
    stage backbone has found before is not asked for again.

    Raises:
        HeadstartError: one of them is not.
    """
    own, file = network_file(params.backbone), weights_file(params.weights)
    if own is None:
        with suppress(HeadstartError):  # none yet, or a damaged one
            card = Card.read(data.backbone.card)
            if (card.name, card.weights) == (params.backbone, params.weights):
                return
    from headstart.models.backbones import architecture
    from headstart.models.weight_sources import published_weights

    for network, _ in params.members:
        found = architecture(network, own, params.weights)
        if file is None and params.weights != "none" and (found.library, params.weights) != ("own", "default"):
            published_weights(network, found.library, params.weights)
