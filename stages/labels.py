"""Find pictures whose label looks wrong, that look like no other, or look the same; never among test."""

from headstart.base.stage import start
from headstart.studies.label_issues import run

start(__file__, run)
