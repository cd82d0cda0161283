"""A content-addressed tensor store: what was encoded once is never encoded again, nor confused.

Keys are made from everything a result depends on, so a changed picture, crop or model has another
key. Nothing can go stale, and nothing needs to be cleared.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from scumble.drafts import draft_of, sweep
from scumble.errors import UserError

# Raise it when the same inputs begin to give other tensors, as after a change of the crops.
_CODE_VERSION = 1


def content_key(*parts: str | int | float) -> str:
    """Hash everything that a cached result depends on.

    Args:
        parts: told apart by type, length and order: ("ab", "c") is not ("a", "bc").

    Returns:
        64 hex digits.
    """
    digest = hashlib.sha256()
    for part in (_CODE_VERSION, *parts):
        text = str(part).encode()
        digest.update(f"{type(part).__name__}:{len(text)}:".encode() + text)
    return digest.hexdigest()


def module_digest(module: nn.Module) -> str:
    """Hash a model's weights, so that a cache knows which model made its entries.

    Returns:
        64 hex digits, equal for equal names, dtypes, shapes and bytes on any device.
    """
    return _digest(module.state_dict())


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


class TensorStore:
    """Small groups of tensors, on disk and in memory, each under its content key.

    Files are written under another name, synced and renamed: a killed run leaves no torn entry, and
    what it left unfinished is removed by the next.
    Every file carries a checksum; one that fails it is removed and counts as absent.

    Args:
        folder: of the files, made when needed. None keeps everything in memory instead.
        memory_limit_bytes: entries beyond it are read from disk each time.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, folder: Path | None, memory_limit_bytes: int = 2 << 30) -> None:
        self.folder = folder
        self.repaired: list[str] = []
        self._memory: dict[str, dict[str, Tensor]] = {}
        self._room_bytes = memory_limit_bytes
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                sweep(folder.glob("*/.*.tmp"))
            except OSError as error:
                raise self._unusable(error) from error

    def __contains__(self, key: str) -> bool:
        """Whether `get` would find an intact entry."""
        return self.get(key) is not None

    def get(self, key: str) -> dict[str, Tensor] | None:
        """Fetch an entry, or None where there is no intact one.

        Raises:
            UserError: the folder cannot be read.
        """
        if key not in self._memory and self.folder is not None:
            tensors = self._read(self._path(self.folder, key))
            if tensors is None:
                return None
            self._remember(key, tensors)
            return tensors
        found = self._memory.get(key)
        return None if found is None else dict(found)

    def require(self, key: str) -> dict[str, Tensor]:
        """Fetch an entry that was there.

        Raises:
            UserError: it has been removed meanwhile.
        """
        found = self.get(key)
        if found is None:
            raise UserError(
                f"the entry {key[:12]} has gone from the cache {self.folder} while it was in use",
                "Start again (--resume_from_checkpoint latest): what lacks is encoded anew.",
            )
        return found

    def put(self, key: str, tensors: Mapping[str, Tensor], label: str) -> None:
        """Keep an entry; the tensors are copied to the CPU.

        Args:
            key: from `content_key`.
            tensors: by name.
            label: the picture or caption they were made from, for the error.

        Raises:
            UserError: a value is NaN or infinite, or the entry cannot be written.
        """
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                message = f"encoding {label} gave NaN or infinite values ({name})"
                hint = "float16 overflows in some models: encode in bf16 or fp32."
                raise UserError(message, hint)
        # A view would keep the whole batch alive that it was cut from.
        own = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        if self.folder is not None:
            self._write(self._path(self.folder, key), own)
        self._remember(key, own)

    def _remember(self, key: str, tensors: dict[str, Tensor]) -> None:
        size_bytes = sum(tensor.nbytes for tensor in tensors.values())
        if key in self._memory or self.folder is None:
            self._memory[key] = tensors
        elif size_bytes <= self._room_bytes:
            self._memory[key] = tensors
            self._room_bytes -= size_bytes

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / key[:2] / f"{key}.safetensors"

    def _read(self, path: Path) -> dict[str, Tensor] | None:
        try:
            with safe_open(path, framework="pt") as file:
                # Copied: else they change with the file, and end the process if it gets shorter.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
                checksum = (file.metadata() or {}).get("sha256")
            if checksum == _digest(tensors):
                return tensors
            reason = "its checksum is wrong"
        except FileNotFoundError:
            return None
        except SafetensorError as error:
            reason = str(error)
        except OSError as error:
            raise self._unusable(error) from error
        self.repaired.append(f"{path.name}: {reason}")
        path.unlink(missing_ok=True)
        return None

    def _write(self, path: Path, tensors: dict[str, Tensor]) -> None:
        unfinished = draft_of(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with unfinished.open("wb") as file:
                    file.write(save(tensors, {"sha256": _digest(tensors)}))
                    file.flush()
                    os.fsync(file.fileno())
                unfinished.replace(path)
            finally:
                unfinished.unlink(missing_ok=True)
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> UserError:
        message = f"the cache folder {self.folder} cannot be used: {error.strerror or error}"
        return UserError(
            message, "Free space there or name another folder with --latent_cache_dir."
        )
