"""The list of a checkpoint's files with their hashes, and with one of its own."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scumble.errors import UserError
from scumble.formats.container import is_plain_name
from scumble.formats.witnesses import MANIFEST, sha256_of
from scumble.training.sealed import is_intact, sealed

UNSEALED = {"step", "settings", "data_digest", "files"}
"""What is in the manifests of early versions, which have no hash of themselves."""
ANOTHER = "Resume from an older one."


def write_manifest(folder: Path, about: Mapping[str, Any]) -> None:
    """List the files in a folder.

    Args:
        folder: with every other file in it.
        about: "step", "settings" and "data_digest" of the checkpoint.
    """
    files = {path.name: _fingerprint(path) for path in sorted(folder.iterdir())}
    content = sealed({**about, "files": files})
    (folder / MANIFEST).write_text(json.dumps(content, indent=2), "utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a list and verify it and every file in it.

    Raises:
        UserError: something is missing or damaged.
    """
    try:
        content = _read(folder / MANIFEST)
        for name, fingerprint in content["files"].items():
            if _fingerprint(folder / name) != fingerprint:
                raise UserError(f"{name} in {folder} is damaged", ANOTHER)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder} is no complete checkpoint ({error})", ANOTHER) from error
    return content


def _read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text("utf-8"))
    match content:
        case {
            "step": int(),
            "settings": dict(),
            "data_digest": str(),
            "files": dict(files),
        } if all(map(is_plain_name, files)):
            if content.keys() == UNSEALED or is_intact(content):
                return dict(content)
    raise ValueError(f"{path.name} is damaged")


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
