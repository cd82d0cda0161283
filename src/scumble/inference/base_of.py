"""Which base an adapter belongs on, as far as it says so."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from scumble.formats.container import read_content
from scumble.formats.files import adapter_file
from scumble.formats.witnesses import RECORD_NAME
from scumble.hub.card import header_of
from scumble.hub.pull import local_adapter


def base_of(source: str | Path, *, allow_pickle: bool = False) -> str | None:
    """The base model that an adapter was trained on, as far as it says so.

    Looked for in the run's own record beside it, which knows local paths, in the file's metadata,
    and in the model card.

    Args:
        source: an adapter file, the folder of a training run, or a Hub id such as user/name.
        allow_pickle: read pickled files too, which have no metadata.
    """
    path = adapter_file(local_adapter(source), allow_pickle=allow_pickle)
    record = path.with_name(RECORD_NAME)
    try:
        base = str(json.loads(record.read_text("utf-8"))["base"])
        is_here = bool(base) and Path(base).exists()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        is_here = False
    if is_here:
        return base
    content = read_content(path, outline=True, allow_pickle=allow_pickle)
    named = content.metadata.get("base_model")
    return named or _card_base(path.with_name("README.md")) or _hub_id(content.metadata)


def _hub_id(metadata: Mapping[str, str]) -> str | None:
    """What other trainers note of the base, where it is a Hub id and not the name of a file."""
    name = metadata.get("ss_sd_model_name", "")
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else None


def _card_base(card: Path) -> str | None:
    base = header_of(card).get("base_model")
    if isinstance(base, list):
        base = base[0] if base else None
    return base if isinstance(base, str) and base else None
