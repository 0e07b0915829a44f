"""Pack the chosen classifier as an MLflow model."""

from headstart.base.stage import start
from headstart.inference.package import run

start(__file__, run)
