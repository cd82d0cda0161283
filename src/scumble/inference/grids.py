"""Pictures laid out in a labelled grid, to be looked at and shared."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

CELL_PX = 192
"""Smaller pictures are enlarged to about this edge, so that a grid can be looked at."""
GAP_PX = 8
INK, PAPER = (32, 32, 36), (255, 255, 255)


def labelled_grid(
    rows: Sequence[Sequence[Image.Image]],
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> Image.Image:
    """Lay pictures out in rows.

    Args:
        rows: pictures row by row, all of one size, every row as long as the first.
        columns: headings over the columns; none leaves the line out.
        labels: what each row shows, written to its left; none leaves the column out.

    Returns:
        One RGB picture.
    """
    width, height = _cell_size(rows[0][0])
    left = 150 if labels else GAP_PX
    top = 30 if columns else GAP_PX
    size = (
        left + len(rows[0]) * (width + GAP_PX),
        top + len(rows) * (height + GAP_PX),
    )
    grid = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(grid)
    font = ImageFont.load_default(size=15)
    for x, heading in enumerate(columns):
        pen.text((left + x * (width + GAP_PX), 7), heading, INK, font)
    for y, row in enumerate(rows):
        y_px = top + y * (height + GAP_PX)
        if labels:
            text = textwrap.fill(labels[y], 18, max_lines=9, placeholder=" ...")
            # No-break spaces have done their part; the font has no sign for them.
            text = text.replace("\u00a0", " ")
            pen.multiline_text((GAP_PX, y_px), text, INK, font)
        for x, picture in enumerate(row):
            enlarged = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
            grid.paste(enlarged, (left + x * (width + GAP_PX), y_px))
    return grid


def _cell_size(picture: Image.Image) -> tuple[int, int]:
    factor = max(1, round(CELL_PX / max(picture.size)))
    return picture.width * factor, picture.height * factor
