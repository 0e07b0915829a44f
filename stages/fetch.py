"""List the pictures to learn from, and take along the user's own network and the digest of their weights' file."""

from headstart.base.stage import start
from headstart.data.fetch import run

start(__file__, run)
