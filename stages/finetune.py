"""Unfreeze as much as asked and go on from the head; the curve is live in MLflow while it trains."""

from headstart.base.stage import start
from headstart.tracking.runs import live
from headstart.training.finetune import run

start(__file__, lambda params, data: run(params, data, live))
