"""List the pictures to learn from, and take along the user's own network and the digest of their weights' file."""

from headstart.base.artifacts import DataFolder
from headstart.base.params import Params
from headstart.base.stage import start
from headstart.data import fetch
from headstart.models.names import check_names


def run(params: Params, data: DataFolder) -> None:
    check_names(params, data)  # here, since data imports nothing of models
    fetch.run(params, data)


start(__file__, run)
