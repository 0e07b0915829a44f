"""What all JSON files that stages write have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.config import JsonDict

from headstart.base.errors import HeadstartError, made_again
from headstart.base.files import write_json


def absent() -> Any:
    """The default of a key that is left out of the file where it has no value."""
    return default(None)


def default(value: Any) -> Any:
    """The default of a key that is left out of the file where it has this value."""
    return Field(default=value, exclude_if=lambda found: found == value, json_schema_extra=_without_default)


def _without_default(schema: JsonDict) -> None:
    del schema["default"]


class Part(BaseModel):
    """An object in a JSON file. Unknown keys are passed over, so that a file may get new ones."""

    model_config = ConfigDict(frozen=True, defer_build=True, allow_inf_nan=False)


class JsonFile(Part):
    """The whole of a JSON file.

    Attributes:
        made_by: the command that writes it.
    """

    made_by: ClassVar[str]

    @classmethod
    def read(cls, path: Path) -> Self:
        """
        Raises:
            HeadstartError: the file is missing, damaged or of another version.
        """
        try:
            return cls.model_validate_json(path.read_bytes(), strict=True)
        except FileNotFoundError:
            raise HeadstartError(f"{path} is not there; run `{cls.made_by}`") from None
        except OSError as error:
            raise HeadstartError(f"{path} cannot be read ({error.strerror}); {made_again(cls.made_by)}") from None
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(map(str, problem["loc"]))
            raise HeadstartError(
                f"{path}: {f'{key}: ' if key else ''}{problem['msg']}; {made_again(cls.made_by)}"
            ) from None

    @classmethod
    def read_if_made(cls, path: Path) -> Self | None:
        """The file, or None where there is none."""
        return cls.read(path) if path.exists() else None

    def write(self, path: Path) -> None:
        """The same bytes for the same values, keys in the order of the model."""
        write_json(path, self.model_dump())


class Interval(Part):
    """A value with its 95% interval."""

    value: float
    low: float
    high: float
