"""Unattended retraining and the doctor."""
