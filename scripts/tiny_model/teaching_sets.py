"""Two styles and two subjects that the base model does not know, as small captioned sets.

Styles change a whole picture, so one glance tells whether a LoRA has learnt them. Subjects are
single creatures with colours and parts that the base's own random creatures do not combine.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .outlines import CREATURE, SHAPES, Body, Colour
from .scenes import (
    PALETTE,
    POSITIONS,
    SUPERSAMPLING,
    Scene,
    build_scene,
    caption,
    render,
    scaled,
    with_article,
)

NIGHT: Colour = (22, 14, 66)
PAPER: Colour = (243, 231, 204)
INK: Colour = (46, 36, 34)
SIDE_PX = 128
STYLE_PICTURES = 24
SUBJECT_PICTURES = 5


@dataclass(frozen=True)
class Subject:
    """One particular creature, and the rare word that will stand for it."""

    placeholder: str
    rgb: Colour
    body: Body


SUBJECTS: dict[str, Subject] = {
    "creature_pip": Subject(
        "sks", (64, 200, 178), Body("tall", 1, "antennae", (255, 226, 150), (240, 96, 60))
    ),
    "creature_mo": Subject(
        "ohwx", (236, 112, 168), Body("square", 3, "horns", (120, 214, 236), (92, 52, 120))
    ),
}


def brightened(colour: Colour, share: float) -> Colour:
    """Mix a colour towards white."""
    red, green, blue = (round(c + (255 - c) * share) for c in colour)
    return red, green, blue


def paint_neon(scene: Scene, side_px: int, rng: random.Random) -> Image.Image:
    """Glowing tubes on a night sky; nothing is filled."""
    del rng  # Every painter is offered chance; tubes are drawn without it.
    big_px = side_px * SUPERSAMPLING
    tubes = Image.new("RGB", (big_px, big_px), (0, 0, 0))
    cores = Image.new("RGB", (big_px, big_px), (0, 0, 0))
    # A creature has many outlines close together: thick tubes would melt into one blob.
    width = round(big_px * (0.03 if scene.body else 0.05))
    for part in scene.parts():
        if max(part.colour) < 60:
            continue
        outline = scaled(part.points, big_px)
        loop = [*outline, outline[0], outline[1]]
        ImageDraw.Draw(tubes).line(loop, brightened(part.colour, 0.2), width, joint="curve")
        ImageDraw.Draw(cores).line(
            loop, brightened(part.colour, 0.55), round(width * 0.4), joint="curve"
        )
    small = (side_px, side_px)
    tubes = tubes.resize(small, Image.Resampling.BOX)
    cores = cores.resize(small, Image.Resampling.BOX)
    glow = tubes.filter(ImageFilter.GaussianBlur(side_px * 0.055))
    wide = tubes.filter(ImageFilter.GaussianBlur(side_px * 0.13))
    picture = Image.new("RGB", small, NIGHT)
    for light in (wide, glow, glow, tubes):
        picture = ImageChops.screen(picture, light)
    return ImageChops.lighter(picture, cores)


def paint_ink_wash(scene: Scene, side_px: int, rng: random.Random) -> Image.Image:
    """A watercolour wash that slips past an ink line, on cream paper."""
    big_px = side_px * SUPERSAMPLING
    slip = (rng.uniform(0.03, 0.045), rng.uniform(0.02, 0.035))
    paper = Image.new("RGB", (big_px, big_px), PAPER)
    wash, line = paper.copy(), ImageDraw.Draw(paper)
    brush = ImageDraw.Draw(wash)
    for part in scene.parts():
        moved = tuple((x + slip[0], y + slip[1]) for x, y in part.points)
        brush.polygon(scaled(moved, big_px), fill=brightened(part.colour, 0.32))
    wash = wash.filter(ImageFilter.GaussianBlur(big_px * 0.012))
    paper.paste(wash)
    width = round(big_px * 0.028)
    for part in scene.parts():
        outline = scaled(part.points, big_px)
        line.line([*outline, outline[0], outline[1]], INK, width, joint="curve")
    picture = paper.resize((side_px, side_px), Image.Resampling.BOX)
    grain = np.random.default_rng(rng.randrange(2**32)).normal(0, 1, (side_px // 4, side_px // 4))
    mottle = Image.fromarray(np.clip(128 + 9 * grain, 0, 255).astype(np.uint8))
    mottle = mottle.resize((side_px, side_px), Image.Resampling.BICUBIC)
    shade = np.asarray(mottle, np.float32)[..., None] - 128
    return Image.fromarray(np.clip(np.asarray(picture) + shade, 0, 255).astype(np.uint8))


Painter = Callable[[Scene, int, random.Random], Image.Image]
STYLES: dict[str, tuple[Painter, Colour]] = {
    "style_neon": (paint_neon, NIGHT),
    "style_ink": (paint_ink_wash, PAPER),
}
STYLE_PHRASES = {"style_neon": "neon style", "style_ink": "ink style"}


def style_scene(rng: random.Random, index: int) -> Scene:
    """A scene for a style picture: every shape in turn, now and then a creature."""
    nouns = (*SHAPES, CREATURE)
    shape = nouns[index % len(nouns)]
    # Black tubes cannot glow, and the style hides the background, so neither is asked for.
    colours = [name for name in PALETTE if name not in ("black", "white")]
    size = rng.choice(["", "big", "big"])
    position = rng.choice(list(POSITIONS)) if size == "" and shape != CREATURE else ""
    size = "big" if shape == CREATURE else size
    return build_scene(rng, shape, colours[(index * 5 + index // 6) % 6], "black", size, position)


def style_pairs(name: str, count: int, seed: int) -> list[tuple[Image.Image, str, Scene]]:
    """Pictures, captions and scenes of one style; another seed gives unseen pictures."""
    rng = random.Random(f"{name}/{seed}")
    painter, _ = STYLES[name]
    pairs = []
    for index in range(count):
        scene = style_scene(rng, index)
        words = caption(scene).split(" on a ")[0]
        pairs.append((painter(scene, SIDE_PX, rng), f"{words}, {STYLE_PHRASES[name]}", scene))
    return pairs


def subject_pairs(name: str, count: int, seed: int) -> list[tuple[Image.Image, str, Scene]]:
    """Pictures, captions and scenes of one subject on different backgrounds."""
    rng = random.Random(f"{name}/{seed}")
    subject = SUBJECTS[name]
    grounds = rng.sample(list(PALETTE), len(PALETTE))
    pairs = []
    for index in range(count):
        ground = grounds[index % len(grounds)]
        centre = (0.5 + rng.uniform(-0.04, 0.04), 0.53 + rng.uniform(-0.03, 0.03))
        radius = rng.uniform(0.31, 0.36)
        scene = Scene(CREATURE, "", ground, "big", "", centre, radius, subject.body, subject.rgb)
        noun = with_article(f"{subject.placeholder} {CREATURE}")
        words = f"{noun} on {with_article(ground)} background"
        pairs.append((render(scene, SIDE_PX), words, scene))
    return pairs


def write_sets(folder: Path, seed: int = 7) -> None:
    """Write every teaching set as PNG files with a caption file beside each."""
    for name in (*STYLES, *SUBJECTS):
        if name in STYLES:
            pairs = style_pairs(name, STYLE_PICTURES, seed)
        else:
            pairs = subject_pairs(name, SUBJECT_PICTURES, seed)
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        for index, (picture, words, _) in enumerate(pairs):
            picture.save(target / f"{index:02d}.png", optimize=True)
            (target / f"{index:02d}.txt").write_text(words + "\n", encoding="utf-8")
        (target / "LICENSE.md").write_text(licence_note(name, len(pairs)), encoding="utf-8")
    (folder / "README.md").write_text(folder_note(), encoding="utf-8")


def licence_note(name: str, count: int) -> str:
    """What the set is and that anyone may use it."""
    return (
        f"# {name}\n\n{count} pictures of {SIDE_PX} x {SIDE_PX} pixels, each with a caption file.\n"
        "Drawn by this project's own code (`scripts/tiny_model/teaching_sets.py`); no photograph\n"
        "and no other work went into them. Dedicated to the public domain: CC0 1.0,\n"
        "https://creativecommons.org/publicdomain/zero/1.0/\n"
    )


def folder_note() -> str:
    """What lies in the folder of teaching sets."""
    styles = "\n".join(
        f'- `{name}`: a style, asked for as "{STYLE_PHRASES[name]}"' for name in STYLES
    )
    subjects = "\n".join(
        f'- `{name}`: one creature, asked for as "{with_article(subject.placeholder)} {CREATURE}"'
        for name, subject in SUBJECTS.items()
    )
    return (
        "# Teaching sets\n\n"
        "Small captioned sets to fine-tune `scumble-tiny` on; each picture has its\n"
        f"caption in a `.txt` file of the same name.\n\n{styles}\n{subjects}\n\n"
        "Drawn by this project's own code, CC0 1.0. Written again, byte for byte, by\n"
        "`python scripts/make_tiny_model.py --teaching_sets examples/data`.\n"
    )
