"""Work that is done once and wanted by every process: each does a part, and has all of it then.

Processes of one machine mostly share a cache folder, those of others do not, and without a folder
nobody shares anything: what a process lacks afterwards is sent to it.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice, zip_longest
from typing import NamedTuple

from torch import Tensor

from scumble.data.cache import TensorStore
from scumble.errors import UserError
from scumble.training.processes import Processes

PART = 16
"""So many pieces of work for each process are looked at, done and sent at a time."""


class Piece(NamedTuple):
    """Something to be made and kept in a store.

    Args:
        label: what it is made of.
        keys: its entries.
        make: puts those of the entries into the store that it is given the keys of.
    """

    label: str
    keys: tuple[str, ...]
    make: Callable[[Collection[str]], None]


class _Seen(NamedTuple):
    """A part of the work, as one process sees it."""

    pieces: list[tuple[str, tuple[str, ...]]]
    lacking: frozenset[str]


def fill(
    store: TensorStore,
    pieces: Iterable[Piece],
    processes: Processes,
    progress: Callable[[int], object],
) -> int:
    """Have all entries of all pieces in the store of each process; each is made by one of them.

    Args:
        store: of this process.
        pieces: the same ones in every process, asked for as the work goes on.
        processes: that share the work.
        progress: is told after how many further pieces.

    Returns:
        How many pieces were not there whole, anywhere, and had to be made.

    Raises:
        UserError: a piece cannot be made, or the processes have different ones.
    """
    coming, made = iter(pieces), 0
    while True:
        part, seen = _next_part(store, coming, processes)
        if not part:
            return made
        tasks = _tasks(part, frozenset.intersection(*(one.lacking for one in seen)))
        _make(tasks[processes.rank :: processes.count], processes)
        if processes.count > 1 and any(one.lacking for one in seen):
            _send(store, part, processes)
        made += len(tasks)
        progress(len(part))


def _next_part(
    store: TensorStore, coming: Iterable[Piece], processes: Processes
) -> tuple[list[Piece], list[_Seen]]:
    size = PART * processes.count if processes.count > 1 else 1
    part: list[Piece] = []

    def look() -> _Seen:
        part.extend(islice(coming, size))
        pieces = [(piece.label, piece.keys) for piece in part]
        return _Seen(pieces, _lacking(store, part))

    seen = processes.together(look)
    _check_alike(seen)
    return part, seen


def _lacking(store: TensorStore, part: Sequence[Piece]) -> frozenset[str]:
    return frozenset(key for piece in part for key in piece.keys if key not in store)


def _check_alike(seen: Sequence[_Seen]) -> None:
    """Make sure that all processes are at the same work.

    Raises:
        UserError: naming the first difference.
    """
    for rank, one in enumerate(seen):
        for ours, theirs in zip_longest(seen[0].pieces, one.pieces):
            if ours == theirs:
                continue
            if ours is None or theirs is None or ours[0] != theirs[0]:
                what = f"'{ours[0]}'" if ours else "nothing more"
                other = f"'{theirs[0]}'" if theirs else "nothing more"
                message = f"process 0 has {what} to encode where process {rank} has {other}"
            else:
                message = f"'{ours[0]}' is not the same in process {rank} as in process 0"
            raise UserError(
                message,
                "All processes of a run need the same pictures and captions, in the same order.",
                everywhere=True,
            )


def _tasks(part: Sequence[Piece], wanted: frozenset[str]) -> list[tuple[Piece, frozenset[str]]]:
    """The pieces that somebody must make, and which entries; no entry comes twice."""
    tasks, left = [], set(wanted)
    for piece in part:
        keys = frozenset(left.intersection(piece.keys))
        left -= keys
        if keys:
            tasks.append((piece, keys))
    return tasks


def _make(own: Sequence[tuple[Piece, frozenset[str]]], processes: Processes) -> None:
    def make() -> None:
        for piece, keys in own:
            piece.make(keys)

    processes.safely(make)


def _send(store: TensorStore, part: Sequence[Piece], processes: Processes) -> None:
    """Give each process the entries that it lacks, from the first that has them."""
    lacking = processes.together(lambda: _lacking(store, part))
    wanted = frozenset.union(*lacking)
    if not wanted:
        return
    holder = {key: next(r for r, own in enumerate(lacking) if key not in own) for key in wanted}

    def give() -> dict[str, dict[str, Tensor]]:
        own = [key for key, rank in holder.items() if rank == processes.rank]
        return {key: store.require(key) for key in own}

    given = {key: entry for one in processes.together(give) for key, entry in one.items()}
    labels = {key: piece.label for piece in part for key in piece.keys}

    def keep() -> None:
        for key in sorted(lacking[processes.rank]):
            store.put(key, given[key], labels[key])

    processes.safely(keep)
