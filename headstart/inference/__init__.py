"""The packaged model and the ways to use it."""
