"""Whether a fine-tuned model still draws what is asked for: colour and shape, or background.

A style repaints everything, so the plain rules of `scoring` cannot read it. Here a picture is
compared with the style's own drawings and with plain ones, all measured in the same way.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from .lesson_scores import RULES
from .outlines import SHAPES
from .scenes import PALETTE, Scene, build_scene, render
from .scoring import (
    MIN_AREA_PX,
    MIN_OVERLAP,
    Mask,
    Pixels,
    border_colour,
    nearest_colour,
    pixels_of,
    read_picture,
    square_crop,
)
from .teaching_sets import (
    STYLE_PICTURES,
    STYLES,
    SUBJECT_PICTURES,
    style_pairs,
    subject_pairs,
)

COLOURS = tuple(name for name in PALETTE if name not in ("black", "white"))
"""What a style is asked for in: black and white have no hue to read."""
SETS_SEED = 7
"""Of the sets in examples/data."""
EDGE_SHARE = 0.35
MIN_DISTANCE = 45.0


@cache
def unseen_style_scenes(name: str) -> tuple[Scene, ...]:
    """Scenes for prompts whose colour and shape do not meet anywhere in the teaching set."""
    taught = {(s.colour, s.shape) for _, _, s in style_pairs(name, STYLE_PICTURES, SETS_SEED)}
    return tuple(
        build_scene(random.Random(0), shape, colour, "black", size)
        for colour in COLOURS
        for shape in SHAPES
        for size in ("", "big")
        if (colour, shape) not in taught
    )


@cache
def unseen_grounds(name: str) -> tuple[str, ...]:
    """Backgrounds on which the teaching set does not show the subject."""
    taught = {s.background for _, _, s in subject_pairs(name, SUBJECT_PICTURES, SETS_SEED)}
    return tuple(ground for ground in PALETTE if ground not in taught)


def silhouette(pixels: Pixels) -> Mask:
    """The object with everything that it encloses: tubes and washes count as filled."""
    distance = np.linalg.norm(pixels - border_colour(pixels), axis=-1)
    # A glow fades into the ground; its edge is where it has lost most of its strength.
    mask = distance > max(MIN_DISTANCE, EDGE_SHARE * float(np.quantile(distance, 0.99)))
    # A copy: what comes straight from an array cannot be drawn on.
    padded = Image.fromarray(np.pad(mask, 1).astype(np.uint8) * 255).copy()
    ImageDraw.floodfill(padded, (0, 0), 128)
    return np.asarray(padded)[1:-1, 1:-1] != 128


def tint_of(pixels: Pixels, mask: Mask) -> Pixels:
    """The object's hue as a direction: glow and wash change how strong it is, not where to."""
    mean = pixels[mask].mean(0)
    chroma = mean - mean.mean()
    return chroma / max(float(np.linalg.norm(chroma)), 1e-6)


def outline_of(mask: Mask) -> Pixels:
    """The silhouette at the size in which silhouettes are compared."""
    return np.asarray(square_crop(mask), np.float32) / 255


Example = tuple[str, str, Pixels, Pixels]


@cache
def examples(name: str, styled: bool) -> tuple[Example, ...]:
    """(colour, shape, tint, outline) of drawings in the style, or of plain ones."""
    painter, _ = STYLES[name]
    found = []
    for colour in COLOURS:
        for shape in SHAPES:
            rng = random.Random(f"examples/{colour}/{shape}")
            scene = build_scene(rng, shape, colour, "black", "big")
            pixels = pixels_of(painter(scene, 128, rng) if styled else render(scene))
            mask = silhouette(pixels)
            found.append((colour, shape, tint_of(pixels, mask), outline_of(mask)))
    return tuple(found)


def read_style(name: str, picture: Image.Image) -> tuple[str | None, str | None]:
    """(colour, shape) that a picture shows, in the style or plain; None where nothing is near."""
    pixels = pixels_of(picture)
    mask = silhouette(pixels)
    if mask.sum() < MIN_AREA_PX:
        return None, None
    tint, outline = tint_of(pixels, mask), outline_of(mask)
    # The style's ground tints its objects too.
    known = examples(name, styled=RULES[name](picture)[0])
    colour = max(known, key=lambda example: float(tint @ example[2]))[0]
    overlap, shape = max((overlap_of(outline, theirs), shape) for _, shape, _, theirs in known)
    return colour, (shape if overlap >= MIN_OVERLAP else None)


def overlap_of(ours: Pixels, theirs: Pixels) -> float:
    """How much of two outlines is common to both, from 0 to 1."""
    return float(np.minimum(ours, theirs).sum() / np.maximum(ours, theirs).sum())


def style_fidelity(
    name: str, scenes: Sequence[Scene], pictures: Sequence[Image.Image]
) -> dict[str, float]:
    """Shares of pictures with the asked colour, the asked shape, and both, style or not."""
    read = [read_style(name, picture) for picture in pictures]
    marks = np.array(
        [(c == s.colour, h == s.shape) for s, (c, h) in zip(scenes, read, strict=True)], float
    )
    return {
        "colour": round(float(marks[:, 0].mean()), 4),
        "shape": round(float(marks[:, 1].mean()), 4),
        "both": round(float(marks.all(1).mean()), 4),
    }


def ground_fidelity(grounds: Sequence[str], pictures: Sequence[Image.Image]) -> float:
    """Share of pictures on the asked background."""
    read = [nearest_colour(border_colour(pixels_of(picture))) for picture in pictures]
    return round(float(np.mean([a == b for a, b in zip(grounds, read, strict=True)])), 4)


def plain_fidelity(scenes: Sequence[Scene], pictures: Sequence[Image.Image]) -> float:
    """Share of plain pictures with background, colour and shape all as asked."""
    read = [read_picture(picture) for picture in pictures]
    right = [
        (r.background, r.colour, r.shape) == (s.background, s.colour, s.shape)
        for s, r in zip(scenes, read, strict=True)
    ]
    return round(float(np.mean(right)), 4)


def pixel_drift(pictures: Sequence[Image.Image], before: Sequence[Image.Image]) -> float:
    """Mean absolute difference of a colour value, 0 to 255, to the pictures drawn before."""
    gaps = [
        np.abs(pixels_of(ours) - pixels_of(theirs)).mean()
        for ours, theirs in zip(pictures, before, strict=True)
    ]
    return round(float(np.mean(gaps)), 3)
