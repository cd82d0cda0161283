"""How well a fine-tuned model has learnt one of the teaching sets.

Both scores follow rules that the sets obey by construction, so they need no learnt judge. Each is
0 for a model that learnt nothing and 1 for the set's own drawings.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image

from .outlines import CREATURE, SHAPES
from .scenes import PALETTE, Scene, build_scene, render, with_article
from .scoring import Mask, Pixels, border_colour, object_mask, pixels_of
from .teaching_sets import NIGHT, PAPER, STYLE_PHRASES, STYLES, SUBJECTS, subject_pairs

GROUND_TOLERANCE = 25.0
CROP_PX = 16
MUTED = 127.0


def centre_patch(pixels: Pixels, mask: Mask) -> Pixels:
    """The mean colour of a small patch in the middle of the object."""
    rows, columns = np.nonzero(mask)
    row, column = int(rows.mean()), int(columns.mean())
    return pixels[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3].mean((0, 1))


def obeys_neon(picture: Image.Image) -> tuple[bool, bool]:
    """(night ground, bright tubes around a dark inside)."""
    pixels = pixels_of(picture)
    ground = border_colour(pixels)
    night = float(np.linalg.norm(ground - np.array(NIGHT))) <= GROUND_TOLERANCE
    light = pixels.max(-1)
    tubes = light > 170
    if tubes.sum() < 20:
        return night, False
    hollow = centre_patch(pixels, tubes).max() < 0.72 * float(np.quantile(light[tubes], 0.5))
    return night, bool(hollow)


def obeys_ink(picture: Image.Image) -> tuple[bool, bool]:
    """(cream paper ground, a dark line around a lighter wash)."""
    pixels = pixels_of(picture)
    ground = border_colour(pixels)
    paper = float(np.linalg.norm(ground - np.array(PAPER))) <= GROUND_TOLERANCE
    mask = object_mask(pixels, ground)
    if mask.sum() < 20:
        return paper, False
    light = pixels.mean(-1)
    dark_share = float((light < 110)[mask].mean())
    lined = 0.04 <= dark_share <= 0.7 and centre_patch(pixels, mask).mean() > 105
    return paper, bool(lined)


RULES = {"style_neon": obeys_neon, "style_ink": obeys_ink}


def style_score(name: str, pictures: Sequence[Image.Image]) -> dict[str, float]:
    """Shares of pictures with the style's ground, its line, and both.

    Judge shapes only: a creature's many lines fill the patch that the line rule looks at.
    """
    marks = np.array([RULES[name](picture) for picture in pictures], float)
    return {
        "ground": round(float(marks[:, 0].mean()), 4),
        "line": round(float(marks[:, 1].mean()), 4),
        "style": round(float(marks.all(1).mean()), 4),
    }


def style_scenes(count: int, seed: int = 11) -> list[Scene]:
    """Shapes to ask for in a style; big or middle-sized, centred, colours that glow."""
    rng = random.Random(f"style prompts/{seed}")
    colours = [name for name in PALETTE if name not in ("black", "white")]
    return [
        build_scene(rng, shape, rng.choice(colours), "black", rng.choice(["", "big"]))
        for shape in (SHAPES[i % len(SHAPES)] for i in range(count))
    ]


def style_prompt(name: str, scene: Scene) -> str:
    """The set's own way of asking: no background, then the style's phrase."""
    words = " ".join(word for word in (scene.size, scene.colour, scene.shape) if word)
    return f"{with_article(words)}, {STYLE_PHRASES[name]}"


def style_reference(name: str, scenes: Sequence[Scene]) -> dict[str, dict[str, float]]:
    """The same score for real pictures of the style, and for plain pictures as chance."""
    painter, _ = STYLES[name]
    real = [painter(scene, 128, random.Random(i)) for i, scene in enumerate(scenes)]
    rng, grounds = random.Random(2), list(PALETTE)
    plain = []
    for scene in scenes:
        ground = rng.choice([ground for ground in grounds if ground != scene.colour])
        plain.append(render(build_scene(rng, scene.shape, scene.colour, ground, scene.size)))
    return {"real": style_score(name, real), "chance": style_score(name, plain)}


def object_crop(picture: Image.Image) -> Pixels:
    """The object alone on a muted ground, resized to a small square."""
    pixels = pixels_of(picture)
    mask = object_mask(pixels, border_colour(pixels))
    if mask.sum() < 20:
        return np.full((CROP_PX, CROP_PX, 3), MUTED, np.float32)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    muted = np.where(mask[..., None], pixels, MUTED)
    cut = muted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    small = Image.fromarray(cut.astype(np.uint8)).resize((CROP_PX, CROP_PX), Image.Resampling.BOX)
    return np.asarray(small, np.float32)


@cache
def subject_crops(name: str, seed: int = 21) -> tuple[Pixels, ...]:
    """Fresh drawings of a subject, one for every background."""
    pairs = subject_pairs(name, len(PALETTE), seed)
    return tuple(object_crop(picture) for picture, _, _ in pairs)


def class_pictures(count: int, seed: int = 31) -> list[Image.Image]:
    """Random members of the class that the subject belongs to."""
    rng = random.Random(seed)
    pictures = []
    for _ in range(count):
        colour, ground = rng.sample(list(PALETTE), 2)
        pictures.append(render(build_scene(rng, CREATURE, colour, ground, "big")))
    return pictures


def subject_distance(name: str, pictures: Sequence[Image.Image]) -> float:
    """Mean colour distance to the nearest real drawing of the subject."""
    crops = np.stack(subject_crops(name))
    gaps = [np.abs(crops - object_crop(picture)).mean((1, 2, 3)).min() for picture in pictures]
    return float(np.mean(gaps))


def subject_score(name: str, pictures: Sequence[Image.Image]) -> float:
    """0 as far as random creatures are, 1 as near as other real drawings of the subject."""
    chance = subject_distance(name, class_pictures(64))
    fresh = [picture for picture, _, _ in subject_pairs(name, 16, 41)]
    real = subject_distance(name, fresh)
    return round((chance - subject_distance(name, pictures)) / (chance - real), 4)


def subject_prompts(name: str) -> list[tuple[str, str]]:
    """(prompt for the subject, the same prompt for its class: it must not drift)."""
    prompts = []
    for ground in PALETTE:
        tail = f"{CREATURE} on {with_article(ground)} background"
        wanted = with_article(f"{SUBJECTS[name].placeholder} {tail}")
        prompts.append((wanted, with_article(tail)))
    return prompts
