"""Import large libraries without looking for garbage again and again."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Let the garbage collector rest: imports make half a million objects that all stay.

    Looking through them takes a second of every start.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():
            # All objects count as old at once, which spares them the first look too.
            gc.freeze()
            gc.unfreeze()
        gc.enable()
