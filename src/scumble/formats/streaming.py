"""Whole models tensor by tensor: what is too big to be in memory is read and written in pieces.

The safetensors library maps a file into memory as a whole and saves only what is all there. Here a
reader fetches one tensor at a time and a writer, which knows beforehand what will come, asks for
one at a time: a model of any size passes through the memory of its largest tensor.
"""

import json
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor

from scumble.errors import UserError
from scumble.formats.imposters import unmasked
from scumble.formats.pickled import MAX_BYTES, SHARED, check_program, is_pickled, restricted

DTYPES = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Number formats as files call them, in the order in which the library lays them out: the widest
first, so that every tensor starts at a multiple of its numbers' width."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}

MAX_HEADER = 64 * 1024**2
"""Limit of a safetensors header in bytes. It holds the metadata, with counts of tags and pictures.
"""


class Entry(NamedTuple):
    """What is known of a tensor before it is there."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size in a file."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class StreamedWeights:
    """The tensors of open files, each read when it is asked for and kept by nobody.

    Args:
        entries: key -> what its tensor is like.
        metadata: of the files; where several say different things, the first counts.
        sources: key -> reads its tensor.
    """

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    sources: Mapping[str, Callable[[], Tensor]]

    def tensor(self, key: str) -> Tensor:
        """Read one tensor: new memory, on the processor, the caller's own to change.

        Raises:
            UserError: the file was cut or taken away since it was opened.
        """
        return self.sources[key]()


@contextmanager
def open_streamed(paths: Sequence[Path]) -> Iterator[StreamedWeights]:
    """Open the weights of a model, without reading them.

    Args:
        paths: the file, or all files that share the weights among them: safetensors, or what
            torch.save wrote (`.ckpt`, `.bin`), of which nothing but tensors is taken. Told apart
            by content.

    Raises:
        UserError: a file is missing, damaged, or holds anything but tensors; or two files hold
            the same key.
    """
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    sources: dict[str, Callable[[], Tensor]] = {}
    holders: dict[str, Path] = {}
    with ExitStack() as stack:
        for path in paths:
            opened = _opened(path, stack)
            if twice := sorted(entries.keys() & opened.entries.keys()):
                raise UserError(
                    f"{holders[twice[0]]} and {path} both hold '{twice[0]}'",
                    "The files of one model hold each tensor once: remove what is not its own.",
                )
            entries |= opened.entries
            sources |= opened.sources
            metadata = {**opened.metadata, **metadata}
            holders |= dict.fromkeys(opened.entries, path)
        yield StreamedWeights(entries, metadata, sources)


def _opened(path: Path, stack: ExitStack) -> StreamedWeights:
    if not path.is_file():
        raise UserError(f"there is no file {path}", "Check the spelling of the path.")
    try:
        if is_pickled(path):
            return _pickled(path)
        return _safetensors(path, stack.enter_context(path.open("rb")))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        hint = unmasked(path) or "It may be cut short or of another format: fetch it again."
        raise UserError(f"{path} is not a readable safetensors file ({error})", hint) from error


def _safetensors(path: Path, file: BufferedReader) -> StreamedWeights:
    (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
    if length > MAX_HEADER:
        raise ValueError(f"its header would take {length} bytes")
    # The library checks the header against the file's length, but not that keys differ.
    with safetensors.safe_open(path, framework="pt") as checked:
        metadata = dict(checked.metadata() or {})
    header: dict[str, Any] = json.loads(file.read(length), object_pairs_hook=_once_each)
    header.pop("__metadata__", None)
    entries: dict[str, Entry] = {}
    sources: dict[str, Callable[[], Tensor]] = {}
    for key, about in header.items():
        if about["dtype"] not in DTYPES:
            raise UserError(
                f"{path}: '{key}' holds numbers of the kind {about['dtype']}, which is not read",
                f"Known: {', '.join(DTYPES)}.",
            )
        entries[key] = Entry(DTYPES[about["dtype"]], tuple(about["shape"]))
        start = 8 + length + about["data_offsets"][0]
        sources[key] = partial(_read_piece, path, file, start, entries[key])
    return StreamedWeights(entries, metadata, sources)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:  # the library would take the last
            raise ValueError(f"'{name}' stands in it twice")
        found[name] = value
    return found


def _read_piece(path: Path, file: BufferedReader, start: int, entry: Entry) -> Tensor:
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    try:
        file.seek(start)
        is_whole = file.readinto(_bytes_of(tensor)) == entry.nbytes
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "Is the disk sound?") from error
    if not is_whole:
        raise UserError(f"{path} was cut short while it was read", "Fetch it again.")
    return tensor


def _pickled(path: Path) -> StreamedWeights:
    # A model may be of any size: tensors of a mapped file stay on the disk until they are copied
    # out. Files of before 1.6 cannot be mapped, and are read as a whole.
    check_program(path, unzipped=MAX_BYTES)
    mapped = zipfile.is_zipfile(path)
    try:
        content = restricted(path, mapped=mapped)
    except Exception as error:
        raise UserError(
            # Not torch's own text, which advises to switch the protection off.
            f"{path} cannot be read as plain weights ({type(error).__name__})",
            "It is damaged, or holds more than tensors and is refused, because it could run code. "
            "Use the .safetensors form of the model.",
        ) from error
    if isinstance(content, Mapping):
        content = content.get("state_dict", content)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, no weights by name")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{path} holds more than weights: '{key}' is a {type(value).__name__}",
                "Use the .safetensors form of the model.",
            )
    entries = {key: Entry(value.dtype, tuple(value.shape)) for key, value in content.items()}
    total, limit = sum(e.nbytes for e in entries.values()), SHARED * path.stat().st_size
    if total > limit:
        raise UserError(f"{path}: its tensors would take {total} bytes; the limit is {limit}")
    sources = {key: partial(_copy, value) for key, value in content.items()}
    return StreamedWeights(entries, {}, sources)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def write_streamed(
    path: Path,
    entries: Mapping[str, Entry],
    metadata: Mapping[str, str],
    tensor_of: Callable[[str], Tensor],
    done: Callable[[int], object] | None = None,
) -> None:
    """Write a safetensors file of which one tensor at a time is in memory.

    Equal content gives equal bytes. Whatever goes wrong, an older file stays as it was.

    Args:
        path: the file to write; an older one is replaced when the new one is whole.
        entries: key -> what its tensor will be like.
        metadata: of the file; `format` is added.
        tensor_of: makes or reads the tensor of a key; called once for each, in the order of the
            file: the widest numbers first, then by name. It may lie on any device, in any layout.
        done: told after each tensor how many bytes it took.

    Raises:
        UserError: numbers of a kind that files cannot hold, the folder cannot be written, or the
            disk is full.
    """
    for key, entry in entries.items():
        if entry.dtype not in NAMES:
            raise UserError(f"{path} cannot hold '{key}': safetensors knows no {entry.dtype}")
    order = sorted(entries, key=lambda key: ([*NAMES].index(entries[key].dtype), key))
    with _replacing(path) as write:
        write(memoryview(_header({key: entries[key] for key in order}, metadata)))
        for key in order:
            # Never by a name, which would keep a tensor while the next one is made.
            write(_bytes_of(_fitting(key, entries[key], tensor_of(key))))
            if done is not None:
                done(entries[key].nbytes)


def _header(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(sorted({"format": "pt", **metadata}.items()))}
    end = 0
    for key, (dtype, shape) in entries.items():
        start, end = end, end + entries[key].nbytes
        header[key] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head


def _fitting(key: str, entry: Entry, tensor: Tensor) -> Tensor:
    if (tensor.dtype, tuple(tensor.shape)) != entry:
        given = Entry(tensor.dtype, tuple(tensor.shape))
        raise ValueError(f"'{key}' was announced as {entry} and came as {given}")
    return tensor.detach().cpu().contiguous()


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor; numpy itself does not know every number format."""
    return tensor.view(-1).view(torch.uint8).numpy().data


@contextmanager
def _replacing(path: Path) -> Iterator[Callable[[memoryview], None]]:
    """Give a function that writes to a file beside `path`, which takes its place at the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered, so that closing it has nothing left to write, which could fail again.
        file = temporary.open("wb", buffering=0)

    def write(content: memoryview) -> None:
        with write_errors(path):
            while len(content):
                content = content[file.write(content) :]

    try:
        with file:
            yield write
            with write_errors(path):
                os.fsync(file.fileno())
        with write_errors(path):
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Say in our own words why a path cannot be written.

    Raises:
        UserError: where the system refuses what is done inside.
    """
    try:
        yield
    except OSError as error:
        hint = "Is the folder writable and the disk not full?"
        raise UserError(f"cannot write {path}: {error.strerror}", hint) from error
