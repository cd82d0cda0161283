"""The licence of a base, as far as its own card says it."""

from pathlib import Path

from scumble.families import BaseModel
from scumble.hub.card import CARD_NAME, header_of

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
    header = header_of(card)
    said = {key: header[key] for key in KEYS if isinstance(header.get(key), str) and header[key]}
    link = said.get("license_link", "")
    if link and "://" not in link:
        if not on_hub:
            del said["license_link"]
        else:
            said["license_link"] = f"https://huggingface.co/{base.location}/blob/main/{link}"
    return said
