"""Configuration files: TOML or YAML with the flags' names as keys, flat or in tables."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scumble.config.sharing import SECRETS
from scumble.errors import UserError
from scumble.redaction import keep_secret


def read_config_file(path: str | Path, known: Iterable[str]) -> dict[str, Any]:
    """Read a configuration file.

    Tables (`[data]`) only group keys for the reader; their names have no meaning.

    Args:
        path: a `.toml`, `.yaml` or `.yml` file.
        known: the keys that may occur.

    Returns:
        Key -> value.

    Raises:
        UserError: the file is missing or malformed, or a key is unknown (with the closest known
            one) or given twice.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no configuration file {path}")
    settings: dict[str, Any] = {}
    for key, value in _pairs(_parse(path)):
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean '{close[0]}'?" if close else "The keys are the flags' names."
            raise UserError(f"{path.name}: unknown key '{key}'", hint)
        if key in settings:
            raise UserError(f"{path.name}: the key '{key}' stands twice")
        settings[key] = value
        if key in SECRETS:
            keep_secret(value)
    return settings


def _pairs(content: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _pairs(value)
        else:
            yield str(key), value


def _parse(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text("utf-8")
        if path.suffix == ".toml":
            return tomllib.loads(text)
        if path.suffix in (".yaml", ".yml"):
            import yaml

            content = yaml.safe_load(text)
            if isinstance(content, Mapping):
                return content
            raise UserError(f"{path.name} holds no keys")
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is not UTF-8 text") from error
    except Exception as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path.name} is malformed: {error}") from error
    raise UserError(f"{path.name} is neither TOML nor YAML", "Its name must end so.")
