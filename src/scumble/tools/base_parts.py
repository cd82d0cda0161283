"""What a base's folder consists of: its components by name, and the files beside their weights.

A folder may come from anywhere, so nothing in it may lead out of it: not a name in its list of
components, and no link but those of the Hub's cache.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from scumble.errors import UserError
from scumble.families import BaseModel, family_of
from scumble.tools.base_configurations import INDEX

WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".ckpt", ".h5", ".msgpack", ".onnx", ".pb", ".xml"),
    ".index.json",
)
"""How names of files with weights end, or of the list of their shards."""


def base_root(base: BaseModel) -> Path | None:
    """The folder of a base, be it in the Hub's cache; None where it is one file, or not here."""
    if base.is_checkpoint:
        return None
    if Path(base.location).is_dir():
        return Path(base.location)
    found = base.weight_files(family_of(base).components[0])
    return found[0].parent.parent if found else None


def component_names(root: Path) -> list[str]:
    """The components that a base's folder says it has.

    Raises:
        UserError: the list is damaged, or a name in it is none.
    """
    path = root / INDEX
    try:
        index = json.loads(path.read_text("utf-8"))
        items = list(index.items())
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error})", "Fetch the base again.") from error
    named = [name for name, value in items if isinstance(value, list) and value and value[0]]
    for name in named:
        if not re.fullmatch(r"\w+", name):
            raise UserError(
                f"{path} lists a component whose name is none: {name[:60]!a}",
                "It is damaged, or made to do harm.",
            )
    return named


def files_beside(root: Path) -> Iterator[Path]:
    """All files of a base but weights and hidden ones, relative to its folder.

    Raises:
        UserError: one is a link that leads out of the folder.
    """
    found = [path for path in root.iterdir() if path.is_file()]
    for component in component_names(root):
        found += (path for path in (root / component).rglob("*") if path.is_file())
    for path in sorted(found):
        relative = path.relative_to(root)
        if path.name.endswith(WEIGHTS) or any(part[0] == "." for part in relative.parts):
            continue
        _require_inside(root, path)
        yield relative


def _require_inside(root: Path, path: Path) -> None:
    home, target = root.resolve(), path.resolve()
    # The Hub's cache keeps files by their hash, and a folder of links for each revision.
    blobs = [home.parents[1] / "blobs"] if home.parent.name == "snapshots" else []
    if not any(folder in target.parents for folder in (home, *blobs)):
        raise UserError(
            f"{path} is a link that leads out of the base's folder",
            "Put the file itself there, if it belongs to the base.",
        )
