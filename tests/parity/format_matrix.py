"""Which program reads what, found out by doing it: the tables of docs/explanation/formats.md.

Each program loads each file into a fresh pipeline, which then draws, and the picture is compared
with the one that the file should give. Run this file to write what came out into the page.
"""

import logging
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

# Before the Hub's client is imported, which reads it only once.
os.environ["HF_HUB_OFFLINE"] = "1"

import lycoris
import matrix_base as base
import numpy as np
from diffusers import StableDiffusionPipeline
from matrix_others import OTHERS
from matrix_ours import OURS, Made, Row
from peft import PeftModel

import scumble

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "formats.md"
START = "<!-- written by tests/parity/format_matrix.py -->"
END = "<!-- end of what it wrote -->"

SAME = 1e-5
"""How much pictures may differ that are the same; their values are 0 to 1."""
OTHER = 1e-3
"""By how much those differ that are not. Between the two, nothing can be said."""

NOT_FOR_IT = "-"
SECTIONS = {"What scumble writes": ("format", OURS), "What others write": ("written by", OTHERS)}
ROWS = [row for _, rows in SECTIONS.values() for row in rows]

Loader = Callable[[StableDiffusionPipeline, Path, Row], object]


def with_scumble(pipeline: StableDiffusionPipeline, path: Path, row: Row) -> None:
    scumble.load_adapter(pipeline, path, allow_pickle=True)


def with_diffusers(pipeline: StableDiffusionPipeline, path: Path, row: Row) -> None:
    load = pipeline.load_lora_weights if row.has_layers else pipeline.load_textual_inversion
    load(str(path.parent), weight_name=path.name)


def with_peft(pipeline: StableDiffusionPipeline, path: Path, row: Row) -> None:
    pipeline.unet = PeftModel.from_pretrained(pipeline.unet, path.parent)


def with_lycoris(pipeline: StableDiffusionPipeline, path: Path, row: Row) -> None:
    """Load what has its own names, then what has those that kohya's scripts give either model."""
    for prefix, model in (
        ("lycoris", pipeline.unet),
        ("lora_unet", pipeline.unet),
        ("lora_te_text_model", pipeline.text_encoder),
    ):
        with base.lycoris_preset(lora_prefix=prefix):
            network, _ = lycoris.create_lycoris_from_weights(1.0, str(path), model)
            network.apply_to()


PROGRAMS: Mapping[str, Loader] = {
    "scumble": with_scumble,
    "diffusers": with_diffusers,
    "PEFT": with_peft,
    "LyCORIS": with_lycoris,
}
WORDS = ("scumble", "diffusers")
"""Programs that know words."""
PACKAGES = {"diffusers": "diffusers", "PEFT": "peft", "LyCORIS": "lycoris-lora"}


def line(row: Row) -> str:
    """The row of the table, after loading a new file with every program."""
    with tempfile.TemporaryDirectory() as folder:
        made = row.make(Path(folder))
        changed = _distance(made.picture, base.plain(made.base))
        assert changed > OTHER, f"{row.source}, {row.holds}: it changes the picture by {changed}"
        cells = [
            _cell(load, made, row) if row.has_layers or name in WORDS else NOT_FOR_IT
            for name, load in PROGRAMS.items()
        ]
    return f"| {row.source} | {row.holds} | {' | '.join(cells)} |"


def _cell(load: Loader, made: Made, row: Row) -> str:
    try:
        pipeline = base.fresh(made.base)
        load(pipeline, made.path, row)
        picture = base.draw(pipeline)
    except Exception:  # whatever it says, it does not draw
        return "refused"
    wrong = _distance(picture, made.picture)
    assert not SAME < wrong < OTHER, f"pictures that differ by {wrong} may be the same or not"
    if wrong <= SAME:
        return "same"
    return "**nothing**" if _distance(picture, base.plain(made.base)) <= SAME else "**wrong**"


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())


def on_page() -> list[str]:
    """The lines that the page has between the marks."""
    _, _, rest = PAGE.read_text("utf-8").partition(START)
    return rest.partition(END)[0].splitlines()


def name_of(line: str) -> tuple[str, ...]:
    """What a row of a table is called: its first two cells."""
    return tuple(cell.strip() for cell in line.split("|")[1:3])


def _tables() -> str:
    parts = []
    for title, (first, rows) in SECTIONS.items():
        heads = [first, "what is in it", *PROGRAMS]
        lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *map(line, rows)]
        parts += [f"### {title}", "\n".join(lines)]
    versions = [f"{name} {version(package)}" for name, package in PACKAGES.items()]
    parts.append(f"Run with {', '.join(versions)}.")
    return "\n\n".join(parts)


def write_page() -> None:
    """Put what the programs do now between the marks of the page."""
    pattern = re.compile(f"{re.escape(START)}.*{re.escape(END)}", re.DOTALL)
    block = f"{START}\n{_tables()}\n{END}"
    PAGE.write_text(pattern.sub(lambda _: block, PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    logging.disable()
    write_page()
