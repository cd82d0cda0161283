"""Give memory that was freed back to the system."""

import ctypes
import sys


def give_back() -> None:
    """Let the C library return what lies freed between what is in use.

    glibc keeps it for later: a fifth of a UNet, once its weights are laid out anew, which the run
    would hold beside everything else until its end. Elsewhere nothing is done.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
