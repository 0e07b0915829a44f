"""Is pre-training worth it here, and how much of the network should be trained? Measured by learning curves."""

from headstart.base.stage import start
from headstart.studies.transfer_gain import run

start(__file__, run)
