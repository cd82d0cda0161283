"""What the page does with adapters on disk: look into them, compare, merge, convert, hand out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scumble.errors import UserError
from scumble.ui.answers import escaped, plain, problem, served
from scumble.ui.folders import Folders, plain_name
from scumble.ui.shelf import Shelf

if TYPE_CHECKING:
    from scumble.tools.combine import Method

AS_IT_IS = "as it is"
CONVERSIONS = {
    AS_IT_IS: AS_IT_IS,
    "for diffusers": "peft",
    "for A1111, Forge, ComfyUI, Civitai": "kohya",
    "learned words alone": "embedding",
}
"""What a visitor chooses -> the format that is written."""
MERGED = {label: name for label, name in CONVERSIONS.items() if name in ("peft", "kohya")}
DTYPES = {AS_IT_IS: None, "fp32": "fp32", "fp16, half as large": "fp16", "bf16": "bf16"}
"""What a visitor chooses -> the number format that is written."""

Answer = tuple[str, Path | None]
"""Markdown for the visitor, and a file that the browser may fetch."""


@dataclass(frozen=True)
class Library:
    """The adapters of a page, and the one folder that it writes new ones into.

    Args:
        folders: of the page.
        shelf: the adapters in them.
    """

    folders: Folders
    shelf: Shelf

    def table(self) -> tuple[list[list[str]], str]:
        """The rows of the table, and Markdown about files that cannot be read."""
        from scumble.tools.table import size

        entries, problems = self.shelf.look()
        rows = [[e.name, e.base, e.type, e.rank, size(e.bytes), e.date, e.trigger] for e in entries]
        if not rows and not problems:
            return [], "No adapter is in the page's folders yet."
        return rows, problem_list(problems)

    def inspect(self, name: str, *, measure: bool) -> str:
        """The page of an adapter as text, or what is wrong.

        Args:
            name: on the shelf.
            measure: also how much each layer is changed.
        """
        from scumble.tools.inspect import inspect_adapter

        return self._text(
            lambda: inspect_adapter(self._source(name), norms=measure, hashes=True).text()
        )

    def compare(self, first: str, second: str) -> str:
        """What differs between two adapters as text, or what is wrong."""
        from scumble.tools.diff import diff_adapters

        return self._text(lambda: diff_adapters(self._source(first), self._source(second)).text())

    def merge(
        self,
        chosen: Sequence[tuple[str, float]],
        title: str,
        format: str,
        method: "Method" = "sum",
        rank: int | None = None,
    ) -> Answer:
        """Make one adapter of several.

        Args:
            chosen: names on the shelf, with strengths.
            title: of the new one.
            format: "peft" or "kohya".
            method: one of those of `scumble merge`.
            rank: of the new one, at most; None keeps everything.
        """
        from scumble.tools.merge import merge_files

        def work() -> tuple[Path, Sequence[str]]:
            if not chosen:
                raise UserError("there is nothing to merge", "Choose two or more adapters.")
            sources = [(self._source(name), strength) for name, strength in chosen]
            outcome = merge_files(
                sources, self._output(title), format=format, method=method, rank=rank
            )
            return outcome.path, outcome.lines

        return self._answer(work)

    def convert(self, name: str, title: str, format: str, dtype: str | None) -> Answer:
        """Write an adapter in the format of another program, or hand it out as it is.

        Args:
            name: on the shelf.
            title: of the new file; the same name if empty.
            format: a format's name, or `AS_IT_IS`.
            dtype: number format; None is as it is.
        """
        from scumble.formats.files import adapter_file
        from scumble.tools.convert import convert_adapter

        def work() -> tuple[Path, Sequence[str]]:
            source = adapter_file(self._source(name))
            if format == AS_IT_IS and dtype is None:
                return source, [f"{source} is ready to be downloaded"]
            written = format if format != AS_IT_IS else self._format(source)
            title_or_name = title.strip() or f"{Path(name).name}-{written}"
            outcome = convert_adapter(source, self._output(title_or_name), written, dtype=dtype)
            return outcome.path, outcome.lines

        return self._answer(work, f"{plain_name(Path(name or '').name)}.safetensors")

    def _source(self, name: str) -> str:
        if not name:
            raise UserError("no adapter is chosen", "Choose one of the list.")
        return self.shelf.source(name)

    def _format(self, source: Path) -> str:
        from scumble.tools.reading import open_adapter

        return open_adapter(source, outline=True).format

    def _output(self, title: str) -> Path:
        """A new file in the page's own folder, whatever the title says.

        Raises:
            UserError: there is no title, or one of that name is there.
        """
        if not title.strip():
            raise UserError("the new adapter has no name", "Give it one.")
        path = self.folders.work / "library" / f"{plain_name(title)}.safetensors"
        if path.exists():
            raise UserError(f"there is a '{path.stem}' in the library", "Choose another name.")
        return path

    def _text(self, work: Callable[[], str]) -> str:
        try:
            return plain(work(), self.folders)
        except UserError as error:
            return plain(str(error), self.folders)

    def _answer(self, work: Callable[[], tuple[Path, Sequence[str]]], name: str = "") -> Answer:
        """Do the work; the file is a copy that the browser may fetch.

        Args:
            work: gives the file and what to say.
            name: for files of runs, which are all called alike.
        """
        from scumble.formats.files import FILE_NAMES

        try:
            path, lines = work()
            said = "  \n".join(escaped(plain(line, self.folders)) for line in lines)
            return said, served(path, self.folders, name if path.name in FILE_NAMES else "")
        except UserError as error:
            return problem(error, self.folders), None
        except OSError as error:
            failed = UserError(f"the file cannot be written: {error.strerror}")
            return problem(failed, self.folders), None


def problem_list(problems: Sequence[str]) -> str:
    """Files that cannot be read, as Markdown."""
    if not problems:
        return ""
    return "Not listed:\n\n" + "\n".join(f"- {escaped(line)}" for line in problems)
