"""Where a new base may go: never over what it is made of, nor over anything but an older base."""

import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from scumble.errors import UserError
from scumble.families import BaseModel, family_of
from scumble.formats.container import require_writable, user_path
from scumble.formats.files import EMBEDS_NAME
from scumble.tools.base_configurations import INDEX
from scumble.tools.base_parts import base_root, component_names, files_beside
from scumble.tools.output import output_file, refuse_existing

BASE_FILES = (INDEX, EMBEDS_NAME, "README.md", "LICENSE*", ".gitattributes")
"""What lies in the folder of a base, beside its components."""

COMPONENT_FILES = (
    *("*.json", "merges.txt", "vocab.txt", "spiece.model", "diffusion_*", "model*"),
    *("pytorch_model*", "flax_model*", "tf_model*", "openvino_model*"),
)
"""What lies in the folder of a component."""


def base_output(
    output: str | Path, base: BaseModel, sources: Sequence[str | Path], *, force: bool
) -> Path:
    """Refuse a place for a base that cannot, or should not, be written.

    Args:
        output: ends in `.safetensors` for one file; otherwise the folder.
        base: that is read.
        sources: adapter files that are read.
        force: an older file or base may be replaced.

    Raises:
        UserError: it is there already, holds something that is read or is no part of a base, or
            cannot be written.
    """
    path = user_path(output)
    place = path.resolve()
    for read in _inputs(base, sources):
        if read == place:
            what = "the base itself" if read == Path(base.location).resolve() else "read, too"
            raise UserError(f"the output {path} is {what}", "Choose another with --output.")
        if place in read.parents:
            raise UserError(
                f"{read} is read, and lies in the output {path}", "Choose another with --output."
            )
    if path.suffix.lower() == ".safetensors":
        return output_file(path, None, force=force)
    refuse_existing(path, force=force)
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / INDEX).is_file()):
        raise UserError(
            f"{path} is no base model, and is not replaced by one",
            "Choose another folder with --output.",
        )
    if path.is_dir() and (foreign := sorted(_foreign(path, base))):
        named = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if foreign[3:] else "")
        raise UserError(
            f"{path} holds files that are no part of a base model: {named}",
            "Move them away, or choose another folder with --output.",
        )
    require_writable(path.parent, "--output")
    return path


def _inputs(base: BaseModel, sources: Sequence[str | Path]) -> Iterator[Path]:
    """Everything that is read and lies on this machine, links followed."""
    for path in (Path(base.location), *(user_path(source) for source in sources)):
        if path.exists():
            yield path.resolve()
    for component in family_of(base).components:
        yield from (path.resolve() for path in base.weight_files(component))


def _foreign(folder: Path, base: BaseModel) -> Iterator[str]:
    """The files of an older base that a new one would not have."""
    if not any(folder.iterdir()):
        return
    components = component_names(folder)
    root = base_root(base)
    again = set() if root is None else {path.as_posix() for path in files_beside(root)}
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in (*names, *links):
            part, found = Path(place).relative_to(folder), Path(place, name).relative_to(folder)
            known = BASE_FILES if part == Path() else COMPONENT_FILES
            is_known = part == Path() or part.as_posix() in components
            if is_known and any(fnmatchcase(name, pattern) for pattern in known):
                continue
            if found.as_posix() not in again:
                yield found.as_posix()
