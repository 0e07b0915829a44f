"""Find what tells the classes apart without a look at the subject; never among test."""

from headstart.base.stage import start
from headstart.studies.shortcuts import run

start(__file__, run)
