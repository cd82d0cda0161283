"""The weights of one safetensors file, cast and laid out anew as they are read.

They are read beside imports, which hold Python's lock nearly all the time. So everything is made
ready before: the rest is a few long calls that need no lock.
"""

import json
import math
import mmap
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scumble.formats.streaming import DTYPES

FLOATS = {name: DTYPES[name] for name in ("F32", "F16", "BF16", "F64")}
"""Number formats that are cast here."""
WIDEST = 8
"""Bytes of the widest of them: views must begin at a multiple of their numbers' width."""
WINDOW_BYTES = 1 << 26
"""Of the file in memory at once, unless one tensor is larger."""
HUGE_BYTES = 1 << 21
"""A huge page: tensors from here on lie in such, where there are any."""


class WeightFile:
    """A file whose tensors have their places, and no values before `read`.

    Args:
        path: of a safetensors file.
        dtype: wanted.
        memory_format: how tensors of four dimensions are to lie in memory.

    Attributes:
        tensors: by their names in the file.

    Raises:
        ValueError: it is damaged, or holds numbers of another kind.
        KeyError, TypeError, RuntimeError, struct.error: the same.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
        self.path = path
        with path.open("rb") as file:
            self._identity = _identity(file.fileno())
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size - 8:
                raise ValueError("the header is cut short")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        windows = _windows(header, 8 + length, size)
        self.tensors: dict[str, Tensor] = {}
        self._windows: list[tuple[int, int, list[Tensor], list[Tensor]]] = []
        # An inference tensor could not be filled by another thread.
        with torch.inference_mode(False):
            longest = max((end - begin for begin, end, _ in windows), default=0)
            self._buffer = _room([longest], torch.uint8, torch.contiguous_format)
            for begin, end, names in windows:
                rooms, sources = [], []
                for name in names:
                    about = header[name]
                    room = self.tensors[name] = _room(about["shape"], dtype, memory_format)
                    start, stop = (8 + length - begin + at for at in about["data_offsets"])
                    if start < stop:
                        rooms.append(room)
                        stored = self._buffer[start:stop].view(FLOATS[about["dtype"]])
                        sources.append(stored.view(about["shape"]))
                self._windows.append((begin, end, rooms, sources))

    def read(self) -> None:
        """Fill all tensors, in the order of the file, and let go of what that took.

        Raises:
            ValueError: it is no longer the file that was opened.
            OSError: it cannot be read.
        """
        buffer: memoryview = self._buffer.numpy().data
        with self.path.open("rb", buffering=0) as file:
            if _identity(file.fileno()) != self._identity:
                raise ValueError("the file was changed or replaced while it was read")
            for begin, end, rooms, sources in self._windows:
                file.seek(begin)
                _read_into(buffer[: end - begin], file.readinto)
                if rooms:
                    torch._foreach_copy_(rooms, sources)
        # Whoever holds this file still, such as a frame that an error keeps, holds no memory.
        self._windows.clear()
        del self._buffer


def _identity(descriptor: int) -> tuple[int, ...]:
    """What another file, or the same one with other content, would not share."""
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _windows(header: dict[str, Any], first: int, size: int) -> list[tuple[int, int, list[str]]]:
    """Parts of the file, each with its first byte, its end, and the names of what lies in it.

    Raises:
        ValueError: a tensor does not lie in the file, or not as its numbers say.
    """
    windows: list[tuple[int, int, list[str]]] = []
    for name, about in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = (first + offset for offset in about["data_offsets"])
        width = FLOATS[about["dtype"]].itemsize
        if end > size or end - start != math.prod(about["shape"]) * width or start % width:
            raise ValueError("it is cut short, or not laid out in whole numbers")
        if windows and end - windows[-1][0] <= WINDOW_BYTES:
            begin, _, names = windows.pop()
            windows.append((begin, end, [*names, name]))
        else:
            windows.append((start - start % WIDEST, end, [name]))
    return windows


def _read_into(part: memoryview, readinto: Callable[[memoryview], int | None]) -> None:
    """Fill a part of memory; the system reads 2 GiB at most at once.

    Raises:
        ValueError: the file ends before.
    """
    while part:
        done = readinto(part)
        if not done:
            raise ValueError("the file is cut short")
        part = part[done:]


def _room(shape: list[int], dtype: torch.dtype, memory_format: torch.memory_format) -> Tensor:
    """Memory for a tensor that is not touched yet; in huge pages, which take less time to get."""
    is_map = len(shape) == 4 and math.prod(shape[2:]) > 1
    layout = memory_format if is_map else torch.contiguous_format
    plan = torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)
    if plan.nbytes < HUGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, memory_format=layout)
    memory = mmap.mmap(-1, plan.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system may know the word and have no such pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).as_strided(shape, plan.stride())
