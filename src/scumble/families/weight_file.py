"""The weights of one safetensors file, cast and laid out anew as they are read.

They are read beside imports, which hold Python's lock nearly all the time. So everything is made
ready before: the rest is a few long calls that need no lock.
"""

import json
import math
import mmap
import os
import struct
from collections import deque
from pathlib import Path

import torch
from torch import Tensor

from scumble.formats.streaming import DTYPES

FLOATS = {name: DTYPES[name] for name in ("F32", "F16", "BF16", "F64")}
"""Number formats that are cast here."""
WINDOW_BYTES = 1 << 26
"""Of the file in memory at once, unless one tensor is larger."""
HUGE_BYTES = 1 << 21
"""A huge page: tensors from here on lie in such, where there are any."""


class WeightFile:
    """A file whose tensors have their places, and no values yet.

    Args:
        path: of a safetensors file.
        dtype: wanted.
        memory_format: how tensors of four dimensions are to lie in memory.

    Raises:
        ValueError: it is damaged, or holds numbers of another kind.
        KeyError: the same.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size - 8:
                raise ValueError("the header is cut short")
            header = json.loads(file.read(length))
            # Private: what is read as tensors must be writable memory, and nothing is written.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        header.pop("__metadata__", None)
        self.tensors: dict[str, Tensor] = {}
        self._sources = deque[tuple[int, Tensor, Tensor]]()
        for name, about in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, end = (8 + length + offset for offset in about["data_offsets"])
            stored, shape = FLOATS[about["dtype"]], about["shape"]
            count = math.prod(shape)
            if end > size or end - start != count * stored.itemsize or start % stored.itemsize:
                raise ValueError("it is cut short, or not laid out in whole numbers")
            layout = memory_format if len(shape) == 4 else torch.contiguous_format
            room = self.tensors[name] = _room(shape, dtype, layout)
            if count:
                flat = torch.frombuffer(self._map, dtype=stored, count=count, offset=start)
                self._sources.append((end, room, flat.view(shape)))

    def read(self) -> None:
        """Fill all tensors, in the order of the file, and let go of it."""
        begun, rooms, sources = 0, list[Tensor](), list[Tensor]()
        while self._sources:
            end, room, source = self._sources.popleft()
            rooms.append(room)
            sources.append(source)
            if end - begun >= WINDOW_BYTES or not self._sources:
                self._advise("MADV_WILLNEED", end, end + WINDOW_BYTES)
                torch._foreach_copy_(rooms, sources)
                self._advise("MADV_DONTNEED", begun, end)
                begun, rooms, sources = end, [], []
                del source
        self._map.close()

    def _advise(self, what: str, start: int, end: int) -> None:
        """Tell the system what of the file is needed, in whole pages."""
        start, end = start - start % mmap.PAGESIZE, min(end, len(self._map))
        if hasattr(mmap, what) and start < end:
            self._map.madvise(getattr(mmap, what), start, end - start)


def _room(shape: list[int], dtype: torch.dtype, memory_format: torch.memory_format) -> Tensor:
    """Memory for a tensor that is not touched yet; in huge pages, which take less time to get."""
    result = torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)
    if result.nbytes < HUGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, memory_format=memory_format)
    memory = mmap.mmap(-1, result.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).as_strided(shape, result.stride())
