"""What of a folder goes to the Hub: adapters, card, pictures and settings, and nothing else."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scumble.config.sharing import shareable
from scumble.errors import UserError
from scumble.families import FAMILIES
from scumble.formats import read_adapter
from scumble.formats.witnesses import RECORD_NAME
from scumble.hub.card import CARD_NAME, card_for_hub

MODEL_NAME = "model"
"""Folder of a whole model that was taught: its content becomes the repository's."""
SETTINGS_NAME = "settings.yaml"
ADAPTER, PICTURES = ".safetensors", (".png", ".jpg", ".jpeg", ".webp")
OTHERS = ("adapter_config.json", "LICENSE", "LICENSE.md", "LICENSE.txt")


@dataclass(frozen=True)
class Item:
    """One file as the repository shall have it.

    Args:
        content: its bytes, or where they lie.
    """

    content: Path | bytes

    @property
    def size(self) -> int:
        """In bytes."""
        content = self.content
        return len(content) if isinstance(content, bytes) else content.stat().st_size

    def sha256(self) -> str:
        """By which git-lfs knows it."""
        return self._digest("sha256", b"")

    def blob(self) -> str:
        """By which git knows it."""
        return self._digest("sha1", f"blob {self.size}\0".encode())

    def _digest(self, algorithm: str, start: bytes) -> str:
        digest = hashlib.new(algorithm, start)
        for piece in self._pieces():
            digest.update(piece)
        return digest.hexdigest()

    def _pieces(self) -> Iterator[bytes]:
        if isinstance(self.content, bytes):
            yield self.content
            return
        with self.content.open("rb") as file:
            while piece := file.read(1 << 20):
                yield piece


def pack(folder: Path, repo_id: str) -> tuple[dict[str, Item], list[str]]:
    """Gather what is to be pushed; every adapter file is read in full first.

    Args:
        folder: of a training run, or any with adapter files right in it.
        repo_id: that the card's snippets name.

    Returns:
        Path in the repository -> what goes there; and the names of what stays here.

    Raises:
        UserError: no such folder, nothing to push in it, or an adapter file that does not load.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}", "Name the output folder of a training run.")
    items: dict[str, Item] = {}
    left = []
    for path in sorted(folder.iterdir()):
        if path.name == MODEL_NAME and (path / "model_index.json").is_file():
            items |= {p.relative_to(path).as_posix(): Item(p) for p in _files(path)}
        elif path.name == CARD_NAME:
            items[CARD_NAME] = Item(card_for_hub(_text(path), repo_id).encode())
        elif path.is_file() and _is_wanted(path):
            items[path.name] = Item(path)
        elif path.name != RECORD_NAME:
            left.append(path.name)
    adapters = [name for name in items if name.endswith(ADAPTER)]
    if not adapters:
        hint = "Push the output folder of a finished run, or a folder with .safetensors files."
        raise UserError(f"the folder {folder} holds nothing to push", hint)
    _require_sound(folder, [name for name in adapters if "/" not in name])
    if (settings := _settings(folder / RECORD_NAME)) is not None:
        items[SETTINGS_NAME] = Item(settings.encode())
    return items, left


def _is_wanted(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    return path.suffix.lower() in (ADAPTER, *PICTURES) or path.name in OTHERS


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _text(path: Path) -> str:
    return path.read_text("utf-8", errors="replace")


def _require_sound(folder: Path, names: list[str]) -> None:
    key_names = next(iter(FAMILIES.values())).key_names
    for name in names:
        if (folder / name).is_file():
            read_adapter(folder / name, key_names, partial=True)


def _settings(record: Path) -> str | None:
    """A run's settings as a file for --config, without what belongs to this machine alone."""
    import yaml

    try:
        settings: dict[str, Any] = dict(json.loads(record.read_text("utf-8"))["settings"])
        method = settings.pop("method")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    kept = {name: value for name, value in shareable(settings).items() if value is not None}
    first = f"# scumble train {method} --config {SETTINGS_NAME} --output_dir OUT, and your pictures"
    return f"{first}\n{yaml.safe_dump(kept, sort_keys=True, allow_unicode=True)}"
