"""Try settings of fine-tuning within a budget of time, and say whether any is better than the present ones."""

from headstart.base.stage import start
from headstart.studies.tuning import run

start(__file__, run)
