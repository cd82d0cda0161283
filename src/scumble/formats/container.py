"""Containers of tensors: read with limits, written atomically with one possible byte string."""

import json
import math
import os
import re
import struct
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from scumble.drafts import draft_of, sync
from scumble.errors import UserError
from scumble.formats.pickled import is_pickled, read_pickled, refusal
from scumble.formats.streaming import MAX_HEADER, open_streamed

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Number formats that tensors of adapters may have."""

SETTINGS_NAME = "adapter_config.json"
"""PEFT's settings, which lie beside its own files."""

MAX_TENSORS, MAX_KEY = 20_000, 300
"""Limits of how many tensors there are and how long their names, twice what any adapter has."""

UNSPEAKABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What no key contains: control characters, which terminals obey, turns of the direction of
writing, and halves of characters."""


@dataclass(frozen=True)
class Content:
    """What a file holds, whatever its format.

    Args:
        tensors: by key. In an outline they have shapes and dtypes and no numbers, but for those of
            one element.
        metadata: text that the file says of itself.
        name: of the file without its suffix, for formats that say something by it.
        settings: text of the file of settings beside it, for formats that have one.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    settings: str = ""


def read_content(path: Path, *, outline: bool = False, allow_pickle: bool = False) -> Content:
    """Read a file of tensors: safetensors, or what torch.save wrote, told apart by their content.

    Args:
        path: the file.
        outline: leave the numbers of the tensors unread.
        allow_pickle: open pickled files too; tensors alone are taken from them.

    Raises:
        UserError: the file is missing, pickled and not to be opened, of neither kind, or cut short.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}", "Check the spelling of the path.")
    if not is_pickled(path):
        tensors, metadata = _read_safetensors(path, outline)
    elif allow_pickle:
        tensors, metadata = read_pickled(path, outline=outline)
        _check_keys(path, tensors)
    else:
        raise refusal(path)
    return Content(tensors, metadata, path.stem)


def settings_beside(file: Path) -> str:
    """The text of PEFT's settings in the folder of a file; empty where there are none.

    Raises:
        UserError: they cannot be read, or are no settings of an adapter.
    """
    path = file.with_name(SETTINGS_NAME)
    if not path.is_file():
        return ""
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            text = stream.read(MAX_HEADER + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if len(text) > MAX_HEADER:
        raise UserError(f"{path} is too big for an adapter's settings")
    return text


def _check_keys(path: Path, keys: Collection[str]) -> None:
    """Refuse names that no adapter has, before anything is made of them."""
    if len(keys) > MAX_TENSORS:
        raise UserError(f"{path} holds {len(keys)} tensors, more than any adapter: {MAX_TENSORS}")
    for key in keys:
        if len(key) > MAX_KEY or UNSPEAKABLE.search(key):
            raise UserError(
                f"{path} holds a key that is no name: {key[:60]!a}{'...' if len(key) > 60 else ''}",
                "It is damaged, or made to do harm.",
            )


def _read_safetensors(path: Path, outline: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    with open_streamed([path]) as weights:
        _check_keys(path, weights.entries)
        tensors = {
            key: torch.empty(shape, device="meta", dtype=dtype)
            if outline and math.prod(shape) != 1
            else weights.tensor(key)
            for key, (dtype, shape) in weights.entries.items()
        }
        return tensors, {k: v for k, v in weights.metadata.items() if k != "format"}


def container_bytes(content: Content) -> bytes:
    """Serialise so that equal content gives equal bytes.

    The library writes metadata in random order; here the header is sorted.
    """
    ordered = {key: content.tensors[key].contiguous() for key in sorted(content.tensors)}
    written = safetensors.torch.save(ordered, metadata={"format": "pt", **content.metadata})
    (length,) = struct.unpack("<Q", written[:8])
    header = json.loads(written[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + written[8 + length :]


def user_path(text: str | Path) -> Path:
    """The path that a user means, `~` for the home folder included; nothing need be there.

    Raises:
        UserError: there can be nothing: too long a name, or the home of nobody.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"there can be nothing at {str(text)[:200]} ({reason})"
        raise UserError(message, "Check the path.") from error
    return path


def is_possible(path: str) -> bool:
    """Whether there can be a file of that name at all, whoever says it."""
    try:
        Path(path).exists()
    except (OSError, ValueError):
        return False
    return "\0" not in path


def is_plain_name(name: object) -> bool:
    """Whether it is the name of a file in a folder, whatever file it comes from: no way out."""
    if not isinstance(name, str) or name in ("", "..") or "\0" in name:
        return False
    return Path(name).name == name


def require_writable(folder: Path, flag: str) -> None:
    """Refuse a folder that could not be made or written, before long work is done for it.

    Args:
        folder: that will be written; it need not exist, and is not made.
        flag: that names it.

    Raises:
        UserError: naming what is in the way.
    """
    user_path(folder)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(
            f"the output folder {folder} cannot be written",
            f"{existing} is {'not writable' if existing.is_dir() else 'a file'}. Choose another "
            f"with {flag}.",
        )


def write_atomically(
    path: Path, content: bytes, check: Callable[[Path], None] | None = None
) -> None:
    """Write a file so that a crash or power cut leaves either the old one or the whole new one.

    Args:
        path: the file; missing folders are made.
        content: what is to be in it.
        check: reads the new file before it takes its place; what it raises stops that.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    temporary = draft_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}",
            "Is the folder writable and the disk not full?",
        ) from error
    finally:
        with suppress(OSError):  # such as a file where its folder should be
            temporary.unlink()
