"""The tiny world: one object, a colour, a plain background; drawn and captioned from one seed.

Everything the base model knows comes from here. A `Scene` holds what was drawn, so captions can
name any part of it and the scorer can check the picture against it.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

from .outlines import (
    CREATURE,
    SHAPES,
    Body,
    Colour,
    Part,
    Point,
    creature_parts,
    random_body,
    shape_outline,
)

PALETTE: dict[str, Colour] = {
    "red": (214, 40, 46),
    "orange": (246, 138, 24),
    "yellow": (250, 218, 50),
    "green": (44, 160, 70),
    "blue": (42, 92, 214),
    "purple": (138, 60, 184),
    "white": (245, 245, 245),
    "black": (24, 24, 28),
}
SIZES: dict[str, tuple[float, float]] = {
    "small": (0.15, 0.17),
    "": (0.235, 0.265),
    "big": (0.33, 0.36),
}
POSITIONS: dict[str, Point] = {
    "": (0.0, 0.0),
    "on the left": (-1.0, 0.0),
    "on the right": (1.0, 0.0),
    "at the top": (0.0, -1.0),
    "at the bottom": (0.0, 1.0),
}
HELD_OUT_SHARE = 0.15
STAGES = ("centred", "placed", "full")
EDGE_GAP = 0.05
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Scene:
    """One object on a plain background; lengths are fractions of the picture's side."""

    shape: str
    colour: str
    background: str
    size: str
    position: str
    centre: Point
    radius: float
    body: Body | None = None
    rgb: Colour | None = None

    def parts(self) -> list[Part]:
        """The object as polygons in picture fractions, back to front."""
        colour = self.rgb or PALETTE[self.colour]
        if self.body is None:
            drawn = [Part(shape_outline(self.shape), colour)]
        else:
            drawn = creature_parts(self.body, colour)
        return [replace(part, points=tuple(self.place(p) for p in part.points)) for part in drawn]

    def place(self, point: Point) -> Point:
        """From the object's unit frame into the picture."""
        x, y = point
        return self.centre[0] + x * self.radius, self.centre[1] + y * self.radius


def is_held_out(shape: str, colour: str, background: str) -> bool:
    """Whether this combination is kept from training, decided by a hash so that it never moves."""
    key = f"{shape}/{colour}/{background}".encode()
    return zlib.crc32(key) % 1000 < HELD_OUT_SHARE * 1000


def sample_layout(rng: random.Random, size: str, position: str) -> tuple[Point, float]:
    """A centre and a radius that fit the words, with a little play."""
    radius = rng.uniform(*SIZES[size])
    reach = 0.5 - radius * 1.1 - EDGE_GAP
    side_x, side_y = POSITIONS[position]
    centre = [0.5 + side_x * reach, 0.5 + side_y * reach]
    play = 0.02
    return (centre[0] + rng.uniform(-play, play), centre[1] + rng.uniform(-play, play)), radius


def build_scene(
    rng: random.Random, shape: str, colour: str, background: str, size: str = "", position: str = ""
) -> Scene:
    """A scene with these words; the play in place and size, and a creature's body, are drawn."""
    centre, radius = sample_layout(rng, size, position)
    body = None
    if shape == CREATURE:
        bellies = [rgb for name, rgb in PALETTE.items() if name not in (colour, background)]
        body = random_body(rng, bellies)
    return Scene(shape, colour, background, size, position, centre, radius, body)


def sample_scene(rng: random.Random, stage: str = "full", creature_share: float = 0.15) -> Scene:
    """One training scene, never a held-out combination.

    Args:
        rng: the only source of chance.
        stage: "centred" keeps big objects in the middle, "placed" adds sizes and positions,
            "full" adds creatures.
        creature_share: how many "full" scenes show a creature.
    """
    while True:
        shape = rng.choice(SHAPES)
        if stage == "full" and rng.random() < creature_share:
            shape = CREATURE
        colour, background = rng.sample(list(PALETTE), 2)
        if not is_held_out(shape, colour, background):
            break
    if stage == "centred":
        return build_scene(rng, shape, colour, background, "big")
    # A creature's face needs pixels: small ones would teach the model to smear eyes.
    sizes = ["", "big", "big"] if shape == CREATURE else ["small", "", "big"]
    size = rng.choice(sizes)
    moved = rng.random() < 0.5 and size != "big"
    position = rng.choice(list(POSITIONS)[1:]) if moved else ""
    return build_scene(rng, shape, colour, background, size, position)


def with_article(words: str) -> str:
    """Put the right one of "a" and "an" in front."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def caption(scene: Scene, rng: random.Random | None = None, drop: float = 0.0) -> str:
    """The scene in words.

    Args:
        scene: what was drawn.
        rng: needed when `drop` is above 0.
        drop: chance that each of size, colour, position and background goes unsaid.
    """

    def said() -> bool:
        return rng is None or rng.random() >= drop

    noun = " ".join(
        word
        for word in (
            scene.size if said() else "",
            scene.colour if said() else "",
            scene.shape,
        )
        if word
    )
    words = [with_article(noun)]
    if scene.position and said():
        words.append(scene.position)
    if said():
        words.append(f"on {with_article(scene.background)} background")
    return " ".join(words)


def scaled(points: tuple[Point, ...], side_px: int) -> list[Point]:
    """Picture fractions to pixels."""
    return [(x * side_px, y * side_px) for x, y in points]


def render(scene: Scene, side_px: int = 64) -> Image.Image:
    """Paint a scene with flat colours and clean edges."""
    big_px = side_px * SUPERSAMPLING
    picture = Image.new("RGB", (big_px, big_px), PALETTE[scene.background])
    pen = ImageDraw.Draw(picture)
    for part in scene.parts():
        pen.polygon(scaled(part.points, big_px), fill=part.colour)
    return picture.resize((side_px, side_px), Image.Resampling.BOX)


def held_out_pairs(shape: str) -> list[tuple[str, str]]:
    """Every (colour, background) that training never shows with this shape."""
    return [
        (colour, ground)
        for colour in PALETTE
        for ground in PALETTE
        if colour != ground and is_held_out(shape, colour, ground)
    ]


def held_out_scenes(count: int, seed: int = 2026) -> list[Scene]:
    """A fixed list of scenes for scoring: held-out combinations only, shapes in equal numbers."""
    rng = random.Random(seed)
    scenes: list[Scene] = []
    pairs = {shape: held_out_pairs(shape) for shape in SHAPES}
    for i in range(count):
        shape = SHAPES[i % len(SHAPES)]
        colour, ground = rng.choice(pairs[shape])
        size = rng.choice(["", "big"]) if i % 3 else "big"
        position = rng.choice(list(POSITIONS)) if size == "" else ""
        scenes.append(build_scene(rng, shape, colour, ground, size, position))
    return scenes


def held_out_small(count: int, seed: int = 2027) -> list[Scene]:
    """Held-out scenes with small objects, anywhere: the hardest that is promised."""
    rng = random.Random(seed)
    scenes = []
    for i in range(count):
        shape = SHAPES[i % len(SHAPES)]
        colour, ground = rng.choice(held_out_pairs(shape))
        position = rng.choice(list(POSITIONS))
        scenes.append(build_scene(rng, shape, colour, ground, "small", position))
    return scenes


def scored_creatures(count: int, seed: int = 2028) -> list[Scene]:
    """Creatures to score, in colours that cannot be taken for eyes.

    Too few of those colour pairs are held out, so pairs from training come along; what is new in
    each picture is the creature.
    """
    rng = random.Random(seed)
    clear = [name for name in PALETTE if name not in ("black", "white")]
    return [build_scene(rng, CREATURE, *rng.sample(clear, 2), "big") for _ in range(count)]
