"""Outlines of everything the tiny world can draw, as polygons in the unit frame.

One picture is a list of `Part`s, painted back to front. Styles redraw the same parts with other
pens, so a style never needs to know what it paints.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

Point = tuple[float, float]
Colour = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "heart")
CREATURE = "creature"
EYE_WHITE: Colour = (250, 250, 250)
PUPIL: Colour = (20, 20, 26)


@dataclass(frozen=True)
class Part:
    """One closed polygon and the colour that fills it; points lie in [-1, 1] around the centre."""

    points: tuple[Point, ...]
    colour: Colour


@dataclass(frozen=True)
class Body:
    """What makes one creature differ from another."""

    build: str = "round"
    eyes: int = 2
    top: str = "ears"
    belly: Colour = (245, 245, 245)
    trim: Colour = (40, 40, 46)


BUILDS = ("round", "tall", "wide", "square")
TOPS = ("none", "ears", "horns", "antennae")


def ellipse(x: float, y: float, rx: float, ry: float, corners: int = 48) -> tuple[Point, ...]:
    """A polygon that looks like an ellipse at the sizes drawn here."""
    turns = (2 * math.pi * i / corners for i in range(corners))
    return tuple((x + rx * math.cos(a), y + ry * math.sin(a)) for a in turns)


def superellipse(rx: float, ry: float, power: float, corners: int = 64) -> tuple[Point, ...]:
    """An ellipse that becomes a rounded box as `power` grows above 2."""

    def bend(value: float) -> float:
        return math.copysign(abs(value) ** (2 / power), value)

    turns = (2 * math.pi * i / corners for i in range(corners))
    return tuple((rx * bend(math.cos(a)), ry * bend(math.sin(a))) for a in turns)


def star_outline() -> tuple[Point, ...]:
    """A five-pointed star with one point up."""
    points = []
    for i in range(10):
        reach = 1.08 if i % 2 == 0 else 0.46
        angle = math.pi * i / 5 - math.pi / 2
        points.append((reach * math.cos(angle), reach * math.sin(angle) + 0.08))
    return tuple(points)


def heart_outline(corners: int = 64) -> tuple[Point, ...]:
    """The classical heart curve, scaled to the unit frame."""
    points = []
    for i in range(corners):
        t = 2 * math.pi * i / corners
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 16, -(y + 2.5) / 15.5))
    return tuple(points)


def shape_outline(shape: str) -> tuple[Point, ...]:
    """The outline of one of `SHAPES`.

    Raises:
        ValueError: the shape is not one of `SHAPES`.
    """
    if shape == "circle":
        return ellipse(0, 0, 0.95, 0.95)
    if shape == "square":
        return ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85))
    if shape == "triangle":
        return ((0, -1.0), (1.08, 0.85), (-1.08, 0.85))
    if shape == "star":
        return star_outline()
    if shape == "heart":
        return heart_outline()
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


def random_body(rng: random.Random, bellies: list[Colour]) -> Body:
    """One random member of the class "creature"."""
    return Body(
        build=rng.choice(BUILDS),
        eyes=rng.choice((1, 2, 2, 3)),
        top=rng.choice(TOPS),
        belly=rng.choice(bellies),
        trim=rng.choice(bellies),
    )


def top_parts(body: Body, colour: Colour, rx: float, ry: float) -> list[Part]:
    """What grows on the creature's head, drawn behind the body."""
    parts = []
    for side in (-1, 1):
        x = side * rx * 0.62
        if body.top == "ears":
            parts.append(Part(ellipse(x, -ry * 0.82, 0.3, 0.3), colour))
        elif body.top == "horns":
            base = -ry * 0.55
            horn = ((x - 0.24, base), (x + 0.24, base), (x + side * 0.16, base - 0.62))
            parts.append(Part(horn, body.trim))
        elif body.top == "antennae":
            tip, foot = (side * 0.5, -ry - 0.28), (side * 0.22, -ry * 0.8)
            stalk = (
                (foot[0] - 0.07, foot[1]),
                (foot[0] + 0.07, foot[1]),
                (tip[0] + 0.07, tip[1]),
                (tip[0] - 0.07, tip[1]),
            )
            parts.append(Part(stalk, colour))
            parts.append(Part(ellipse(*tip, 0.18, 0.18), body.trim))
    return parts


def creature_parts(body: Body, colour: Colour) -> list[Part]:
    """The parts of a creature, back to front: top, feet, body, belly, eyes."""
    rx, ry, power = {
        "round": (0.78, 0.78, 2.0),
        "tall": (0.6, 0.86, 2.4),
        "wide": (0.95, 0.62, 2.2),
        "square": (0.76, 0.74, 5.0),
    }[body.build]
    parts = top_parts(body, colour, rx, ry)
    parts += [Part(ellipse(s * rx * 0.5, ry * 0.95, 0.24, 0.17), body.trim) for s in (-1, 1)]
    parts.append(Part(superellipse(rx, ry, power), colour))
    parts.append(Part(ellipse(0, ry * 0.48, rx * 0.52, ry * 0.36), body.belly))
    radius = {1: 0.32, 2: 0.24, 3: 0.2}[body.eyes]
    gap = radius * 2.15
    for i in range(body.eyes):
        x, y = gap * (i - (body.eyes - 1) / 2), -ry * 0.28
        parts.append(Part(ellipse(x, y, radius, radius), EYE_WHITE))
        parts.append(Part(ellipse(x, y + 0.03, radius * 0.5, radius * 0.5), PUPIL))
    return parts
