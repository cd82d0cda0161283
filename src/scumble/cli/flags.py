"""From the configuration classes to command-line flags, with a file underneath."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, get_origin, get_type_hints

import tyro

from scumble.config.files import read_settings
from scumble.errors import UserError


def parse_flags(
    groups: Sequence[type],
    arguments: Sequence[str],
    program: str,
    description: str,
    defaults: Mapping[str, Any] | None = None,
    positionals: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Read flags of several configuration classes, shown as groups in the help.

    `--config FILE` gives values that the command line overrides.

    Args:
        groups: dataclasses whose fields are the flags.
        arguments: the words after the verb.
        program: shown in the help, such as "scumble generate".
        description: first line of the help.
        defaults: instead of the classes' own, by field name.
        positionals: field that is given without its flag -> what the help calls it.

    Returns:
        Field name -> value.

    Raises:
        UserError: the file is bad.
        SystemExit: bad flags (after tyro has said what is wrong), or --help.
    """
    rest, settings = _take_config(list(arguments), groups)
    shown = [_with_positionals(group, positionals or {}) for group in groups]
    members = [
        (_group_name(group), group, _with_file(group, settings, defaults or {})) for group in shown
    ]
    grouped = make_dataclass("Flags", members)
    grouped.__doc__ = f"{description}\n\nA file with the same names as keys: --config FILE.toml."
    parsed: Any = tyro.cli(
        grouped,
        args=_gather_repeats(rest, groups),
        prog=program,
        use_underscores=True,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    parts = [getattr(parsed, item.name) for item in fields(parsed)]
    return {item.name: getattr(part, item.name) for part in parts for item in fields(part)}


def _take_config(arguments: list[str], groups: Sequence[type]) -> tuple[list[str], dict[str, Any]]:
    rest: list[str] = []
    settings: dict[str, Any] = {}
    types = {name: hint for group in groups for name, hint in get_type_hints(group).items()}
    words = iter(arguments)
    for word in words:
        if word != "--config" and not word.startswith("--config="):
            rest.append(word)
            continue
        path = word.partition("=")[2] or next(words, "")
        if not path:
            raise UserError("--config needs a file behind it")
        settings |= read_settings(path, types)
    return rest, settings


def _gather_repeats(arguments: Sequence[str], groups: Sequence[type]) -> list[str]:
    """Join `--adapter a --adapter b` into `--adapter a b`; tyro would keep b alone."""
    hints = {name: hint for group in groups for name, hint in get_type_hints(group).items()}
    parts: dict[str, list[str]] = {"": []}
    current = parts[""]
    for number, word in enumerate(arguments):
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--"):
            current.append(word)
        elif get_origin(hints.get(name)) is tuple:
            current = parts.setdefault(name, [f"--{name}"])
            current += [value] if equals else []
        else:
            current = parts.setdefault(f"{name} {number}", [word])
    return [word for part in parts.values() for word in part]


def _with_positionals(group: type, names: Mapping[str, str]) -> type:
    """The class itself, or a subclass whose fields of these names need no flag."""
    hints = {name: hint for name, hint in get_type_hints(group).items() if name in names}
    if not hints:
        return group
    marked = {
        name: Annotated[hint, tyro.conf.Positional, tyro.conf.arg(metavar=names[name])]
        for name, hint in hints.items()
    }
    contents = {"__annotations__": marked, "__doc__": group.__doc__}
    return type(group.__name__, (group,), contents | {"__module__": group.__module__})


def _with_file(group: type, settings: dict[str, Any], defaults: Mapping[str, Any]) -> Any:
    """A field whose default is the group filled from the file; what lacks stays required."""
    values = {}
    for item in fields(group):
        if item.name in settings:
            values[item.name] = settings[item.name]
        elif item.name in defaults:
            values[item.name] = defaults[item.name]
        elif item.default is MISSING:
            values[item.name] = tyro.MISSING
    instance: Any = object.__new__(group)
    for item in fields(group):
        object.__setattr__(instance, item.name, values.get(item.name, item.default))
    return field(default_factory=lambda: instance)


def _group_name(group: type) -> str:
    assert is_dataclass(group)
    return re.sub(r"\W+", "_", (group.__doc__ or group.__name__).strip().lower()).strip("_")
