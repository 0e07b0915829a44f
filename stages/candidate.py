"""Find one candidate's weights and pass a sample of the pictures through it: python stages/candidate.py NAME."""

import sys

from headstart.base.stage import start
from headstart.studies.candidates import run

start(__file__, lambda params, data: run(params, data, sys.argv[1]))
