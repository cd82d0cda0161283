"""The files of weights of a new base: written tensor by tensor, then read back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from scumble import console
from scumble.errors import UserError
from scumble.formats.streaming import Entry, open_streamed, write_streamed
from scumble.tools.base_weights import OutputFile
from scumble.tools.edits import FLOATS
from scumble.tools.threads import one_thread


def write_files(files: Sequence[OutputFile], place: Path, note: Mapping[str, str]) -> None:
    """Write the files, and read them back before anybody relies on them.

    Args:
        files: that are planned.
        place: the folder they go to, or the only file.
        note: added to the metadata of each.

    Raises:
        UserError: a file cannot be written, or is not what it should be.
    """
    with _counted(files, "writing") as done:
        for file in files:
            metadata = {**file.metadata, **note}
            write_streamed(place / file.name, file.entries, metadata, file.tensor_of, done)
    with one_thread(), _counted(files, "checking") as done:
        for file in files:
            require_written(place / file.name, file.entries, done)


def require_written(
    path: Path, entries: Mapping[str, Entry], done: Callable[[int], object]
) -> None:
    """Refuse a new file that is not what was to be written, or holds values that are no numbers.

    Args:
        path: of the file.
        entries: key -> what its tensor was to be like.
        done: told after each tensor how many bytes it takes.

    Raises:
        UserError: naming the first key at fault.
    """
    with open_streamed([path]) as written:
        differing = dict(written.entries).items() ^ dict(entries).items()
        if differing:
            key = min(key for key, _ in differing)
            raise UserError(f"'{key}' was not written as it should be", "Is the disk sound?")
        for key, entry in entries.items():
            if entry.dtype in FLOATS and not _is_finite(written.tensor(key)):
                raise UserError(
                    f"'{key}' holds NaN or infinite values",
                    "The base is damaged: fetch it again. Nothing was written.",
                )
            done(entry.nbytes)


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are, in one pass without a copy: NaN is the least and largest of any."""
    return tensor.numel() == 0 or all(map(torch.isfinite, tensor.aminmax()))


@contextmanager
def _counted(files: Sequence[OutputFile], verb: str) -> Iterator[Callable[[int], None]]:
    """Show progress in megabytes; gives the function to tell of more bytes."""
    total = sum(entry.nbytes for file in files for entry in file.entries.values())
    so_far = 0
    with console.progress(total // 10**6, verb, unit="MB") as bar:

        def done(nbytes: int) -> None:
            nonlocal so_far
            so_far += nbytes
            bar.update(so_far // 10**6 - bar.n)

        yield done
