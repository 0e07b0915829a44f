"""Runs, registry and gate in MLflow."""
