"""Compare the candidates and choose the best one for these pictures."""

from headstart.base.stage import start
from headstart.studies.ranking import run

start(__file__, run)
