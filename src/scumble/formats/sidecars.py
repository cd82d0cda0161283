"""Files beside an adapter that A1111 and Forge show with it: what it is, and a picture."""

import io
import json
from pathlib import Path
from typing import Any

from PIL.Image import Image

from scumble.errors import UserError
from scumble.formats.base_version import base_version
from scumble.formats.container import write_atomically
from scumble.formats.key_names import KeyNames
from scumble.formats.training_facts import training_facts
from scumble.formats.weights import AdapterWeights

OURS = ("description", "sd version", "activation text", "preferred weight", "notes")
"""Words that describe the adapter; those of an older one beside it mean nothing any more."""


def write_sidecars(
    path: Path,
    weights: AdapterWeights,
    key_names: KeyNames,
    preview: Image | None = None,
    strength: float | None = None,
) -> list[Path]:
    """Write `<name>.json` and `<name>.preview.png` beside an adapter file.

    What a user has noted there under other words, such as "negative text", stays.

    Args:
        path: the adapter file.
        weights: in it.
        key_names: the names of its family.
        preview: a picture drawn with it.
        strength: that it is best used with.

    Returns:
        The files written.

    Raises:
        UserError: something else is in the place of the first, or the folder cannot be written.
    """
    described = path.with_suffix(".json")
    noted = {key: value for key, value in read_notes(described).items() if key not in OURS}
    content = noted | sidecar(weights, key_names, strength)
    text = json.dumps(content, indent=4, ensure_ascii=False) + "\n"
    write_atomically(described, text.encode())
    if preview is None:
        return [described]
    picture = path.with_suffix(".preview.png")
    data = io.BytesIO()
    preview.convert("RGB").save(data, "PNG")
    write_atomically(picture, data.getvalue())
    return [described, picture]


def sidecar(
    weights: AdapterWeights, key_names: KeyNames, strength: float | None = None
) -> dict[str, Any]:
    """What is known of an adapter, in the words of A1111's editor of user metadata.

    Args:
        weights: the adapter.
        key_names: the names of its family.
        strength: that it is best used with.
    """
    metadata = weights.metadata
    version = base_version(weights, key_names)
    phrase = metadata.get("trigger_phrase") or metadata.get("modelspec.trigger_phrase")
    base = metadata.get("base_model") or metadata.get("ss_sd_model_name")
    description = training_facts(metadata).get("description")
    known = {
        "description": description or metadata.get("modelspec.description"),
        "sd version": version.label if version else None,
        "activation text": phrase or ", ".join(sorted(weights.tokens)),
        "preferred weight": strength,
        "notes": f"Trained on {base}." if base else None,
    }
    return {key: value for key, value in known.items() if value not in (None, "")}


def read_notes(path: Path) -> dict[str, Any]:
    """What lies in the place of an adapter's description already.

    Args:
        path: of the description; it need not exist.

    Raises:
        UserError: it is something else, which must not be replaced.
    """
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is in the place of the adapter's description and is no such file ({error})",
            "Move it away, or give the adapter another name.",
        ) from error
