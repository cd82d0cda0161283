"""How a tool writes an adapter: its place is checked before any work is done for it."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scumble.errors import UserError
from scumble.formats.container import require_writable, user_path
from scumble.formats.files import FORMATS, write_adapter
from scumble.formats.key_names import KeyNames
from scumble.formats.sidecars import read_notes, write_sidecars
from scumble.formats.training_facts import SAME, training_facts
from scumble.formats.weights import AdapterWeights
from scumble.tools.replaced import new_parents

if TYPE_CHECKING:
    from PIL.Image import Image

HASHES = ("sshs_", "modelspec.hash")
"""How metadata begins that is true of one file alone; the format that has it makes it anew."""

DESCRIBED = "kohya"
"""The format whose programs look for a description and a picture beside the file."""

NAME = SAME["name"]


def output_file(output: str | Path, format: str | None, *, force: bool) -> Path:
    """Refuse a place for an adapter file that cannot, or should not, be written.

    Args:
        output: the file to write; missing folders are made when it is written.
        format: of the file; None where that is not decided yet.
        force: an older file may be replaced.

    Raises:
        UserError: there is no such format, the file has another suffix than `.safetensors`, it or a
            file that goes beside it exists already, something else is in the place of the latter,
            or its folder cannot be written.
    """
    if format is not None and format not in FORMATS:
        raise UserError(f"unknown adapter format '{format}'", f"Known: {', '.join(FORMATS)}.")
    path = user_path(output)
    if path.is_dir():
        raise UserError(f"{path} is a folder", f"Name a file: {path / 'adapter.safetensors'}.")
    if path.suffix.lower() != ".safetensors":
        raise UserError(
            f"the output file {path} must end in .safetensors",
            f"For example: --output {path.with_suffix('.safetensors')}.",
        )
    refuse_existing(path, force=force)
    if format == DESCRIBED:
        refuse_existing(path.with_suffix(".json"), force=force)
        read_notes(path.with_suffix(".json"))
    require_writable(path.parent, "--output")
    return path


def refuse_existing(path: Path, *, force: bool) -> None:
    """Refuse to replace what is there, unless that is asked for.

    Raises:
        UserError: it exists.
    """
    if path.exists() and not force:
        raise UserError(f"{path} exists already", "Choose another name, or replace it: --force.")


def write_output(
    weights: AdapterWeights,
    path: Path,
    key_names: KeyNames,
    format: str,
    preview: "Image | None" = None,
) -> list[str]:
    """Write an adapter, and beside it what programs of its format look for.

    Args:
        weights: of the adapter.
        path: that `output_file` gave.
        key_names: the names of its family.
        format: a name of `FORMATS`.
        preview: a picture drawn with it.

    Returns:
        A line for each file beside it.

    Raises:
        UserError: the format cannot hold the adapter, or the folder cannot be written.
    """
    kept = {k: v for k, v in weights.metadata.items() if not k.startswith(HASHES)}
    weights = replace(weights, metadata=kept)
    if format == DESCRIBED:
        weights = _named(weights, path.stem)
    with new_parents(path):
        write_adapter(weights, path, key_names, format)
    if format != DESCRIBED:
        return []
    files = write_sidecars(path, weights, key_names, preview)
    return [f"beside it: {file.name}" for file in files]


def _named(weights: AdapterWeights, name: str) -> AdapterWeights:
    """With a name for menus, where it has none."""
    known = weights.metadata.get(NAME) or training_facts(weights.metadata).get("name")
    return weights if known else replace(weights, metadata=weights.metadata | {NAME: name})
