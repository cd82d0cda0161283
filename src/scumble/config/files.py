"""Configuration files: TOML or YAML with the flags' names as keys, flat or in tables."""

import difflib
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scumble.config.sharing import SECRETS
from scumble.config.values import as_type
from scumble.errors import UserError
from scumble.redaction import keep_secret

MAX_BYTES = 1 << 20
"""Limit of a file's size: whatever is larger is no file of settings."""


def read_settings(path: str | Path, types: Mapping[str, Any]) -> dict[str, Any]:
    """Read a configuration file, and check that each value has the type of its field.

    Args:
        path: a `.toml`, `.yaml` or `.yml` file.
        types: key that may occur -> type of its field.

    Raises:
        UserError: as `read_config_file`; or a value has another type.
    """
    return {
        name: as_type(value, types[name], f"{Path(path).name}: '{name}'")
        for name, value in read_config_file(path, types).items()
    }


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
        what = "is a folder" if path.is_dir() else "is not there"
        raise UserError(f"the configuration file {path} {what}", "Check the path behind --config.")
    settings: dict[str, Any] = {}
    for key, value in _parse(path):
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean '{close[0]}'?" if close else "The keys are the flags' names."
            raise UserError(f"{path.name}: unknown key '{key}'", hint)
        if key in settings:
            raise UserError(f"{path.name}: the key '{key}' stands twice", "Keep one of them.")
        settings[key] = value
        if key in SECRETS:
            keep_secret(value)
    return settings


def _parse(path: Path) -> list[tuple[str, Any]]:
    """Every key with its value, whatever tables they stand in."""
    if path.suffix not in (".toml", ".yaml", ".yml"):
        raise UserError(f"{path.name} is neither TOML nor YAML", "Its name must end so.")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{path.name} is too big for settings: {size} bytes", "Check the path.")
        text = path.read_text("utf-8-sig")
        content = tomllib.loads(text) if path.suffix == ".toml" else _yaml(text)
        if not isinstance(content, Mapping):
            raise UserError(f"{path.name} holds no keys", "Write one a line, such as rank: 8.")
        return list(_pairs(content))
    except UnicodeDecodeError as error:
        hint = "Save the file again with UTF-8 encoding."
        raise UserError(f"{path.name} is not UTF-8 text", hint) from error
    except RecursionError as error:
        raise UserError(f"{path.name} is malformed: it nests without end") from error
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path.name} is malformed: {reason}", "Correct that place.") from error


def _pairs(content: Mapping[Any, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _pairs(value)
        else:
            yield str(key), value


def _yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses what YAML itself forbids, and the library lets the last one win of."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            twice = next((name for name, count in Counter(names).items() if count > 1), None)
            if twice is not None:
                problem = f"the key '{twice}' stands twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" (line {mark.line + 1})" if mark is not None else ""
        raise ValueError(f"{error.problem}{place}") from error
