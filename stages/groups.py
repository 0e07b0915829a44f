"""Suggest which pictures belong together, by their names, and measure what it costs to part them."""

from headstart.base.stage import start
from headstart.studies.groups import run

start(__file__, run)
