"""`scumble generate`: draw pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scumble import console
from scumble.cli.flags import parse_flags
from scumble.config import GenerateConfig
from scumble.errors import Stopped, UserError
from scumble.formats.container import require_writable
from scumble.imports import uncollected

if TYPE_CHECKING:
    from PIL.Image import Image

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

    kept = Pictures(folder)
    try:
        pictures = generate_pictures(config, kept.add)
        kept.add_grid(pictures, config.num_images)
    except KeyboardInterrupt:
        raise Stopped(
            f"stopped; {len(kept.paths)} finished pictures are in {folder}"
            if kept.paths
            else "stopped before the first picture"
        ) from None


class Pictures:
    """Pictures in a folder under its next free numbers, each written as soon as it is drawn.

    Args:
        folder: made with the first of them; what is there stays.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: list[Path] = []
        self._number = _next_number(folder)

    def add(self, image: "Image", seed: int) -> None:
        """Write one.

        Raises:
            UserError: the folder cannot be written.
        """
        number = self._number + len(self.paths)
        self._save(image, self.folder / f"{number:05d}_seed{seed}.png")

    def add_grid(self, pictures: "Sequence[Picture]", columns: int) -> None:
        """Write them all side by side, where there are several or each has one to compare with.

        Args:
            pictures: that were added, prompt by prompt.
            columns: pictures per prompt.
        """
        from scumble.inference.grids import labelled_grid

        if any(picture.before for picture in pictures):
            rows = [(p.before, p.image) for p in pictures if p.before is not None]
            labels = [f"{p.prompt} (seed\u00a0{p.seed})" for p in pictures]
            grid = labelled_grid(rows, ("base model", "with the adapter"), labels)
        elif len(pictures) > 1:
            starts = range(0, len(pictures), columns)
            rows_of = [[p.image for p in pictures[start : start + columns]] for start in starts]
            grid = labelled_grid(rows_of, labels=[pictures[start].prompt for start in starts])
        else:
            return
        self._save(grid, self.folder / f"{self._number:05d}_grid.png")

    def _save(self, image: "Image", path: Path) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            image.save(path)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise UserError(f"cannot write into {self.folder}: {error.strerror}") from error
        self.paths.append(path)
        console.say(str(path))


def _next_number(folder: Path) -> int:
    numbers = [path.name.split("_")[0] for path in folder.glob("[0-9]*_*.png")]
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=0)
