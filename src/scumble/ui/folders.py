"""Which folders the page may read and write, and where it keeps what."""

import re
from dataclasses import dataclass
from pathlib import Path

from scumble.errors import UserError


@dataclass(frozen=True)
class Folders:
    """The folders of one page.

    Args:
        work: that the page writes into.
        allowed: further ones that may be read.
        max_upload_bytes: of one file.
    """

    work: Path
    allowed: tuple[Path, ...] = ()
    max_upload_bytes: int = 50 * 2**20

    @property
    def runs(self) -> Path:
        """Output folders of the runs that the page starts."""
        return self.work / "runs"

    @property
    def pictures(self) -> Path:
        """Sets of uploaded pictures, a folder each."""
        return self.work / "pictures"

    @property
    def drawn(self) -> Path:
        """Pictures that were drawn in the page."""
        return self.work / "drawn"

    @property
    def served(self) -> Path:
        """Copies of what the browser sent and was sent."""
        return self.work / ".served"

    @property
    def queue(self) -> Path:
        """Settings, processes and output of the runs that the page starts."""
        return self.work / "queue"

    def contains(self, path: Path) -> bool:
        """Whether a path, links followed, is in a folder that may be read."""
        resolved = path.expanduser().resolve()
        return any(resolved.is_relative_to(root.resolve()) for root in (self.work, *self.allowed))

    def inside(self, text: str) -> Path:
        """The path that a visitor typed.

        Raises:
            UserError: it is outside of the folders that may be read, whether it exists or not.
        """
        try:
            path = Path(text.strip()).expanduser()
            is_allowed = bool(text.strip()) and self.contains(path)
        except (OSError, RuntimeError, ValueError):  # too long, of nobody's home, with a NUL
            is_allowed = False
        if not is_allowed:
            raise UserError(
                f"'{text}' is outside of the folders that this page may read",
                "Start the page with --allow FOLDER to let it read another one.",
            )
        return path.resolve()

    def model(self, text: str) -> str:
        """A base or data set that a visitor named: a Hub id, a built-in name or an allowed path.

        Raises:
            UserError: it is a path outside of the folders that may be read.
        """
        looks_local = text.startswith(("/", ".", "~")) or "\\" in text or ":" in text
        if looks_local or text.count("/") > 1 or len(text) > 250 or Path(text).exists():
            return str(self.inside(text))
        return text

    def new_set(self, title: str) -> Path:
        """A new empty folder for pictures, named after a title."""
        return new_folder(self.pictures, title)


def plain_name(title: str) -> str:
    """A title as the name of a file: letters, digits, _ and -, at most 40 of them."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", title).strip("-_")[:40] or "untitled"


def new_folder(parent: Path, title: str) -> Path:
    """Make a folder under the first free name that a title gives.

    Raises:
        UserError: the parent cannot be written.
    """
    name = plain_name(title)
    for number in range(1, 10_000):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot make {folder}: {error.strerror}") from error
    raise UserError(f"there are too many folders called {name}")
