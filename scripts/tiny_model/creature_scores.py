"""Scores creatures, which no single template can match: ground, body colour, and a face."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .scenes import Scene
from .scoring import border_colour, nearest_colour, object_mask, pixels_of

EYE_WHITE_MIN, PUPIL_MAX = 205.0, 75.0


def has_face(picture: Image.Image) -> bool:
    """Whether clear white and clear dark meet inside the object, as they do only in eyes.

    Ask only for creatures that are neither black nor white, on grounds that are neither.
    """
    pixels = pixels_of(picture)
    mask = object_mask(pixels, border_colour(pixels))
    white = mask & (pixels.min(-1) >= EYE_WHITE_MIN)
    dark = mask & (pixels.max(-1) <= PUPIL_MAX)
    if white.sum() < 8 or dark.sum() < 3:
        return False
    near = np.zeros_like(dark)
    for rows in (-2, 0, 2):
        for columns in (-2, 0, 2):
            near |= np.roll(white, (rows, columns), (0, 1))
    return bool((near & dark).sum() >= 3)


def body_colour(picture: Image.Image) -> str | None:
    """The palette name that most of the object's pixels carry."""
    pixels = pixels_of(picture)
    mask = object_mask(pixels, border_colour(pixels))
    if mask.sum() < 40:
        return None
    names = [nearest_colour(rgb) for rgb in pixels[mask]]
    return max(sorted(set(names)), key=names.count)


def creature_fidelity(scenes: Sequence[Scene], pictures: Sequence[Image.Image]) -> dict[str, float]:
    """Shares of pictures with the right ground, the right body colour, and a face."""
    marks = np.array(
        [
            (
                nearest_colour(border_colour(pixels_of(picture))) == scene.background,
                body_colour(picture) == scene.colour,
                has_face(picture),
            )
            for scene, picture in zip(scenes, pictures, strict=True)
        ],
        float,
    )
    names = ("background", "colour", "face")
    return {name: round(float(share), 4) for name, share in zip(names, marks.mean(0), strict=True)}
