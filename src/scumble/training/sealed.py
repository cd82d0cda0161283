"""Small files of JSON with a hash of themselves: a flipped bit in a number would not be noticed."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SEAL = "sha256"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with the hash of all of it."""
    return {**content, SEAL: _seal(content)}


def is_intact(content: Mapping[str, Any]) -> bool:
    """Whether the content is what was sealed."""
    return content.get(SEAL) == _seal(content)


def read_sealed(path: Path) -> dict[str, Any] | None:
    """The content of a file without its seal; None where there is none, or it is damaged."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not is_intact(content):
        return None
    return {name: value for name, value in content.items() if name != SEAL}


def _seal(content: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
