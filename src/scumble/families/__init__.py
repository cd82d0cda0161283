"""Model families: one file each. To add one, write its file and add its line here."""

from scumble.errors import UserError
from scumble.families.base import (
    Components,
    Conditioning,
    Family,
    Geometry,
    Posterior,
    text_encoders,
)
from scumble.families.locate import BaseModel, locate
from scumble.families.stable_diffusion import StableDiffusion

FAMILIES: dict[str, Family] = {"stable_diffusion": StableDiffusion()}
"""Family name -> family."""


def family_of(base: BaseModel) -> Family:
    """Find the family that a base model belongs to.

    Raises:
        UserError: none of the families knows its pipeline class.
    """
    for family in FAMILIES.values():
        if base.pipeline_class in family.pipeline_classes:
            return family
    known = sorted(name for family in FAMILIES.values() for name in family.pipeline_classes)
    raise UserError(
        f"{base.name} is a {base.pipeline_class}, a family that scumble does not teach yet",
        f"Choose a base of one of these kinds: {', '.join(known)}.",
    )


__all__ = [
    "FAMILIES",
    "BaseModel",
    "Components",
    "Conditioning",
    "Family",
    "Geometry",
    "Posterior",
    "family_of",
    "locate",
    "text_encoders",
]
