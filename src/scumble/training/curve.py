"""The loss curve as a picture."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

SIZE = (900, 420)
LEFT, TOP, RIGHT, BOTTOM = 70, 40, 20, 50
INK, FAINT, RAW, SMOOTH = (40, 40, 46), (225, 225, 230), (190, 205, 235), (45, 90, 200)


def loss_curve(losses: Sequence[float]) -> Image.Image:
    """Plot the loss of each step, faint, and its running mean over it.

    Args:
        losses: of step 1, 2, ...; at least one.
    """
    image = Image.new("RGB", SIZE, (255, 255, 255))
    pen = ImageDraw.Draw(image)
    smooth = running_mean(losses)
    low, high = 0.0, _ceiling(losses)
    _axes(pen, len(losses), low, high)
    for values, colour, width in ((losses, RAW, 1), (smooth, SMOOTH, 3)):
        points = [_place(i, v, len(losses), low, high) for i, v in enumerate(values)]
        if len(points) > 1:
            pen.line(points, colour, width, joint="curve")
        else:
            x, y = points[0]
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
    title = f"training loss: {smooth[-1]:.4f} after {len(losses)} steps"
    pen.text((LEFT, 12), title, INK, ImageFont.load_default(size=16))
    return image


def running_mean(losses: Sequence[float]) -> list[float]:
    """Mean over a trailing window of a twentieth of the run, at least 10 steps."""
    window = max(10, len(losses) // 20)
    sums = [0.0]
    for loss in losses:
        sums.append(sums[-1] + loss)
    starts = [max(0, end - window) for end in range(1, len(sums))]
    return [(sums[i + 1] - sums[s]) / (i + 1 - s) for i, s in enumerate(starts)]


def _ceiling(losses: Sequence[float]) -> float:
    """A little over nearly all values: one spike must not flatten the rest."""
    ordered = sorted(losses)
    return max(ordered[int(0.98 * (len(ordered) - 1))] * 1.1, 1e-8)


def _place(index: int, value: float, count: int, low: float, high: float) -> tuple[float, float]:
    share_x = index / max(1, count - 1)
    share_y = min(1.0, (value - low) / (high - low))
    x = LEFT + share_x * (SIZE[0] - LEFT - RIGHT)
    return x, SIZE[1] - BOTTOM - share_y * (SIZE[1] - TOP - BOTTOM)


def _axes(pen: ImageDraw.ImageDraw, count: int, low: float, high: float) -> None:
    font = ImageFont.load_default(size=13)
    for part in range(5):
        value = low + (high - low) * part / 4
        _, y = _place(0, value, count, low, high)
        pen.line([(LEFT, y), (SIZE[0] - RIGHT, y)], FAINT)
        pen.text((LEFT - 8, y), f"{value:.3f}", INK, font, anchor="rm")
        x, _ = _place(part, 0, 5, low, high)
        step = 1 + round((count - 1) * part / 4)
        pen.text((x, SIZE[1] - BOTTOM + 8), str(step), INK, font, anchor="ma")
    pen.text((SIZE[0] / 2, SIZE[1] - 18), "step", INK, font, anchor="ma")
