"""Containers by torch.save, today's and those of before 1.6: opened only where that is allowed.

A pickle is a program that builds objects, so opening one can run anything. torch's restricted
reader builds tensors and plain containers and refuses the rest. What sits nested in a file is
flattened: names are joined by dots, places in a list are numbers.
"""

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from scumble.errors import UserError

MAX_BYTES = 2 * 1024**3
"""Limit of a file, and of all its tensors when each has its own memory."""

SHARED = 4
"""How many times its size a file's tensors may take when each has its own memory."""

MAX_PROGRAM = 64 * 1024**2
"""Limit of what is a program in a file. Before torch 1.6 that was not told apart from numbers."""

MAX_ENTRIES = 100_000
MAX_DEPTH = 16
"""Limits of what is nested, which can be made to hold itself."""

ZIPPED = b"PK\x03\x04"


def is_pickled(path: Path) -> bool:
    """Whether a file is a pickle, by its first bytes; those of safetensors have a { after eight.

    Raises:
        UserError: the file cannot be opened.
    """
    head = _head(path)
    return head.startswith((ZIPPED, b"\x80")) and head[8:] != b"{"


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(9)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def refusal(path: Path) -> UserError:
    """What to say of a pickled file that may not be opened."""
    return UserError(
        f"{path} is a pickled file, and opening one can run what is in it",
        "Get it as .safetensors; or, if you trust where it came from, read it with --allow_pickle "
        "(allow_pickle=True), which takes nothing but tensors from it.",
    )


def read_pickled(path: Path, *, outline: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a file, and as text the words and numbers beside them.

    Args:
        path: the file, which `is_pickled`.
        outline: shapes and dtypes alone, but for tensors of one element.

    Returns:
        Tensors by key, each with memory of its own, and text by key.

    Raises:
        UserError: the file is damaged or too big, or holds more than tensors, words and numbers.
    """
    _check_size(path)
    tensors: dict[str, Tensor] = {}
    texts: dict[str, str] = {}
    for key, value in _leaves(path, _load(path)):
        if key in tensors or key in texts:
            raise UserError(f"{path} holds '{key}' twice")
        if isinstance(value, Tensor):
            tensors[key] = _plain(path, key, value)
        elif isinstance(value, str | int | float):
            # Halves of characters, which a pickle may hold, cannot be shown or written.
            texts[key] = str(value).encode(errors="replace").decode()
        elif value is not None:
            raise UserError(
                f"{path}: '{key}' is a {type(value).__name__}, which no adapter file holds"
            )
    # A few may share their numbers, as when one stands for each of many; more is a trap.
    limit = min(MAX_BYTES, SHARED * path.stat().st_size)
    if sum(tensor.nbytes for tensor in tensors.values()) > limit:
        raise UserError(f"{path}: its tensors would take more than {limit} bytes of memory")
    make = _without_numbers if outline else _copy
    return {key: make(tensor) for key, tensor in tensors.items()}, texts


def _check_size(path: Path) -> None:
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} is too big for a pickled adapter: limit {MAX_BYTES} bytes")
    check_program(path)


def check_program(path: Path, unzipped: int | None = None) -> None:
    """Refuse a file that may be one huge program, or that unpacks to more than its size.

    Args:
        path: the file, which `is_pickled`.
        unzipped: limit in bytes of a file of before torch 1.6, which may be a program as a whole;
            None is that of a program.

    Raises:
        UserError: naming the limit.
    """
    program = size = path.stat().st_size
    limit = MAX_PROGRAM if unzipped is None else unzipped
    if _head(path).startswith(ZIPPED):
        entries = _entries(path)
        # torch.save never compresses: what is there takes as much room on the disk.
        if (
            any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            or sum(entry.file_size for entry in entries) > size
        ):
            raise UserError(f"{path} is compressed, which no adapter file is", "Do not trust it.")
        program = sum(e.file_size for e in entries if e.filename.endswith(".pkl"))
        limit = MAX_PROGRAM
    if program > limit:
        raise UserError(
            f"{path}: {program} bytes of it may be a program; the limit is {limit}",
            "Get it as .safetensors.",
        )


def _entries(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise UserError(f"{path} is damaged ({error})", "Fetch it again.") from error


def _load(path: Path) -> object:
    try:
        # An open file: of a path, torch would believe the suffix.
        with path.open("rb") as file:
            return restricted(file)
    except Exception as error:
        # Never torch's own text, which advises to switch the protection off.
        found = re.search(r"GLOBAL (\S+)", str(error))
        wanted = found[1] if found else ""
    if wanted.endswith(".ParameterDict"):
        raise UserError(
            f"{path} is an embedding of 2022 that keeps its vectors in a ParameterDict of torch, "
            "which is more than tensors and is not read",
            "Load and save it again where it works, or get it as .safetensors.",
        )
    if wanted:
        raise UserError(
            f"{path} asks for '{wanted}', which is more than tensors: nothing of it was run",
            "Be wary of this file. Get the adapter as .safetensors.",
        )
    raise UserError(
        f"{path} cannot be read as a file of tensors",
        "It may be cut short, or pickled by something else than torch.save: fetch it again, or "
        "get it as .safetensors.",
    )


def restricted(file: Path | IO[bytes], *, mapped: bool = False) -> Any:
    """What torch's restricted reader makes of a pickle: the one place where any is opened.

    Args:
        file: by torch.save; of a path, torch believes the suffix.
        mapped: leave tensors on the disk until they are copied out; the file must be a zip.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)


def is_refused(error: BaseException | None) -> bool:
    """Whether a library gave up because of a pickle that torch's restricted reader refused."""
    while error is not None:
        if type(error).__name__ == "UnpicklingError":
            return True
        error = error.__cause__ or error.__context__
    return False


def _leaves(path: Path, root: object) -> Iterator[tuple[str, object]]:
    """(key, value) of everything in a file that holds nothing else, in the file's order."""
    waiting: list[tuple[tuple[str, ...], object]] = [((), root)]
    seen = 0
    while waiting:
        names, value = waiting.pop()
        seen += 1
        if isinstance(value, Mapping):
            inner = list(value.items())
        elif isinstance(value, list | tuple):
            inner = list(enumerate(value))
        elif names:
            yield ".".join(names), value
            continue
        else:
            raise UserError(f"{path} holds a {type(value).__name__}, and no tensors with names")
        if len(names) == MAX_DEPTH or seen + len(waiting) + len(inner) > MAX_ENTRIES:
            raise UserError(f"{path} nests more than any adapter file does", "Do not trust it.")
        for name, below in reversed(inner):
            if not isinstance(name, str | int):
                raise UserError(f"{path} names something by a {type(name).__name__}, not by a word")
            waiting.append(((*names, str(name)), below))


def _plain(path: Path, key: str, tensor: Tensor) -> Tensor:
    is_plain = (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and not (tensor.is_quantized or tensor.is_nested or tensor.is_meta)
    )
    if not is_plain:
        raise UserError(f"{path}: '{key}' is sparse, quantised or without numbers: not supported")
    return tensor.detach()


def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _without_numbers(tensor: Tensor) -> Tensor:
    return _copy(tensor) if tensor.numel() == 1 else torch.empty_like(tensor, device="meta")
