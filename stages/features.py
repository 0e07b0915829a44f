"""Pass every picture through the frozen backbone, once."""

from headstart.base.stage import start
from headstart.training.features import run

start(__file__, run)
