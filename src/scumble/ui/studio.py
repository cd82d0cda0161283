"""What visitors of the page draw: picture by picture, with progress, and stopped when they wish."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from scumble.config import GenerateConfig
from scumble.errors import Stopped, UserError
from scumble.ui.answers import escaped, problem, served
from scumble.ui.drawing import Drawn, Easel
from scumble.ui.folders import Folders

PICTURES, COMPARE, GRID = "Pictures", "Before / after", "Strength grid"
MODES = (PICTURES, COMPARE, GRID)
BEFORE_AFTER = (0.0, 1.0)
"""What strengths are multiplied by to show the base beside what the adapters make of it."""
MAX_PICTURES = 64
"""Of one click."""
MAX_COLUMNS = 8
"""Of a strength grid."""
MAX_EDGE_PX = 2048


class Shown(NamedTuple):
    """A picture on the page, and the file that the browser may fetch it from."""

    drawn: Drawn
    path: Path


@dataclass
class Visit:
    """How far the pictures of one click are.

    Args:
        progress: Gradio's, called with a share of the work and a line for it.
        stop: set once the visitor wants to stop.
    """

    progress: Any
    stop: threading.Event
    pictures: int = 1
    done: int = 0
    steps: int = 1

    def after_step(self, step: int) -> None:
        """Show the progress after a step of a picture.

        Raises:
            Stopped: the visitor wants to stop.
        """
        if self.stop.is_set():
            raise Stopped("stopped by the visitor")
        share = (self.done + step / self.steps) / self.pictures
        self.progress(share, desc=f"picture {self.done + 1} of {self.pictures}")


@dataclass
class Studio:
    """Where the visitors of a page draw.

    Args:
        folders: of the page.
        easel: the base in memory.
    """

    folders: Folders
    easel: Easel = field(default_factory=Easel)
    _stops: dict[str, threading.Event] = field(default_factory=dict)

    def visit(self, visitor: str, progress: Any) -> Visit:
        """Begin the work of a click; `stop` with the same visitor ends it."""
        self._stops[visitor] = threading.Event()
        return Visit(progress, self._stops[visitor])

    def stop(self, visitor: str) -> None:
        """End what a visitor draws after the step in progress."""
        if visitor in self._stops:
            self._stops[visitor].set()

    def draw(
        self, config: GenerateConfig, factors: Sequence[float], visit: Visit
    ) -> Iterator[tuple[list[Shown], str]]:
        """Draw every prompt with every seed at every factor of the strengths.

        Yields:
            All pictures so far, after each, and Markdown for the visitor: errors come that way too.
        """
        shown: list[Shown] = []
        seeds = range(config.seed, config.seed + config.num_images)
        visit.pictures = len(config.prompt) * len(seeds) * len(factors)
        visit.steps = config.num_inference_steps
        visit.progress(0.0, desc="loading the model")
        try:
            require_bounds(config, visit.pictures)
            lines = "  \n".join(map(escaped, self.easel.prepare(config)))
            for prompt, seed, factor in product(config.prompt, seeds, factors):
                drawn = self.easel.draw(config, prompt, seed, factor, visit.after_step)
                shown.append(Shown(drawn, self._keep(drawn)))
                visit.done += 1
                yield shown, lines
        except Stopped:
            yield shown, f"Stopped after {len(shown)} of {visit.pictures} pictures."
        except UserError as error:
            yield shown, problem(error, self.folders)

    def sheet(self, shown: Sequence[Shown], columns: Sequence[str]) -> Path:
        """All pictures in rows, labelled, as one picture.

        Args:
            shown: whole rows of them.
            columns: what each column shows.

        Raises:
            UserError: it cannot be written.
        """
        from scumble.inference.grids import labelled_grid

        starts = range(0, len(shown), len(columns))
        rows = [[item.drawn.image for item in shown[s : s + len(columns)]] for s in starts]
        firsts = [shown[start].drawn for start in starts]
        labels = [f"{drawn.prompt} (seed\u00a0{drawn.seed})" for drawn in firsts]
        return self._save("grid", labelled_grid(rows, columns, labels).save)

    def _keep(self, drawn: Drawn) -> Path:
        return self._save(f"seed{drawn.seed}", drawn.save)

    def _save(self, suffix: str, save: Callable[[Path], None]) -> Path:
        """Save under the next free number, and where the browser may fetch it."""
        folder = self.folders.drawn
        try:
            folder.mkdir(parents=True, exist_ok=True)
            numbers = [path.name.split("_")[0] for path in folder.glob("[0-9]*_*.png")]
            number = 1 + max((int(text) for text in numbers if text.isdecimal()), default=0)
            path = folder / f"{number:05d}_{suffix}.png"
            save(path)
            return served(path, self.folders)
        except OSError as error:
            raise UserError(f"cannot write into {folder}: {error.strerror}") from error


def factors_of(mode: str, text: str, has_adapters: bool) -> tuple[float, ...]:
    """What a way of drawing multiplies the strengths by, picture by picture.

    Args:
        mode: one of `MODES`.
        text: the columns of a grid, as a visitor typed them.
        has_adapters: whether any are chosen.

    Raises:
        UserError: there is nothing to multiply, or the columns are no numbers.
    """
    if mode == PICTURES:
        return (1.0,)
    if not has_adapters:
        raise UserError(f"'{mode}' shows what adapters change", "Choose one or more.")
    if mode == COMPARE:
        return BEFORE_AFTER
    try:
        factors = tuple(float(word) for word in text.replace(",", " ").split())
    except ValueError:
        factors = ()
    if not 1 <= len(factors) <= MAX_COLUMNS or not all(-4 <= factor <= 4 for factor in factors):
        raise UserError(
            f"the strengths '{text}' are not 1 to {MAX_COLUMNS} numbers from -4 to 4",
            "For example: 0, 0.5, 1.",
        )
    return factors


def require_bounds(config: GenerateConfig, pictures: int) -> None:
    """Refuse what would keep the machine, or other visitors, waiting for hours.

    Raises:
        UserError: too many pictures, or too large ones.
    """
    if pictures > MAX_PICTURES:
        raise UserError(f"these are {pictures} pictures", f"Draw {MAX_PICTURES} at most at a time.")
    edge = max(config.width or 0, config.height or 0)
    if edge > MAX_EDGE_PX:
        raise UserError(f"an edge of {edge} pixels is too long", f"Draw {MAX_EDGE_PX} at most.")
