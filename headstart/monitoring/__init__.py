"""Drift and pictures without labels."""
