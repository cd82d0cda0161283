"""`scumble generate`: draw pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scumble import console
from scumble.cli.flags import parse_flags
from scumble.config import GenerateConfig
from scumble.errors import UserError
from scumble.formats.container import require_writable
from scumble.imports import uncollected

if TYPE_CHECKING:
    from scumble.inference.generator import Picture


def main(arguments: Sequence[str]) -> None:
    """Draw as the flags say, into a folder.

    Raises:
        UserError: bad settings or an adapter or base that cannot be used.
    """
    description = "Draw pictures, with adapters on top of a base model."
    flags = parse_flags((GenerateConfig,), arguments, "scumble generate", description)
    config = GenerateConfig(**flags)
    folder = Path(config.output)
    require_writable(folder, "--output")
    with uncollected():
        from scumble.inference.generator import generate_pictures

    pictures = generate_pictures(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in save_pictures(pictures, folder, config.num_images):
            console.say(str(path))
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}") from error


def save_pictures(pictures: "Sequence[Picture]", folder: Path, columns: int) -> list[Path]:
    """Write pictures under the next free numbers, and a grid where there are several.

    Args:
        pictures: prompt by prompt.
        folder: that exists.
        columns: pictures per prompt.

    Returns:
        The files written.
    """
    from scumble.inference.grids import labelled_grid

    number = _next_number(folder)
    paths = []
    for offset, picture in enumerate(pictures):
        paths.append(folder / f"{number + offset:05d}_seed{picture.seed}.png")
        picture.image.save(paths[-1])
    if any(picture.before for picture in pictures):
        rows = [(p.before, p.image) for p in pictures if p.before is not None]
        labels = [f"{p.prompt} (seed\u00a0{p.seed})" for p in pictures]
        grid = labelled_grid(rows, ("base model", "with the adapter"), labels)
    elif len(pictures) > 1:
        starts = range(0, len(pictures), columns)
        rows_of = [[p.image for p in pictures[start : start + columns]] for start in starts]
        grid = labelled_grid(rows_of, labels=[pictures[start].prompt for start in starts])
    else:
        return paths
    paths.append(folder / f"{number:05d}_grid.png")
    grid.save(paths[-1])
    return paths


def _next_number(folder: Path) -> int:
    numbers = [path.name.split("_")[0] for path in folder.glob("[0-9]*_*.png")]
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=0)
