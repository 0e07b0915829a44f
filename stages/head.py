"""Train a classifier on the cached features."""

from headstart.base.stage import start
from headstart.training.linear_probe import run

start(__file__, run)
