"""Pictures to train the autoencoder on: the tiny world, and much that is not in it.

An autoencoder that has only seen the palette's flat colours could not show what a LoRA learns.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from .outlines import Colour, Part
from .scenes import Scene, render, sample_scene, scaled

SIDE_PX = 64
CROP_PX = 32
DRAWN_PX = SIDE_PX * 2


def random_colour(rng: random.Random) -> Colour:
    """Any colour at all."""
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def doodle(rng: random.Random) -> Image.Image:
    """Random lines, polygons and discs on a flat or shaded ground, sometimes blurred."""
    side = DRAWN_PX
    corners = Image.new("RGB", (2, 2))
    corners.putdata([random_colour(rng) for _ in range(4)])
    flat = rng.random() < 0.5
    cells = (1, 1) if flat else (2, 2)
    picture = corners.resize(cells).resize((side, side), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    for _ in range(rng.randrange(1, 6)):
        points = [(rng.uniform(0, side), rng.uniform(0, side)) for _ in range(rng.randrange(2, 6))]
        kind = rng.random()
        if kind < 0.4:
            loop = [*points, points[0]]
            pen.line(loop, fill=random_colour(rng), width=rng.randrange(3, 9), joint="curve")
        elif kind < 0.7:
            pen.polygon(points, fill=random_colour(rng))
        else:
            x, y, r = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(5, side / 3)
            box = (x - r, y - r, x + r, y + r)
            pen.ellipse(box, fill=random_colour(rng), outline=random_colour(rng), width=4)
        if rng.random() < 0.15:
            picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(1, 8)))
            pen = ImageDraw.Draw(picture)
    return picture.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)


def draw_parts(picture: Image.Image, parts: list[Part], rng: random.Random) -> None:
    """Fill the parts, or outline them, or both."""
    pen = ImageDraw.Draw(picture)
    filled, lined = rng.choice(((True, False), (True, True), (False, True)))
    line, width = random_colour(rng), rng.randrange(2, 8)
    own_lines = rng.random() < 0.5
    for part in parts:
        points = scaled(part.points, DRAWN_PX)
        if filled:
            pen.polygon(points, fill=part.colour)
        if lined:
            loop = [*points, points[0], points[1]]
            pen.line(loop, fill=part.colour if own_lines else line, width=width, joint="curve")


def grained(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Faint, coarse grain over the whole picture."""
    cells = rng.choice((16, 32, 64))
    chance = np.random.default_rng(rng.randrange(2**32))
    noise = chance.normal(0, rng.uniform(2, 14), (cells, cells))
    layer = Image.fromarray(np.clip(128 + noise, 0, 255).astype(np.uint8))
    shade = np.asarray(layer.resize(picture.size, Image.Resampling.BICUBIC), np.float32) - 128
    return Image.fromarray(np.clip(np.asarray(picture) + shade[..., None], 0, 255).astype(np.uint8))


def recoloured(scene: Scene, rng: random.Random) -> Image.Image:
    """A scene in colours, lines, glows and grains that the tiny world itself never has."""
    inks: dict[Colour, Colour] = {}
    parts = []
    for part in scene.parts():
        ink = inks.setdefault(part.colour, random_colour(rng))
        parts.append(Part(part.points, ink))
    picture = Image.new("RGB", (DRAWN_PX, DRAWN_PX), random_colour(rng))
    if rng.random() < 0.2:
        draw_parts(picture, parts, rng)
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(2, 14)))
    draw_parts(picture, parts, rng)
    picture = picture.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
    return grained(picture, rng) if rng.random() < 0.3 else picture


def busiest_crop(rng: random.Random, picture: Image.Image) -> Image.Image:
    """The one of two random crops with more edges: flat ground teaches an autoencoder nothing."""
    crops = []
    for _ in range(2):
        x, y = (rng.randrange(0, SIDE_PX - CROP_PX + 1, 4) for _ in range(2))
        crops.append(picture.crop((x, y, x + CROP_PX, y + CROP_PX)))
    return max(crops, key=lambda crop: float(np.asarray(crop, np.float32).std()))


def to_pixels(pictures: list[Image.Image]) -> Tensor:
    """Pictures as one batch in [-1, 1]."""
    array = np.stack([np.asarray(picture, np.float32) for picture in pictures])
    return torch.from_numpy(array).permute(0, 3, 1, 2) / 127.5 - 1


def autoencoder_batch(rng: random.Random, size: int, crop: bool, free: bool) -> Tensor:
    """A quarter doodles, the rest scenes, every other one a creature.

    Args:
        rng: the only source of chance.
        size: how many pictures.
        crop: cut each to its busy part.
        free: recolour two scenes of three.
    """
    pictures = []
    for index in range(size):
        scene = sample_scene(rng, "full", 1.0 if index % 4 == 2 else 0.0)
        if index % 4 == 3:
            pictures.append(doodle(rng))
        elif free and rng.random() < 0.67:
            pictures.append(recoloured(scene, rng))
        else:
            pictures.append(render(scene))
    if crop:
        pictures = [busiest_crop(rng, picture) for picture in pictures]
    return to_pixels(pictures)
