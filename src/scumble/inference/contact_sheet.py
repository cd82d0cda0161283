"""A sheet of labelled cards, each with pictures side by side and a text below them."""

import math
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from scumble.inference.grids import CELL_PX, GAP_PX, INK, PAPER

FAINT, CARD = (116, 118, 126), (243, 243, 246)
MARGIN_PX, LINE_PX, FONT_PX = 12, 19, 14
MOST_LINES = 6
"""A longer caption is cut, and says so."""
SHAPE = 1.5
"""Width of a sheet divided by its height, about."""


class Card(NamedTuple):
    """One card.

    Args:
        pictures: side by side, all of one size.
        lines: about them.
        caption: below the lines; may be empty, which is said.
    """

    pictures: Sequence[Image.Image]
    lines: Sequence[str]
    caption: str


def contact_sheet(cards: Sequence[Card], heading: str) -> Image.Image:
    """Lay cards out in rows.

    Args:
        cards: at least one.
        heading: over all of them.

    Returns:
        One RGB picture.
    """
    texts = [_wrapped(card) for card in cards]
    sizes = [_size(card, text) for card, text in zip(cards, texts, strict=True)]
    width, height = (max(size[side] for size in sizes) for side in (0, 1))
    columns = max(1, min(len(cards), round(math.sqrt(len(cards) * SHAPE * height / width))))
    rows = math.ceil(len(cards) / columns)
    sheet_width = columns * (width + MARGIN_PX) + MARGIN_PX
    letters = max(20, sheet_width // 8)
    title = textwrap.wrap(heading, letters) or [""]
    top = MARGIN_PX + len(title) * LINE_PX + MARGIN_PX // 2
    sheet = Image.new("RGB", (sheet_width, top + rows * (height + MARGIN_PX)), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=FONT_PX)
    for number, line in enumerate(title):
        pen.text((MARGIN_PX, MARGIN_PX + number * LINE_PX), line, INK, font)
    for number, (card, text) in enumerate(zip(cards, texts, strict=True)):
        x = MARGIN_PX + number % columns * (width + MARGIN_PX)
        y = top + number // columns * (height + MARGIN_PX)
        pen.rounded_rectangle((x, y, x + width, y + height), 8, CARD)
        _draw(sheet, pen, font, card, text, (x + GAP_PX, y + GAP_PX))
    return sheet


def _draw(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    card: Card,
    text: Sequence[str],
    at: tuple[int, int],
) -> None:
    x, y = at
    shown = [_shown(picture) for picture in card.pictures]
    for picture in shown:
        sheet.paste(picture, (x, y))
        x += picture.width + GAP_PX
    x, y = at[0], y + shown[0].height + GAP_PX // 2
    for number, line in enumerate(text):
        ink = FAINT if 0 < number < len(card.lines) or not card.caption else INK
        pen.text((x, y + number * LINE_PX), line, INK if number == 0 else ink, font)


def _wrapped(card: Card) -> list[str]:
    width = sum(_shown(picture).width + GAP_PX for picture in card.pictures)
    letters = max(16, width // 8)
    lines = [textwrap.shorten(line, letters, placeholder=" ...") for line in card.lines]
    caption = card.caption or "(empty caption)"
    return [*lines, *textwrap.wrap(caption, letters, max_lines=MOST_LINES, placeholder=" ...")]


def _size(card: Card, text: Sequence[str]) -> tuple[int, int]:
    shown = [_shown(picture) for picture in card.pictures]
    width = sum(picture.width + GAP_PX for picture in shown) + GAP_PX
    return width, shown[0].height + len(text) * LINE_PX + 2 * GAP_PX + GAP_PX // 2


def _shown(picture: Image.Image) -> Image.Image:
    """Small pictures enlarged and large ones made smaller, so that a sheet can be looked at."""
    factor = CELL_PX / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
