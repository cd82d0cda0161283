"""Writes docs/results.md and its pictures from whatever scores there are."""

from __future__ import annotations

import io
import json
import platform
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from scumble.inference.grids import labelled_grid

from .jobs import SCORE
from .methods import LESSONS, METHODS, ROOT, STYLE, SUBJECT, Job
from .score import (
    GUIDANCE,
    SAMPLING_STEPS,
    load_pictures,
    questions,
    real_asked,
    references,
)
from .settings import settings_lines

CONCLUSIONS = ROOT / "benchmarks" / "scoreboard_conclusions.md"
TITLES = {STYLE: "Styles", SUBJECT: "Subjects"}
COLUMNS = {
    STYLE: {
        "learnt": "style learnt",
        "asked_right": "still as asked",
        "leak": "style unasked",
        "unasked_drift": "drift, trigger left out",
        "plain_drift": "drift, plain shapes",
        "plain_right": "plain shapes right",
    },
    SUBJECT: {
        "learnt": "subject learnt",
        "asked_right": "still as asked",
        "leak": "class turned into subject",
        "unasked_drift": "drift, class",
        "plain_drift": "drift, plain shapes",
        "plain_right": "plain shapes right",
    },
}
EXPLAINED = {
    STYLE: (
        "- **style learnt**: share of pictures with the style's ground and its line, asked with "
        "the trigger for pairs of colour and shape that the teaching set does not hold.\n"
        "- **still as asked**: share of the same pictures with the asked colour and shape, styled "
        "or not.\n"
        "- **style unasked**: share that comes out in the style though the prompt has no trigger.\n"
        "- **drift**: mean difference of a colour value, 0 to 255, to what the base draws for the "
        "same prompt and noise: prompts without the trigger; plain shapes on a background.\n"
        "- **plain shapes right**: share of those plain pictures with background, colour and shape "
        "as asked."
    ),
    SUBJECT: (
        "- **subject learnt**: 0 as far from the subject as random creatures, 1 as near as other "
        "true drawings of it; asked on backgrounds that the teaching set does not hold.\n"
        "- **still as asked**: share of the same pictures on the asked background.\n"
        '- **class turned into subject**: the first score for "a creature on ... background", '
        "less the base's own value: how far every creature became the subject.\n"
        "- **drift**: mean difference of a colour value, 0 to 255, to what the base draws for the "
        "same prompt and noise: creatures; plain shapes on a background.\n"
        "- **plain shapes right**: share of those plain pictures with background, colour and shape "
        "as asked."
    ),
}
COSTS = (
    "What it costs; the seconds are the processor's, for the whole of `scumble train` on one "
    "thread with its start of about 8 s, and the peak is that of the whole process:"
)
CELL_PX, MAX_PNG_BYTES = 132, 400_000
SHOWN = {STYLE: {"asked": (1, 9, 13), "unasked": (9,), "plain": (1,)}}
SHOWN[SUBJECT] = {"asked": (0, 1, 2), "unasked": (4, 1), "plain": (1,)}
"""Kind -> questions, and which of their pictures are shown; of seed 0."""
HEADINGS = {"asked": "with trigger", "unasked": "without", "plain": "plain shape"}

Scores = dict[tuple[str, str], list[dict[str, Any]]]


def read_scores(work: Path) -> Scores:
    """(data set, method) -> its scores, seed by seed."""
    found: Scores = defaultdict(list)
    for lesson in LESSONS:
        for method in METHODS:
            for path in sorted((work / lesson / method).glob(f"*/{SCORE}")):
                found[lesson, method].append(json.loads(path.read_text("utf-8")))
    return found


def write_report(work: Path, docs: Path) -> Path:
    """Write the page and the pictures; return the page's path."""
    scores = read_scores(work)
    lines = head_lines(scores)
    for kind, title in TITLES.items():
        lessons = [n for n, lesson in LESSONS.items() if lesson.kind == kind and has(scores, n)]
        if lessons:
            lines += kind_lines(scores, kind, title, lessons)
    if CONCLUSIONS.is_file():
        lines += ["", CONCLUSIONS.read_text("utf-8").strip()]
    (docs / "images").mkdir(parents=True, exist_ok=True)
    for lesson in LESSONS:
        if (work / lesson / "base" / "0" / SCORE).is_file():
            lines += picture_lines(work, scores, lesson, docs / "images")
    lines += settings_lines(scores)
    page = docs / "results.md"
    page.write_text("\n".join(lines) + "\n", "utf-8")
    return page


def has(scores: Scores, lesson: str) -> bool:
    """Whether anything of a data set is scored."""
    return any(rows and name == lesson for (name, _), rows in scores.items())


def head_lines(scores: Scores) -> list[str]:
    """What this is and how it was made."""
    every = [row for rows in scores.values() for row in rows]
    seeds = len({row["job"].rsplit("/", 1)[1] for row in every})
    hours = sum(row["facts"].get("wall_s", 0) + row["facts"]["score_s"] for row in every) / 3600
    return [
        "# Scoreboard",
        "",
        "Every training method on the built-in base `scumble-tiny`, taught the sets in "
        "`examples/data`. Remade by one command, which goes on where it was stopped:",
        "",
        "<!-- not run: it takes the better part of an hour -->",
        "```bash",
        "python benchmarks/scoreboard.py --work WORK",
        "```",
        "",
        f"{len(every)} jobs with {seeds} seeds: the seed decides the training's random draws and "
        f"the noise of the pictures. {hours:.1f} hours of one processor core in all; "
        f"torch {version('torch')}, diffusers {version('diffusers')}, "
        f"Python {platform.python_version()}, {platform.machine()}, one thread a job. Pictures: "
        f"DPM-Solver++, {SAMPLING_STEPS} steps, guidance {GUIDANCE:g}. Each value is the mean, "
        "with the lowest and the highest seed behind it.",
    ]


def kind_lines(scores: Scores, kind: str, title: str, lessons: Sequence[str]) -> list[str]:
    """The tables of the styles, or of the subjects."""
    lines = ["", f"## {title}", "", EXPLAINED[kind], "", f"All of {', '.join(lessons)}:", ""]
    lines += score_table(scores, kind, lessons)
    lines += ["", COSTS, "", *cost_table(scores, kind, lessons)]
    if len(lessons) > 1:
        for lesson in lessons:
            lines += ["", f"`{lesson}` alone:", "", *score_table(scores, kind, [lesson])]
    return lines


def methods_of(kind: str) -> Iterable[tuple[str, str]]:
    """(name, label) of the rows."""
    return [(name, method.label) for name, method in METHODS.items() if kind in method.kinds]


def score_table(scores: Scores, kind: str, lessons: Sequence[str]) -> list[str]:
    """One row for every method, then true drawings and chance."""
    columns = COLUMNS[kind]
    lines = table_head(["", *columns.values()])
    for name, label in methods_of(kind):
        rows = [row["scores"] for lesson in lessons for row in scores.get((lesson, name), [])]
        cells = [spread([r[c] for r in rows], 1 if "drift" in c else 2) for c in columns]
        lines.append(table_row([label, *cells]))
    known = [references(lesson) for lesson in lessons]
    for name, label in (("real", "true drawings"), ("chance", "chance")):
        values = [[row[name][c] for row in known if c in row[name]] for c in columns]
        means = [f"{sum(v) / len(v):.2f}" if v else "" for v in values]
        lines.append(table_row([f"*{label}*", *means]))
    return lines


def cost_table(scores: Scores, kind: str, lessons: Sequence[str]) -> list[str]:
    """Size, time and memory of every method."""
    lines = table_head(
        ["", "parameters", "of the whole", "file, kB", "steps", "training, s", "peak memory, MiB"]
    )
    facts = {
        name: [row["facts"] for lesson in lessons for row in scores.get((lesson, name), [])]
        for name, _ in methods_of(kind)
    }
    whole = facts["full"][0]["parameters"] if facts["full"] else None
    for name, label in methods_of(kind):
        rows = facts[name]
        if name == "base" or not rows:
            continue
        count = rows[0]["parameters"]
        share = percent(count / whole) if whole else ""
        size = f"{rows[0]['bytes'] / 1000:,.0f}"
        times, peaks = ([r[key] for r in rows] for key in ("train_s", "peak_memory_mib"))
        cells = [f"{count:,}", share, size, str(rows[0]["steps"]), spread(times, 0)]
        lines.append(table_row([label, *cells, spread(peaks, 0)]))
    return lines


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, and lowest to highest where there are several; nothing where there is none."""
    if not values:
        return ""
    mean = f"{sum(values) / len(values) + 0.0:.{digits}f}"
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return mean if low == high else f"{mean} ({low}..{high})"


def percent(share: float) -> str:
    """A share that may be very small."""
    return f"{share:.1%}" if share >= 0.001 else "< 0.1%"


def table_head(cells: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [table_row(cells), "|" + "---|" * len(cells)]


def table_row(cells: Sequence[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def picture_lines(work: Path, scores: Scores, lesson: str, images: Path) -> list[str]:
    """Draw the grid of a data set, and say what is in it."""
    kind, trigger = LESSONS[lesson].kind, LESSONS[lesson].trigger
    asked = questions(lesson, trigger)
    base = load_pictures(work / Job(lesson, "base", 0).name / "pictures")
    # A quick run has fewer pictures.
    picks = [(n, i) for n, some in SHOWN[kind].items() for i in some if i < len(base[n])]
    true = real_asked(lesson)
    blank = Image.new("RGB", true[0].size, "white")
    rows = [[true[i] if n == "asked" else blank for n, i in picks]]
    labels = ["true drawings"]
    for name, label in methods_of(kind):
        if any(row["job"].endswith("/0") for row in scores.get((lesson, name), [])):
            pictures = load_pictures(work / Job(lesson, name, 0).name / "pictures")
            rows.append([pictures[n][i] for n, i in picks])
            labels.append(label)
    heads = [f"{number}: {HEADINGS[n]}" for number, (n, _) in enumerate(picks, 1)]
    sized = [[p.resize((CELL_PX, CELL_PX), Image.Resampling.BICUBIC) for p in row] for row in rows]
    path = images / f"results_{lesson}.png"
    path.write_bytes(small_png(labelled_grid(sized, heads, labels)))
    prompts = "; ".join(f'{i}: "{asked[n][k].prompt}"' for i, (n, k) in enumerate(picks, 1))
    note = f"Seed 0, the same noise in each column. {prompts}."
    if any(METHODS[name].learns_word for name, _ in methods_of(kind)):
        note += f" Methods that learn a word say `{LESSONS[lesson].word}` for `{trigger}`."
    return ["", f"## Pictures: {lesson}", "", f"![{lesson}](images/{path.name})", "", note]


def small_png(picture: Image.Image) -> bytes:
    """A PNG that a repository can carry, with fewer colours where it has to be."""
    for colours in (None, 256, 128, 64, 32):
        shown = picture if colours is None else picture.quantize(colours)
        buffer = io.BytesIO()
        shown.save(buffer, "PNG", optimize=True)
        if buffer.tell() < MAX_PNG_BYTES:
            break
    return buffer.getvalue()
