"""headstart: from a folder of pictures to the best image classifier a pre-trained network can give."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headstart.base.errors import HeadstartError
    from headstart.inference.model import Model, load
    from headstart.operations.pipeline import Result, run
    from headstart.training.estimator import LinearProbe

__all__ = ["HeadstartError", "LinearProbe", "Model", "Result", "load", "run"]

# Where each is, without "headstart." before it: that would make every stage depend on all of it. They are imported when
# they are asked for, so that `import headstart` waits for neither torch nor pandas.
_HOMES = {
    "HeadstartError": "base.errors",
    "LinearProbe": "training.estimator",
    "Model": "inference.model",
    "Result": "operations.pipeline",
    "load": "inference.model",
    "run": "operations.pipeline",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":  # it stands in pyproject.toml; here a release would rerun all stages
        from importlib.metadata import version

        return version("headstart")
    if name in _HOMES:
        return getattr(import_module(f"headstart.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'headstart' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
