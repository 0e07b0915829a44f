"""Log this result to MLflow, once."""

from headstart.base.stage import start
from headstart.tracking.track import run

start(__file__, run)
