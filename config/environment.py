"""Reading the settings from the environment and `.env`, and telling which there are.

`load_settings()` is the only place that reads them. `NAME_FILE` may point to a file that holds the value of `NAME`, for
Docker and Kubernetes secrets. `.env.example` is generated from here: `routeur settings --example`.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from pydantic import BaseModel, ValidationError

from config.settings import Settings, SettingsError


class SettingField(BaseModel):
    """One environment variable, for `.env.example` and the documentation."""

    group: str
    group_doc: str
    field: str
    env: str
    default: str
    description: str
    secret: bool


def load_settings(environ: Mapping[str, str] | None = None, env_file: Path | None = Path(".env")) -> Settings:
    """Settings from `environ` (default: the process's), then `env_file`, then the defaults.

    Raises:
        SettingsError: a value cannot be used; all of them are named at once.
    """
    values: dict[str, str] = {}
    if env_file is not None and env_file.is_file():
        values.update({key: value for key, value in dotenv_values(env_file).items() if value is not None})
    values.update(os.environ if environ is None else environ)
    nested: dict[str, dict[str, str]] = {}
    for group, group_type in _groups():
        for name, info in group_type.model_fields.items():
            value = _value_of(info.alias or name, values)
            if value is not None:
                nested.setdefault(group, {})[name] = value
    try:
        return Settings(**nested)  # type: ignore[arg-type]
    except (ValidationError, json.JSONDecodeError) as error:
        raise SettingsError(_explain(error)) from None


def setting_fields() -> list[SettingField]:
    """Every environment variable, in the order of the groups."""
    return [
        SettingField(
            group=group,
            group_doc=(group_type.__doc__ or "").strip(),
            field=name,
            env=info.alias or name,
            default=_shown(info.get_default(call_default_factory=True)),
            description=info.description or "",
            secret="SecretStr" in str(info.annotation),
        )
        for group, group_type in _groups()
        for name, info in group_type.model_fields.items()
    ]


def env_example() -> str:
    """The text of `.env.example`: every setting, commented out at its default."""
    lines = [
        "# Every setting of routeur-ia-api, at its default. Copy to .env and uncomment what you change.",
        "# Generated: routeur settings --example > .env.example",
        "# NAME_FILE=/path holds the value of NAME in a file (Docker and Kubernetes secrets).",
    ]
    group = ""
    for setting in setting_fields():
        if setting.group != group:
            group = setting.group
            lines += ["", f"# {setting.group_doc}"]
        if setting.description:
            lines.append(f"#   {setting.env}: {setting.description}")
        lines.append(f"# {setting.env}={setting.default}")
    return "\n".join(lines) + "\n"


def _groups() -> Iterator[tuple[str, type[BaseModel]]]:
    for name, info in Settings.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield name, info.annotation


def _value_of(env: str, values: Mapping[str, str]) -> str | None:
    if env in values:
        return values[env]
    path = values.get(f"{env}_FILE")
    # JWT_PRIVATE_KEY_FILE is itself a setting, not the file of a JWT_PRIVATE_KEY
    if not path:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise SettingsError(f"{env}_FILE: cannot be read ({error.strerror})") from None


def _shown(default: Any) -> str:
    if default is None:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(default)
    if isinstance(default, dict):
        return json.dumps(default)
    return str(default)


def _explain(error: ValidationError | json.JSONDecodeError) -> str:
    if isinstance(error, json.JSONDecodeError):
        settings = "COMPATIBLE_PROVIDERS, MODEL_POOLS, MODEL_FALLBACKS, MCP_SERVERS"
        return f"a JSON setting ({settings} or a list) is not JSON: {error.msg}"
    names = {(group, name): info.alias or name for group, kind in _groups() for name, info in kind.model_fields.items()}
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        place = tuple(str(part) for part in problem["loc"])
        # a field's own alias may stand in `loc` instead of its name
        name = names.get((place[0], place[1]), place[1]) if len(place) > 1 else ""
        lines.append(f"{name + ': ' if name else ''}{problem['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)
