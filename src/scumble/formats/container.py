"""The safetensors container: read with limits, written atomically with one possible byte string."""

import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from scumble.errors import UserError

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Number formats that tensors of adapters may have."""


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Read the shape of every tensor and the metadata of a safetensors file, and no more.

    Raises:
        UserError: the file is missing, no safetensors file, or cut short.
    """
    with _opened(path) as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        return shapes, dict(file.metadata() or {})


def read_container(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read every tensor and the metadata of a safetensors file.

    Raises:
        UserError: the file is missing, no safetensors file, or cut short.
    """
    with _opened(path) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, dict(file.metadata() or {})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise UserError(f"there is no file {path}", "Check the spelling of the path.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a readable safetensors file ({error})",
            "It may be cut short or of another format: fetch it again.",
        ) from error


def container_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Serialise so that equal content gives equal bytes.

    The library writes metadata in random order; here the header is sorted.
    """
    ordered = {key: tensors[key].contiguous() for key in sorted(tensors)}
    content = safetensors.torch.save(ordered, metadata={"format": "pt", **metadata})
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + content[8 + length :]


def require_writable(folder: Path, flag: str) -> None:
    """Refuse a folder that could not be made or written, before long work is done for it.

    Args:
        folder: that will be written; it need not exist, and is not made.
        flag: that names it.

    Raises:
        UserError: naming what is in the way.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(
            f"the output folder {folder} cannot be written",
            f"{existing} is {'not writable' if existing.is_dir() else 'a file'}. Choose another "
            f"with {flag}.",
        )


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves either the old one or the whole new one.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {error.strerror}",
            "Is the folder writable and the disk not full?",
        ) from error
