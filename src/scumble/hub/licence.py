"""The licence of a base, as far as its own card says it."""

from pathlib import Path
from typing import Any

from scumble.families import BaseModel
from scumble.hub.card import CARD_NAME

KEYS = ("license", "license_name", "license_link")


def licence_of(base: BaseModel) -> dict[str, str]:
    """What the base's card says of its licence; empty where there is no card, or nothing in it."""
    card = Path(base.location) / CARD_NAME
    on_hub = not Path(base.location).exists()
    if on_hub:
        try:
            card = base.fetch(CARD_NAME)
        except Exception:  # whatever keeps the card away, it leaves the licence unknown
            return {}
    header = _header(card)
    said = {key: str(header[key]) for key in KEYS if header.get(key)}
    link = said.get("license_link", "")
    if link and "://" not in link:
        if not on_hub:
            del said["license_link"]
        else:
            said["license_link"] = f"https://huggingface.co/{base.location}/blob/main/{link}"
    return said


def _header(card: Path) -> dict[str, Any]:
    import yaml

    try:
        parts = card.read_text("utf-8", errors="replace").split("---", 2)
        header = yaml.safe_load(parts[1]) if len(parts) == 3 else None
    except (OSError, yaml.YAMLError):
        return {}
    return header if isinstance(header, dict) else {}
