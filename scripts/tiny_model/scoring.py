"""Checks a picture against the scene it was asked for: background, colour and shape.

No learnt judge: colours go to the nearest of the palette, shapes to the best-overlapping template,
so real pictures score 1.0 and the numbers mean the same for every model.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .outlines import SHAPES
from .scenes import PALETTE, Scene, build_scene, caption, render

Pixels = NDArray[np.float32]
Mask = NDArray[np.bool_]
SIDE_PX = 64
OFF_GROUND = 45.0
SAME_COLOUR = 60.0
TEMPLATE_PX = 32
# Below this overlap even the best template is no match: a blob must not pass for a circle.
MIN_OVERLAP = 0.7
MIN_AREA_PX, MAX_AREA_PX = 40, 3300


@dataclass(frozen=True)
class Reading:
    """What a picture shows, as far as the rules can tell; None where they cannot."""

    background: str
    colour: str | None
    shape: str | None
    overlap: float
    centre: tuple[float, float] | None
    area_px: int
    mixed_share: float


def pixels_of(picture: Image.Image) -> Pixels:
    """The picture at the base's own size, as floats in 0..255."""
    sized = picture.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
    return np.asarray(sized, np.float32)


def border_colour(pixels: Pixels) -> Pixels:
    """The median colour of the outermost two pixels: the ground, in this world."""
    strips = (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:])
    return np.median(np.concatenate([strip.reshape(-1, 3) for strip in strips]), axis=0)


def nearest_colour(rgb: Pixels) -> str:
    """The palette's name for a colour."""
    return min(PALETTE, key=lambda name: float(np.linalg.norm(np.array(PALETTE[name]) - rgb)))


def square_crop(mask: Mask) -> Image.Image:
    """The mask's bounding box, padded to a square and resized to the template's side."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = max(cut.shape)
    canvas = np.zeros((side, side), np.uint8)
    top, left = (side - cut.shape[0]) // 2, (side - cut.shape[1]) // 2
    canvas[top : top + cut.shape[0], left : left + cut.shape[1]] = cut * 255
    return Image.fromarray(canvas).resize((TEMPLATE_PX, TEMPLATE_PX), Image.Resampling.BILINEAR)


def object_mask(pixels: Pixels, ground: Pixels) -> Mask:
    """Every pixel that clearly is not the ground."""
    return np.linalg.norm(pixels - ground, axis=-1) > OFF_GROUND


@cache
def templates() -> dict[str, Pixels]:
    """One soft mask for each shape, made by the same road as a picture's own mask."""
    masks = {}
    for shape in SHAPES:
        scene = build_scene(random.Random(0), shape, "white", "black", "big")
        pixels = pixels_of(render(scene))
        mask = object_mask(pixels, border_colour(pixels))
        masks[shape] = np.asarray(square_crop(mask), np.float32) / 255
    return masks


def best_shape(mask: Mask) -> tuple[str | None, float]:
    """The template with the highest overlap, or None when even that is poor."""
    ours = np.asarray(square_crop(mask), np.float32) / 255
    overlaps = {
        shape: float(np.minimum(ours, theirs).sum() / np.maximum(ours, theirs).sum())
        for shape, theirs in templates().items()
    }
    shape = max(overlaps, key=lambda name: overlaps[name])
    return (shape if overlaps[shape] >= MIN_OVERLAP else None), overlaps[shape]


def inner(mask: Mask) -> Mask:
    """The mask without its outermost ring, unless nothing would be left."""
    core = mask.copy()
    core[1:-1, 1:-1] &= mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return core if core.sum() >= 8 else mask


def read_picture(picture: Image.Image) -> Reading:
    """Tell background, object colour and shape from the pixels alone."""
    pixels = pixels_of(picture)
    ground = border_colour(pixels)
    mask = object_mask(pixels, ground)
    area = int(mask.sum())
    background = nearest_colour(ground)
    if not MIN_AREA_PX <= area <= MAX_AREA_PX:
        return Reading(background, None, None, 0.0, None, area, 0.0)
    rgb = np.median(pixels[inner(mask)], axis=0)
    shape, overlap = best_shape(mask)
    rows, columns = np.nonzero(mask)
    centre = ((columns.mean() + 0.5) / SIDE_PX, (rows.mean() + 0.5) / SIDE_PX)
    # Pixels of neither colour are soft edges or smears; the real pictures have a few as well.
    near_ground = np.linalg.norm(pixels - ground, axis=-1) <= OFF_GROUND / 2
    near_object = np.linalg.norm(pixels - rgb, axis=-1) <= SAME_COLOUR
    mixed = float((~near_ground & ~near_object).sum() / area)
    return Reading(background, nearest_colour(rgb), shape, overlap, centre, area, mixed)


def place_is_right(reading: Reading, scene: Scene) -> bool:
    """Whether the object lies where the caption says, within an eighth of the side."""
    if reading.centre is None:
        return False
    gaps = (abs(a - b) for a, b in zip(reading.centre, scene.centre, strict=True))
    return max(gaps) <= 0.125


Painter = Callable[[Sequence[str], int], Sequence[Image.Image]]


def fidelity(scenes: Sequence[Scene], pictures: Sequence[Image.Image]) -> dict[str, float]:
    """Shares of pictures that show what their scenes say, overall and shape by shape."""
    marks: dict[str, list[float]] = defaultdict(list)
    for scene, picture in zip(scenes, pictures, strict=True):
        reading = read_picture(picture)
        marks["background"].append(reading.background == scene.background)
        marks["colour"].append(reading.colour == scene.colour)
        marks["shape"].append(reading.shape == scene.shape)
        marks[f"shape:{scene.shape}"].append(reading.shape == scene.shape)
        marks["place"].append(place_is_right(reading, scene))
        marks["overlap"].append(reading.overlap)
        marks["mixed_edges"].append(reading.mixed_share)
    return {name: round(float(np.mean(values)), 4) for name, values in sorted(marks.items())}


def prompt_fidelity(
    scenes: Sequence[Scene], paint: Painter, seeds: Sequence[int]
) -> dict[str, float]:
    """Fidelity of a painter over every scene and seed."""
    prompts = [caption(scene) for scene in scenes]
    pictures = [picture for seed in seeds for picture in paint(prompts, seed)]
    return fidelity(list(scenes) * len(seeds), pictures)


def reference_fidelity(scenes: Sequence[Scene]) -> dict[str, dict[str, float]]:
    """What real pictures of the scenes score, and real pictures of other scenes (chance)."""
    real = [render(scene) for scene in scenes]
    shuffled = real[:]
    random.Random(1).shuffle(shuffled)
    return {"real": fidelity(scenes, real), "chance": fidelity(scenes, shuffled)}


def passes_gate(scores: dict[str, float]) -> bool:
    """The bar for shipping: background, colour, shape, and every shape on its own."""
    each = [value for name, value in scores.items() if name.startswith("shape:")]
    return (
        scores["background"] >= 0.98
        and scores["colour"] >= 0.95
        and scores["shape"] >= 0.90
        and min(each) >= 0.70
    )
