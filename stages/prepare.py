"""Audit every picture, split, decode once."""

from headstart.base.stage import start
from headstart.data.prepare import run

start(__file__, run)
