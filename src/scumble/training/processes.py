"""The processes of a run: which one this is, and what they tell each other.

What may fail on one of them alone is done by `together`, `safely` or `from_main`, between which
nobody waits for anybody: an error of one is then the error of all, and the main one says it. Where
a process ends otherwise, the others notice as soon as they want something of it.
"""

import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from scumble.errors import Stopped, UserError, first_line

T = TypeVar("T")

PATIENCE_S = 60.0
"""So long the others wait at the end for the main process, which has files to write."""
SHORT_PATIENCE_S = 3.0
"""So long they wait where only they may have failed."""


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Args:
        rank: its number; 0 is the main one, which speaks and writes files.
        count: how many there are.
        local_rank: its number among those of its machine.
        local_count: how many there are on its machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that speaks and writes files."""
        return self.rank == 0

    @property
    def leads_machine(self) -> bool:
        """Whether this is the first process of its machine."""
        return self.local_rank == 0

    def together(self, make: Callable[[], T]) -> list[T]:
        """Let every process make something, and each have what all of them made, by rank.

        Raises:
            UserError: what went wrong on one of them.
        """
        if self.count == 1:
            return [make()]
        made, error = None, None
        try:
            made = make()
        except Exception as caught:
            error = caught
        told: list[Any] = [None] * self.count
        with in_touch():
            torch.distributed.all_gather_object(told, (_said(error), made))
        failed = {rank: said for rank, (said, _) in enumerate(told) if said is not None}
        if error is not None and (self.is_main or not isinstance(error, UserError)):
            raise error
        if failed:
            raise _of_one(*min(failed.items()))
        return [value for _, value in told]

    def safely(self, make: Callable[[], T]) -> T:
        """Make something of one's own, in every process or in none.

        Raises:
            UserError: what went wrong on one of them.
        """
        made: list[T] = []
        self.together(lambda: made.append(make()))
        return made[0]

    def from_main(self, make: Callable[[], T]) -> T:
        """Let the main process make something, and have it everywhere.

        Raises:
            UserError: what went wrong there.
        """
        if self.count == 1:
            return make()
        made: list[Any] = []
        self.together(lambda: made.append(make()) if self.is_main else None)
        box = made or [None]
        with in_touch():
            torch.distributed.broadcast_object_list(box, src=0)
        return cast(T, box[0])

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Make sure that every process has the same.

        Args:
            facts: what it is called, in words -> its value.

        Raises:
            UserError: one has something else; what and which is named.
        """
        told = self.together(lambda: (platform.node(), dict(facts)))
        mine = told[0][1]
        for rank, (host, theirs) in enumerate(told):
            for name in dict.fromkeys([*mine, *theirs]):
                ours, other = mine.get(name), theirs.get(name)
                if ours != other:
                    raise UserError(
                        f"{name} is {_shown(ours)} in process 0 and {_shown(other)} in process "
                        f"{rank} on {host}",
                        "All processes of a run need the same base, pictures, captions and "
                        "settings.",
                        everywhere=True,
                    )

    def add_up(self, numbers: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.count > 1:
            with in_touch():
                torch.distributed.all_reduce(numbers)
        return numbers

    def equalise(self, tensors: list[Tensor]) -> None:
        """Give every process the numbers of the main one."""
        if self.count > 1:
            with in_touch(), torch.no_grad():
                for tensor in tensors:
                    torch.distributed.broadcast(tensor, src=0)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Where an error ends this process, let the main one end before it, and have its say.

        A launcher ends all processes once one has ended with an error, and the main one may still
        have something to save. Where it fails as well, what it says is enough.
        """
        try:
            yield
        except UserError as error:
            patience_s = PATIENCE_S if error.everywhere else SHORT_PATIENCE_S
            error.everywhere = self._main_ends_within(patience_s) or error.everywhere
            raise
        except Stopped:
            self._main_ends_within(PATIENCE_S)
            raise

    def _main_ends_within(self, seconds: float) -> bool:
        if self.is_main:
            return False
        begin = time.monotonic()
        with suppress(RuntimeError), ended_by_signals():
            # Nothing ever comes: either the time is over, or the connection breaks.
            request = torch.distributed.irecv(torch.zeros(1), src=0)
            if request is not None:
                request.wait(timedelta(seconds=seconds))
        return time.monotonic() - begin < seconds


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """While nothing but waiting is done, signals end the process, which could not hear of them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def in_touch() -> Iterator[None]:
    """Turn a lost connection into one clear line.

    Raises:
        UserError: another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            "another process of this run has ended; its own message says why",
            f"Checkpoints so far are kept. What was noticed here: {first_line(error)[:120]}",
            everywhere=True,
        ) from error


def _shown(value: object) -> str:
    return "not there" if value is None else repr(value)


def _said(error: Exception | None) -> tuple[str, str, str] | None:
    """What other processes are told of an error: where it was, what it was, what to do."""
    if error is None:
        return None
    if isinstance(error, UserError):
        return platform.node(), error.message, error.hint
    return platform.node(), f"{type(error).__name__}: {first_line(error)}", ""


def _of_one(rank: int, said: tuple[str, str, str]) -> UserError:
    host, message, hint = said
    return UserError(f"process {rank} on {host}: {message}", hint, everywhere=True)
