"""What a run noted of its files, beside them: whether one is still as it was written."""

import hashlib
import json
from pathlib import Path

MANIFEST = "manifest.json"
"""In a checkpoint: the hashes of all its files."""
RECORD_NAME = "run.json"
"""In a run's folder: among other things the hashes of its results."""


def doubt(file: Path) -> str:
    """A line about a file that is not as its run wrote it; empty if it is, or nobody noted how."""
    noted = _noted(file)
    if noted is None:
        return ""
    try:
        if sha256_of(file) == noted:
            return ""
    except OSError:
        return ""  # whoever reads it says so
    return f"{file} is not as its run wrote it: it is damaged, or was changed since"


def sha256_of(file: Path) -> str:
    """Hash of a file's content, as hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _noted(file: Path) -> str | None:
    for name in (MANIFEST, RECORD_NAME):
        try:
            content = json.loads((file.parent / name).read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        match content:
            case {"files": dict(files)} | {"sha256": dict(files)}:
                noted = files.get(file.name)
                digest = noted.get("sha256") if isinstance(noted, dict) else noted
                return digest if isinstance(digest, str) else None
    return None
