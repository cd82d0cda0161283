"""Where the pictures of a data set may lie: in it and in the cache, whatever its rows say."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scumble.data.caption_files import read_file

ARCHIVES = ("zip", "tar", "gzip", "bz2", "xz", "zstd", "lz4")
REMOTE = ("hf", "http", "https")


def places_of(name: str, cache_dir: str | None) -> tuple[Path, ...]:
    """The folders of this machine that rows of a data set may name files in.

    Args:
        name: of the data set: its folder or file is one, if it is local.
        cache_dir: where downloads are kept; None for the library's own.
    """
    from datasets import config

    caches = [config.HF_CACHE_HOME, config.HF_DATASETS_CACHE, os.environ.get("HF_HUB_CACHE")]
    local = Path(name) if Path(name).is_dir() else Path(name).parent
    found = [*filter(None, (*caches, cache_dir))]
    if Path(name).exists():
        found += [local, local.resolve()]
    return tuple(Path(os.path.abspath(Path(place).expanduser())) for place in found)


def picture_bytes(cell: dict[str, Any] | None, places: Sequence[Path]) -> bytes:
    """The file of a picture: from the row itself, or from where it says.

    Args:
        cell: "bytes", and "path" where those are not there.
        places: folders of this machine that it may lie in.

    Raises:
        ValueError: the row holds none, or its address leads out of the data set.
        OSError: it cannot be read.
    """
    if cell is None:
        raise ValueError("the row holds no picture")
    if cell["bytes"] is not None:
        return bytes(cell["bytes"])
    address = str(cell["path"])
    if not all(_is_allowed(part, places) for part in address.split("::")):
        raise ValueError(f"the row names {address[:200]!a}, which is outside of the data set")
    if "://" not in address:
        return read_file(Path(address))
    # Streamed folders and archives give chained addresses such as zip://a.png::hf://datasets/b.
    import fsspec

    with fsspec.open(address, "rb") as file:
        return bytes(file.read())


def _is_allowed(address: str, places: Sequence[Path]) -> bool:
    protocol, is_remote, _ = address.partition("://")
    if is_remote:
        return protocol in (*ARCHIVES, *REMOTE)
    # By name: a link in the data set's folder was put there by whoever owns it.
    path = Path(os.path.abspath(address))
    return any(place == path or place in path.parents for place in places)
