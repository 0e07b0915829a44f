"""headstart: from a folder of pictures to the best image classifier a pre-trained network can give."""

from typing import Any


def __getattr__(name: str) -> Any:
    """``__version__`` stands in pyproject.toml; here it would be part of every stage's code, and a release rerun all."""
    if name == "__version__":
        from importlib.metadata import version

        return version("headstart")
    raise AttributeError(name)
