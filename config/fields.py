"""How settings are written in an environment: lists, empty values, and the base of every group."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr


def split_list(value: Any) -> Any:
    """`a, b` or `["a", "b"]`, as people write lists in environments."""
    if isinstance(value, str):
        return (
            json.loads(value)
            if value.lstrip().startswith("[")
            else [part for part in map(str.strip, value.split(",")) if part]
        )
    return value


def empty_is_none(value: Any) -> Any:
    """`NAME=` in an env file means unset."""
    return None if isinstance(value, str) and not value.strip() else value


TextList = Annotated[tuple[str, ...], BeforeValidator(split_list)]
OptionalSecret = Annotated[SecretStr | None, BeforeValidator(empty_is_none)]
OptionalText = Annotated[str | None, BeforeValidator(empty_is_none)]
OptionalBool = Annotated[bool | None, BeforeValidator(empty_is_none)]
OptionalDays = Annotated[Annotated[float, Field(gt=0, le=36_500)] | None, BeforeValidator(empty_is_none)]
OptionalSeconds = Annotated[Annotated[float, Field(gt=0, le=86_400)] | None, BeforeValidator(empty_is_none)]
OptionalPath = Annotated[Path | None, BeforeValidator(empty_is_none)]


class SettingsGroup(BaseModel):
    """Frozen; a field's environment name is its alias."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, hide_input_in_errors=True)
