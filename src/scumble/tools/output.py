"""Where a tool writes: checked before any work is done for it."""

from pathlib import Path

from scumble.errors import UserError
from scumble.formats.container import require_writable


def output_file(output: str | Path, *, force: bool) -> Path:
    """Refuse a place for an adapter file that cannot, or should not, be written.

    Args:
        output: the file to write; missing folders are made when it is written.
        force: an older file may be replaced.

    Raises:
        UserError: it has another suffix than `.safetensors`, exists already, or its folder cannot
            be written.
    """
    path = Path(output).expanduser()
    if path.is_dir():
        raise UserError(f"{path} is a folder", f"Name a file: {path / 'adapter.safetensors'}.")
    if path.suffix.lower() != ".safetensors":
        raise UserError(
            f"the output file {path} must end in .safetensors",
            f"For example: --output {path.with_suffix('.safetensors')}.",
        )
    refuse_existing(path, force=force)
    require_writable(path.parent, "--output")
    return path


def refuse_existing(path: Path, *, force: bool) -> None:
    """Refuse to replace what is there, unless that is asked for.

    Raises:
        UserError: it exists.
    """
    if path.exists() and not force:
        raise UserError(f"{path} exists already", "Choose another name, or replace it: --force.")
