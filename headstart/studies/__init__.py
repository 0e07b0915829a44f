"""Branches off the pipeline: ranking, learning curves, tuning, label issues."""
