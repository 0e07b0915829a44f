"""Let validation choose, report on the test split once, draw everything."""

from headstart.base.stage import start
from headstart.evaluation.report import run

start(__file__, run)
