"""How many threads the mathematics of thin matrices is worth."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: of decompositions as small as a layer's, others mostly wait.

    Where something else keeps the processor busy they wait ten to fifty times as long as they work.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
