"""Resolve the architecture and its weights."""

from headstart.base.stage import start
from headstart.models.weights import run

start(__file__, run)
